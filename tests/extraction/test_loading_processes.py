"""Processes that load make what threads make, end with their starter, and are left out where they cannot be."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from child_processes import active_children
from conftest import REPOSITORY, TINY, tar_bytes, write_image

from featurecache.backbones.registry import load_backbone
from featurecache.backbones.runtimes import open_runtime
from featurecache.backbones.taps import resolve_taps
from featurecache.errors import LoadingDiedError, RequestError
from featurecache.extraction import loading_processes
from featurecache.extraction.extract import make_request, run_extraction
from featurecache.extraction.loading_pools import LoadingThreads
from featurecache.extraction.loading_processes import VARIABLE, LoadingProcesses, open_processes
from featurecache.extraction.meter import Meter
from featurecache.extraction.modality import Modality, modality_of
from featurecache.extraction.pipeline import run_chunks
from featurecache.hashing import digest_bytes
from featurecache.sources.inputs import Input
from featurecache.sources.opening import SourceSpec, open_spec, source_spec
from featurecache.specs import ExtractionSettings, PreprocessSpec
from featurecache.spill import Spill
from featurecache.store.store import FeatureStore

Make = Callable[..., Path]
SETTINGS = ExtractionSettings(runtime="torch", batch_size=4, shard_rows=8, num_workers=2, dtype="float16")


def committed(cache: Path) -> dict[str, bytes]:
    """Shards by their names, and what commits say of bad rows."""
    found = {}
    for feature_set in FeatureStore.open(cache).feature_sets():
        for commit in feature_set.open().commits:
            name = f"{feature_set.fingerprint} {commit.key}"
            found[name] = (feature_set.folder.path / "shards" / commit.file_name).read_bytes()
            found[f"{name}.json"] = (feature_set.folder.path / "commits" / f"{commit.key}.json").read_bytes()
    return found


@pytest.fixture
def only_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have processes load, and no thread."""
    monkeypatch.setenv(VARIABLE, "processes")
    monkeypatch.setattr(LoadingThreads, "submit", lambda *_: pytest.fail("a thread was asked to load"))


@pytest.mark.parametrize(("kind", "views"), [("folder", None), ("folder", 3), ("tars", None)])
def test_processes_make_the_bytes_of_threads(
    make_folder: Make, tmp_path: Path, request: pytest.FixtureRequest, kind: str, views: int | None
) -> None:
    source = make_folder(per_class=7)
    (source / "red" / "002b.png").write_bytes((source / "red" / "002.png").read_bytes()[:60])
    (source / "red" / "004b.png").write_bytes(b"no image at all")
    (source / "red" / "005b.png").write_bytes(b"")
    if kind == "tars":
        samples = {f"a/{path.name}": path.read_bytes() for path in sorted(source.glob("red/*"))}
        source = tmp_path / "a.tar"
        source.write_bytes(tar_bytes(samples))
    run_extraction(source, tmp_path / "threads", make_request(TINY), views=views, settings=SETTINGS)
    request.getfixturevalue("only_processes")
    report = run_extraction(source, tmp_path / "processes", make_request(TINY), views=views, settings=SETTINGS)
    found, expected = committed(tmp_path / "processes"), committed(tmp_path / "threads")
    assert found == expected
    assert sum(b"undecodable" in data for data in expected.values()) == (1 if views is None else 2)
    usage = report.usage[-1]
    assert usage.cpu_seconds > usage.loading_cpu_seconds > 0
    assert active_children() == []


@pytest.fixture
def loading(make_folder: Make) -> Iterator[Callable[..., Any]]:
    """Run inputs of a folder through two processes; yields what makes the outcomes."""
    spec = source_spec(make_folder(per_class=4))
    backbone = load_backbone(make_request(TINY))
    runtime = open_runtime(backbone, resolve_taps(backbone, ["default"]), runtime="torch", device="cpu", batch_size=4)
    modality, opened = modality_of(backbone.preprocess), list[LoadingProcesses]()

    def run(chunks: Callable[[Any], Any], spec: SourceSpec = spec) -> Iterator[Any]:
        pool = LoadingProcesses(spec, modality, 4, 2, Meter(cores=2))
        opened.append(pool)
        pool.wait_for_start()
        source = open_spec(spec)
        names = [entry.name for unit in source.units() for entry in source.list(unit)]
        yield from run_chunks(chunks((source, names)), runtime, modality, pool=pool)

    yield run
    runtime.close()
    for pool in opened:
        pool.close()


def test_a_process_that_is_killed_is_an_error_that_says_so(loading: Callable[..., Any]) -> None:
    def endless(given: Any) -> Iterator[Any]:
        source, names = given
        for number in range(10_000):
            if number == 3:
                os.kill(active_children()[0].pid or 0, signal.SIGKILL)
            yield number, [Input(source, name) for name in names]

    with pytest.raises(LoadingDiedError, match="was ended, perhaps by the system.*FEATURECACHE_LOADING=threads"):
        for _ in loading(endless):
            pass


def test_bytes_that_the_scan_has_kept_are_loaded_here(loading: Callable[..., Any], tmp_path: Path) -> None:
    data = write_image(tmp_path / "kept.png", (1, 2, 3), seed=5).read_bytes()
    kept = Spill()
    kept.add(bytes.fromhex(digest_bytes(data)), data)

    def chunks(given: Any) -> Iterator[Any]:
        source, names = given
        yield 0, [Input(source, "gone.png", id=digest_bytes(data), kept=kept), *(Input(source, n) for n in names)]
        yield 1, [Input(source, "gone.png", id=digest_bytes(data))]

    problems = [problem and problem.status for _, outcome in loading(chunks) for problem in outcome.problems]
    assert problems == [None] * 13 + ["missing"]


def test_what_does_not_start_leaves_the_work_to_threads(
    loading: Callable[..., Any], caplog: pytest.LogCaptureFixture, make_folder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_spec(source_spec(make_folder("others", per_class=2)))
    inputs = [Input(source, entry.name) for unit in source.units() for entry in source.list(unit)]
    monkeypatch.setattr(loading_processes, "open_spec", lambda spec: source)
    monkeypatch.setattr(sys.modules[__name__], "open_spec", lambda spec: source)
    outcomes = list(loading(lambda _: [(0, inputs)], SourceSpec("no_such_kind", "x://y")))
    assert [problem for _, outcome in outcomes for problem in outcome.problems] == [None] * 6
    assert "decoding in threads: the processes for it did not start" in caplog.text


class Recorded:
    """Stands in for processes."""

    def __init__(self, *given: Any, **named: Any) -> None:
        self.given = given


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"device": "cpu"}, False),
        ({"device": "mps"}, False),
        ({"cores": 7}, False),
        ({"num_workers": 4}, False),
        ({"num_inputs": 5000}, False),
        ({"spec": None}, False),
        ({"free": 100 << 20}, False),
        ({"daemon": True}, False),
        ({"asked": "threads"}, False),
        ({"asked": "both"}, RequestError),
    ],
)
def test_processes_load_for_a_gpu_beside_many_cores(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, change: dict[str, Any], expected: Any
) -> None:
    case = {"device": "cuda:1", "cores": 8, "num_workers": None, "num_inputs": 10**5, "free": 1 << 34, "asked": None}
    monkeypatch.setattr(multiprocessing.current_process(), "_config", {"daemon": "daemon" in change})
    case |= {"spec": SourceSpec("folder", "photos")} | change
    monkeypatch.delenv(VARIABLE, raising=False)
    if case["asked"]:
        monkeypatch.setenv(VARIABLE, case["asked"])
    monkeypatch.setattr(loading_processes, "num_cores", lambda: case["cores"])
    monkeypatch.setattr(loading_processes, "LoadingProcesses", Recorded)
    monkeypatch.setattr(loading_processes.shutil, "disk_usage", lambda _: SimpleNamespace(free=case["free"]))

    def opened() -> Any:
        modality: Modality = modality_of(PreprocessSpec())
        named = {"device": case["device"], "num_inputs": case["num_inputs"]}
        return open_processes(case["spec"], modality, 256, case["num_workers"], Meter(cores=8), **named)

    if expected is RequestError:
        with pytest.raises(RequestError, match="FEATURECACHE_LOADING is 'both'; known: threads, processes"):
            opened()
        return
    with caplog.at_level(logging.WARNING):
        assert isinstance(opened(), Recorded) == expected
    told = {"spec": "samples are in the memory of this process", "free": "/dev/shm has no", "daemon": "is a daemon"}
    assert all((message in caplog.text) == (name in change) for name, message in told.items())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks into /proc")
@pytest.mark.parametrize("how", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM, signal.SIGKILL])
def test_neither_processes_nor_memory_stay_behind(make_folder: Make, tmp_path: Path, how: int) -> None:
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    command = [sys.executable, "-m", "featurecache", "extract", str(make_folder(per_class=150)), "--cache"]
    command += [str(tmp_path / "c"), "--backbone", TINY, "--runtime", "torch", "--batch-size", "4", "--shard-rows", "8"]
    env = os.environ | {"PYTHONPATH": path, VARIABLE: "processes"}
    main = subprocess.Popen(
        [*command, "--quiet", "--jobs", "2"], env=env, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while main.poll() is None and not list(tmp_path.glob("c/features/*/*/*/commits/[0-9]*.json")):
        time.sleep(0.01)
    started = [int(name) for name in Path(f"/proc/{main.pid}/task/{main.pid}/children").read_text().split()]
    maps = Path(f"/proc/{main.pid}/maps").read_text().splitlines()
    shared = {line.split(maxsplit=5)[5] for line in maps if "/dev/shm/" in line and "(deleted)" not in line}
    assert len(started) >= 2
    if how == signal.SIGINT:  # as a terminal does
        os.killpg(main.pid, how)
    else:
        main.send_signal(how)
    told = main.communicate(timeout=60)[1]
    assert main.returncode == (-9 if how == signal.SIGKILL else 128 + how)
    if how != signal.SIGKILL:
        assert told == "featurecache: stopped; finished shards are kept, run the same command to go on\n"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and any(is_alive(number) for number in started):
        time.sleep(0.05)
    assert not [number for number in started if is_alive(number)]
    assert not [name for name in shared if Path(name).exists()]


def is_alive(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
