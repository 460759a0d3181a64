#!/usr/bin/env bash
# Set-up, then the whole test suite with the linters. Arguments go to pytest.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
arguments=("$@")
set -- requirements-dev.txt
source "$root/scripts/setup.sh"
cd "$root"
"$PYTHON" -m ruff check .
"$PYTHON" -m mypy
exec "$PYTHON" -m pytest ${arguments[@]+"${arguments[@]}"}
