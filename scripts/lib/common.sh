# Sourced by scripts/setup and its neighbours: where things are, how to say things, and stamps.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
deps="$root/.deps"
venv="$root/.venv"
system="$(uname -s)"
machine="$(uname -m)"
# Versions that belong together: mlx-rs 0.33.0 = mlx-sys 0.7.0 = mlx-c 0.7.0 = MLX 0.32.2.
mlx_version=0.32.2
mlx_sys_version=0.7.0
nextest_version=0.9.148

say() { printf 'setup: %s\n' "$*"; }
warn() { printf 'setup: %s\n' "$*" >&2; }
die() {
  printf 'setup: %s\n' "$*" >&2
  exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# stamped NAME KEY: was NAME last finished with this very KEY? stamp NAME KEY: say that it is.
# A KEY is made by key_of from everything the step depends on, so a changed input runs the step again.
stamped() { [ -f "$deps/stamps/$1" ] && [ "$(cat "$deps/stamps/$1")" = "$2" ]; }
stamp() {
  mkdir -p "$deps/stamps"
  printf '%s' "$2" >"$deps/stamps/$1"
}
# key_of WORD…: a digest of the words; a word that is @PATH stands for that file's content.
key_of() {
  local word
  for word in "$@"; do
    case "$word" in
    @*) cat "${word#@}" 2>/dev/null || printf missing ;;
    *) printf '%s\n' "$word" ;;
    esac
  done | digest
}
digest() { if have sha256sum; then sha256sum; else shasum -a 256; fi | cut -c 1-16; }

# quietly LOG COMMAND…: run it with its output in .deps/logs/LOG, shown only if it fails.
quietly() {
  local log="$deps/logs/$1"
  shift
  mkdir -p "$deps/logs"
  if ! "$@" >"$log" 2>&1; then
    tail -n 40 "$log" >&2
    die "failed: $* (whole output: $log)"
  fi
}

# Where this checkout's bindings.rs lies (mlx_linux.sh puts it there).
mlx_bindings_dir() { printf '%s/mlx-c/%s\n' "$deps" "$(cat "$deps/stamps/mlx-c")"; }
