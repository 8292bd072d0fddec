"""A job is plain values: it pickles, and workers anywhere make the same cache as one in this process."""

from __future__ import annotations

import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, EntryPoints
from multiprocessing.pool import Pool
from pathlib import Path

import pytest
from conftest import TINY

from featurecache import plugins
from featurecache.errors import RequestError, UnknownNameError
from featurecache.extraction.engines import Engine, make_engine
from featurecache.extraction.engines.local import LocalEngine
from featurecache.extraction.extract import make_request, run_extraction
from featurecache.extraction.job import ExtractionJob
from featurecache.extraction.scan import scan
from featurecache.extraction.work import work
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


class Processes:
    """An engine as somebody else would write it: workers in processes of their own."""

    def __init__(self, progress: Progress, pool: Pool) -> None:
        self.progress, self.pool = progress, pool

    def run(self, job: ExtractionJob) -> Iterator[WorkerReport]:
        for report in self.pool.imap_unordered(work, [job] * 2):
            self.progress.advance(report.num_rows)
            yield report


class TestLocalEngine(EngineContract):
    def make_engine(self, progress: Progress) -> Engine:
        return LocalEngine(progress)


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """One process, which takes all workers, as each begins by loading torch; shared by tests."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        yield pool


class TestProcesses(EngineContract):
    @pytest.fixture(autouse=True)
    def use(self, pool: Pool) -> None:
        self.pool = pool

    def make_engine(self, progress: Progress) -> Engine:
        return Processes(progress, self.pool)


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
        EntryPoint("local", f"{__name__}:Processes", "featurecache.engines"),
    ]
    with pytest.raises(RequestError, match=r"engine 'broken' of no_such_module:Engine \(.*\) cannot be used: Modu"):
        make_engine("broken", Silent())
    with pytest.raises(RequestError, match="engine 'twice' is offered more than once: .*; uninstall all but one"):
        make_engine("twice", Silent())
    with pytest.raises(UnknownNameError, match="unknown engine 'brokn'; did you mean 'broken'"):
        make_engine("brokn", Silent())
    assert type(make_engine("local", Silent())).__name__ == "LocalEngine"  # a name of ours cannot be taken over
