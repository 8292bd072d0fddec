#!/usr/bin/env bash
# The quick tests with the lowest versions that pyproject.toml allows, in an environment of their own: .venv-lowest.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
venv="$root/.venv-lowest"
base="${PYTHON:-python3.11}"
constraints="$(mktemp)"
trap 'rm -f "$constraints"' EXIT
# The tools that check are those of today; what the package stands on is the oldest.
"$base" scripts/lowest.py parquet >"$constraints"
[ -x "$venv/bin/python" ] || "$base" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile --constraint "$constraints" \
    --editable ".[parquet]" "pytest>=8" "pytest-xdist>=3.5" "hypothesis>=6.100"
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
mapfile -t quick < <(grep -lrx --include='test_*.py' 'pytestmark = pytest.mark.quick' tests)
# Old libraries on new Pythons are told that what they call is deprecated.
exec "$venv/bin/python" -m pytest -q -W ignore::DeprecationWarning -m "not full" "${quick[@]}" "$@"
