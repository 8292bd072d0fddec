#!/usr/bin/env bash
# The tests of one room: its lint, the plan of the layers, and tests/ROOM. More arguments go to pytest.
# usage: bash scripts/test_room.sh ROOM [PYTEST ARGUMENTS]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$root"
room="${1:-}"
if [ -z "$room" ] || [ ! -d "tests/$room" ]; then
    echo "usage: bash scripts/test_room.sh ROOM; rooms: $(cd tests && ls -d */ | grep -v __pycache__ | tr -d / | tr '\n' ' ')" >&2
    exit 2
fi
ensure_environment "$test_extras"
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
"$python" -m ruff check "featurecache/$room" "tests/$room"
exec "$python" -m pytest -q -m "not slow" tests/test_layers.py "tests/$room" "${@:2}"
