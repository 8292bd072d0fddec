# Sourced by the other scripts: makes .venv with pinned versions, or reuses it.
# usage: ensure_environment EXTRAS   (for example: demo,cpu)

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$root/.venv"
python="$venv/bin/python"
# What all tests need.
test_extras=dev,timm,hf,clip,text,cpu,export,parquet,excel,heif,labels,adapt,datasets,demo
# Packages are installed without being compiled; what is imported is compiled once, not again by every process.
unset PYTHONDONTWRITEBYTECODE

ensure_environment() {
    local extras="$1" stamp want
    stamp="$venv/.installed-$extras"
    want="$(cat "$root/scripts/constraints.txt" "$root/pyproject.toml" | sha256sum | cut -d' ' -f1)"
    if [ -x "$python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then
        return
    fi
    local base="${PYTHON:-python3}"
    if ! "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "featurecache needs Python 3.11 or newer; set PYTHON to one, e.g. PYTHON=python3.11 bash $0" >&2
        exit 2
    fi
    echo "setting up $venv (extras: $extras)" >&2
    [ -x "$python" ] || "$base" -m venv "$venv"
    "$python" -m pip install --quiet --disable-pip-version-check --no-compile \
        --constraint "$root/scripts/constraints.txt" --editable "$root[$extras]"
    echo "$want" >"$stamp"
}
