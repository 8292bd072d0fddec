"""Attacks by impossible shapes, rows, labels and text."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from trials.hostile.forgery import SET, Attack, Forgery, crc32, set_field, signed

_COMMIT, _SAMPLES = f"{SET}/commits/*.json", "samples/commits/*.json"
_SOURCE, _TASK = "sources/*/commits/*.json", "tasks/*/commits/*.json"


def content_attacks(*, quick: bool) -> Iterator[Attack]:
    """Records that are well signed and impossible, or possible and too large."""
    for attacks in (_shapes, _arrays, _rows, _samples, _tasks, _places, _strangers, _formats):
        yield from attacks()


def _edit_array(name: str, pattern: str, **fields: Any) -> Callable[[Forgery], None]:
    return lambda forgery: forgery.edit(pattern, lambda content: content["arrays"][name].update(fields))


def _shapes() -> Iterator[Attack]:
    shapes: dict[str, list[Any]] = {
        "2**40 rows": [2**40, 1],
        "2**62 squared": [2**62, 2**62],
        "10 000 dimensions": [1] * 10_000,
        "10**4000 rows": [10**4000, 1],
        "no rows": [0, 16],
        "no dimension": [],
        "no channels": [9, 0],
        "one dimension": [9],
        "three dimensions": [9, 4, 4],
        "true rows": [True, 16],
        "nested": [[9], 16],
        "more rows than it has": [10, 16],
        "fewer rows than it has": [8, 16],
    }
    for label, shape in shapes.items():
        for name, pattern in (
            ("features", _COMMIT),
            ("id", _COMMIT),
            ("id", _SAMPLES),
            ("stamp", _SOURCE),
            ("id", _TASK),
        ):
            yield Attack("content", f"{pattern.split('/')[0]} {name}: {label}", _edit_array(name, pattern, shape=shape))


def _arrays() -> Iterator[Attack]:
    for name, fields in {
        "offset behind the end": {"offset": 1 << 40},
        "offset 10**30": {"offset": 10**30},
        "negative offset": {"offset": -1},
        "block of no bytes": {"block_bytes": 0},
        "block of 2**60 bytes": {"block_bytes": 1 << 60},
        "block of one byte": {"block_bytes": 1},
        "unknown dtype": {"dtype": "float64"},
        "object dtype": {"dtype": "O"},
        "another dtype": {"dtype": "bfloat16"},
        "checksum too large": {"crc32": [2**40]},
    }.items():
        must = "blocks" if name in ("block of 2**60 bytes", "checksum too large") else "structure"
        must = None if name == "block of 2**60 bytes" else must
        yield Attack("content", f"features: {name}", _edit_array("features", _COMMIT, **fields), must)
    yield Attack("content", "arrays overlap", _overlap, "hdf5")
    yield Attack("content", "many small blocks", _one_byte_blocks, None)
    yield Attack("content", "a sparse shard of 1 TB", _sparse_shard)
    yield Attack("content", "no features array", lambda f: f.edit(_COMMIT, lambda c: c["arrays"].pop("features")))
    yield Attack("content", "no id array", lambda f: f.edit(_COMMIT, lambda c: c["arrays"].pop("id")))
    for pattern in (_SAMPLES, _SOURCE, _TASK, _COMMIT):
        yield Attack("content", f"{pattern}: no arrays", partial(Forgery.edit, pattern=pattern, change=_no_arrays))
    yield Attack("content", "an array too many", _extra_array, "hdf5")


def _rows() -> Iterator[Attack]:
    rows: dict[str, Any] = {
        "0 to 10**15": [[0, 10**15]],
        "0 to 10**30": [[0, 10**30]],
        "far away": [[10**15, 10**15 + 9]],
        "beyond int64": [[2**63, 2**63 + 9]],
        "negative": [[-9, 0]],
        "backwards": [[9, 0]],
        "overlapping": [[0, 5], [4, 8]],
        "twice": [[0, 5], [0, 4]],
        "unsorted": [[5, 9], [0, 5]],
        "none": [],
        "an empty run": [[0, 9], [9, 9]],
        "no pairs": [[0, 9, 9]],
        "text": "09",
        "fractions": [[0.0, 9.0]],
        "true": [[False, 9]],
        "one too many": [[0, 10]],
        "a gap": [[0, 4], [5, 10]],
        "many runs": [[k, k + 1] for k in range(9)],
    }
    for label, value in rows.items():
        must = None if label == "many runs" else "structure"
        yield Attack("content", f"rows: {label}", partial(Forgery.body, pattern=_COMMIT, rows=value), must)
    bads: dict[str, Any] = {
        "negative row": [[-1, "empty", "x"]],
        "row 10**30": [[10**30, "empty", "x"]],
        "row of others": [[10**6, "empty", "x"]],
        "two entries": [[0, "empty"]],
        "text": ["abc"],
        "numbers": [[0, 1, 2]],
        "escapes": [[0, "\x1b[2J", "\n\r\x07"]],
    }
    for label, value in bads.items():
        must = None if label in ("numbers", "escapes") else "structure"
        yield Attack("content", f"bad: {label}", partial(Forgery.body, pattern=_COMMIT, bad=value), must)


def _samples() -> Iterator[Attack]:
    yield Attack("content", "samples start at 5", partial(Forgery.body, pattern=_SAMPLES, start=5))
    yield Attack("content", "samples start at true", partial(Forgery.body, pattern=_SAMPLES, start=False))
    for place, pattern in (("samples", "samples"), ("source", "sources/*")):
        for label, starts in TEXT_STARTS.items():
            forge = partial(Forgery.rewrite, pattern=pattern, change=partial(_set_starts, starts))
            must = "structure" if label in ("too few", "too many") else "blocks"
            yield Attack("content", f"text of {place}: {label}", forge, must)
    for label, change in ARRAYS.items():
        pattern, edit = change
        must = "blocks" if "NaN" in label else "structure"
        yield Attack("content", label, partial(Forgery.rewrite, pattern=pattern, change=edit), must)


def _tasks() -> Iterator[Attack]:
    for label, fields in {
        "classes: none": {"classes": []},
        "classes: numbers": {"classes": [1, 2]},
        "classes: text": {"classes": "ab"},
        "classes: lists": {"classes": [["a"], ["b"]]},
        "classes: equal": {"classes": ["a", "a"]},
        "classes: escapes": {"classes": ["\x1b[2J", "\n../../x"]},
        "classes: a surrogate": {"classes": ["\ud800", "b"]},
        "classes: a million": {"classes": [f"c{k}" for k in range(1_000_000)]},
        "about: nothing": {"about": {}},
        "about: null": {"about": None},
    }.items():
        must = None if label.split(": ")[1] in ("escapes", "a surrogate", "a million") else "structure"
        yield Attack("content", label, partial(Forgery.body, pattern=_TASK, **fields), must)


def _places() -> Iterator[Attack]:
    for label, root in {"climbs": "../../outside", "passwd": "/etc/passwd", "escapes": "\x1b]0;x\x07\n"}.items():
        yield Attack("content", f"root {label}", partial(Forgery.body, pattern=_SOURCE, root=root), None)
    problems = {"../../outside/secret.txt": "\x1b[2J\n", "/etc/passwd": "x" * 100_000}
    yield Attack("content", "problems climb", partial(Forgery.body, pattern=_SOURCE, problems=problems), None)
    yield Attack("content", "uris climb", partial(Forgery.rewrite, pattern="samples", change=_climbing_uris), None)


def _strangers() -> Iterator[Attack]:
    yield Attack("content", "a spec of another fingerprint", _foreign_spec)
    yield Attack("content", "a commit of another tap", _foreign_commit)
    yield Attack("content", "a commit of another dtype", _other_dtype)
    yield Attack("content", "two commits claim the same rows", _rival_commit, None)
    yield Attack("content", "a commit that verify does not list", _unlisted_commit, "blocks")
    yield Attack("content", "a samples' part that verify does not list", _unlisted_part)
    yield Attack("content", "a scale that is too wide", partial(_other_scale, 1 << 28))
    yield Attack("content", "a scale that does not fit", partial(_other_scale, 7))
    yield Attack("content", "int8 without a scale", _no_scale)


def _formats() -> Iterator[Attack]:
    for label, names in {"required": ["x"], "an escape": ["\x1b[2J"], "a million": ["x" * 10] * 50_000}.items():
        yield Attack("content", f"FORMAT requires {label}", partial(_set_format, {"required": names}))
    yield Attack("content", "FORMAT with a long name", partial(_set_format, {"format": "x" * 900_000}))
    yield Attack("content", "FORMAT of a later edition", partial(_set_format, {"version": [2, 0]}))
    for name in ("version", "format"):
        edit = partial(Forgery.edit, pattern=_COMMIT, change=partial(set_field, name, "x" * 1_000_000))
        yield Attack("content", f"a record with a long {name}", edit)


def _no_arrays(content: dict[str, Any]) -> None:
    content["arrays"] = {}


def _set_format(fields: dict[str, Any], forgery: Forgery) -> None:
    path = forgery.cache / "FORMAT.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def _overlap(forgery: Forgery) -> None:
    def change(content: dict[str, Any]) -> None:
        content["arrays"]["extra"] = content["arrays"]["id"]

    forgery.edit(f"{SET}/commits/*.json", change)


def _one_byte_blocks(forgery: Forgery) -> None:
    path = forgery.find(f"{SET}/commits/*.json")
    shard = next(path.parents[1].glob(f"shards/{path.stem}-*.h5")).read_bytes()

    def change(content: dict[str, Any]) -> None:
        array = content["arrays"]["id"]
        start = array["offset"]
        raw = shard[start : start + 32 * array["shape"][0]]
        array.update(block_bytes=1, crc32=[crc32(raw[k : k + 1]) for k in range(len(raw))])

    forgery.edit(f"{SET}/commits/*.json", change)


def _sparse_shard(forgery: Forgery) -> None:
    path = forgery.find(f"{SET}/commits/*.json")
    os.truncate(next(path.parents[1].glob(f"shards/{path.stem}-*.h5")), 1 << 40)
    rows = (1 << 40) // 32 - 4096

    def change(content: dict[str, Any]) -> None:
        content["size"] = 1 << 40
        content["arrays"]["features"].update(shape=[rows, 16], offset=0, block_bytes=1 << 50, crc32=[0])
        content["arrays"]["id"].update(shape=[rows, 32], offset=0, block_bytes=1 << 50, crc32=[0])
        content["body"]["rows"] = [[0, rows]]

    forgery.edit(f"{SET}/commits/*.json", change)


def _extra_array(forgery: Forgery) -> None:
    def change(content: dict[str, Any]) -> None:
        content["arrays"]["\x1b[2J../x"] = content["arrays"]["id"]

    forgery.edit(f"{SET}/commits/*.json", change)


TEXT_STARTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "decreasing": lambda starts: np.concatenate([starts[:2], starts[1:2] - 1, starts[3:]]),
    "behind its end": lambda starts: starts + np.uint64(10) * (np.arange(len(starts)) == len(starts) - 1),
    "from 5": lambda starts: starts + np.uint64(5) * (np.arange(len(starts)) == 0),
    "2**63": lambda starts: np.where(np.arange(len(starts)) == 3, np.uint64(2**63), starts),
    "2**64 - 1": lambda starts: np.full_like(starts, 2**64 - 1),
    "too few": lambda starts: starts[:-1],
    "too many": lambda starts: np.append(starts, starts[-1]),
}


def _set_starts(change: Callable[[np.ndarray], np.ndarray], arrays: dict[str, Any], body: dict[str, Any]) -> None:
    arrays["text_start"] = ("uint64", np.ascontiguousarray(change(arrays["text_start"][1]), "<u8"))


def value_of(name: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(arrays: dict[str, Any], body: dict[str, Any]) -> None:
        arrays[name][1][0] = value

    return change


def as_type(name: str, dtype: str) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    from featurecache.store.dtypes import STORED

    def change(arrays: dict[str, Any], body: dict[str, Any]) -> None:
        arrays[name] = (dtype, arrays[name][1].astype(STORED[dtype]))

    return change


def shaped(name: str, shape: tuple[int, ...]) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(arrays: dict[str, Any], body: dict[str, Any]) -> None:
        dtype, values = arrays[name]
        arrays[name] = (dtype, np.resize(values, shape))

    return change


ARRAYS: dict[str, tuple[str, Any]] = {
    "label 2**31 - 1": ("tasks/*", value_of("label", 2**31 - 1)),
    "label -1": ("tasks/*", value_of("label", -1)),
    "label -(2**31)": ("tasks/*", value_of("label", -(2**31))),
    "split 3": ("tasks/*", value_of("split", 3)),
    "split 255": ("tasks/*", value_of("split", 255)),
    "labels too few": ("tasks/*", shaped("label", (3,))),
    "labels of two dimensions": ("tasks/*", shaped("label", (4, 4))),
    "splits too many": ("tasks/*", shaped("split", (99,))),
    "labels as uint64": ("tasks/*", as_type("label", "uint64")),
    "labels as float32": ("tasks/*", as_type("label", "float32")),
    "ids of a task as float32": ("tasks/*", as_type("id", "float32")),
    "ids of a task too narrow": ("tasks/*", shaped("id", (16, 4))),
    "ids of a task flat": ("tasks/*", shaped("id", (512,))),
    "an id twice in a task": ("tasks/*", lambda arrays, body: arrays["id"][1].__setitem__(0, arrays["id"][1][1])),
    "an unknown id in a task": ("tasks/*", value_of("id", 0)),
    "row 10**15 in a source": ("sources/*", value_of("row", 10**15)),
    "row -5 in a source": ("sources/*", value_of("row", -5)),
    "row -(2**63) in a source": ("sources/*", value_of("row", -(2**63))),
    "rows of a source as float32": ("sources/*", as_type("row", "float32")),
    "stamps of a source too narrow": ("sources/*", shaped("stamp", (4, 1))),
    "text of a source as int64": ("sources/*", as_type("text", "int64")),
    "starts of a source as int64": ("sources/*", as_type("text_start", "int64")),
    "text of samples of two dimensions": ("samples", shaped("text", (4, 4))),
    "text of samples as float32": ("samples", as_type("text", "float32")),
    "a sample twice": ("samples", lambda arrays, body: arrays["id"][1].__setitem__(0, arrays["id"][1][1])),
    "another sample": ("samples", value_of("id", 7)),
    "ids of features too narrow": (SET, shaped("id", (9, 4))),
    "ids of features as int64": (SET, as_type("id", "int64")),
    "another id in features": (SET, value_of("id", 7)),
    "features of another shape": (SET, shaped("features", (9, 4, 4))),
    "features of no dimension": (SET, shaped("features", (9,))),
    "features too narrow": (SET, shaped("features", (9, 3))),
    "features as uint8": (SET, as_type("features", "uint8")),
    "good features that are NaN": (SET, value_of("features", np.nan)),
}
"""Well-formed arrays that cannot be right."""


def _climbing_uris(arrays: dict[str, Any], body: dict[str, Any]) -> None:
    from featurecache.text import TextColumn

    number = len(arrays["id"][1])
    texts = ["../../outside/secret.txt", "/etc/passwd", "\x1b[2J\n\r", b"\xff\xfe\x00", ""]
    arrays |= TextColumn.pack([texts[k % len(texts)] for k in range(number)]).arrays()


def _foreign_spec(forgery: Forgery) -> None:
    forgery.edit("features/*/spec.json", lambda content: content["identity"].update(backbone="efficientnet_lite0"))


def _foreign_commit(forgery: Forgery) -> None:
    forgery.body(f"{SET}/commits/*.json", tap="other:avg")


def _other_dtype(forgery: Forgery) -> None:
    for name in ("commits", "shards"):
        target, source = forgery.find(f"{SET}/{name}"), forgery.find(f"features/*/*=avg/int8/{name}")
        shutil.rmtree(target)
        shutil.copytree(source, target)


def _rival_commit(forgery: Forgery) -> None:
    from featurecache.store.folders import ShardFolder

    folder = ShardFolder(forgery.find(SET))
    commit = folder.commits()[0]
    mapped = folder.open(commit)
    arrays = {name: (array.dtype, mapped.read(name).copy()) for name, array in commit.shard.arrays.items()}
    arrays["features"][1][:] = 1
    folder.publish("000000000001", arrays, commit.body, kind="features")


def _unlisted_commit(forgery: Forgery) -> None:
    """A commit that readers take and that has no number for a name, with a block that does not match."""
    folder = forgery.find(SET)
    record = sorted((folder / "commits").glob("*.json"))[0]
    shard = next(folder.glob(f"shards/{record.stem}-*.h5"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    digest = hashlib.sha256(data).hexdigest()
    (folder / "shards" / f"x-{digest[:16]}.h5").write_bytes(data)
    content = json.loads(record.read_bytes())
    content["sha256"] = digest
    (folder / "commits" / "x.json").write_bytes(signed(content))
    record.unlink()
    shard.unlink()


def _unlisted_part(forgery: Forgery) -> None:
    (forgery.cache / "samples" / "commits" / "x.json").write_text("{}")


def _other_scale(width: int, forgery: Forgery) -> None:
    """Scale and offset that numpy stretches: nine numbers become billions."""
    folder = forgery.find("features/*/*=avg/int8")
    key = sorted((folder / "commits").glob("*.json"))[0].stem
    content = json.loads((folder / "commits" / f"{key}.json").read_bytes())
    shard = next(folder.glob(f"shards/{key}-*.h5"))
    size = shard.stat().st_size
    rows = content["arrays"]["features"]["shape"][0]
    data = shard.read_bytes()
    raw = data[content["arrays"]["features"]["offset"] :][:rows]
    content["arrays"]["features"] |= {"shape": [rows, 1], "crc32": [crc32(raw)]}
    zeros = 0
    for _ in range(width >> 18):
        zeros = _crc32_of_zeros(1 << 20, zeros)
    zeros = _crc32_of_zeros(4 * width % (1 << 20), zeros)
    for name in ("scale", "offset"):
        content["arrays"][name] |= {"shape": [width], "offset": size, "crc32": [zeros], "block_bytes": 1 << 40}
    os.truncate(shard, size + 4 * width)
    content["size"] = size + 4 * width
    (folder / "commits" / f"{key}.json").write_bytes(signed(content))


def _crc32_of_zeros(number: int, before: int) -> int:
    import zlib

    return zlib.crc32(bytes(number), before)


def _no_scale(forgery: Forgery) -> None:
    forgery.edit("features/*/*=avg/int8/commits/*.json", lambda content: content["arrays"].pop("scale"))
