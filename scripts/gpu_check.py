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
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFilter

import featurecache as fc
from featurecache.backbones.packed_images import packed
from featurecache.backbones.registry import load_backbone
from featurecache.backbones.runtimes import open_runtime
from featurecache.backbones.taps import resolve_taps
from featurecache.backbones.torch_runtime import measured_rate
from featurecache.devices import device_kind, has_tf32, host_array
from featurecache.extraction.extract import make_request, run_extraction
from featurecache.extraction.loading_pools import LoadingPool, LoadingThreads
from featurecache.extraction.loading_processes import VARIABLE, LoadingProcesses
from featurecache.extraction.meter import Meter
from featurecache.extraction.modality import modality_of, without_resizing
from featurecache.extraction.pipeline import run_chunks
from featurecache.extraction.report import ExtractionReport
from featurecache.heads import fold_blocks
from featurecache.machine import num_cores
from featurecache.resizing import resize_and_crop
from featurecache.sources.inputs import inputs_of
from featurecache.sources.opening import open_spec, source_spec
from featurecache.specs import PreprocessSpec

NETWORKS = ("efficientnet_lite0", "torchvision:resnet50", "timm:vit_small_patch16_224")
GPU_FROM_CPU = 2e-4
"""Largest difference of float32 features, relative to the largest of a tap: sums in another order, in 50 layers."""
ROUNDED = {"tf32": 8e-3, "float16": 3e-2, "bfloat16": 0.15}
"""The same of fewer digits, for the worst tap of any network."""
GIGABYTE = 1 << 30
RESIZED_ELSEWHERE = 2e-3
"""The same of images that the device resized: of its pixels, one in thousands is rounded the other way."""


class Way(NamedTuple):
    """How images come to the device."""

    loaders: str
    resize_on: Literal["cpu", "device"]

    def __str__(self) -> str:
        return f"{self.loaders}, resizing on {self.resize_on}"


WAYS = (Way("threads", "cpu"), Way("processes", "cpu"), Way("threads", "device"), Way("processes", "device"))


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
        self,
        cache: str,
        network: str,
        *,
        photos: Path | None = None,
        precision: Any = "float32",
        preprocess: Any = None,
        **settings: Any,
    ) -> tuple[ExtractionReport, dict[str, np.ndarray]]:
        """Extract into a new cache; return the report and the features by tap."""
        shutil.rmtree(self.out / cache, ignore_errors=True)
        report = run_extraction(
            photos or self.few,
            self.out / cache,
            make_request(network, init=init_of(network), precision=precision, preprocess=preprocess),
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
    on_device = {"preprocess": {"resize_on": "device"}}
    resized = [machine.extract("resized", network, **on_device, device=d)[1] for d in (machine.device, "cpu")]
    difference = differing(*resized)
    yield Outcome(f"{network}: resized on the device", f"{difference:.1e}", difference < RESIZED_ELSEWHERE)
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


class Sink:
    """Stands in for a runtime: takes batches, and makes nothing of them."""

    name, precision, lengths, batch_size, norms_folded, resizes = "sink", "float32", (), 256, False, False

    def __init__(self, device: str) -> None:
        self.device = device

    def map(self, batches: Iterable[np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        """Return no features."""
        for batch in batches:
            yield {"none": np.zeros((len(batch), 1), np.float32)}


def decoding(machine: Machine) -> Iterator[Outcome]:
    """Photographs that are read and decoded in a second, without a network."""
    for way in WAYS:
        for workers in [count for count in (1, 2, 4, 8, 16, 32) if count <= 2 * num_cores()]:
            rate = _loading_rate(machine, PreprocessSpec(), way, workers)
            yield Outcome(f"loading alone, {workers} {way}, images/s", round(rate))


def _loading_rate(machine: Machine, spec: PreprocessSpec, way: Way, workers: int) -> float:
    modality = modality_of(spec.override(resize_on=way.resize_on))
    modality = without_resizing(modality) if way.resize_on == "device" else modality
    meter, named, device = Meter(cores=num_cores()), source_spec(machine.many), machine.device
    inputs = list(islice(inputs_of(open_spec(named)), 512 * workers))
    with ExitStack() as stack:
        pool: LoadingPool = LoadingThreads(modality, Sink.batch_size, workers, meter, device=device)
        if way.loaders == "processes":
            pool = processes = LoadingProcesses(named, modality, Sink.batch_size, workers, meter, device=device)
            processes.wait_for_start()
        stack.enter_context(closing(pool))
        stack.enter_context(modality.undisturbed())
        started = time.perf_counter()
        for _ in run_chunks([(None, inputs)], Sink(device), modality, pool=pool):  # type: ignore[arg-type]
            pass
        return len(inputs) / (time.perf_counter() - started)


def speed(machine: Machine, network: str, precision: Any) -> Iterator[Outcome]:
    """The network alone, eager and compiled, the runtime alone, and all together as a share of what binds it."""
    title = f"{network} {precision}"
    backbone = load_backbone(make_request(network, init=init_of(network), precision=precision))
    assert isinstance(backbone.preprocess, PreprocessSpec)
    side, alone = backbone.preprocess.crop_shape, {}
    photo = Image.open(next(machine.many.iterdir()))
    for resize_on in ("cpu", "device"):
        spec = backbone.preprocess.override(resize_on=resize_on)
        resizing = replace(backbone, preprocess=spec, identity=replace(backbone.identity, preprocess=spec))
        taps = resolve_taps(resizing, ["default"])
        runtime = open_runtime(resizing, taps, runtime="torch", device=machine.device)
        one = packed(photo, spec) if runtime.resizes else np.asarray(resize_and_crop(photo, spec), np.uint8)
        batch = host_array((runtime.batch_size, *one.shape), one.dtype, machine.device)
        batch[:] = one
        alone[resize_on] = measured_rate(runtime.map, batch, least=6, seconds=1.0)
        runtime.close()
        name = f"{title}: runtime alone in batches of {len(batch)}, resizing on {resize_on}, images/s"
        yield Outcome(name, round(alone[resize_on]))
    if machine.is_gpu:
        network_alone = load_backbone(make_request(network, init=init_of(network))).module
        yield from _ceilings_of(machine.device, network_alone, len(batch), side, title, half=precision == "bfloat16")
    assert isinstance(backbone.preprocess, PreprocessSpec)
    for way in WAYS:
        os.environ[VARIABLE] = way.loaders
        preprocess = {"resize_on": way.resize_on}
        try:
            report, _ = machine.extract(
                "speed", network, photos=machine.many, precision=precision, preprocess=preprocess
            )
        finally:
            del os.environ[VARIABLE]
        (usage,) = report.usage
        binding = min(alone[way.resize_on], _loading_rate(machine, backbone.preprocess, way, num_cores()))
        yield Outcome(f"{title}, {way}: end to end, images/s; {usage.summary()}", round(usage.rate))
        yield Outcome(f"{title}, {way}: as a share of the slower of loading and runtime", f"{usage.rate / binding:.0%}")


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
