#!/usr/bin/env bash
# Every check: lint, types, layers and tests. Sets up what it needs. Arguments go to pytest.
# With `fast` first: lint and the tests that take moments, in less than a minute of CPU; for use after every change.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
ensure_environment "$test_extras"
cd "$root"
# Two workers share two cores: threads of their arithmetic would only wait for each other, and must not spin meanwhile.
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
"$python" -m ruff check .
"$python" -m ruff format --check .
if [ "${1:-}" = fast ]; then
    # Files say themselves that they are quick: those that don't are not even imported, which alone takes seconds.
    mapfile -t quick < <(grep -lrx --include='test_*.py' 'pytestmark = pytest.mark.quick' tests)
    exec "$python" -m pytest -q -m "not full" "${quick[@]}" "${@:2}"
fi
# Types beside the tests: mypy has one thread, and alone leaves a core idle for a minute.
types="$(mktemp)"
"$python" -m mypy >"$types" 2>&1 &
mypy=$!
trap 'kill "$mypy" 2>/dev/null || true; rm -f "$types"' EXIT
status=0
"$python" -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" "$@" || status=$?
wait "$mypy" || status=1
cat "$types"
exit "$status"
