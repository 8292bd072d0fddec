"""A job is plain values: it pickles, and workers anywhere make the same cache as one in this process."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint, EntryPoints
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from child_processes import active_children
from conftest import REPOSITORY, TINY

from featurecache import plugins
from featurecache.errors import (
    InputError,
    MissingExtraError,
    NotAgreedError,
    RequestError,
    UnknownNameError,
    WorkerDiedError,
)
from featurecache.extraction.engines import Engine, make_engine, processes, rank
from featurecache.extraction.engines.local import LocalEngine
from featurecache.extraction.engines.processes import ProcessesEngine
from featurecache.extraction.engines.rank import RankEngine
from featurecache.extraction.engines.ray import RayEngine
from featurecache.extraction.extract import make_request, run_extraction
from featurecache.extraction.job import ExtractionJob
from featurecache.extraction.scan import scan
from featurecache.extraction.work import ExtractionWork, work
from featurecache.extraction.worker_report import WorkerReport
from featurecache.progress import Progress, Silent
from featurecache.sources.opening import source_spec
from featurecache.specs import ExtractionSettings
from featurecache.testing import EngineContract

Make = Callable[..., Path]
SETTINGS = ExtractionSettings(runtime="torch", batch_size=4, shard_rows=5, dtype="float16")


def job_on(source: Path, cache: Path, **options: object) -> ExtractionJob:
    return ExtractionJob(
        source=source_spec(source), cache=cache, backbone=make_request(TINY), settings=SETTINGS, **options
    )


class Meddling(Silent):
    """Counts what it is told, and once does something in between."""

    def __init__(self, meddle: Callable[[], None] = lambda: None) -> None:
        self.meddle, self.totals, self.done, self.has_meddled = meddle, list[int](), 0, False

    def start(self, phase: str, total: int) -> None:
        if phase == "extracting":
            self.totals.append(total)

    def advance(self, count: int, *, bad: int = 0) -> None:
        if self.totals:
            self.done += count
            if not self.has_meddled:
                self.has_meddled = True
                self.meddle()


class TestLocalEngine(EngineContract):
    def make_engine(self, progress: Progress) -> Engine:
        return LocalEngine(progress)


class TestProcessesEngine(EngineContract):
    def make_engine(self, progress: Progress) -> Engine:
        return ProcessesEngine(progress)


class TestRankEngine(EngineContract):
    @pytest.fixture(autouse=True)
    def ranks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RANK", "0")

    def make_engine(self, progress: Progress) -> Engine:
        return RankEngine(progress)


@pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")
class TestRayEngine(EngineContract):
    def make_engine(self, progress: Progress) -> Engine:
        return RayEngine(progress)


@pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")
def test_a_cluster_of_our_own_reports_nothing_to_rays_authors(
    make_folder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    asked, init = [], ray.init

    def see(**options: object) -> object:
        asked.append(os.environ.get("RAY_USAGE_STATS_ENABLED"))
        return init(**options)

    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    monkeypatch.setattr(ray, "init", see)
    report = run_extraction(
        make_folder(per_class=2), tmp_path / "c", make_request(TINY), settings=SETTINGS, engine="ray"
    )
    assert (report.num_extracted, asked) == (6, ["0"])


def test_a_worker_that_is_killed_costs_nothing(make_folder: Make, tmp_path: Path) -> None:
    source = make_folder(per_class=20)
    whole = run_extraction(source, tmp_path / "whole", make_request(TINY), settings=SETTINGS)

    def kill_one() -> None:
        os.kill(active_children()[0].pid, signal.SIGKILL)

    meddling = Meddling(kill_one)
    settings = replace(SETTINGS, num_processes=2)
    options = {"settings": settings, "engine": "processes", "progress": meddling}
    report = run_extraction(source, tmp_path / "c", make_request(TINY), **options)
    assert meddling.has_meddled
    assert active_children() == []
    assert max(meddling.totals) == 60
    features, expected = report.store.features(), whole.store.features()
    np.testing.assert_array_equal(features[:], expected[:])
    # What the killed one had committed and did not report is not computed again.
    assert report.num_extracted + report.num_cached == 60
    assert run_extraction(source, tmp_path / "c", make_request(TINY), **options).num_extracted == 0


def test_workers_that_are_killed_again_and_again_end_the_run(make_folder: Make, tmp_path: Path) -> None:
    def kill_all() -> None:
        for child in active_children():
            os.kill(child.pid, signal.SIGKILL)

    class Deadly(Meddling):
        def advance(self, count: int, *, bad: int = 0) -> None:
            kill_all()

    options = {"settings": replace(SETTINGS, num_processes=1, shard_rows=2), "engine": "processes"}
    with pytest.raises(WorkerDiedError, match="several workers were lost, the last because the system ended it"):
        run_extraction(make_folder(per_class=60), tmp_path / "c", make_request(TINY), progress=Deadly(), **options)
    assert active_children() == []


def test_a_script_without_a_main_guard_starts_workers(make_folder: Make, tmp_path: Path) -> None:
    """Processes that begin by importing the script would start workers themselves, without end."""
    script = tmp_path / "script.py"
    script.write_text(
        "import featurecache as fc\n"
        f"settings = fc.ExtractionSettings(runtime='torch', num_processes=2)\n"
        f"store = fc.extract({str(make_folder(per_class=2))!r}, {str(tmp_path / 'c')!r}, backbone={TINY!r},\n"
        "                   settings=settings, engine='processes')\n"
        "print('rows', len(store.features()))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout == "rows 6\n", done.stderr


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "PASSIVE"), pytest.param({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE", marks=pytest.mark.slow)],
)
def test_threads_of_workers_and_of_commands_do_not_spin(
    given: dict[str, str], expected: str, make_folder: Make, tmp_path: Path
) -> None:
    # Threads that spin take the cores from the other worker: start-up took four times as long.
    (tmp_path / "waiting.py").write_text(
        "import multiprocessing, os, torch\n"
        "from tests.backbones.networks import small as network\n"
        "is_worker = multiprocessing.parent_process() is not None\n"
        f"assert os.environ.get('OMP_WAIT_POLICY') == {expected!r} or not (is_worker or 'COMMAND' in os.environ)\n"
    )
    source = make_folder(per_class=2)
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | given
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(REPOSITORY), str(REPOSITORY / "tests")])
    script = "import sys, featurecache as fc; fc.extract(*sys.argv[1:3], backbone=sys.argv[3], engine='processes')"
    name = "python:waiting:network"
    subprocess.run([sys.executable, "-c", script, source, tmp_path / "a", name], env=environment, check=True)
    command = ["extract", source, "--cache", tmp_path / "b", "--backbone", name, "--runtime", "torch", "--quiet"]
    environment["COMMAND"] = "1"
    subprocess.run([sys.executable, "-m", "featurecache", *command], env=environment, check=True)


def test_ranks_take_their_gpu_and_share_of_the_cores(
    make_folder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str | None, int | None]] = []

    def noted(self: ExtractionWork, *, device: str | None, cores: int | None, progress: Progress) -> WorkerReport:
        asked.append((device, cores))
        return WorkerReport()

    monkeypatch.setattr(ExtractionWork, "work", noted)
    monkeypatch.setattr(rank, "num_cores", lambda: 16)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    job = job_on(make_folder(per_class=1), tmp_path / "c")
    for variables in (
        {"RANK": "9", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8"},  # torchrun
        {"SLURM_PROCID": "6", "SLURM_LOCALID": "6", "SLURM_TASKS_PER_NODE": "8(x2)"},  # srun
        {"SLURM_ARRAY_TASK_ID": "3"},  # a job array
    ):
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            list(RankEngine(Silent()).run(ExtractionWork(job)))
    assert asked == [("cuda:1", 2), ("cuda:2", 2), ("cuda:0", 16)]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr(rank, "num_cores", lambda: 2)  # the batch system bound the task to two
    monkeypatch.setenv("SLURM_PROCID", "6")
    list(RankEngine(Silent()).run(ExtractionWork(job)))
    assert asked[-1] == ("cpu", None)


def test_gpus_are_shown_to_one_worker_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    every = ExtractionSettings(device="cuda:all")
    assert [(slot.device, slot.visible_gpu) for slot in processes._slots(every)] == [("cuda:0", "0"), ("cuda:0", "1")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7")
    assert [slot.visible_gpu for slot in processes._slots(every)] == ["5", "GPU-7"]
    assert [slot.visible_gpu for slot in processes._slots(replace(every, num_processes=4))] == [
        "5",
        "5",
        "GPU-7",
        "GPU-7",
    ]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(RequestError, match="--device cuda:all, but there is no GPU here"):
        processes._slots(every)


def test_engines_refuse_what_is_for_others(make_folder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, request = make_folder(per_class=1), make_request(TINY)
    for variable in ("RANK", "SLURM_PROCID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(variable, raising=False)
    for engine, settings, message in (
        ("local", ExtractionSettings(num_processes=2), "--processes is for engines that start several workers; local"),
        ("local", ExtractionSettings(device="cuda:all"), "'cuda:all' is for engines of several workers"),
        ("rank", ExtractionSettings(), "none of RANK, SLURM_PROCID, SLURM_ARRAY_TASK_ID is set"),
        ("processes", ExtractionSettings(num_processes=999), "999 processes on .* cores wait for each other"),
    ):
        with pytest.raises(RequestError, match=message):
            run_extraction(source, tmp_path / "c", request, settings=settings, engine=engine)
    if find_spec("ray") is None:
        with pytest.raises(MissingExtraError, match="ray"):
            run_extraction(source, tmp_path / "c", request, engine="ray")


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """What distributions offer as engines; to be filled."""
    points: list[EntryPoint] = []

    def entry_points(group: str, **names: str) -> EntryPoints:
        return EntryPoints(points).select(group=group, **names)

    monkeypatch.setattr(plugins, "entry_points", entry_points)
    return points


def test_a_pickled_job_holds_what_was_asked_for_and_nothing_else(make_folder: Make, tmp_path: Path) -> None:
    job = job_on(make_folder(per_class=1), tmp_path / "c")
    scan(job)
    assert job.network.backbone.name == TINY
    data = pickle.dumps(job)
    assert len(data) < 2000
    copy = pickle.loads(data)
    assert copy == job
    assert not {"network", "opened_source"} & vars(copy).keys()


def test_workers_at_one_job_divide_it_by_leases(make_folder: Make, tmp_path: Path) -> None:
    job = job_on(make_folder(per_class=10), tmp_path / "c")
    scan(job)
    first = work(job, cores=1)
    assert [usage.cores for usage in first.usage] == [1]
    assert work(pickle.loads(pickle.dumps(job)), device="cpu", cores=1).num_rows == 0
    assert first.num_rows == 30
    assert first.sets == ("features/" + "/".join(next(iter((tmp_path / "c").glob("features/*/*/*"))).parts[-3:]),)


def test_untouched_inputs_are_recognised_without_torch(make_folder: Make, tmp_path: Path) -> None:
    source = make_folder(per_class=1)
    code = (
        "import sys; from pathlib import Path; from featurecache.extraction.extract import *; "
        "s, c = map(Path, sys.argv[1:]); request = make_request('torchvision:squeezenet1_1', init='random'); "
        "report = run_extraction(s, c, request); print(report.num_extracted, 'torch' in sys.modules)"
    )
    first = run_extraction(source, tmp_path / "c", make_request("torchvision:squeezenet1_1", init="random"))
    assert first.num_extracted == 3
    run = [sys.executable, "-c", code, str(source), str(tmp_path / "c")]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout.split() == ["0", "False"]


def test_wrong_engines_are_refused(offered: list[EntryPoint]) -> None:
    offered += [
        EntryPoint("broken", "no_such_module:Engine", "featurecache.engines"),
        EntryPoint("twice", "one:Engine", "featurecache.engines"),
        EntryPoint("twice", "two:Engine", "featurecache.engines"),
        EntryPoint("local", f"{__name__}:Meddling", "featurecache.engines"),
    ]
    with pytest.raises(RequestError, match=r"engine 'broken' of no_such_module:Engine \(.*\) cannot be used: Modu"):
        make_engine("broken", Silent())
    with pytest.raises(RequestError, match="engine 'twice' is offered more than once: .*; uninstall all but one"):
        make_engine("twice", Silent())
    with pytest.raises(UnknownNameError, match="unknown engine 'brokn'; did you mean 'broken'"):
        make_engine("brokn", Silent())
    assert type(make_engine("local", Silent())).__name__ == "LocalEngine"  # a name of ours cannot be taken over


def test_every_error_of_ours_travels() -> None:
    """With its message, its attributes and its type; the constructors of many take no message."""
    made = [
        UnknownNameError("tap", "layr4", ["layer4"], advice="see inspect"),
        WorkerDiedError(-9),
        MissingExtraError("ray, which the engine ray runs on,", "ray"),
        InputError("changed", "the file was edited"),
        NotAgreedError("say so", ["--backbone", "hf:x"]),
        RequestError("no"),
    ]
    for error in made:
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))
    assert isinstance(pickle.loads(pickle.dumps(made[0])), LookupError)
