"""Fits run where a `joblib.parallel_config` sends them, with equal results, and end when somebody stops."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY, need, write_cache
from joblib import Parallel, delayed, effective_n_jobs, parallel_config, register_parallel_backend
from joblib.parallel import LokyBackend, MultiprocessingBackend
from own_heads import Whereabouts
from sklearn.exceptions import ConvergenceWarning

from featurecache.evaluation import search
from featurecache.evaluation.fit_progress import FitSteps, watched
from featurecache.evaluation.plan import Plan
from featurecache.evaluation.processes import FitBackend
from featurecache.evaluation.search import evaluate_heads
from featurecache.evaluation.sweep import SweepReport, run_sweep
from featurecache.evaluation.trained_head import HeadResult
from featurecache.heads.head import NamedHead
from featurecache.heads.recorded_warnings import recorded_warnings, warnings_by_thread
from featurecache.progress import Progress
from featurecache.store.store import FeatureStore

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])}
HERE = ["loky", "threading", "multiprocessing"]
HEADS = ["logistic", "linear_svm", "ridge"]


@pytest.fixture(scope="module")
def splits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 8))
    of_sizes = {"train": np.arange(60) % 3, "validation": np.arange(30) % 3, "test": np.arange(30) % 3}
    return {name: ((centres[y] + rng.normal(size=(len(y), 8))).astype(np.float32), y) for name, y in of_sizes.items()}


def figures(results: list[HeadResult]) -> list[Any]:
    return [(r.head, r.params, r.converged, r.test, r.proba.tobytes(), r.selection_pred.tobytes()) for r in results]


@pytest.mark.parametrize("backend", HERE)
def test_results_do_not_depend_on_the_backend(
    splits: dict[str, Any], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = figures(evaluate_heads(HEADS, splits, 3, n_jobs=1))
    monkeypatch.setattr(search, "WORTH_A_PROCESS", 0)
    where = [NamedHead(name, Whereabouts()) for name in ("first", "second")]
    with parallel_config(backend=backend, n_jobs=2):
        assert figures(evaluate_heads(HEADS, splits, 3)) == expected
        found = evaluate_heads(where, splits, 3)
    workers = {tuple(result.estimator.where_) for result in found}
    processes = {process for process, _ in workers}
    assert (os.getpid(), threading.get_ident()) not in workers
    assert (processes == {os.getpid()}) == (backend == "threading")


@pytest.mark.parametrize("backend", HERE)
def test_a_sweep_runs_on_the_backend(tmp_path: Path, backend: str) -> None:
    write_cache(tmp_path, "default")
    store = FeatureStore.open(tmp_path / "c")
    plan = Plan(heads=["nearest_mean", "majority"], seeds=[0, 1], num_folds=2)

    def sweep(memory: int | None = None) -> list[Any]:
        shutil.rmtree(tmp_path / "c" / "results", ignore_errors=True)
        report: SweepReport = run_sweep(store, [store.task("colour")], store.feature_sets(), plan, memory=memory)
        assert report.num_kept == 0
        return [(row.head, row.seed, row.fold, row.scores, row.error) for row in report.rows]

    expected = sweep(), sweep(memory=0)
    with parallel_config(backend=backend, n_jobs=2):
        assert (sweep(), sweep(memory=0)) == expected
    assert all(error is None for *_, error in expected[0])


@pytest.mark.parametrize(
    ("config", "n_jobs", "expected"),
    [
        ({}, 2, 2),
        ({"n_jobs": 3}, None, 3),
        ({"n_jobs": 3}, 2, 2),
        ({"backend": "threading", "n_jobs": 5}, None, 5),
        ({"backend": "threading", "n_jobs": 5}, 1, 1),
        ({"backend": "multiprocessing", "n_jobs": 3}, None, 3),
        ({"n_jobs": 1}, None, 1),
    ],
    ids=str,
)
def test_a_count_that_is_given_goes_before_that_of_the_config(
    config: dict[str, Any], n_jobs: int | None, expected: int
) -> None:
    with parallel_config(**config) if config else nullcontext():
        assert FitBackend.active(n_jobs).count == expected


def test_without_a_config_there_is_a_process_for_each_core() -> None:
    found = FitBackend.active(None)
    assert (type(found.backend), found.count) == (LokyBackend, effective_n_jobs(-1))
    with parallel_config(backend="threading"):
        assert FitBackend.active(None).count == effective_n_jobs(-1)


def test_what_joblib_names_inside_its_workers_is_nobodys_choice() -> None:
    with parallel_config(backend="threading", n_jobs=2):
        found = Parallel()(delayed(FitBackend.active)(None) for _ in range(2))
    assert [type(each.backend) for each in found] == [LokyBackend, LokyBackend]


class Elsewhere(MultiprocessingBackend):
    """A backend of which is not known where its processes run, as ray's is."""

    configured: list[int] = []  # noqa: RUF012

    def configure(self, n_jobs: int = 1, *args: Any, **options: Any) -> int:
        self.configured.append(n_jobs)
        return int(super().configure(n_jobs, *args, **options))


def test_splits_in_a_file_stay_here_and_others_travel(tmp_path: Path) -> None:
    register_parallel_backend("elsewhere", Elsewhere)
    write_cache(tmp_path, "default")
    store = FeatureStore.open(tmp_path / "c")
    for memory, expected in ((0, []), (None, [2])):
        Elsewhere.configured.clear()
        shutil.rmtree(tmp_path / "c" / "results", ignore_errors=True)
        with parallel_config(backend="elsewhere", n_jobs=2):
            plan = Plan(heads=["logistic", "ridge"])
            found = run_sweep(store, [store.task("colour")], store.feature_sets(), plan, memory=memory)
        assert [row.error for row in found.rows] == [None, None]
        assert Elsewhere.configured == expected


STOPPED = """
import signal, sys, threading, time
from pathlib import Path
from joblib import parallel_config
from featurecache.evaluation.processes import FitBackend

def alive(process):
    try:  # not one that has ended and is not fetched yet
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

def stop(number, frame):
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
    # joblib's tracker of resources is a child too, and stays.
    started.update(child for child in children if "resource_tracker" not in Path(f"/proc/{child}/cmdline").read_text())
    if len(started) >= 2:
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise KeyboardInterrupt

if __name__ == "__main__":
    started = set()
    signal.signal(signal.SIGALRM, stop)
    with parallel_config(backend=sys.argv[1], n_jobs=2):
        found = FitBackend.active(None).run(time.sleep, [(0.0,), (60.0,), (60.0,)], workers=2)
        signal.setitimer(signal.ITIMER_REAL, 0.5, 0.5)
        try:
            list(found)
        except KeyboardInterrupt:
            last = time.monotonic() + 20
            while any(map(alive, started)) and time.monotonic() < last:
                time.sleep(0.05)
            print(len(started), *filter(alive, started))
"""


@pytest.mark.parametrize("backend", ["loky", "multiprocessing"])
def test_processes_end_at_once_when_somebody_stops(backend: str, tmp_path: Path) -> None:
    """In a process of its own: an exception of a signal may come anywhere, and would leave locks taken here."""
    (tmp_path / "stopped.py").write_text(STOPPED)
    command = [sys.executable, "-W", "ignore", str(tmp_path / "stopped.py"), backend]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=100)
    assert done.stdout == "2\n", done.stderr


DAEMON = """
import multiprocessing, os
from featurecache.evaluation.processes import FitBackend

def run():
    return [pid == os.getpid() for _, pid in FitBackend.active(None).run(os.getpid, [(), ()], workers=1)]

if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(1) as pool:
        print(pool.apply_async(run).get(60))
"""


def test_a_daemon_that_may_start_no_process_goes_on_living(tmp_path: Path) -> None:
    """Its fits are told to end with their parent, which is itself."""
    (tmp_path / "daemon.py").write_text(DAEMON)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", tmp_path / "daemon.py"], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.stdout == "[True, True]\n", done.stderr


CLUSTER = """
import sys
from joblib import parallel_config
from featurecache.evaluation.processes import FitBackend
from test_processes import HEADS, evaluate_heads, figures, nap

def splits():
    import numpy as np
    rng = np.random.default_rng(0)
    return {name: (rng.normal(size=(n, 8)).astype(np.float32) + np.arange(n)[:, None] % 3, np.arange(n) % 3)
            for name, n in (("train", 60), ("validation", 30), ("test", 30))}

if __name__ == "__main__":
    if sys.argv[1] == "ray":
        import ray
        from ray.util.joblib import register_ray
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        register_ray()
    else:
        from dask.distributed import Client
        client = Client(n_workers=2, threads_per_worker=1, dashboard_address=None)
    import os
    expected = figures(evaluate_heads(HEADS, splits(), 3, n_jobs=1))
    with parallel_config(backend=sys.argv[1], n_jobs=2):
        found = figures(evaluate_heads(HEADS, splits(), 3))
        processes = {pid for _, pid in FitBackend.active(None).run(nap, [(0.5,)] * 4, workers=2)}
    print("equal", found == expected, "elsewhere", os.getpid() not in processes, len(processes))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "package"), [("ray", "ray"), ("dask", "distributed")])
def test_clusters_give_the_same_results(tmp_path: Path, backend: str, package: str) -> None:
    need(package)
    (tmp_path / "cluster.py").write_text(CLUSTER)
    paths = [ENVIRONMENT["PYTHONPATH"], str(Path(__file__).parent)]
    done = subprocess.run(
        [sys.executable, tmp_path / "cluster.py", backend],
        capture_output=True,
        text=True,
        env=ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.stdout.splitlines()[-1:] == ["equal True elsewhere True 2"], done.stderr[-3000:]


class Heard(Progress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def test_threads_tell_of_their_fits_one_beside_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featurecache.evaluation.fit_progress.SECONDS_BETWEEN_READS", 0.05)
    heard, both = Heard(), threading.Barrier(2)
    with watched(heard) as folder:

        def fit(label: str) -> None:
            steps = FitSteps(folder, label)
            steps.at(1, 2)
            both.wait(20)
            while not any("one" in said and "two" in said for said in heard.said):
                time.sleep(0.02)
            both.wait(20)
            steps.end()

        threads = [threading.Thread(target=fit, args=(label,), daemon=True) for label in ("one", "two")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in threads)
        assert list(Path(folder or "").iterdir()) == []


@pytest.mark.parametrize(
    "make", [lambda path: path / "absent", lambda path: path / "file" / "folder"], ids=["no", "file"]
)
def test_progress_on_a_machine_without_the_folder_is_silent(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    (tmp_path / "file").touch()
    steps = FitSteps(make(tmp_path), "head")
    steps.at(1, 2)
    steps.end()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_each_thread_records_its_own_warnings() -> None:
    together, found = threading.Barrier(2), dict[str, list[str]]()

    def warn(name: str, text: str | None) -> None:
        with recorded_warnings() as caught:
            together.wait(20)  # both are inside
            if text is not None:
                warnings.warn(text, ConvergenceWarning, stacklevel=1)
            together.wait(20)
        found[name] = [str(warning.message) for warning in caught]

    shown_before, filters = warnings.showwarning, list(warnings.filters)
    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("always")
        inside = warnings.showwarning
        with warnings_by_thread():
            threads = [threading.Thread(target=warn, args=args) for args in (("one", "no end"), ("two", None))]
            for thread in threads:
                thread.start()
            warnings.warn("of nobody", UserWarning, stacklevel=1)
            for thread in threads:
                thread.join(20)
        assert warnings.showwarning is inside
    assert found == {"one": ["no end"], "two": []}
    assert [str(warning.message) for warning in others] == ["of nobody"]
    assert (warnings.showwarning, list(warnings.filters)) == (shown_before, filters)


def test_records_may_be_nested() -> None:
    with recorded_warnings() as outer:
        with recorded_warnings() as inner:
            warnings.warn("inner", ConvergenceWarning, stacklevel=1)
        warnings.warn("outer", ConvergenceWarning, stacklevel=1)
    assert [str(warning.message) for warning in inner + outer] == ["inner", "outer"]
