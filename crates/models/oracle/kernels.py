"""Runs the CUDA kernels' source on the processor and compares it with numpy.

    python kernels.py CASES.json      exits 1 and says which case is wrong

The source is compiled as C++ with 256 threads for a block's: barriers stand for
`__syncthreads` and for the lockstep of a warp. Blocks run one after the other.
"""

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
import numpy as np

SHIM = r"""
#include <barrier>
#include <cmath>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>
struct Index { int x; };
struct uint4 { uint32_t x, y, z, w; };
static thread_local Index threadIdx, blockIdx;
static std::barrier<> block_barrier(256);
static std::unique_ptr<std::barrier<>> warp_barriers[8];
static float slots[8][32];
static void __syncthreads() { block_barrier.arrive_and_wait(); }
static float __shfl_xor_sync(unsigned, float value, int distance) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  slots[warp][lane] = value;
  warp_barriers[warp]->arrive_and_wait();
  const float other = slots[warp][lane ^ distance];
  warp_barriers[warp]->arrive_and_wait();
  return other;
}
static float __uint_as_float(uint32_t bits) { float f; __builtin_memcpy(&f, &bits, 4); return f; }
#define __expf expf
static float rsqrtf(float value) { return 1.0f / std::sqrt(value); }
template <typename V> static V __ldcs(const V* place) { return *place; }
#define __shared__ static
template <typename F> static void launch(int blocks, F&& kernel) {
  for (auto& barrier : warp_barriers) barrier = std::make_unique<std::barrier<>>(32);
  std::vector<std::thread> threads;
  for (int index = 0; index < 256; ++index) {
    threads.emplace_back([=] {
      threadIdx.x = index;
      for (int block = 0; block < blocks; ++block) {
        blockIdx.x = block;
        kernel();
        __syncthreads();
      }
    });
  }
  for (auto& thread : threads) thread.join();
}
"""


def compiled(cases, folder):
    parts = [SHIM]
    for index, case in enumerate(cases):
        names = case["inputs"]
        typed = [f"const {'uint32_t' if name == 'w' else case['type']}* {name}" for name in names]
        pointers = [f"({each.rsplit(' ', 1)[0]})given[{i}]" for i, each in enumerate(typed)]
        last = f"({case['type']}*)given[{len(names)}]"
        parts.append(
            f"static void kernel_{index}({', '.join(typed)}, {case['type']}* out) {{\n"
            f"using T = {case['type']};\n{case['source']}\n}}\n"
            f'extern "C" void run_{index}(void** given) {{\n'
            f"launch({case['blocks']}, [=] {{ kernel_{index}({', '.join(pointers)}, {last}); }});\n}}\n"
        )
    source, library = folder / "kernels.cpp", folder / "kernels.so"
    source.write_text("\n".join(parts))
    flags = ["-std=c++20", "-O1", "-w", "-fPIC", "-shared", "-fno-strict-aliasing", "-pthread"]
    subprocess.run([os.environ.get("CXX", "g++"), *flags, source, "-o", library], check=True)
    return ctypes.CDLL(str(library))


def numbers(case, rng):
    """Inputs by name in the kernel's types, and the weights they stand for."""
    dtype, mlx_dtype = (
        (np.float32, mx.float32) if case["type"] == "float" else (np.float16, mx.float16)
    )
    swiglu = case["finish"] == "Swiglu"
    rows, columns = case["out"] * (2 if swiglu else 1), case["columns"]
    weights = mx.array(rng.normal(0, columns**-0.5, (rows, columns)).astype(np.float32))
    packing = dict(group_size=case["group"], bits=case["bits"])
    w, scales, biases = mx.quantize(weights.astype(mlx_dtype), **packing)
    wide = mx.dequantize(w, scales.astype(mx.float32), biases.astype(mx.float32), **packing)
    drawn = lambda size: rng.normal(0, 1, size).astype(dtype)
    given = dict(
        x=drawn(columns), w=np.array(w), scales=np.array(scales), biases=np.array(biases),
        norm=drawn(columns), bias=drawn(case["out"]),
    )
    return given, np.array(wide).astype(np.float64), dtype


def expected(case, given, weights, dtype):
    x = given["x"].astype(np.float64)
    if case["norm_eps"] is not None:
        x = (x / np.sqrt(np.mean(x**2) + case["norm_eps"])).astype(dtype)
        x = (x * given["norm"]).astype(np.float64)
    product = weights @ x
    if case["finish"] == "Swiglu":
        gate, up = np.split(product, 2)
        return gate / (1 + np.exp(-gate)) * up
    return product + given["bias"] if "bias" in case["inputs"] else product


def main(file):
    mx.set_default_device(mx.cpu)
    cases = json.loads(file.read_text())
    rng = np.random.default_rng(3)
    with tempfile.TemporaryDirectory() as folder:
        library = compiled(cases, Path(folder))
        for index, case in enumerate(cases):
            given, weights, dtype = numbers(case, rng)
            out = np.zeros(case["out"], dtype)
            buffers = [np.ascontiguousarray(given[name]) for name in case["inputs"]] + [out]
            pointers = (ctypes.c_void_p * len(buffers))(*[each.ctypes.data for each in buffers])
            getattr(library, f"run_{index}")(pointers)
            wanted = expected(case, given, weights, dtype)
            worst = float(np.max(np.abs(out - wanted) / (1 + np.abs(wanted))))
            shown = {key: case[key] for key in case if key != "source"}
            if not worst <= (1e-5 if dtype == np.float32 else 5e-3):
                raise SystemExit(f"off by {worst}: {shown}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
