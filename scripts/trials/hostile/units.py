"""Attacks on what is listed of tars that are read in one pass: parts of units, the listing that names them, leases.

Of each there are two good caches: one whose listing is complete, and one of a run that was killed before that, where
parts lie loose. After all looks the tars are extracted again: damage must be mended or refused in one line.
"""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trials.blocks import extract_blocks, problems_of_blocks, write_tars
from trials.common import run_child
from trials.crashes import is_one_clear_line
from trials.hostile.contents import as_type, shaped, value_of
from trials.hostile.fields import fields_of, replace_field
from trials.hostile.forgery import MEMORY, WRONG, Attack, Forgery
from trials.hostile.links import WAYS

PARTS = "sources/*/parts"
KINDS = {
    "the parts": PARTS,
    "a part's commits": f"{PARTS}/commits",
    "a part's commit": f"{PARTS}/commits/*.json",
    "a part's shards": f"{PARTS}/shards",
    "a part's shard": f"{PARTS}/shards/*.h5",
    "leases of blocks": "sources/*/leases",
}
DAMAGE = ("another kind", "empty", "nothing")
"""Ways in which a disk can have it too: what is extracted then must be right."""


def make_good_blocks(photos: Path, folder: Path) -> int:
    """Make both good caches, and what their features are."""
    pattern = write_tars(photos, folder / "tars", count=4)
    status = extract_blocks(pattern, folder / "whole")
    shutil.copytree(folder / "whole", folder / "half")
    # What a run leaves that is killed when all is computed, and nothing names the parts yet.
    (source,) = (folder / "half" / "sources").iterdir()
    shutil.rmtree(source / "commits")
    shutil.rmtree(source / "shards")
    (source / "leases").mkdir(exist_ok=True)
    (source / "leases" / "block-0123456789abcdef.lease").write_text('{"host": "somewhere", "boot": "", "pid": 1}')
    return status


def unit_attacks(good: Path) -> Iterator[tuple[str, Attack]]:
    """Yield the good cache that an attack is made on, and the attack."""
    for state in ("whole", "half"):
        for kind, pattern in KINDS.items():
            for way, replace in WAYS.items():
                yield state, Attack("units", f"{kind}: {way}", partial(_replace, pattern, replace), None)
        for name, change in ARRAYS.items():
            yield (
                state,
                Attack("units", f"a part: {name}", partial(Forgery.rewrite, pattern=PARTS, change=change), None),
            )
        for path, number in _fields_of(good / state):
            forge = partial(replace_field, f"{PARTS}/commits/*.json", path, number)
            yield state, Attack("units", f"a part's {'.'.join(map(str, path))}, {number}", forge, None, small=True)
        for name, forge in OTHERS.items():
            yield state, Attack("units", name, forge, None)
    for name, change in LISTING.items():
        yield "whole", Attack("units", f"listing: {name}", partial(_change_listing, change), None)


def extract_again(forgery: Forgery, attack: Attack, pattern: str, truth: dict[str, bytes]) -> list[str]:
    """Extract the tars into the forged cache, and return what went wrong."""
    status = Path("/proc/self/statm").read_text().split()[0]
    most = int(status) * resource.getpagesize() + MEMORY

    def limited() -> int:
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
        return extract_blocks(pattern, forgery.cache)

    ended = run_child(limited, timeout=120)
    if ended.hung:
        return ["extract hung"]
    if ended.status == 0:
        is_damage = attack.name.endswith(DAMAGE) and attack.name.partition(": ")[0] in KINDS
        return (
            [f"extract says it is done, but {why}" for why in _problems(forgery, pattern, truth)] if is_damage else []
        )
    is_clear = ended.status in (1, 2) and is_one_clear_line(ended.error)
    return [] if is_clear else [f"extract ended with {ended.status} | {ended.error[-300:]}"]


def _problems(forgery: Forgery, pattern: str, truth: dict[str, bytes]) -> list[str]:
    # Where folders became files, verify still has something to say of them.
    found = problems_of_blocks(forgery.cache, pattern, truth)
    return [problem for problem in found if not problem.startswith("sources")]


def _replace(pattern: str, replace: Callable[[Path, Path], None], forgery: Forgery) -> None:
    replace(forgery.find(pattern), forgery.outside)


def _fields_of(cache: Path) -> Iterator[tuple[tuple[Any, ...], int]]:
    """Yield each field of the record of a part, with the numbers of what is put in its place."""
    content = json.loads(sorted(cache.glob(f"{PARTS}/commits/*.json"))[-1].read_bytes())
    for path in fields_of(content):
        if path != ("digest",) and "crc32" not in path:
            yield from ((path, number) for number in range(len(WRONG) + 1))


Change = Callable[[dict[str, Any], dict[str, Any]], None]


def _moved(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    def moved(arrays: dict[str, Any], body: dict[str, Any]) -> None:
        dtype, values = arrays[name]
        arrays[name] = (dtype, np.ascontiguousarray(change(values.copy())).astype(values.dtype))

    return moved


ARRAYS: dict[str, Change] = {
    **{
        f"{name} {label}": _moved(name, change)
        for name in ("unit_start", "run_start", "run_row", "unit_text_start", "text_length", "size", "unit_stamp")
        for label, change in {
            "backwards": lambda values: values[::-1],
            "one more": lambda values: np.concatenate([values, values[-1:]]),
            "one less": lambda values: values[:-1],
            "all its last": lambda values: np.full_like(values, values.flat[-1]),
            "all its least": lambda values: np.full_like(values, np.iinfo(values.dtype).min),
            "all its most": lambda values: np.full_like(values, np.iinfo(values.dtype).max),
        }.items()
    },
    "rows that do not exist": value_of("run_row", 10**12),
    "rows beyond all": value_of("run_row", 10**15),
    "rows before all": value_of("run_row", -5),
    "rows as float32": as_type("run_row", "float32"),
    "sizes of two dimensions": shaped("size", (2, 2)),
    "stamps too narrow": shaped("unit_stamp", (1, 2)),
    "text as int64": as_type("text", "int64"),
    "another prefix": value_of("unit_text", 65),
    "a prefix that is none": value_of("unit_text", 255),
    "no array": lambda arrays, body: arrays.clear() or arrays.update(size=("int64", np.zeros(4, "<i8"))),
    "notes of no unit": lambda arrays, body: body.update(units={"99": {"problems": {}, "ignored": {}}}),
    "notes that climb": lambda arrays, body: body.update(
        units={"0": {"problems": {"../../outside/secret.txt": "\x1b[2J\n"}, "ignored": {}}}
    ),
    "ignored files without end": lambda arrays, body: body.update(
        units={"0": {"problems": {}, "ignored": {"others": {f".{k}": 10**18 for k in range(20_000)}}}}
    ),
}


def _many(forgery: Forgery) -> None:
    record = forgery.find(f"{PARTS}/commits/*.json")
    for number in range(3_000):
        shutil.copy(record, record.with_name(f"{record.stem[:12]}{number:020d}.json"))


def _named(name: str, forgery: Forgery) -> None:
    record = forgery.find(f"{PARTS}/commits/*.json")
    shutil.copy(record, record.with_name(name))


def _exchanged(forgery: Forgery) -> None:
    """Let two parts have the shards of each other."""
    first, *_, last = sorted(forgery.cache.glob(f"{PARTS}/shards/*.h5"))
    data = first.read_bytes()
    first.write_bytes(last.read_bytes())
    last.write_bytes(data)


def _lease(text: bytes, forgery: Forgery) -> None:
    leases = forgery.find("sources/*") / "leases"
    leases.mkdir(exist_ok=True)
    for name in ("scan", "block-0123456789abcdef", "block-\x1b[2J", "x" * 200):
        (leases / f"{name}.lease").write_bytes(text)


OTHERS: dict[str, Callable[[Forgery], None]] = {
    "thousands of parts": _many,
    "a part without a number": partial(_named, "x.json"),
    "a part with a short number": partial(_named, "0.json"),
    "a part of a late generation": partial(_named, f"{10**11:012d}{0:020d}.json"),
    "parts with the shards of each other": _exchanged,
    "leases of nobody": partial(_lease, b""),
    "leases that are no JSON": partial(_lease, b"\xff\x00" * 1000),
    "leases of a strange place": partial(_lease, b'{"host": "\\u001b[2J", "boot": [], "pid": 1e999}'),
    "leases of a megabyte": partial(_lease, b'{"host": "' + b"x" * (1 << 20) + b'", "boot": "", "pid": 1}'),
}


def _change_listing(change: Change, forgery: Forgery) -> None:
    forgery.rewrite("sources/*", change)


def _parts(names: Callable[[list[str]], list[Any]]) -> Change:
    return lambda arrays, body: body.update(parts=names(body["parts"]))


LISTING: dict[str, Change] = {
    "units of a part that is not": _moved("unit", lambda values: values + np.array([99, 0])),
    "units that are not": _moved("unit", lambda values: values + np.array([0, 99])),
    "units before all": _moved("unit", lambda values: values - 7),
    "units twice": _moved("unit", lambda values: np.concatenate([values, values])),
    "units backwards": _moved("unit", lambda values: values[::-1]),
    "units of one number": _moved("unit", lambda values: values[:, :1]),
    "units flat": _moved("unit", lambda values: values.ravel()),
    "units as float32": as_type("unit", "float32"),
    "parts that climb": _parts(lambda parts: ["../../../outside/secret"] * len(parts)),
    "parts by a path": _parts(lambda parts: ["/etc/passwd"] * len(parts)),
    "parts of no name": _parts(lambda parts: [""] * len(parts)),
    "parts that are numbers": _parts(lambda parts: [1] * len(parts)),
    "parts twice": _parts(lambda parts: parts[:1] * len(parts)),
    "no parts": _parts(lambda parts: []),
    "parts without end": _parts(lambda parts: parts * 5_000),
    "another root": lambda arrays, body: body.update(root="../../outside/\x1b[2J"),
    "an order without end": lambda arrays, body: body.update(order=2**63),
}
