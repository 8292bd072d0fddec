"""Speed, as ratios from one run: machines differ and are noisy, ratios of interleaved runs are not.

    python scripts/benchmark.py extraction data/textile --backbone efficientnet_lite0
    python scripts/benchmark.py engines photos --images 4000
    python scripts/benchmark.py forward --backbone timm:vit_tiny_patch16_224 --init random
    python scripts/benchmark.py decoding data/textile
    python scripts/benchmark.py growth data/textile
    python scripts/benchmark.py rerun
    python scripts/benchmark.py sustained
    python scripts/benchmark.py reading
    python scripts/benchmark.py similar --index
    python scripts/benchmark.py taps --repeats 15
    python scripts/benchmark.py tails --backbone torchvision:resnet50 --tap layer3:none
    python scripts/benchmark.py heads fashion.cache --task kind --repeats 1
    python scripts/benchmark.py heads fashion.cache --task kind --repeats 1 --intelex PYTHON --limit 300
    python scripts/benchmark.py mlp fashion.cache --task kind --repeats 3
    python scripts/benchmark.py small flowers.cache ants.cache --draws 20
    python scripts/benchmark.py reruns flowers.cache ants.cache --draws 3
    python scripts/benchmark.py labelling flowers.cache ants.cache --draws 10
    python scripts/benchmark.py outliers flowers.cache ants.cache --draws 10
    python scripts/benchmark.py adaptation office.cache --task kind --domain 'amazon/*' --domain 'webcam/*'
    python scripts/benchmark.py recipe ants.cache ants/ --task kind --backbone torchvision:squeezenet1_1 --weights FILE
    python scripts/benchmark.py start-up photos --images 180
    python scripts/benchmark.py texts --texts 320
    python scripts/benchmark.py units --samples 1000000
    python scripts/benchmark.py passes
    python scripts/benchmark.py passes --parquet
    python scripts/benchmark.py memory fashion.cache --task kind

Each prints what we reach, the ceilings of this machine (decode alone, forward alone, disk alone) and the baselines.
``--json FILE`` keeps the numbers with versions and hardware.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import (
    advice,
    ceilings,
    engines,
    extraction,
    heads,
    life,
    passes,
    reading,
    recipe,
    similar,
    small,
    start_up,
    tails,
    taps,
    texts,
    units,
)

Bench = Callable[[argparse.Namespace], dict[str, Any]]
Options = Callable[[argparse.ArgumentParser], None]


def describe_machine() -> dict[str, Any]:
    """Versions and hardware."""
    from featurecache.machine import num_cores
    from featurecache.versions import installed_versions

    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": num_cores(),
        "versions": installed_versions(),
    }


def print_result(result: dict[str, Any], indent: str = "") -> None:
    """Print numbers as aligned lines."""
    for name, value in result.items():
        if isinstance(value, dict) and "median" in value:
            print(f"{indent}{name:<44} {value['median']:>12.4g}   ({value['min']:.4g} to {value['max']:.4g})")
        elif isinstance(value, dict):
            print(f"{indent}{name}")
            print_result(value, indent + "  ")
        else:
            print(
                f"{indent}{name:<44} {value:>12.4g}"
                if isinstance(value, float)
                else f"{indent}{name:<44} {value!s:>12}"
            )


def add_backbone(parser: argparse.ArgumentParser) -> None:
    """Add which network."""
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--init", choices=["pretrained", "random"], default="pretrained")


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add which images, and how many."""
    parser.add_argument("source", type=Path)
    parser.add_argument("--images", type=int, default=300)


def main() -> None:
    """Run one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_subparsers(dest="what", required=True)
    benches: dict[str, tuple[Bench, Options]] = {
        "extraction": (extraction.bench_extraction, extraction.add_options),
        "engines": (engines.bench_engines, engines.add_engines_options),
        "forward": (ceilings.bench_forward, add_backbone),
        "decoding": (ceilings.bench_decoding, add_source),
        "rerun": (life.bench_rerun, life.add_rerun_options),
        "growth": (life.bench_growth, life.add_growth_options),
        "sustained": (life.bench_sustained, life.add_sustained_options),
        "reading": (reading.bench_reading, lambda parser: None),
        "similar": (similar.bench_similar, similar.add_similar_options),
        "taps": (taps.bench_taps, taps.add_options),
        "tails": (tails.bench_tails, tails.add_options),
        "heads": (heads.bench_heads, heads.add_heads_options),
        "small": (small.bench_small, small.add_small_options),
        "reruns": (small.bench_reruns, small.add_reruns_options),
        "labelling": (advice.bench_labelling, advice.add_sets_options),
        "outliers": (advice.bench_outliers, advice.add_sets_options),
        "adaptation": (advice.bench_adaptation, advice.add_adaptation_options),
        "recipe": (recipe.bench_recipe, recipe.add_recipe_options),
        "start-up": (start_up.bench_start_up, start_up.add_start_up_options),
        "mlp": (heads.bench_mlp, heads.add_mlp_options),
        "texts": (texts.bench_texts, texts.add_texts_options),
        "memory": (heads.bench_memory, heads.add_memory_options),
        "units": (units.bench_units, units.add_units_options),
        "passes": (passes.bench_passes, passes.add_passes_options),
    }
    for name, (bench, add_options) in benches.items():
        sub = which.add_parser(name, help=bench.__doc__)
        sub.add_argument("--repeats", type=int, default=3)
        sub.add_argument("--json", type=Path, metavar="FILE")
        add_options(sub)
    args = parser.parse_args()
    result = benches[args.what][0](args)
    print_result(result)
    if args.json:
        args.json.write_text(json.dumps({"what": args.what, **result, **describe_machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
