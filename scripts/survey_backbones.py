"""Goes through all classification networks of timm and torchvision, untrained, and counts what works.

    python scripts/survey_backbones.py --out survey.csv              # everything, smallest first: many hours on a CPU
    python scripts/survey_backbones.py --out survey.csv --share 0/2  # and 1/2 in another terminal
    python scripts/survey_backbones.py --out survey.csv --minutes 10 --sample 200 --seed 0
    python scripts/survey_backbones.py --out survey.csv --summary    # print the table's summary, run nothing

For each: does `inspect` describe it, does the default tap resolve, is the default tap what a plain pre-hook sees at the
input of the untouched network's output layer, and which stages and blocks are suggested. Every network is tried in a
process of its own with a limit on memory and time. Rows are appended as they come, and a network with a row is not
tried again: stop it whenever you like.
"""

from __future__ import annotations

import argparse
import collections
import csv
import json
import multiprocessing
import random
import re
import resource
import time
from pathlib import Path
from typing import Any

COLUMNS = (
    "name", "status", "classifier_input", "error", "default_tap", "stages", "blocks", "parameters", "gflop", "crop",
    "seconds",
)  # fmt: skip
TOLERANCE = 1e-5
FORK = multiprocessing.get_context("fork")


def classifier_input(name: str, seed: int) -> Any:
    """Features (1, ...) that the untouched network hands to its output layer, caught by a plain pre-hook."""
    import torch

    from featurecache.backbones.dry_run import example_inputs
    from featurecache.backbones.registry import load_backbone
    from featurecache.specs import BackboneRequest

    full = load_backbone(BackboneRequest(name=name, init="random", seed=seed), keep_classifier=True)
    seen: list[Any] = []
    if full.classifier is None:
        return None
    parent, _, leaf = full.classifier.rpartition(".")
    # Branches with an output layer each: what all of them see, side by side.
    layers = [p for p in full.output_layers if p.rpartition(".")[0] == parent] if leaf.isdigit() else [full.classifier]
    for path in layers:
        layer = full.module.get_submodule(path)
        layer.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach().clone()))
    with torch.inference_mode():
        full.module(example_inputs(full, 1))
    return seen[-1] if len(layers) == 1 else torch.cat(seen, dim=1)


def try_one(name: str, seed: int = 0) -> dict[str, Any]:
    """Inspect one network and compare its default tap."""
    import torch

    from featurecache.backbones.dry_run import dry_run, example_inputs
    from featurecache.backbones.inspection import list_nodes, suggested_taps
    from featurecache.backbones.registry import load_backbone
    from featurecache.backbones.taps import TappedBackbone, resolve_taps
    from featurecache.specs import BackboneRequest

    backbone = load_backbone(BackboneRequest(name=name, init="random", seed=seed))
    seen = dry_run(backbone, with_costs=True)
    nodes = list_nodes(backbone, seen)
    suggested = suggested_taps(nodes)
    row: dict[str, Any] = {
        "name": name,
        "status": "inspected",
        "stages": len(suggested["stages"]),
        "blocks": len(suggested["blocks"]),
        "parameters": backbone.num_parameters,
        "gflop": round((nodes[-1].flops or 0) / 1e9, 3),
        "crop": backbone.preprocess.crop,
    }
    (tap,) = resolve_taps(backbone, ["default"], seen=seen)
    with torch.inference_mode():
        features = TappedBackbone(backbone, [tap])(example_inputs(backbone, 1))[tap.name]
    del backbone, seen, nodes  # the largest fit into memory once
    row |= {"status": "ok", "default_tap": tap.name, "classifier_input": compare(features, tap, name, seed)}
    return row


def compare(features: Any, tap: Any, name: str, seed: int) -> str:
    """Say whether the default tap is the classifier's input."""
    expected = classifier_input(name, seed)
    if tap.pooling == "cls":  # the output layer is handed all tokens, and its answer for the first one is taken
        expected = expected[:, 0]
    if expected is None:
        return "no classifier"
    if expected.ndim > 2 and tap.pooling != "none":
        axes = (2, 3) if tap.layout == "BCHW" else (1, 2)
        expected = expected.mean(axes) if tap.pooling == "avg" else expected
    if expected.shape != features.shape:
        return f"wrong: shape {tuple(features.shape)}, not {tuple(expected.shape)}"
    error = float((features - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
    return "same" if error <= TOLERANCE or not bool(expected.isfinite().all()) else f"wrong: {error:.1e}"


def run_guarded(name: str, *, gigabytes: float, seconds: float) -> dict[str, Any]:
    """Try a network in a process of its own, forked from this one, which has the libraries loaded."""
    started = time.monotonic()
    receiver, sender = FORK.Pipe(duplex=False)
    process = FORK.Process(target=answer, args=(name, gigabytes, sender))
    process.start()
    sender.close()
    try:
        row = receiver.recv() if receiver.poll(seconds) else {"status": "too slow", "error": f"over {seconds:.0f} s"}
    except EOFError:  # killed: by the kernel, for its memory
        row = {"status": "too large", "error": "the process was killed"}
    process.kill()
    process.join()
    receiver.close()
    return {**row, "name": name, "seconds": round(time.monotonic() - started, 1)}


def answer(name: str, gigabytes: float, sender: Any) -> None:
    """Send a network's row, or the error it ends with."""
    import torch

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (int(gigabytes * 1e9),) * 2)
    try:
        row = try_one(name)
    except BaseException as error:
        memory = isinstance(error, MemoryError) or "allocate memory" in str(error) or "bad_alloc" in str(error)
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        row = {"status": "too large" if memory else "failed", "error": f"{type(error).__name__}: {last}"[:300]}
    sender.send(row)


def by_size(names: list[str]) -> list[str]:
    """Sort by a guess at the cost from the name: building all networks to learn it takes too long."""
    words = [
        (r"atto|femto|pico|nano|_xxt|xxs|test_", 0),
        (r"tiny|_ti_|_xs|mini|small_0|_0[0-9]0|mobilenet|squeeze|shuffle", 1),
        (r"small|_s_|_s$|18|26|34|b0|b1|050", 2),
        (r"base|_b_|50|medium", 4),
        (r"large|_l_|101|152|b5|b6", 6),
        (r"huge|giant|gigantic|xlarge|so400m|enormous|_h_|_g_|_e_|b7|b8|7b|1b|x32d|x48d|xxlarge", 8),
    ]  # fmt: skip

    def guess(name: str) -> tuple[int, int, str]:
        sizes = [int(number) for number in re.findall(r"_(\d{3})(?:$|_)", name)]
        rank = max((rank for pattern, rank in words if re.search(pattern, name)), default=3)
        return rank, max(sizes, default=224), name

    return sorted(names, key=guess)


def summarise(rows: list[dict[str, Any]], total: int) -> dict[str, Any]:
    """Count."""
    judged = [row for row in rows if row["status"] not in ("too slow", "too large")]
    compared = [row for row in judged if row["classifier_input"]]
    return {
        "architectures": total,
        "tried": len(rows),
        "beyond the limits of memory or time": len(rows) - len(judged),
        "inspected": sum(row["status"] in ("ok", "inspected") for row in judged),
        "default tap resolved": sum(row["status"] == "ok" for row in judged),
        "classifier input the same": sum(row["classifier_input"] == "same" for row in compared),
        "no classifier": sum(row["classifier_input"] == "no classifier" for row in compared),
        "wrong classifier inputs": sum(row["classifier_input"].startswith("wrong") for row in compared),
        "with suggested stages": sum(int(row["stages"] or 0) > 0 for row in judged),
        "with suggested blocks": sum(int(row["blocks"] or 0) > 0 for row in judged),
        "errors": dict(collections.Counter(row["error"][:120] for row in judged if row["error"]).most_common(10)),
    }


def read_rows(table: Path) -> list[dict[str, Any]]:
    """Read what is done."""
    if not table.exists():
        return []
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def survey(names: list[str], table: Path, *, minutes: float, gigabytes: float, seconds: float) -> None:
    """Append one row for each network that has none."""
    import featurecache.backbones.dry_run
    import featurecache.backbones.inspection
    import featurecache.backbones.taps  # noqa: F401 (loaded once, for all processes to come)

    done = {row["name"] for row in read_rows(table)}
    deadline = time.monotonic() + minutes * 60
    fresh = not table.exists()
    with table.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        if fresh:
            writer.writeheader()
        for name in by_size([name for name in names if name not in done]):
            if time.monotonic() > deadline:
                return
            row = run_guarded(name, gigabytes=gigabytes, seconds=seconds)
            writer.writerow(row)
            file.flush()
            verdict = row.get("classifier_input") or row.get("error", "")
            print(f"{row['seconds']:6.1f} s  {row['status']:<10} {verdict}  {name}", flush=True)


def main() -> None:
    """Try, or summarise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", metavar="NAME", help="try a single network in this process and print its row as JSON")
    parser.add_argument("--out", type=Path, default=Path("survey.csv"), metavar="FILE")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--sample", type=int, metavar="N", help="a random part of the networks")
    parser.add_argument("--seed", type=int, default=0, help="of the random part")
    parser.add_argument("--share", default="0/1", metavar="K/N", help="every N-th network from the K-th (default 0/1)")
    parser.add_argument("--gigabytes", type=float, default=12.0, help="address space of one process (default 12)")
    parser.add_argument("--seconds", type=float, default=120.0, help="for one network (default 120)")
    parser.add_argument("--summary", action="store_true", help="only print the summary of --out")
    args = parser.parse_args()
    if args.one:
        import torch

        torch.set_num_threads(1)
        print(json.dumps(try_one(args.one)))
        return
    from featurecache.backbones.registry import list_backbones

    names = list_backbones("torchvision:*") + list_backbones("timm:*")
    part = random.Random(args.seed).sample(names, args.sample) if args.sample else names
    first, step = (int(number) for number in args.share.split("/"))
    part = part[first::step]
    if not args.summary:
        survey(part, args.out, minutes=args.minutes, gigabytes=args.gigabytes, seconds=args.seconds)
    summary = summarise(read_rows(args.out), len(names))
    args.out.with_suffix(".json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
