  // One warp computes ROWS outputs of a packed matrix times one vector.
  constexpr int PER = 128 / BITS;     // weights in one 16-byte load
  constexpr int WARPS = 8;
  constexpr uint32_t MASK = (1u << BITS) - 1;
  // A float whose mantissa holds q above 2^BITS: the cheapest way from an integer to a float.
  constexpr int SHIFT = 23 - BITS;
  constexpr uint32_t MAGIC = (127u + BITS) << 23;
  constexpr float BASE = float(1 << BITS);
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
@prologue@
  const int first = (blockIdx.x * WARPS + warp) * ROWS;
  if (first >= OUT) return;

  float sums[TOTAL] = {};
#pragma unroll UNROLL
  for (int i = lane * PER; i < K; i += 32 * PER) {
    uint4 packed[TOTAL];
    float scale[TOTAL];
    float offset[TOTAL];
#pragma unroll
    for (int r = 0; r < TOTAL; ++r) {
      // Beyond ROWS come the rows of the second of two stacked matrices.
      const long long row = r < ROWS ? first + r : OUT + first + r - ROWS;
      packed[r] = __ldcs(reinterpret_cast<const uint4*>(w + row * (K / 32 * BITS) + i / 32 * BITS + i % 32 * BITS / 32));
      const long long group = row * (K / GROUP) + i / GROUP;
      scale[r] = static_cast<float>(scales[group]);
      offset[r] = static_cast<float>(biases[group]);
    }
    alignas(16) T given[PER];
#pragma unroll
    for (int c = 0; c < PER * int(sizeof(T)) / 16; ++c) {
      reinterpret_cast<uint4*>(given)[c] = reinterpret_cast<const uint4*>(xs + i)[c];
    }
    float values[PER];
    float total = 0;
#pragma unroll
    for (int j = 0; j < PER; ++j) {
      values[j] = static_cast<float>(given[j]);
      total += values[j];
    }
#pragma unroll
    for (int r = 0; r < TOTAL; ++r) {
      const uint32_t words[4] = {packed[r].x, packed[r].y, packed[r].z, packed[r].w};
      float dot = 0;
#pragma unroll
      for (int j = 0; j < PER; ++j) {
        const uint32_t word = words[j * BITS / 32];
        const int at = j * BITS % 32;
        const uint32_t placed = at < SHIFT ? word << (SHIFT - at) : word >> (at - SHIFT);
        dot = fmaf(values[j], __uint_as_float((placed & (MASK << SHIFT)) | MAGIC), dot);
      }
      sums[r] = fmaf(scale[r], dot, fmaf(offset[r] - BASE * scale[r], total, sums[r]));
    }
  }
#pragma unroll
  for (int r = 0; r < TOTAL; ++r) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      sums[r] += __shfl_xor_sync(0xffffffffu, sums[r], distance);
    }
  }
  if (lane != 0) return;
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    const int o = first + r;
@epilogue@
  }
