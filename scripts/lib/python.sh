# Sourced: the Python environment for build tools, for the tests that use client libraries, and for mlx-lm.

python_venv() {
  if ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    say "Python: making .venv"
    rm -rf "$venv"
    quietly venv python3 -m venv "$venv"
  fi
}

# pip_install NAME FILE: install a requirements file, once per content.
pip_install() {
  local key
  key="$(key_of "$("$venv/bin/python" -V)" "$venv" @"$2")"
  stamped "$1" "$key" && return 0
  say "Python: installing ${2#"$root"/}"
  quietly "pip-$1" "$venv/bin/python" -m pip install --disable-pip-version-check -r "$2"
  stamp "$1" "$key"
}

# Python's mlx gets the same BLAS as ours, so that numbers and speed compare.
python_mlx() {
  local site
  site="$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')"
  use_openblas "$site/mlx_cpu.libs"
}
