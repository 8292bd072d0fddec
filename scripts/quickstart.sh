#!/usr/bin/env bash
# The main job on real photographs with real pretrained weights, both from pip: no model hub is asked.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
ensure_environment demo,cpu
cd "$root"
"$python" scripts/demo_images.py data/textile
started=$SECONDS
"$python" -m featurecache run data/textile --cache data/textile.cache --backbone efficientnet_lite0 "$@"
echo "took $((SECONDS - started)) s; open data/textile.cache/report.html"
