"""Every way that there is to look at a cache, each in a process that is watched and limited."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import resource
import shutil
import signal
import struct
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.records import MAX_RECORD_BYTES
from trials.common import run_child
from trials.hostile.forgery import MEMORY, MOST_OUTPUT, N_FEATURES, SECONDS, SECRET, Attack, Forgery, state


@dataclass(frozen=True)
class Look:
    """One way to look at a cache; returns an exit status."""

    name: str
    run: Callable[[Path, bool], int]


@dataclass
class Outcome:
    """How a look ended and what was wrong with that."""

    look: str
    status: int
    problems: list[str] = field(default_factory=list)
    said: str = ""


def _command(name: str, *words: str) -> Look:
    def run(cache: Path, debug: bool) -> int:
        from featurecache.cli import main

        verb, *rest = words
        below = [verb, rest.pop(0)] if verb == "task" else [verb]
        return main([*below, str(cache), *rest, *(["--debug"] if debug else [])])

    return Look(name, run)


def _read_all(cache: Path, debug: bool) -> int:
    """Read everything through the store."""
    from featurecache.errors import RequestError
    from featurecache.store.labels import SPLITS
    from featurecache.store.store import FeatureStore

    store = FeatureStore.open(cache)
    samples = store.samples
    assert len(samples.uris_of(range(len(samples)))) == len(np.asarray(samples.ids)) == len(np.asarray(samples.sizes))
    for listing in store.listings.all():
        assert len(list(listing.paths)) == len(listing.rows) >= len(listing.row_of)
    for feature_set in store.feature_sets():
        feature_set.reference()
        features = feature_set.open()
        features.check_files()
        rows = features.rows[features.usable(features.rows)]
        assert features.read(rows).shape == features.read(rows[::-1]).shape == (len(rows), *features.sample_shape)
        for commit in features.commits:
            features.read_shard(commit)
        for name in store.task_names():
            task = store.task(name)
            task.left_out(features)
            for split in SPLITS:
                if task.has(split):
                    with contextlib.suppress(RequestError):  # some samples have no features
                        X, y = task.select(features, split)
                        assert len(X) == len(y)
    return 0


def _open_heads(cache: Path, debug: bool) -> int:
    """Open every head that the store names and let it answer."""
    from featurecache.deployment.saved import open_head
    from featurecache.errors import FeatureCacheError
    from featurecache.store.store import FeatureStore

    failed = None
    heads = FeatureStore.open(cache).heads_path
    for folder in sorted(heads.iterdir()) if heads.is_dir() else []:
        if not (folder / "head.json").exists():
            continue
        try:
            head = open_head(folder)
            answers = head.probabilities(np.zeros((3, N_FEATURES), np.float32))
            assert answers.shape == (3, len(head.classes))
        except FeatureCacheError as error:
            failed = error
    if failed:
        raise failed
    return 0


VERIFY = [_command(f"verify {level}", "verify", "--level", level) for level in ("structure", "blocks", "digest")]
HDF5 = _command("verify hdf5", "verify", "--level", "hdf5", "--json")
READ, HEAD = Look("read all", _read_all), Look("open heads", _open_heads)
LOOKS = [
    *VERIFY,
    _command("info", "info"),
    _command("info --json", "info", "--json"),
    _command("ls", "ls"),
    _command("ls --json", "ls", "--json"),
    _command("task ls", "task", "ls"),
    READ,
    HEAD,
    _command("gc", "gc", "--unused", "--older-than", "0"),
]


def _save_heads(cache: Path, debug: bool) -> int:
    """Save a head in the place of every one that is there."""
    from sklearn.dummy import DummyClassifier

    from featurecache.errors import HeadError
    from featurecache.heads.bundle import load_head, save_head
    from featurecache.store.store import FeatureStore

    for name in FeatureStore.open(cache).head_names():
        save_head(cache / "heads" / name, DummyClassifier().fit(np.zeros((2, 2)), [0, 1]), {})
        with contextlib.suppress(HeadError):
            load_head(cache / "heads" / name)
    return 0


CHANGING = [
    Look("save heads", _save_heads),
    _command("gc --remove", "gc", "--unused", "--remove", "--older-than", "0"),
    _command("repair", "repair"),
]
_FEWER = {"verify digest", "info", "info --json", "ls", "task ls", "read all", "gc"}


def choose_looks(attack: Attack, *, quick: bool) -> list[Look]:
    if attack.group == "heads" or attack.name.startswith("heads/"):
        return [VERIFY[2], HEAD, CHANGING[0]]
    if attack.small:
        return [look for look in LOOKS if look.name in _FEWER]
    hdf5 = [HDF5] if attack.group in ("hdf5", "nothing") or (not quick and "shard" in attack.name) else []
    changing = CHANGING if attack.group in ("nothing", "links", "names", "content") else []
    return [*LOOKS, *hdf5, *changing]


def run_looks(looks: Sequence[Look], forgery: Forgery) -> list[Outcome]:
    """Take the looks in a child; where one kills it, another child takes the rest."""
    outcomes: list[Outcome] = []
    logs = forgery.cache.parent / "logs"
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir()
    untouched, whole = _outside(forgery), _whole_shards(forgery.cache)
    watch = Watch(forgery.outside)
    todo = list(looks)
    while todo:
        done = logs / "done"
        done.unlink(missing_ok=True)
        ended = run_child(partial(_take, todo, forgery, logs), timeout=2 * SECONDS * len(todo) + 60)
        statuses = [line.split() for line in done.read_text().splitlines()] if done.exists() else []
        _end_group(logs)
        for look, (status, *_) in zip(todo, statuses, strict=False):
            outcomes.append(_outcome(look, int(status), logs, forgery))
        todo = todo[len(statuses) :]
        if todo:  # died at this one
            hung = ended.hung or ended.status == -signal.SIGALRM
            said = _text(logs / f"{todo[0].name}.err")[-300:]
            why = "hung" if hung else f"ended with status {ended.status} | {said} {ended.error[-300:]}"
            outcomes.append(Outcome(todo.pop(0).name, 1, [f"{looks[len(outcomes)].name} {why}"]))
    seen = watch.end()
    if seen:
        outcomes[0].problems.append(f"files outside were touched: {', '.join(sorted(seen))}")
    if (logs / "changed").exists():
        outcomes[0].problems.append("looking changed the cache")
    if _outside(forgery) != untouched:
        outcomes[0].problems.append("files outside were changed")
    if any(record.exists() for record in whole - _whole_shards(forgery.cache)):
        outcomes[0].problems.append("a good shard was taken away from its record")
    return outcomes


def _outside(forgery: Forgery) -> tuple[str, list[str], str]:
    beside = forgery.cache.parent
    names = sorted(path.name for path in beside.iterdir())
    return state(forgery.outside), names, (beside / "ab").read_text() if "ab" in names else ""


def _whole_shards(cache: Path) -> set[Path]:
    """Records whose shard is there."""
    whole = set()
    for record in list(cache.glob("features/*/*/*/commits/[0-9]*.json")) if cache.is_dir() else []:
        if not record.is_file() or record.stat().st_size > MAX_RECORD_BYTES:  # a device has no end
            continue
        try:
            digest = json.loads(record.read_bytes())["sha256"][:16]
            if (record.parents[1] / "shards" / f"{record.stem}-{digest}.h5").is_file():
                whole.add(record)
        except (OSError, ValueError, TypeError, KeyError, RecursionError, IndexError):
            continue
    return whole


def _take(looks: Sequence[Look], forgery: Forgery, logs: Path) -> int:
    """In the child: one look after the other, each with its own output and clock."""
    os.setpgrp()
    (logs / "group").write_text(str(os.getpid()))
    done = os.open(logs / "done", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    vm = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10
    resource.setrlimit(resource.RLIMIT_AS, (vm + MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    log = [-1]
    sys.addaudithook(partial(_audit, os.path.realpath(forgery.cache), os.path.realpath(logs), log))
    before = state(forgery.cache)
    for look in looks:
        if look is CHANGING[0] and state(forgery.cache) != before:
            (logs / "changed").touch()
        for number, kind in ((1, "out"), (2, "err")):
            os.dup2(os.open(logs / f"{look.name}.{kind}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        log[0] = os.open(logs / f"{look.name}.audit", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        signal.setitimer(signal.ITIMER_REAL, SECONDS * (4 if look in CHANGING else 1))  # many small writes
        status = _one_look(look, forgery.cache, logs)
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.stdout.flush()
        sys.stderr.flush()
        log[0] = -1
        os.write(done, f"{status}\n".encode())
    return 0


def _one_look(look: Look, cache: Path, logs: Path) -> int:
    from featurecache.errors import FeatureCacheError

    try:
        status = look.run(cache, False)
    except (FeatureCacheError, OSError) as error:
        print(f"featurecache: error: {' '.join(str(error).split())!r}", file=sys.stderr)
        return 2
    except SystemExit as error:
        return int(error.code or 0)
    except BaseException:
        sys.stderr.write(f"featurecache: error: unexpected\n{_where(traceback.format_exc())}\n")
        return 3
    sys.stderr.flush()
    if status and "unexpected" in _text(logs / f"{look.name}.err"):
        try:
            look.run(cache, True)
        except BaseException:
            sys.stderr.write(f"{_where(traceback.format_exc())}\n")
    return status


def _where(trace: str) -> str:
    """The place in our code where an error came from."""
    frames = re.findall(r'/(featurecache/[^"]+)", line (\d+)', trace) or re.findall(r'/([^/"]+)", line (\d+)', trace)
    return f"AT {':'.join(frames[-1])} {' '.join(trace.splitlines()[-1].split())[:200]}"


def _audit(cache: str, logs: str, log: list[int], event: str, arguments: tuple[Any, ...]) -> None:
    if log[0] < 0:
        return
    said = ""
    if event == "open":
        path, _, flags = arguments
        said = _leads_outside(path, cache, follow=not flags & os.O_NOFOLLOW)
    elif event in ("os.listdir", "os.scandir"):
        said = _leads_outside(arguments[0], cache, follow=True)
    elif event in _CHANGES:
        named = [_in_folder(item, arguments) for item in arguments if isinstance(item, str | bytes | Path)]
        said = "".join(_leads_outside(item, cache, follow=False) for item in named)
    elif event == "pickle.find_class":
        said = repr(arguments)
    elif event == "subprocess.Popen":
        said = "" if arguments[0] == sys.executable and arguments[1][1] == "-I" else repr(arguments[:2])
    elif event in ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "socket.connect"):
        said = repr(arguments)[:200]
    elif event == "ctypes.dlopen" and arguments[0]:
        said = _leads_outside(arguments[0], cache, follow=True)
    if said and not said.startswith(logs):
        os.write(log[0], f"{event} {said}\n".encode(errors="replace"))


def _in_folder(path: str | bytes | Path, arguments: tuple[Any, ...]) -> str | bytes | Path:
    """Return a path that is relative to an open folder, as `shutil.rmtree` names what it removes, in that folder."""
    folder = arguments[-1]
    if not isinstance(folder, int) or folder < 0:
        return path
    return Path(f"/proc/self/fd/{folder}").readlink() / os.fsdecode(path)  # an absolute path stays as it is


_CHANGES = {
    *("os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.mkdir", "os.truncate", "os.chmod"),
    *("os.chown", "os.utime", "shutil.rmtree", "shutil.move", "shutil.copyfile", "os.setxattr"),
}
_LIBRARIES = tuple(
    os.path.realpath(path)
    for path in (sys.prefix, sys.base_prefix, Path(__file__).parents[3], Path(os.__file__).parent)
)


def _leads_outside(path: Any, cache: str, *, follow: bool) -> str:
    """Where a path leads, if that is neither the cache nor a library."""
    if path is None or isinstance(path, int):
        return ""
    place = Path(os.fsdecode(path))
    real = os.path.realpath(place) if follow else f"{os.path.realpath(place.parent)}/{place.name}"
    if real == cache or real.startswith((cache + "/", "/proc/self", "/sys/")) or real == "/dev/null":
        return ""
    return "" if real.startswith(_LIBRARIES) and SECRET not in real and "/attack-" not in real else real


def _end_group(logs: Path) -> None:
    """End what a killed look had started."""
    try:
        os.killpg(int((logs / "group").read_text()), signal.SIGKILL)
    except (OSError, ValueError):
        return


def _text(path: Path) -> str:
    return path.read_bytes().decode(errors="surrogateescape") if path.exists() else ""


def _outcome(look: Look, status: int, logs: Path, forgery: Forgery) -> Outcome:
    out, err, audit = (_text(logs / f"{look.name}.{kind}") for kind in ("out", "err", "audit"))
    outcome = Outcome(look.name, status, said=" ".join(err.split())[:300])
    add = outcome.problems.append
    if "unexpected" in err or "Traceback" in err or "Traceback" in out:
        (place,) = re.findall(r"AT .*", err)[:1] or [err[:300]]
        add(f"unexpected error {place} | {look.name}")
    elif err and (err.count("\n") != 1 or not err.startswith("featurecache: ")):
        add(f"{look.name} did not say it in one line | {err[:300]!r}")
    if len(err) > MOST_OUTPUT:
        add(f"{look.name} printed {len(err)} bytes of error")
    if SECRET in out + err:
        add(f"{look.name} printed what is outside")
    if odd := {char for char in out + err if not char.isprintable() and char != "\n"}:
        add(f"{look.name} printed control characters | {sorted(odd)[:5]!r}")
    for line in sorted(set(audit.splitlines()))[:3]:
        place = str(forgery.cache.parent)
        add(f"{look.name} went outside: {line.replace(place, '')}")
    return outcome


class Watch:
    """Watches files and folders by inotify: an open by any process is seen, that of libhdf5 too."""

    _OPENED, _READ, _CHANGED = 0x20, 0x1, 0x2 | 0x4 | 0x40 | 0x80 | 0x100 | 0x200

    def __init__(self, folder: Path) -> None:
        library = ctypes.CDLL(None, use_errno=True)
        self._descriptor = library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        paths = [folder, *(p for p in folder.rglob("*") if not p.is_symlink())]
        mask = self._OPENED | self._READ | self._CHANGED
        places = {library.inotify_add_watch(self._descriptor, os.fsencode(path), mask): path for path in paths}
        self._names = {number: str(path.relative_to(folder.parent)) for number, path in places.items()}
        if self._descriptor < 0 or -1 in places:
            raise OSError(ctypes.get_errno(), "inotify does not work here")

    def end(self) -> set[str]:
        """Stop, and return what was opened, read or changed."""
        seen = set()
        try:
            while data := os.read(self._descriptor, 1 << 20):
                place = 0
                while place < len(data):
                    number, _, _, length = struct.unpack_from("iIII", data, place)
                    name = data[place + 16 : place + 16 + length].rstrip(b"\0").decode(errors="replace")
                    seen.add(f"{self._names.get(number, '?')}/{name}".rstrip("/"))
                    place += 16 + length
        except BlockingIOError:
            pass
        os.close(self._descriptor)
        return seen
