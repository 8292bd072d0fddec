"""A signal ends every verb cleanly: soon, with a true word, and without anything left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import COLOURS, REPOSITORY, RUNTIME, TINY, write_image

from featurecache.cli import main
from featurecache.store.store import FeatureStore

Make = Callable[..., Path]
LINUX = Path("/proc/self/stat").exists()
DEADLINE = 60
"""Seconds until a signal must have had its effect: five, on a machine that does nothing else."""
STOPPED = {
    "scan": "the cache lists the source as before",
    "extract": "finished shards are kept, run the same command to go on",
    "sweep": "finished results are kept, run the same command to go on",
    "train": "nothing is kept of heads that were in training",
    "predict": "labels.csv was not written",
    "verify": "nothing was changed",
    "info": "nothing was changed",
    "convert": "finished shards are kept, run the same command to go on",
}


def start(*args: object, **more: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests'}"}
    command = [sys.executable, "-m", "featurecache", *map(str, args)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes, **more)


def session(leader: int) -> list[int]:
    """Return the processes of a session that still run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(folder.name))
    return found


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not condition() and process.poll() is None:
        time.sleep(0.002)


def end(process: subprocess.Popen[str], number: int, *, group: bool = False) -> tuple[int, str]:
    """Send a signal, and return status and stderr once nothing of the session is left."""
    (os.killpg if group else os.kill)(process.pid, number)
    _, error = process.communicate(timeout=DEADLINE)
    limit = time.monotonic() + DEADLINE
    while LINUX and session(process.pid) and time.monotonic() < limit:
        time.sleep(0.01)
    assert session(process.pid) == []
    return process.returncode, error


def leftovers(cache: Path, pid: int) -> list[str]:
    found = [path for path in cache.rglob("*") if path.name.endswith((".partial", ".lease"))]
    return [str(path) for path in [*found, *Path("/dev/shm").glob(f"*_{pid}_*")]]


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of images, and its cache with a task and a saved head."""
    root = tmp_path_factory.mktemp("signals")
    source, cache = root / "photos", root / "cache"
    for number in range(60):
        label = list(COLOURS)[number % 3]
        write_image(source / label / f"{number}.png", COLOURS[label], seed=number)
    assert (
        main(["extract", str(source), "--cache", str(cache), "--backbone", TINY, "--dtype", "float32", *RUNTIME]) == 0
    )
    assert main(["task", "add", str(cache), "colour", "--from-folders"]) == 0
    head = ["--head", "ridge", "--save", "kept", "--quiet"]
    assert main(["train", str(cache), "--task", "colour", *head]) == 0
    return source, cache


def commands(source: Path, cache: Path, new: Path) -> dict[str, list[object]]:
    return {
        "scan": ["scan", source, "--cache", new, "--quiet"],
        "extract": [
            "extract",
            source,
            "--cache",
            new,
            "--backbone",
            TINY,
            "--shard-rows",
            "5",
            *RUNTIME,
        ],
        "sweep": ["sweep", cache, "--head", "ridge", "--head", "knn", "--folds", "3", "--jobs", "2", "--quiet"],
        "train": ["train", cache, "--task", "colour", "--quiet"],
        "predict": [
            *("predict", cache / "heads" / "kept", source, "--backbone", TINY, "--out", "labels.csv", "--replace"),
            *RUNTIME,
        ],
        "verify": ["verify", cache, "--deep", "--source", source, "--backbone", TINY, "--quiet"],
        "info": ["info", cache, "--source", source, "--quiet"],
        "convert": ["convert", cache, "--to", "int8"],
    }


def test_an_extraction_is_stopped_between_shards(cached: tuple[Path, Path], tmp_path: Path) -> None:
    command = ["extract", cached[0], "--cache", tmp_path / "new", "--backbone", TINY, "--shard-rows", "5", *RUNTIME]
    process = start(*command)
    wait_until(lambda: any(tmp_path.glob("new/features/*/*/*/commits/[0-9]*.json")), process)
    status, error = end(process, signal.SIGTERM)
    if status != 0:  # else it was done before
        assert (status, error) == (143, f"featurecache: stopped; {STOPPED['extract']}\n")
    assert leftovers(tmp_path, process.pid) == []
    assert main([*map(str, command)]) == 0


def test_workers_end_with_the_command_that_started_them(cached: tuple[Path, Path], tmp_path: Path) -> None:
    """Of a signal to it alone, of Ctrl-C to all of the session, and of its sudden death."""
    command = ["extract", cached[0], "--cache", tmp_path / "new", "--backbone", TINY, "--shard-rows", "2", *RUNTIME]
    for number, group in ((signal.SIGTERM, False), (signal.SIGINT, True), (signal.SIGKILL, False)):
        process = start(*command, "--engine", "processes", "--processes", "2")
        # Both workers, and the process in which Python notes what they share.
        wait_until(lambda leader=process.pid: len(session(leader)) >= 3, process)
        status, error = end(process, number, group=group)
        if number != signal.SIGKILL and status != 0:
            assert (status, error) == (128 + number, f"featurecache: stopped; {STOPPED['extract']}\n")
        if number != signal.SIGKILL:
            assert leftovers(tmp_path, process.pid) == []
    assert main([*map(str, command)]) == 0
    assert len(FeatureStore.open(tmp_path / "new").features()) == 60


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("verb", STOPPED)
def test_a_signal_ends_a_verb_and_leaves_nothing(
    verb: str, share: float, cached: tuple[Path, Path], tmp_path: Path
) -> None:
    """At a share of the time that the same command takes when nobody stops it."""
    command = commands(*cached, tmp_path / "new")[verb]
    began = time.monotonic()
    whole = start(*command, cwd=tmp_path)
    assert whole.communicate()[1] == ""
    took = time.monotonic() - began
    shutil.rmtree(tmp_path / "new", ignore_errors=True)
    process = start(*command, cwd=tmp_path)
    time.sleep(share * took)
    status, error = end(process, signal.SIGTERM)
    assert status in (0, 143, -signal.SIGTERM)
    assert error in ("", "featurecache: stopped\n", f"featurecache: stopped; {STOPPED[verb]}\n")
    assert leftovers(cached[1].parent, process.pid) == leftovers(tmp_path, process.pid) == []
    again = start(*command, cwd=tmp_path)
    assert again.communicate()[1] == ""
    assert again.returncode == 0


def test_the_end_of_a_sweep_takes_its_processes_along(cached: tuple[Path, Path]) -> None:
    """Also where the signal goes to one process and the others are in the middle of a fit."""
    # The first head is soon done, and tells that the others will take long enough for processes.
    heads = ["--head", "majority", "--head", "mlp"]
    process = start("sweep", cached[1], *heads, "--seeds", "40", "--folds", "5", "--jobs", "2", "--quiet")
    wait_until(lambda: LINUX and len(session(process.pid)) > 3, process)
    time.sleep(0.3)
    status, error = end(process, signal.SIGTERM)
    assert (status, error) == (143, f"featurecache: stopped; {STOPPED['sweep']}\n")
    assert leftovers(cached[1], process.pid) == []


STUCK = """
import hashlib, subprocess, sys, time
from pathlib import Path
from featurecache.atomic import partial_name
from featurecache.stopping import set_exit_message, stops_cleanly

with stops_cleanly():
    set_exit_message(lambda: "stopped; this test is true")
    partial_name(Path(sys.argv[1]) / "file").write_text("half")
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    while True:  # wherever the signal comes, it is swallowed
        try:
            print("ready", flush=True)
            if sys.argv[2] == "compiled":
                hashlib.pbkdf2_hmac("sha256", b"", b"", (1 << 31) - 1)  # takes no notice of signals for half an hour
            time.sleep(600)
        except KeyboardInterrupt:
            pass
"""


@pytest.mark.parametrize("what", ["compiled", "swallowing"])
def test_what_takes_no_notice_is_ended(tmp_path: Path, what: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, str(tmp_path), what],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert len(list(tmp_path.iterdir())) == 1
    status, error = end(process, signal.SIGTERM)
    assert (status, error) == (143, "featurecache: stopped; this test is true\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_modules_are_imported_gives_no_traceback(number: int) -> None:
    process = start("doctor")
    # The command line has taken the signals once its own thread is there.
    wait_until(lambda: len(list(Path(f"/proc/{process.pid}/task").glob("*"))) > 1, process)
    status, error = end(process, number)
    assert status in (128 + number, -number, 0)
    assert error in ("", "featurecache: stopped\n", "featurecache: stopped; nothing was changed\n")


def test_a_signal_that_is_ignored_stays_ignored(cached: tuple[Path, Path]) -> None:
    """Programs started by `nohup`, or in the background of a script."""
    process = start("verify", cached[1], "--quiet", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    wait_until(lambda: len(list(Path(f"/proc/{process.pid}/task").glob("*"))) > 1, process)
    os.kill(process.pid, signal.SIGHUP)
    assert process.communicate(timeout=120)[1] == ""
    assert process.returncode == 0


def test_what_the_killed_leave_behind_is_removed_without_a_word() -> None:
    """By a process of Python's that says on stderr what it finds, after everybody else is gone."""
    code = """
import os
from joblib.externals.loky.backend import resource_tracker
from featurecache.stopping import stops_cleanly

with stops_cleanly():
    resource_tracker.register("/dev/shm/nobody removes me", "folder")
    os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stderr == ""


FORKED = """
import multiprocessing, threading, time
from featurecache import stopping

def work():
    time.sleep(600)

def fork():
    process = multiprocessing.get_context("fork").Process(target=work, daemon=True)
    process.start()
    time.sleep(0.2)
    process.terminate()
    process.join()
    print(process.exitcode)

stopping.GRACE_SECONDS = 0.2
with stopping.stops_cleanly():
    thread = threading.Thread(target=fork)
    thread.start()
    thread.join()
    time.sleep(1)
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_the_end_of_what_a_library_forked_is_not_that_of_the_command() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, cwd=REPOSITORY)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["-15", "done"], "")


def test_libraries_leave_signals_alone() -> None:
    code = "import signal, featurecache, featurecache.cli; print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout == "True\n"
