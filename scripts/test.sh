#!/usr/bin/env bash
# Every check: lint, types, layers and tests. Sets up what it needs. Arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
ensure_environment dev,timm,hf,clip,text,cpu,export,parquet,heif,demo
cd "$root"
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
# Two workers share two cores: threads of their arithmetic would only wait for each other, and must not spin meanwhile.
OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE "$python" -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" "$@"
