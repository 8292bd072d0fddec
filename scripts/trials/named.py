"""Everything with a name is one publication: two writers at once, readers beside them, and kills at every call.

Whatever is found under the name is the old thing or a new one, whole. Kinds: heads, tasks, listings, tars in one pass,
exports (a folder, a file), reports, tables, pictures, and features in another type, of which the same command makes
what is missing.
"""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trials import blocks
from trials.common import (
    BACKBONE,
    Options,
    Tally,
    for_each,
    problems_of,
    run_child,
    search_little,
    warm_up,
    write_images,
)
from trials.injection import KILLS, Injection, fits
from trials.races import run_together

HEADS = ("ridge", "majority")
"""Whose head, report, table and so on it is: what two writers make must differ."""
_SECONDS_OF_READING = 0.5


@dataclass(frozen=True)
class Kind:
    """One kind of thing that has a name.

    Attributes
    ----------
    write : callable
        Writes variant 0 or 1 below a folder, as the command line does; returns the exit status.
    read : callable
        Returns the variant that is found there, or raises.
    many : bool
        Cheap enough for all attempts, and for the small trial.
    """

    name: str
    write: Callable[[Path, int], int]
    read: Callable[[Path], int]
    many: bool = True


def try_publish(options: Options) -> list[Tally]:
    """Pairs of writers with a reader, and SIGKILL at every call of a writer, for each kind of thing."""
    warm_up()
    search_little()
    kinds = {name: kind for name, kind in KINDS.items() if kind.many or not options.quick}
    _make_base(options.scratch / "base", kinds)
    pairs = Tally(
        "pairs of writers of one name left it unusable, lost what one said was done, or showed a reader a half"
    )
    trials = [
        (options.scratch, kind, number)
        for kind, each in kinds.items()
        for number in range(1 if options.quick else 25 if each.many else 6)
    ]
    for (_, kind, number), result in zip(trials, for_each(trials, _pair, jobs=1), strict=True):
        pairs.add(problems_of(result), label=f"{kind}, pair {number}")
    kills = Tally("kills of a writer left its name with anything but the old thing or the new one, whole")
    killed = [
        (options.scratch, kind, action, at)
        for kind, each in kinds.items()
        for trace in [_trace(options.scratch, kind)]
        for action in (KILLS[:2] if options.quick else KILLS)  # after a call is before the next
        for at in _points(trace, action, quick=options.quick, step=1 if each.many else 3)
    ]
    for (_, kind, action, at), result in zip(killed, for_each(killed, _kill, jobs=options.jobs), strict=True):
        kills.add(problems_of(result), label=f"{kind}, {action} {at}")
    kills.notes.append(f"{len(kinds)} kinds: {', '.join(kinds)}")
    return [pairs, kills]


def _make_base(base: Path, kinds: Mapping[str, Kind]) -> None:
    """Make a cache with one of everything; what a verb loads is loaded by then, so that forked writers begin soon."""
    write_images(base / "photos", count=12)
    (base / "photos" / "odd" / "broken-0.png").unlink()
    commands = [
        _extract(base),
        ["task", "add", str(base / "cache"), "parity", "--from-folders"],
        *(["train", *_training(base, head), "--save", head] for head in HEADS),
    ]
    for command in commands:
        _must(run_verb(command), command)
    for name, kind in kinds.items():
        _must(kind.write(base, 0), [name])
        if kind.read(base) != 0:
            raise RuntimeError(f"{name} is not what was written")


def _must(status: int, command: list[str]) -> None:
    if status:
        raise RuntimeError(f"the run before the trial failed: {command}")


def run_verb(command: list[str]) -> int:
    """Run a verb of the command line in this process, with nothing on stdout."""
    from featurecache.cli import main

    out, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        return main(command)
    finally:
        os.dup2(out, 1)
        os.close(out)
        os.close(null)


def _extract(place: Path) -> list[str]:
    numbers = ["--batch-size", "4", "--shard-rows", "6", "--jobs", "1", "--runtime", "torch", "--quiet"]
    return ["extract", str(place / "photos"), "--cache", str(place / "cache"), "--backbone", BACKBONE, *numbers]


def _training(place: Path, head: str) -> list[str]:
    return [str(place / "cache"), "--task", "parity", "--head", head, "--jobs", "1", "--quiet"]


# Writers and readers of each kind


def _write_head(place: Path, variant: int) -> int:
    return run_verb(["train", *_training(place, HEADS[variant]), "--save", "best"])


def _read_head(place: Path) -> int:
    from featurecache.deployment.saved import open_head

    return HEADS.index(open_head(place / "cache" / "heads" / "best").meta["head"])


def _write_task(place: Path, variant: int) -> int:
    return run_verb(
        ["task", "add", str(place / "cache"), "other", "--from-folders", "--replace", "--random-state", str(variant)]
    )


def _read_task(place: Path) -> int:
    from featurecache.store.store import FeatureStore

    return int(FeatureStore.open(place / "cache").task("other").about["random_state"])


def _write_listing(place: Path, variant: int) -> int:
    late = place / "photos" / "even" / "late.png"
    if variant:
        shutil.copy(place / "photos" / "odd" / "0001.png", late)
    else:
        late.unlink(missing_ok=True)
    return run_verb(_extract(place))


def _read_listing(place: Path) -> int:
    from featurecache.store.store import FeatureStore

    listing = FeatureStore.open(place / "cache").listings.load(place / "photos")
    if listing is None or len(listing.paths) != len(listing.rows) or (listing.rows < 0).any():
        raise ValueError("a listing that is none")
    return int("even/late.png" in listing.row_of)


def _export(place: Path, variant: int, out: str, format: str) -> int:
    head = place / "cache" / "heads" / HEADS[variant]
    return run_verb(
        ["export", str(head), "--format", format, "--out", str(place / out), "--replace", "--backbone", BACKBONE]
    )


def _read_export(place: Path) -> int:
    import safetensors.numpy

    # As one who keeps hold of the folder: names are looked up in the one that was there when it was opened.
    folder = os.open(place / "out", os.O_RDONLY)
    try:
        config, weights = (_read_below(folder, name) for name in ("config.json", "model.safetensors"))
    finally:
        os.close(folder)
    about = json.loads(config)
    named = {name for layer in about["head_layers"] for name in layer["arrays"]}
    if named != {name for name in safetensors.numpy.load(weights) if name.startswith("head.")}:
        raise ValueError("description and weights are of two exports")
    return HEADS.index(about["head"])


def _read_below(folder: int, name: str) -> bytes:
    with os.fdopen(os.open(name, os.O_RDONLY, dir_fd=folder), "rb") as file:
        return file.read()


def _read_program(place: Path) -> int:
    import zipfile

    with zipfile.ZipFile(place / "out.pt2") as archive:
        if archive.testzip() is not None:
            raise ValueError("a damaged program")
        texts = [archive.read(name) for name in archive.namelist() if name.endswith("featurecache.json")]
    return HEADS.index(json.loads(texts[0])["head"])


def _write_report(place: Path, variant: int) -> int:
    options = ["--batch-size", "4", "--runtime", "torch", "--quiet", "--head", HEADS[variant], "--jobs", "1"]
    return run_verb(["run", str(place / "photos"), "--cache", str(place / "cache"), "--backbone", BACKBONE, *options])


def _read_report(place: Path) -> int:
    text = (place / "cache" / "report.html").read_text()
    if not text.rstrip().endswith("</html>"):
        raise ValueError("half a report")
    return int(f">{HEADS[1]}<" in text)


def _write_table(place: Path, variant: int) -> int:
    head = place / "cache" / "heads" / HEADS[variant]
    options = ["--out", str(place / "out.csv"), "--replace", "--backbone", BACKBONE, "--quiet"]
    return run_verb(["predict", str(head), str(place / "photos"), *options])


def _read_table(place: Path) -> int:
    with (place / "out.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    if len({len(row) for row in rows}) != 1 or len(rows) < 15:
        raise ValueError("half a table")
    return int(len({tuple(row[1:]) for row in rows[1:]}) == 1)  # majority says the same of all


def _write_picture(place: Path, variant: int) -> int:
    options = ["--picture", str(place / "out.svg"), "--replace", "--jobs", "1", "--quiet"]
    return run_verb(["sweep", str(place / "cache"), "--task", "parity", "--head", HEADS[variant], *options])


def _read_picture(place: Path) -> int:
    text = (place / "out.svg").read_text()
    if not text.rstrip().endswith("</svg>"):
        raise ValueError("half a picture")
    return int(HEADS[1] in text)


def _convert(place: Path, variant: int) -> int:
    return run_verb(["convert", str(place / "cache"), "--to", "int8", "--quiet"]) if variant else 0


def _read_converted(place: Path) -> int:
    """Tell whether all rows are there in the other type; whatever is there must be right, and plain `train` goes on."""
    import numpy as np

    from featurecache.store.store import FeatureStore

    store = FeatureStore.open(place / "cache")
    exact = store.find().open()
    made = [each.open() for each in store.feature_sets() if each.dtype == "int8"]
    if exact.dtype != "float16":
        raise ValueError(f"the {exact.dtype} features are taken for the widest")
    for features in made:
        good = features.rows[features.usable(features.rows)]
        if np.abs(features.read(good) - exact.read(good)).max(initial=0) > 0.05 * np.abs(exact.read(good)).max(
            initial=1
        ):
            raise ValueError("rows that were converted are wrong")
    return int(any(np.array_equal(features.rows, exact.rows) for features in made))


KINDS = {
    kind.name: kind
    for kind in (
        Kind("head", _write_head, _read_head),
        Kind("task", _write_task, _read_task),
        Kind("listing", _write_listing, _read_listing),
        Kind("converted features", _convert, _read_converted),
        Kind("table", _write_table, _read_table),
        Kind("picture", _write_picture, _read_picture),
        Kind("report", _write_report, _read_report, many=False),
        Kind("tars in one pass", blocks.write_variant, blocks.read_variant, many=False),
        Kind("export to a folder", partial(_export, out="out", format="safetensors"), _read_export, many=False),
        Kind("export to a file", partial(_export, out="out.pt2", format="torch"), _read_program, many=False),
    )
}


# Attempts


def _fresh(scratch: Path, kind: str) -> Path:
    """Return a copy of the base in which variant 0 of the kind stands under its name."""
    place = scratch / f"work-{random.SystemRandom().getrandbits(64):x}"
    shutil.copytree(scratch / "base", place)
    if kind in ("listing", "tars in one pass"):  # sources are known by their place
        _must(run_child(partial(KINDS[kind].write, place, 0)).status, [kind])
    return place


def _trace(scratch: Path, kind: str) -> list[str]:
    place = _fresh(scratch, kind)

    def traced() -> int:
        injection = Injection(place)
        injection.install()
        status = KINDS[kind].write(place, 1)
        (scratch / "trace").write_text("\n".join(list(injection.trace)))
        return status

    if (ended := run_child(traced)).status:
        raise RuntimeError(f"the traced run of {kind} failed: {ended.error}")
    shutil.rmtree(place)
    return (scratch / "trace").read_text().split("\n")


def _points(trace: list[str], action: str, *, quick: bool, step: int) -> list[int]:
    """Calls to kill at; of the small trial the one that gives the name, or else the last."""
    points = [at for at, name in enumerate(trace, 1) if fits(action, name)]
    naming = [at for at in points if trace[at - 1] in ("link", "rename", "replace")]
    return (naming or points)[-1:] if quick else points[::-1][::step]


def _kill(trial: tuple[Path, str, str, int]) -> dict[str, Any]:
    scratch, kind, action, at = trial
    place = _fresh(scratch, kind)

    def injected() -> int:
        Injection(place, action, at).install()
        return KINDS[kind].write(place, 1)

    ended = run_child(injected)
    problems = [] if ended.status == -9 else [f"was not killed (status {ended.status}): {ended.error[-300:]}"]
    problems += _found(kind, place, (0, 1))
    again = run_child(partial(KINDS[kind].write, place, 1))
    problems += [f"the next run ended with {again.status}: {again.error[-300:]}"] if again.status else []
    problems += _found(kind, place, (1,))
    shutil.rmtree(place)
    return {"problems": problems}


def _pair(trial: tuple[Path, str, int]) -> dict[str, Any]:
    scratch, kind, number = trial
    place = _fresh(scratch, kind)
    rng = random.Random(number)
    variants = (0, 1) if number % 2 else (1, 1)
    delays = [0.0, rng.random() * 0.1]
    writers = [
        partial(_late, delay, partial(KINDS[kind].write, place, variant))
        for delay, variant in zip(delays, variants, strict=True)
    ]
    failed = run_together([*writers, partial(_keep_reading, kind, place)])
    # Of two who replace a task one may be told that the other was faster; never both.
    refused = [problem for problem in failed if "was written by another process at the same moment" in problem]
    problems = [problem for problem in failed if problem not in refused]
    problems += ["both were refused"] if len(refused) > 1 else []
    problems += _found(kind, place, variants)
    left = [path.name for path in place.rglob(".*.partial")]
    problems += [f"left {left[0]}"] if left else []
    shutil.rmtree(place)
    return {"problems": problems}


def _late(delay: float, work: Callable[[], int]) -> int:
    time.sleep(delay)
    return work()


def _keep_reading(kind: str, place: Path) -> int:
    started = time.perf_counter()
    while time.perf_counter() - started < _SECONDS_OF_READING:
        if problems := _found(kind, place, (0, 1)):
            raise AssertionError(problems[0])
    return 0


def _found(kind: str, place: Path, allowed: tuple[int, ...]) -> list[str]:
    for _ in range(20):
        try:
            found = KINDS[kind].read(place)
        except FileNotFoundError as error:
            problem = [f"cannot be read: {error}"]  # a folder that was opened may be replaced before its files are
            continue
        except Exception as error:
            return [f"cannot be read: {type(error).__name__}: {error}"]
        return [] if found in allowed else [f"is variant {found}, not of {allowed}"]
    return problem
