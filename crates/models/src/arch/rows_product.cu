  // A block computes TILES tiles of 16 outputs for up to 8 * NT vectors on the tensor cores. Its
  // warps share the columns between them: warp w takes every WARPS-th chunk of 128.
  constexpr int WARPS = 8;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const int first = blockIdx.x * (SWIGLU ? 16 : 16 * TILES);
  const int rows = x_shape[0];
  float acc[TILES][NT][4] = {};
  float squares[NT] = {};
  for (int chunk = warp * 128; chunk < K; chunk += WARPS * 128) {
    // Four neighbouring lanes hold 32 columns each: the order of the columns is the same for
    // weights and vectors, which is all that a product asks for.
    const int i = chunk + t * 32;
    uint4 packed[TILES][2];
    __nv_bfloat162 scale[TILES][2], offset[TILES][2];
#pragma unroll
    for (int m = 0; m < TILES; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int at = first + (SWIGLU ? m * OUT : m * 16) + g + 8 * h;
        const long long row = min(at, (SWIGLU ? 2 * OUT : OUT) - 1);
        packed[m][h] = __ldcs(reinterpret_cast<const uint4*>(w + row * (K / 8) + i / 8));
        const long long group = row * (K / GROUP) + i / GROUP;
        scale[m][h] = __bfloat162bfloat162(scales[group]);
        offset[m][h] = __bfloat162bfloat162(biases[group]);
      }
    }
    uint32_t gains[16];
    if (NORM) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        reinterpret_cast<uint4*>(gains)[c] = reinterpret_cast<const uint4*>(@norm@ + i)[c];
      }
    }
    uint32_t given[NT][16];
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      const int row = n * 8 + g;
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        uint4 four = make_uint4(0, 0, 0, 0);
        if (row < rows) four = reinterpret_cast<const uint4*>(x + (long long)row * K + i)[c];
        reinterpret_cast<uint4*>(given[n])[c] = four;
      }
      if (NORM) {
#pragma unroll
        for (int c = 0; c < 16; ++c) {
          __nv_bfloat162 pair = reinterpret_cast<__nv_bfloat162&>(given[n][c]);
          const float2 wide = __bfloat1622float2(pair);
          squares[n] = fmaf(wide.x, wide.x, fmaf(wide.y, wide.y, squares[n]));
          pair = __hmul2(pair, reinterpret_cast<__nv_bfloat162&>(gains[c]));
          given[n][c] = reinterpret_cast<uint32_t&>(pair);
        }
      }
    }
#pragma unroll
    for (int word = 0; word < 4; ++word) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        // Weights j and j + 4 of a word come out together: j = 2 half, then 2 half + 1.
        uint32_t a[TILES][4];
#pragma unroll
        for (int m = 0; m < TILES; ++m) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const uint32_t words[4] = {packed[m][h].x, packed[m][h].y, packed[m][h].z, packed[m][h].w};
#pragma unroll
            for (int p = 0; p < 2; ++p) {
              // 0x4300 is 128 in bfloat16, whose last bits then count by ones.
              const uint32_t bits = (words[word] >> (4 * (2 * half + p))) & 0x000f000fu | 0x43004300u;
              const uint32_t base = 0x43004300u;
              const __nv_bfloat162 whole = __hsub2(reinterpret_cast<const __nv_bfloat162&>(bits), reinterpret_cast<const __nv_bfloat162&>(base));
              const __nv_bfloat162 weight = __hfma2(whole, scale[m][h], offset[m][h]);
              a[m][2 * p + h] = reinterpret_cast<const uint32_t&>(weight);
            }
          }
        }
#pragma unroll
        for (int n = 0; n < NT; ++n) {
          const uint32_t low = given[n][4 * word + half];
          const uint32_t high = given[n][4 * word + 2 + half];
          const uint32_t b0 = __byte_perm(low, high, 0x5410);
          const uint32_t b1 = __byte_perm(low, high, 0x7632);
#pragma unroll
          for (int m = 0; m < TILES; ++m) {
            asm volatile(
                "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                : "+f"(acc[m][n][0]), "+f"(acc[m][n][1]), "+f"(acc[m][n][2]), "+f"(acc[m][n][3])
                : "r"(a[m][0]), "r"(a[m][1]), "r"(a[m][2]), "r"(a[m][3]), "r"(b0), "r"(b1));
          }
        }
      }
    }
  }
  constexpr int PARTS = TILES * NT * 4;
  __shared__ float shared[WARPS][PARTS * 32];
  __shared__ float lengths[WARPS][NT * 8];
#pragma unroll
  for (int m = 0; m < TILES; ++m)
#pragma unroll
    for (int n = 0; n < NT; ++n)
#pragma unroll
      for (int c = 0; c < 4; ++c) shared[warp][((m * NT + n) * 4 + c) * 32 + lane] = acc[m][n][c];
  if (NORM) {
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      float sum = squares[n];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      if (t == 0) lengths[warp][n * 8 + g] = sum;
    }
  }
  __syncthreads();
  constexpr int SETS = SWIGLU ? 1 : TILES;
  for (int e = threadIdx.x; e < SETS * NT * 4 * 32; e += WARPS * 32) {
    const int l = e % 32;
    const int c = e / 32 % 4;
    const int n = e / 128 % NT;
    const int m = e / 128 / NT;
    const int row = n * 8 + l % 4 * 2 + c % 2;
    const int o = first + m * 16 + l / 4 + c / 2 * 8;
    if (row >= rows || o >= OUT) continue;
    float inverse = 1;
    if (NORM) {
      float sum = 0;
#pragma unroll
      for (int v = 0; v < WARPS; ++v) sum += lengths[v][row];
      inverse = rsqrtf(sum / K + EPS);
    }
    float sum = 0;
#pragma unroll
    for (int v = 0; v < WARPS; ++v) sum += shared[v][e];
    sum *= inverse;
    const long long to = (long long)row * OUT + o;
@epilogue@
  }
