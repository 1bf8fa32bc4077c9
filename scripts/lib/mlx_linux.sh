# Sourced by scripts/setup on Linux: MLX from its PyPI wheel, mlx-c on top of it, bindings, cargo's override.
#
# mlx-sys's build script is for Apple's systems. Cargo lets a configuration file stand in for the build
# script of a package with `links` ("build script overrides"), so mlx-sys and mlx-rs stay as published.

mlx_dir="$deps/mlx" # the unpacked wheel: mlx/lib/libmlx.so, mlx/include

mlx_sys_source() {
  # Where cargo keeps the published package.
  (cd "$root" && cargo metadata --format-version 1) |
    "$venv/bin/python" -c '
import json, os, sys
found = [p for p in json.load(sys.stdin)["packages"] if p["name"] == "mlx-sys"]
print(os.path.dirname(found[0]["manifest_path"]) if len(found) == 1 and found[0]["version"] == sys.argv[1] else "")
' "$mlx_sys_version"
}

# The wheel brings the reference BLAS, whose dense products are about ten times slower than OpenBLAS's.
use_openblas() {
  local openblas library
  openblas="$(find_openblas)" || die "OpenBLAS is missing; install it with: apt-get install libopenblas0-pthread"
  for library in "$1"/libblas-*.so* "$1"/liblapack-*.so*; do
    [ -e "$library" ] || [ -L "$library" ] || continue
    ln -sfn "$openblas" "$library"
  done
}
find_openblas() {
  local candidate
  for candidate in /usr/lib/"$machine"-linux-gnu/{openblas-pthread/,}libopenblas.so.0 /usr/lib64/libopenblasp.so.0; do
    [ -e "$candidate" ] && printf '%s\n' "$candidate" && return 0
  done
  return 1
}

# The wheel of the pinned release, unpacked. CUDA's comes with NVIDIA's libraries, which its libmlx.so finds
# beside itself; the driver's libcuda.so.1 must come with the machine.
mlx_wheel() {
  local package=mlx-cpu key fresh="$deps/mlx.new"
  local options=(--no-deps)
  [ "$backend" = cuda ] && package=mlx-cuda-13 && options=()
  key="$(key_of "$package" "$mlx_version" "$machine" "$(find_openblas)")"
  stamped mlx "$key" && [ -e "$mlx_dir/mlx/lib/libmlx.so" ] && return 0
  say "MLX $mlx_version: unpacking $package"
  rm -rf "$fresh"
  quietly "wheel-$package" "$venv/bin/python" -m pip install --disable-pip-version-check --no-compile \
    --only-binary=:all: "${options[@]}" --target "$fresh" "$package==$mlx_version"
  use_openblas "$fresh/${package//-/_}.libs"
  rm -rf "$mlx_dir"
  mv "$fresh" "$mlx_dir"
  stamp mlx "$key"
}

# mlx-c uses std::format without including it. The header came with GCC 13; older ones get a small stand-in.
format_flags() {
  if ! printf '#include <format>\nint main(){return (int)std::format("{}",1).size();}\n' |
    "${CXX:-c++}" -std=c++20 -fsyntax-only -x c++ - 2>/dev/null; then
    printf -- '-I%s ' "$root/scripts/mlx/include"
  fi
  printf -- '-include format'
}

build_mlx_c() {
  local source="$1" out="$2" flags
  flags="$(format_flags)"
  quietly mlx-c-configure cmake -G Ninja -S "$source/src/mlx-c" -B "$out/build" -DCMAKE_BUILD_TYPE=Release \
    -DMLX_C_USE_SYSTEM_MLX=ON -DMLX_C_BUILD_EXAMPLES=OFF -DCMAKE_CXX_FLAGS="$flags" \
    -DMLX_DIR="$root/scripts/mlx/cmake" -DMLX_WHEEL_DIR="$mlx_dir/mlx"
  quietly mlx-c-build cmake --build "$out/build"
  cp "$out/build/libmlxc.a" "$out/libmlxc.a"
  # shellcheck disable=SC2086 # flags are several words
  quietly mlx-c-support "${CXX:-c++}" -std=c++20 -O2 -fPIC $flags -I"$source/src/mlx-c" -I"$mlx_dir/mlx/include" \
    -c "$root/scripts/mlx/support.cpp" -o "$out/build/support.o"
  ar rcs "$out/libmlxd_support.a" "$out/build/support.o"
  rm -rf "$out/build"
}

write_bindings() {
  local source="$1" out="$2" libclang
  libclang="$("$venv/bin/python" -c 'import clang, os; print(os.path.join(os.path.dirname(clang.__file__), "native"))')"
  MLX_SYS_DIR="$source" CARGO_TARGET_DIR="$deps/bindings-target" \
    quietly bindings-build cargo build --locked --manifest-path "$root/scripts/mlx/bindings/Cargo.toml"
  # libclang comes without its own headers; the C compiler's stddef.h and its like serve as well.
  LIBCLANG_PATH="$libclang" quietly bindings "$deps/bindings-target/debug/mlx-bindings" \
    "$source/src/mlx-c" "$out/bindings.rs" \
    -I"$root/scripts/mlx/clang" -idirafter "$("${CC:-cc}" -print-file-name=include)"
}

# Each result has a folder named by its key: cargo sees another path, and rebuilds what depends on it.
mlx_c() {
  local source key out part inputs=()
  for part in support.cpp include/format cmake/MLXConfig.cmake bindings/src/main.rs bindings/Cargo.lock; do
    inputs+=(@"$root/scripts/mlx/$part")
  done
  key="$(key_of recipe-1 "$mlx_sys_version" "$(cat "$deps/stamps/mlx")" "$("${CXX:-c++}" --version | head -n 1)" "${inputs[@]}")"
  out="$deps/mlx-c/$key"
  stamped mlx-c "$key" && [ -e "$out/bindings.rs" ] && return 0
  say "crates: fetching what Cargo.lock names"
  quietly cargo-fetch cargo fetch --manifest-path "$root/Cargo.toml"
  source="$(mlx_sys_source)"
  [ -n "$source" ] || die "Cargo.lock does not name mlx-sys $mlx_sys_version: change scripts/lib/common.sh with it"
  rm -rf "$deps/mlx-c"
  mkdir -p "$out"
  say "mlx-c: building it from mlx-sys $mlx_sys_version against that MLX (about a minute)"
  build_mlx_c "$source" "$out"
  say "bindings.rs: writing it with bindgen"
  write_bindings "$source" "$out"
  stamp mlx-c "$key"
}

# Absolute paths, so the file is generated here and ignored by git.
cargo_config() {
  local text out triple="$machine-unknown-linux-gnu" link="-Wl,--enable-new-dtags,-rpath,$mlx_dir/mlx/lib"
  out="$(mlx_bindings_dir)"
  # The CUDA build needs the driver's library, which the machine that links may lack.
  [ "$backend" = cuda ] && link="$link,--allow-shlib-undefined"
  text="# Written by scripts/setup. Do not edit, do not commit.

[target.$triple]
# Binaries find libmlx.so as built; LD_LIBRARY_PATH, which comes first, may name another build of it.
rustflags = [\"-C\", \"link-arg=$link\"]

[target.$triple.mlx]
rustc-link-search = [\"native=$out\", \"native=$mlx_dir/mlx/lib\"]
rustc-link-lib = [\"static=mlxc\", \"static=mlxd_support\", \"dylib=mlx\", \"dylib=stdc++\"]
rustc-env = { OUT_DIR = \"$out\" }"
  [ "$(cat "$root/.cargo/config.toml" 2>/dev/null)" = "$text" ] && return 0
  say ".cargo/config.toml: pointing cargo at it"
  mkdir -p "$root/.cargo"
  printf '%s\n' "$text" >"$root/.cargo/config.toml"
}
