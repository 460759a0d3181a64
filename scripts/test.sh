#!/usr/bin/env bash
# Set-up, then the whole test suite with the linters. Arguments go to pytest.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
PYTHON=$(bash "$root/scripts/setup.sh" requirements-dev.txt)
cd "$root"
"$PYTHON" -m ruff check .
"$PYTHON" -m mypy
# by files: what the tests of one share is made once; by name: xdist would begin the files of few tests last, and the
# demo's few take long
exec "$PYTHON" -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder "$@"
