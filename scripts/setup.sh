#!/usr/bin/env bash
# Install what the project needs into .venv, or into the virtual or conda environment that is active.
# Prints the interpreter to use, and nothing else, on stdout. Quick when nothing changed.
# Extra requirement files may follow: bash scripts/setup.sh requirements-dev.txt
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() { echo "setup.sh: error: $1" >&2; exit 2; }

if [ -n "${VIRTUAL_ENV:-}" ]; then
  PYTHON=$VIRTUAL_ENV/bin/python
elif [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-base}" != base ]; then
  PYTHON=$CONDA_PREFIX/bin/python
else
  PYTHON=$root/.venv/bin/python
  if [ ! -x "$PYTHON" ]; then
    base=${PYTHON_BASE:-python3}
    command -v "$base" >/dev/null || fail "no $base here; install Python 3.10 or newer, or set PYTHON_BASE to one"
    "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
      fail "$("$base" --version) is too old; install Python 3.10 or newer, or set PYTHON_BASE to one"
    "$base" -m venv "$root/.venv" || fail "cannot make .venv; on Debian or Ubuntu: apt-get install python3-venv"
  fi
fi
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
  fail "$("$PYTHON" --version) of the active environment is too old; use Python 3.10 or newer"

requirements=("$root/requirements.txt")
for extra in "$@"; do requirements+=("$root/$extra"); done
stamp=$("$PYTHON" -c 'import sys; print(sys.prefix)')/.lip-sync-requirements-$(basename "${requirements[-1]}" .txt)
# what was installed and imported here, other versions by hand included
packages=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
found() { (cd "$packages" && ls -d torch-* torchvision-* opencv* 2>/dev/null || true); }
wanted() { cat "${requirements[@]}" "$root/guided-diffusion/pyproject.toml"; echo "$root"; found; }
if [ "$(cat "$stamp" 2>/dev/null)" != "$(wanted)" ]; then
  arguments=()
  for file in "${requirements[@]}"; do arguments+=(-r "$file"); done
  (cd "$root" && "$PYTHON" -m pip install --quiet "${arguments[@]}" >&2) ||
    fail "pip could not install $(basename "${requirements[-1]}"); its message is above"
  problem=$("$PYTHON" -c 'import cv2' 2>&1) || case $problem in
    *libGL* | *libgthread* | *libglib*)
      fail "import cv2 lacks a system library; on Debian or Ubuntu: apt-get install libgl1 libglib2.0-0" ;;
    *) fail "import cv2: ${problem##*$'\n'}" ;;
  esac
  problem=$("$PYTHON" -c 'import torchvision' 2>&1) ||
    fail "torch and torchvision are not a matching pair (${problem##*$'\n'}); reinstall both together"
  wanted >"$stamp"
fi
echo "$PYTHON"
