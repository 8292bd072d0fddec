"""Disk to committed shards, beside the ceilings of the machine and what people write by hand.

The bound on a CPU is cores / (CPU seconds of an image to read and decode, on one thread, + CPU seconds of an image of
the fastest forward pass that agrees with the reference): decoding and the network share the cores, and no pipeline can
be quicker than both together at full use. What we reach counts everything from the scan of the folder to the last
commit but the start-up (loading the network, preparing and trying the runtimes), which does not grow with the images
and is printed beside it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.baselines import compare_features, loader_loop, plain_loop, thingsvision
from benchmarks.ceilings import measure_ceilings
from benchmarks.common import find_files, link_files, make_photographs, request_of, spread


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what is particular to this benchmark."""
    parser.add_argument("source", type=Path, help="folder of images")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--init", choices=["pretrained", "random"], default="pretrained")
    parser.add_argument("--images", type=int, default=640, help="how many files to use (default 640)")
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--photographs", action="store_true", help="first make 12-megapixel JPEGs of the images")
    parser.add_argument("--no-baselines", action="store_true", help="leave the plain loop and the DataLoader out")
    parser.add_argument("--thingsvision", type=Path, metavar="PYTHON", help="an interpreter that has it, to compare")


def bench_extraction(args: argparse.Namespace) -> dict[str, Any]:
    """Disk to committed shards against ceilings, a plain loop, a DataLoader loop and a peer, on the same files."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, saved = Path(scratch) / "files", Path(scratch) / "plain.npy"
        chosen = find_files(args.source, args.images)
        files = (make_photographs if args.photographs else link_files)(chosen, folder)
        caches = (Path(scratch) / f"cache{number}" for number in range(1000))
        ours: list[dict[str, Any]] = []

        def featurecache() -> float:
            ours.append(in_new_process(extract_all, args, folder, next(caches)))
            return float(ours[-1]["seconds"] - ours[-1]["startup_seconds"])

        runs: dict[str, Callable[[], float]] = {"featurecache": featurecache}
        if not args.no_baselines:
            runs["plain loop"] = lambda: in_new_process(plain_loop, args, files, saved)
            runs["DataLoader loop"] = lambda: in_new_process(loader_loop, args, files)
        if args.thingsvision:
            runs["thingsvision"] = lambda: thingsvision(args, folder, Path(scratch) / "peer")
        measured: dict[str, list[float]] = {name: [] for name in runs}
        # Before and after each run of ours: the machine may be slower in one minute than in the next.
        before, bounds, ceilings = in_new_process(measure_ceilings, args, files), [], []
        for _ in range(args.repeats):
            for name, run in runs.items():
                measured[name].append(len(files) / run())
                if name == "featurecache":
                    after = in_new_process(measure_ceilings, args, files)
                    bounds.append((before["bound"] + after["bound"]) / 2)
                    ceilings.append(after)
                    before = after
        difference = None if args.no_baselines else compare_features(Path(scratch) / "cache0", folder, files, saved)
    result: dict[str, Any] = {
        "images": len(files),
        "backbone": args.backbone,
        "runtime": ours[-1]["runtime"],
        "device": args.device,
        "images_per_second": {name: spread(values) for name, values in measured.items()},
        "ceilings, images_per_second": {name: spread([c[name] for c in ceilings]) for name in ceilings[0]},
        "featurecache / bound": spread([a / b for a, b in zip(measured["featurecache"], bounds, strict=True)]),
        "start-up, seconds": spread([report["startup_seconds"] for report in ours]),
        "what it waits for": ours[-1]["summary"],
    }
    for name in measured.keys() - {"featurecache"}:
        ratios = [a / b for a, b in zip(measured["featurecache"], measured[name], strict=True)]
        result[f"featurecache / {name}"] = spread(ratios)
    if difference is not None:
        result["largest relative difference of features from the plain loop"] = difference
    return result


def in_new_process(work: Callable[..., Any], args: argparse.Namespace, *more: Any) -> Any:
    """Run something where no other library has threads or memory left over from before."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(work, args, *more).result()


def extract_all(args: argparse.Namespace, folder: Path, cache: Path) -> dict[str, Any]:
    """Do the main job."""
    from featurecache.extraction.extract import run_extraction
    from featurecache.specs import ExtractionSettings

    settings = ExtractionSettings(runtime=args.runtime, batch_size=args.batch_size, device=args.device, dtype="float32")
    report = run_extraction(folder, cache, request_of(args), settings=settings)
    return {
        "seconds": report.seconds,
        "startup_seconds": report.startup_seconds,
        "runtime": report.runtime,
        "summary": report.usage[0].summary(),
    }
