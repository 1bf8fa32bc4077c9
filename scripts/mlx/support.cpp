// The few symbols that mlx-rs names and mlx-c or the system lack on Linux. Linked into mlx-sys by the
// build-script override that scripts/setup writes.
#include <cstdint>
#include <ctime>
#include <exception>

#include "mlx/c/array.h"
#include "mlx/c/error.h"
#include "mlx/c/private/array.h"
#include "mlx/mlx.h"

// macOS has this clock; mlx-rs seeds its default random state with it.
extern "C" uint64_t mach_approximate_time(void) {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(now.tv_nsec);
}

// mlx-c compiles its half-precision accessors for Arm only, where C has the types.
#ifndef HAS_FLOAT16

#include <cstring>

namespace {
template <typename Half>
int item(uint16_t* res, const mlx_array arr) {
  static_assert(sizeof(Half) == sizeof(uint16_t));
  try {
    const auto value = mlx_array_get_(arr).item<Half>();
    std::memcpy(res, &value, sizeof(value));
  } catch (std::exception& error) {
    mlx_error(error.what());
    return 1;
  }
  return 0;
}

template <typename Half>
const uint16_t* data(const mlx_array arr) {
  try {
    return reinterpret_cast<const uint16_t*>(mlx_array_get_(arr).data<Half>());
  } catch (std::exception& error) {
    mlx_error(error.what());
    return nullptr;
  }
}
} // namespace

extern "C" int mlx_array_item_float16(uint16_t* res, const mlx_array arr) {
  return item<mlx::core::float16_t>(res, arr);
}
extern "C" int mlx_array_item_bfloat16(uint16_t* res, const mlx_array arr) {
  return item<mlx::core::bfloat16_t>(res, arr);
}
extern "C" const uint16_t* mlx_array_data_float16(const mlx_array arr) {
  return data<mlx::core::float16_t>(arr);
}
extern "C" const uint16_t* mlx_array_data_bfloat16(const mlx_array arr) {
  return data<mlx::core::bfloat16_t>(arr);
}

#endif
