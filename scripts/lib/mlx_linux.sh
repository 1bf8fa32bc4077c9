# Sourced by scripts/setup on Linux: MLX from its PyPI wheel, mlx-c on top of it, bindings, cargo's override.
#
# mlx-sys's build script is for Apple's systems. Cargo lets a configuration file stand in for the build
# script of a package with `links` ("build script overrides"), so mlx-sys and mlx-rs stay as published.

mlx_dir="$deps/mlx"     # the unpacked wheel: mlx/lib/libmlx.so, mlx/include
mlxc_dir="$deps/mlx-c"  # libmlxc.a, libmlxd_support.a, bindings.rs

# take_wheel PACKAGE DIR: unpack a wheel of the pinned MLX release.
take_wheel() {
  local package="$1" dir="$2" work
  work="$(mktemp -d)"
  quietly "wheel-$package" "$venv/bin/python" -m pip download --no-deps --only-binary=:all: \
    -d "$work" "$package==$mlx_version"
  rm -rf "$dir"
  mkdir -p "$dir"
  "$venv/bin/python" -m zipfile -e "$work"/*.whl "$dir"
  rm -rf "$work"
}

mlx_sys_source() {
  # cargo metadata fetches what is missing; --locked keeps it from touching Cargo.lock.
  (cd "$root" && cargo metadata --locked --format-version 1) |
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

mlx_wheel() {
  local package=mlx-cpu key
  [ "$cuda" = yes ] && package=mlx-cuda-13
  key="$(key_of "$package" "$mlx_version" "$machine" "$(find_openblas || true)")"
  stamped mlx "$key" && [ -e "$mlx_dir/mlx/lib/libmlx.so" ] && return 0
  say "MLX $mlx_version: unpacking $package"
  take_wheel "$package" "$mlx_dir"
  use_openblas "$mlx_dir/${package//-/_}.libs"
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
  local source="$1" build="$mlxc_dir/build" flags
  flags="$(format_flags)"
  quietly mlx-c-configure cmake -G Ninja -S "$source/src/mlx-c" -B "$build" -DCMAKE_BUILD_TYPE=Release \
    -DMLX_C_USE_SYSTEM_MLX=ON -DMLX_C_BUILD_EXAMPLES=OFF -DCMAKE_CXX_FLAGS="$flags" \
    -DMLX_DIR="$root/scripts/mlx/cmake" -DMLX_WHEEL_DIR="$mlx_dir/mlx"
  quietly mlx-c-build cmake --build "$build"
  cp "$build/libmlxc.a" "$mlxc_dir/libmlxc.a"
  # shellcheck disable=SC2086 # flags are several words
  quietly mlx-c-support "${CXX:-c++}" -std=c++20 -O2 -fPIC $flags -I"$source/src/mlx-c" -I"$mlx_dir/mlx/include" \
    -c "$root/scripts/mlx/support.cpp" -o "$mlxc_dir/support.o"
  rm -f "$mlxc_dir/libmlxd_support.a"
  ar rcs "$mlxc_dir/libmlxd_support.a" "$mlxc_dir/support.o"
}

write_bindings() {
  local source="$1" libclang
  libclang="$("$venv/bin/python" -c 'import clang, os; print(os.path.join(os.path.dirname(clang.__file__), "native"))')"
  MLX_SYS_DIR="$source" CARGO_TARGET_DIR="$deps/bindings-target" \
    quietly bindings-build cargo build --locked --manifest-path "$root/scripts/mlx/bindings/Cargo.toml"
  # libclang comes without its own headers; the C compiler's stddef.h and its like serve as well.
  LIBCLANG_PATH="$libclang" quietly bindings "$deps/bindings-target/debug/mlx-bindings" \
    "$source/src/mlx-c" "$mlxc_dir/bindings.rs" \
    -I"$root/scripts/mlx/clang" -idirafter "$("${CC:-cc}" -print-file-name=include)"
}

mlx_c() {
  local source key
  key="$(key_of "$mlx_sys_version" "$(cat "$deps/stamps/mlx")" "$("${CXX:-c++}" --version | head -n 1)" "$root" \
    @"$root/scripts/mlx/support.cpp" @"$root/scripts/mlx/include/format" @"$root/scripts/mlx/cmake/MLXConfig.cmake" \
    @"$root/scripts/mlx/bindings/src/main.rs" @"$root/scripts/mlx/bindings/Cargo.lock" @"$root/scripts/lib/mlx_linux.sh")"
  stamped mlx-c "$key" && [ -e "$mlxc_dir/libmlxc.a" ] && [ -e "$mlxc_dir/bindings.rs" ] && return 0
  source="$(mlx_sys_source)"
  [ -n "$source" ] || die "Cargo.lock does not name mlx-sys $mlx_sys_version: change scripts/lib/common.sh with it"
  rm -rf "$mlxc_dir"
  mkdir -p "$mlxc_dir"
  say "mlx-c: building it from mlx-sys $mlx_sys_version against that MLX (about a minute)"
  build_mlx_c "$source"
  say "bindings.rs: writing it with bindgen"
  write_bindings "$source"
  stamp mlx-c "$key"
}

# Absolute paths, so the file is generated here and ignored by git.
cargo_config() {
  local text
  text="# Written by scripts/setup. Do not edit, do not commit.

[target.$machine-unknown-linux-gnu]
# Binaries find libmlx.so as built; LD_LIBRARY_PATH, which comes first, may name another build of it.
rustflags = [\"-C\", \"link-arg=-Wl,--enable-new-dtags,-rpath,$mlx_dir/mlx/lib\"]

[target.$machine-unknown-linux-gnu.mlx]
rustc-link-search = [\"native=$mlxc_dir\", \"native=$mlx_dir/mlx/lib\"]
rustc-link-lib = [\"static=mlxc\", \"static=mlxd_support\", \"dylib=mlx\", \"dylib=stdc++\"]
rustc-env = { OUT_DIR = \"$mlxc_dir\" }"
  [ "$(cat "$root/.cargo/config.toml" 2>/dev/null)" = "$text" ] && return 0
  say ".cargo/config.toml: pointing cargo at it"
  mkdir -p "$root/.cargo"
  printf '%s\n' "$text" >"$root/.cargo/config.toml"
}
