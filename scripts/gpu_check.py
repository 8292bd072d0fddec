"""What only a machine with a GPU can tell: whether it computes what the CPU does, and how fast beside its ceilings.

    python scripts/gpu_check.py OUT
    python scripts/gpu_check.py OUT --device cpu --quick --backbone python:my_module:my_network

Takes under ten minutes on one GPU, with the extras demo and timm. It makes its own photographs in OUT, prints each
check as it is done, at the end a table of all, and keeps them in OUT/gpu_check.json. Exit status 1: a check failed.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFilter

import featurecache as fc
from featurecache.backbones.registry import load_backbone
from featurecache.backbones.runtimes import open_runtime
from featurecache.backbones.taps import resolve_taps
from featurecache.backbones.torch_runtime import measured_rate
from featurecache.devices import device_kind, has_tf32
from featurecache.extraction.extract import make_request, run_extraction
from featurecache.extraction.report import ExtractionReport
from featurecache.heads import fold_blocks
from featurecache.machine import num_cores
from featurecache.sources.decoding.images import load_image, pillow_defaults
from featurecache.specs import PreprocessSpec

NETWORKS = ("efficientnet_lite0", "torchvision:resnet50", "timm:vit_small_patch16_224")
GPU_FROM_CPU = 2e-4
"""Largest difference of float32 features, relative to the largest of a tap: sums in another order, in 50 layers."""
ROUNDED = {"tf32": 8e-3, "float16": 3e-2, "bfloat16": 0.15}
"""The same of fewer digits, for the worst tap of any network."""
GIGABYTE = 1 << 30


class Outcome(NamedTuple):
    """Of one check; ``ok`` is None of a figure that cannot fail."""

    name: str
    value: Any
    ok: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What is checked, and on what."""

    out: Path
    device: str
    quick: bool
    networks: tuple[str, ...]
    few: Path
    """Photographs for equality."""
    many: Path
    """Photographs for speed."""

    @property
    def is_gpu(self) -> bool:
        """Whether there is anything to see that the CPU alone does not show."""
        return self.device.startswith("cuda")

    def extract(
        self, cache: str, network: str, *, photos: Path | None = None, precision: Any = "float32", **settings: Any
    ) -> tuple[ExtractionReport, dict[str, np.ndarray]]:
        """Extract into a new cache; return the report and the features by tap."""
        shutil.rmtree(self.out / cache, ignore_errors=True)
        report = run_extraction(
            photos or self.few,
            self.out / cache,
            make_request(network, init=init_of(network), precision=precision),
            taps=taps_of(network),
            settings=fc.ExtractionSettings(
                **{"device": self.device, "runtime": "torch", "dtype": "float32", **settings}
            ),
        )
        return report, {s.tap: np.asarray(s.open().read(s.open().rows)) for s in report.sets}


def init_of(network: str) -> Any:
    """Weights that need no download."""
    return "random" if network.partition(":")[0] in ("timm", "torchvision") else "pretrained"


def taps_of(network: str) -> tuple[str, ...]:
    """The output, and some layers on the way."""
    return ("default",) if network.startswith("python:") else ("default", "blocks" if "vit" in network else "stages")


def differing(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    """Return the largest difference, relative to the largest feature of its tap."""
    return max(float(np.abs(found[tap] - x).max() / np.abs(x).max()) for tap, x in expected.items())


def equality(machine: Machine, network: str) -> Iterator[Outcome]:
    """Features on the device are those of the CPU, the same in each run, and nearly the same with fewer digits."""
    report, expected = machine.extract("cpu", network, device="cpu", batch_size=16)
    there, found = machine.extract("device", network)
    difference = differing(found, expected)
    yield Outcome(
        f"{network}: {len(found)} taps, float32, against the CPU", f"{difference:.1e}", difference < GPU_FROM_CPU
    )
    _, again = machine.extract("again", network)
    same = all(np.array_equal(again[tap], values) for tap, values in found.items())
    yield Outcome(f"{network}: two runs are equal to the bit", same, same)
    folded = [r.sets[0].folder.last().body["provenance"]["norms_folded"] for r in (report, there)]
    yield Outcome(f"{network}: norms folded on the CPU and on the device", folded, folded[0] == folded[1])
    for precision, most in ROUNDED.items():
        if precision == "tf32" and not has_tf32(machine.device):
            continue
        difference = differing(machine.extract(precision, network, precision=precision)[1], expected)
        yield Outcome(f"{network}: {precision} against float32", f"{difference:.1e}", difference < most)


def switches(machine: Machine) -> Iterator[Outcome]:
    """What the program has set for TF32 changes no float32 feature."""
    network = machine.networks[0]
    _, expected = machine.extract("device", network)
    before = torch.backends.fp32_precision  # type: ignore[attr-defined]
    try:
        torch.backends.fp32_precision = "tf32"  # type: ignore[attr-defined]
        _, found = machine.extract("switched", network)
    finally:
        torch.backends.fp32_precision = before  # type: ignore[attr-defined]
    same = all(np.array_equal(found[tap], values) for tap, values in expected.items())
    yield Outcome("float32 stays exact where a program has switched TF32 on", same, same)


def resumption(machine: Machine) -> Iterator[Outcome]:
    """A run that is killed and resumed commits the shards of one that was not; commits name digests."""
    network, shards = machine.networks[0], {}
    for name in ("killed", "whole"):
        shutil.rmtree(machine.out / name, ignore_errors=True)
        command = [
            sys.executable,
            "-m",
            "featurecache",
            "extract",
            str(machine.few),
            "--cache",
            str(machine.out / name),
        ]
        command += ["--backbone", network, "--init", init_of(network), "--device", machine.device]
        command += ["--runtime", "torch", "--batch-size", "16", "--shard-rows", "16", "--quiet"]
        if name == "killed":
            victim = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            while victim.poll() is None and not any((machine.out / name).glob("features/*/*/*/commits/*.json")):
                time.sleep(0.005)
            victim.send_signal(signal.SIGKILL)
            yield Outcome("a run was killed half-way", victim.wait() != 0)
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        # Not what lies in the folder of shards: a killed run leaves a temporary file there.
        commits = sorted((machine.out / name).glob("features/*/*/*/commits/*.json"))
        shards[name] = [path.read_bytes() for path in commits]
    same = shards["killed"] == shards["whole"] and len(shards["whole"]) > 1
    yield Outcome("killed and resumed, a run has the shards of one that was not", same, same)


def lack_of_memory(machine: Machine) -> Iterator[Outcome]:
    """A batch that does not fit is halved until it does, and the record tells the size."""
    if not machine.is_gpu:
        yield Outcome("lack of memory", "not checked: no GPU")
        return
    network = next((name for name in machine.networks if "resnet" in name), machine.networks[0])
    _, expected = machine.extract("cpu", network, device="cpu", batch_size=16)
    index = torch.device(machine.device).index or 0  # the limit takes no name without a number
    total = torch.cuda.get_device_properties(index).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1.5 * GIGABYTE / total, index)
    try:
        report, found = machine.extract("full", network, batch_size=512)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, index)
        torch.cuda.empty_cache()
    difference = differing(found, expected)
    yield Outcome(f"{network}: batches of 512 in 1.5 GB", f"{difference:.1e}", difference < GPU_FROM_CPU)
    size = report.sets[0].folder.last().body["provenance"]["batch_size"]
    yield Outcome("the record tells the size that fitted", size, size < 512)


def heads(machine: Machine) -> Iterator[Outcome]:
    """Heads trained on the device predict what those of the CPU do, also where it does not hold the rows."""
    rng = np.random.default_rng(0)
    size, features = (600, 32) if machine.quick else (8000, 768)
    y = rng.integers(0, 10, size)
    X = (rng.normal(size=(size, features)) + rng.normal(size=(10, features))[y] / 4).astype(np.float32)
    half = size // 2
    for head in ("logistic", "linear_svm", "mlp"):
        predictions, seconds = {}, {}
        for device in ("cpu", machine.device, "full"):
            real = fold_blocks.free_device_memory
            fold_blocks.free_device_memory = lambda _, full=device == "full": 1 if full else None  # type: ignore[assignment, misc]
            try:
                model = fc.make_head(head).set_params(device=machine.device if device == "full" else device)
                started = time.perf_counter()
                predictions[device] = model.fit(X[:half], y[:half]).predict(X[half:])
                seconds[device] = round(time.perf_counter() - started, 2)
            finally:
                fold_blocks.free_device_memory = real
        # Steps of gradient descent drift apart, where a solver ends at one minimum.
        least = 0.95 if head == "mlp" else 0.995
        same = float((predictions["cpu"] == predictions[machine.device]).mean())
        yield Outcome(f"{head}: equal predictions; seconds {seconds}", round(same, 4), same >= least)
        same = float((predictions["full"] == predictions[machine.device]).mean())
        yield Outcome(f"{head}: the same where the device does not hold the rows", round(same, 4), same >= least)


def decoding(machine: Machine) -> Iterator[Outcome]:
    """Photographs that threads decode in a second, without a network."""
    for threads in [count for count in (1, 2, 4, 8, 16, 32) if count <= 2 * num_cores()]:
        rate = _decoding_rate(machine, PreprocessSpec(), threads)
        yield Outcome(f"decoding alone, {threads} threads, images/s", round(rate))


def _decoding_rate(machine: Machine, spec: PreprocessSpec, threads: int) -> float:
    data = [path.read_bytes() for path in sorted(machine.many.iterdir())[: 256 * threads]]
    with pillow_defaults(), ThreadPoolExecutor(threads) as pool:
        started = time.perf_counter()
        for _ in pool.map(partial(load_image, spec=spec), data, chunksize=8):
            pass
        return len(data) / (time.perf_counter() - started)


def speed(machine: Machine, network: str, precision: Any) -> Iterator[Outcome]:
    """The network alone, eager and compiled, the runtime alone, and all together as a share of what binds it."""
    title = f"{network} {precision}"
    backbone = load_backbone(make_request(network, init=init_of(network), precision=precision))
    runtime = open_runtime(backbone, resolve_taps(backbone, ["default"]), runtime="torch", device=machine.device)
    side = backbone.preprocess.crop_shape  # type: ignore[union-attr]
    batch = np.random.default_rng(0).integers(0, 256, (runtime.batch_size, *side, 3), np.uint8)
    alone = measured_rate(runtime.map, batch, least=6, seconds=1.0)
    runtime.close()
    yield Outcome(f"{title}: runtime alone in batches of {runtime.batch_size}, images/s", round(alone))
    if machine.is_gpu:
        network_alone = load_backbone(make_request(network, init=init_of(network))).module
        yield from _ceilings_of(machine.device, network_alone, len(batch), side, title, half=precision == "bfloat16")
    report, _ = machine.extract("speed", network, photos=machine.many, precision=precision)
    (usage,) = report.usage
    assert isinstance(backbone.preprocess, PreprocessSpec)
    binding = min(alone, _decoding_rate(machine, backbone.preprocess, num_cores()))
    yield Outcome(f"{title}: end to end, images/s; {usage.summary()}", round(usage.rate))
    yield Outcome(f"{title}: as a share of the slower of decoding and runtime", f"{usage.rate / binding:.0%}")


def _ceilings_of(
    device: str, module: torch.nn.Module, size: int, side: tuple[int, int], title: str, *, half: bool
) -> Iterator[Outcome]:
    dtype = torch.bfloat16 if half else torch.float32
    module = module.to(device, dtype, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    images = torch.rand(size, 3, *side, device=device).to(dtype, memory_format=torch.channels_last)
    kinds = {"eager": module}
    if half:  # compiling takes most of a minute: once for each network
        kinds["compiled"] = torch.compile(module)
    for kind, network in kinds.items():
        with torch.inference_mode():
            for _ in range(5):
                network(images)
            torch.cuda.synchronize(device)
            started = time.perf_counter()
            for _ in range(20):
                network(images)
            torch.cuda.synchronize(device)
        rate = 20 * size / (time.perf_counter() - started)
        yield Outcome(f"{title}: {kind}, images on the device already, images/s", round(rate))


def photographs(folder: Path, count: int) -> Path:
    """Make so many JPEGs of 500x375, of 64 kinds of noise with large and small structures."""
    if folder.exists() and sum(1 for _ in folder.iterdir()) == count:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rng, data = np.random.default_rng(0), []
    for _ in range(min(count, 64)):
        coarse = Image.fromarray(rng.integers(0, 255, (47, 63, 3), np.uint8)).resize((500, 375))
        noisy = np.asarray(coarse.filter(ImageFilter.DETAIL), np.int16) + rng.normal(0, 9, (375, 500, 3))
        out = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=92)
        data.append(out.getvalue())
    for number in range(count):
        # Other bytes at the end are another sample.
        (folder / f"{number:06d}.jpg").write_bytes(data[number % len(data)] + number.to_bytes(4, "big"))
    return folder


def checks_of(machine: Machine) -> list[tuple[str, Callable[[], Iterator[Outcome]]]]:
    """Return all checks, those of correctness first."""
    checks: list[tuple[str, Callable[[], Iterator[Outcome]]]] = []
    checks += [(f"equality of {name}", partial(equality, machine, name)) for name in machine.networks]
    for check in (switches, resumption, lack_of_memory, heads, decoding):
        checks.append((check.__name__, partial(check, machine)))
    for name in machine.networks:
        for precision in ("float32", "bfloat16"):
            checks.append((f"speed of {name} in {precision}", partial(speed, machine, name, precision)))
    return checks


def run(machine: Machine, seconds: float) -> list[dict[str, Any]]:
    """Run all checks that begin within so many seconds; one that raises an exception has failed."""
    began, rows = time.perf_counter(), []

    def add(outcome: Outcome) -> None:
        elapsed = round(time.perf_counter() - began, 1)
        rows.append({**outcome._asdict(), "at": elapsed})
        print(f"[{elapsed:6.1f} s] {_mark(outcome.ok)} {outcome.name}: {outcome.value}", flush=True)

    for title, check in checks_of(machine):
        if time.perf_counter() - began > seconds:
            add(Outcome(title, "not begun: the time is over", False))
            continue
        try:
            for outcome in check():
                add(outcome)
        # The others may still tell something.
        except Exception as error:
            add(Outcome(title, f"{type(error).__name__}: {error}"[:400], False))
    return rows


def _mark(ok: bool | None) -> str:
    return {True: "ok    ", False: "FAILED", None: "      "}[ok]


def main() -> int:
    """Check, print the table, keep it; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for photographs, caches and gpu_check.json")
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:1; cpu, to see that the script runs")
    parser.add_argument("--backbone", action="append", help=f"networks (default: {', '.join(NETWORKS)})")
    parser.add_argument("--images", type=int, help="for speed (default 20000, quick 64)")
    parser.add_argument("--minutes", type=float, default=9.0, help="no check begins later (default 9)")
    parser.add_argument("--quick", action="store_true", help="few images and rows")
    args = parser.parse_args()
    machine = Machine(
        out=args.out,
        device=args.device,
        quick=args.quick,
        networks=tuple(args.backbone or NETWORKS),
        few=photographs(args.out / "few", 48 if args.quick else 512),
        many=photographs(args.out / "many", args.images or (64 if args.quick else 20_000)),
    )
    rows = run(machine, 60 * args.minutes)
    print("\n" + "\n".join(f"{_mark(row['ok'])} {row['name']}: {row['value']}" for row in rows))
    kind, model = device_kind(args.device)
    about = {"device": kind, "model": model, "cores": num_cores(), "torch": torch.__version__}
    document = {**about, "options": {**vars(args), "out": str(args.out)}, "checks": rows}
    (args.out / "gpu_check.json").write_text(json.dumps(document, indent=1))
    failed = sum(row["ok"] is False for row in rows)
    print(f"{failed} of {len(rows)} checks failed; kept in {args.out / 'gpu_check.json'}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
