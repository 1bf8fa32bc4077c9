  // Every block norms the whole vector for itself: cheaper than a kernel of its own.
  alignas(16) __shared__ T xs[K];
  __shared__ float partial[WARPS];
  float squares = 0;
  for (int i = threadIdx.x * 8; i < K; i += WARPS * 32 * 8) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float value = static_cast<float>(x[i + j]);
      squares = fmaf(value, value, squares);
    }
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    squares += __shfl_xor_sync(0xffffffffu, squares, distance);
  }
  if (lane == 0) partial[warp] = squares;
  __syncthreads();
  squares = 0;
#pragma unroll
  for (int p = 0; p < WARPS; ++p) squares += partial[p];
  const float inverse = rsqrtf(squares / K + EPS);
  for (int i = threadIdx.x * 8; i < K; i += WARPS * 32 * 8) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      // Rounded twice, as MLX's rms_norm rounds.
      const T normed = static_cast<T>(static_cast<float>(x[i + j]) * inverse);
      xs[i + j] = static_cast<T>(static_cast<float>(norm[i + j]) * static_cast<float>(normed));
    }
  }
  __syncthreads();
