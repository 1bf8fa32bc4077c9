  // One block attends for one head of one row: its warps take columns in turn, each with a running
  // softmax of its own, and join at the end. Column `newest` holds the youngest position of every
  // row, and the columns before it, round the buffer's end, the older ones.
  constexpr int WARPS = 8;
  constexpr int PER = D / 32;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int head = blockIdx.x % HEADS;
  const int row = blockIdx.x / HEADS;
  const int columns = keys_shape[2];
  const int length = lengths[row];
  const int newest = lengths[turned_shape[0]];
  const long long base = ((long long)row * KV_HEADS + head / (HEADS / KV_HEADS)) * columns * D;
  float query[PER];
#pragma unroll
  for (int j = 0; j < PER; ++j) query[j] = static_cast<float>(turned[((long long)row * turned_shape[1] + head) * D + lane * PER + j]) * SCALE;
  float most = -INFINITY, total = 0, sums[PER] = {};
  for (int age = warp; age < length; age += WARPS * UNROLL) {
    float scores[UNROLL];
    T kept[UNROLL][PER];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      int column = newest - min(age + u * WARPS, length - 1);
      if (column < 0) column += columns;
      const long long at = base + (long long)column * D + lane * PER;
      scores[u] = 0;
#pragma unroll
      for (int j = 0; j < PER; ++j) {
        scores[u] = fmaf(query[j], static_cast<float>(keys[at + j]), scores[u]);
        kept[u][j] = values[at + j];
      }
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
#pragma unroll
      for (int u = 0; u < UNROLL; ++u) scores[u] += __shfl_xor_sync(0xffffffffu, scores[u], distance);
    }
    float top = most;
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      if (age + u * WARPS >= length) scores[u] = -INFINITY;
      top = fmaxf(top, scores[u]);
    }
    const float fade = __expf(most - top);
    most = top;
    total *= fade;
#pragma unroll
    for (int j = 0; j < PER; ++j) sums[j] *= fade;
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      const float share = __expf(scores[u] - top);
      total += share;
#pragma unroll
      for (int j = 0; j < PER; ++j) sums[j] = fmaf(share, static_cast<float>(kept[u][j]), sums[j]);
    }
  }
  __shared__ float mosts[WARPS], totals[WARPS], parts[WARPS][D];
  if (lane == 0) {
    mosts[warp] = most;
    totals[warp] = total;
  }
#pragma unroll
  for (int j = 0; j < PER; ++j) parts[warp][lane * PER + j] = sums[j];
  __syncthreads();
  if (threadIdx.x >= D) return;
  float top = -INFINITY;
#pragma unroll
  for (int v = 0; v < WARPS; ++v) top = fmaxf(top, mosts[v]);
  float all = 0, sum = 0;
#pragma unroll
  for (int v = 0; v < WARPS; ++v) {
    const float weight = totals[v] > 0 ? __expf(mosts[v] - top) : 0;
    all = fmaf(weight, totals[v], all);
    sum = fmaf(weight, parts[v][threadIdx.x], sum);
  }
  out[((long long)row * HEADS + head) * D + threadIdx.x] = static_cast<T>(sum / all);
