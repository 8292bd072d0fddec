"""Attacks by heads whose arrays do not fit."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from trials.hostile.forgery import ALL_HEADS, Attack, Forgery, set_field


def head_attacks() -> Iterator[Attack]:
    """Arrays and trees of heads that fit their digest and nothing else."""
    for name in ALL_HEADS:
        for label, make in SAFETENSORS.items():
            yield Attack("heads", f"{name}: {label}", partial(_other_arrays, name, make), None)
        for label, change in TENSORS.items():
            forge = partial(_other_arrays, name, partial(_edit_tensors, change))
            yield Attack("heads", f"{name}: {label}", forge, None)
    for path in ("../../outside/secret.txt", "x/../../../../ab", "/etc/passwd", "..", "a/b", "\x00", "x" * 300):
        yield Attack("heads", f"digest {path[:40]!r}", partial(_set_digest, path))
    for label, tree in {
        "an unknown class": {"type": "posix.system"},
        "a deep pipeline": _deep_pipeline(200),
        "a pipeline of itself": {"type": "Pipeline", "steps": [["a", {"type": "Pipeline", "steps": []}]]},
        "a name with dots": {"type": "Pipeline", "steps": [["a__b", {"type": "StandardScaler"}]]},
        "an object array": {"type": "DummyClassifier", "state": {"classes_": {"strings": ["a"], "object": True}}},
    }.items():
        forge = partial(Forgery.edit, pattern="heads/knn/head.json", change=partial(set_field, "estimator", tree))
        yield Attack("heads", label, forge, None)


def _set_digest(path: str, forgery: Forgery) -> None:
    forgery.edit("heads/knn/head.json", lambda content: content["arrays"].update(sha256=path))
    (forgery.cache / "heads" / "knn" / ".head.safetensors.x").mkdir()


def _deep_pipeline(depth: int) -> dict[str, Any]:
    tree: dict[str, Any] = {"type": "StandardScaler"}
    for _ in range(depth):
        tree = {"type": "Pipeline", "steps": [["a", tree]]}
    return tree


def _other_arrays(name: str, make: Callable[[bytes], bytes], forgery: Forgery) -> None:
    folder = forgery.cache / "heads" / name
    data = make((folder / "head.safetensors").read_bytes())
    (folder / "head.safetensors").write_bytes(data)
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    forgery.edit(f"heads/{name}/head.json", lambda content: content.update(arrays=entry))


def _with_header(text: str, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode() + data


def _tensor(dtype: str, shape: list[int], start: int, stop: int) -> str:
    return json.dumps({"head.coef": {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}})


SAFETENSORS: dict[str, Callable[[bytes], bytes]] = {
    "a header of 100 MB": lambda data: _with_header('{"a":"' + "x" * 99_000_000 + '"}'),
    "a header of 2**60 bytes": lambda data: struct.pack("<Q", 1 << 60) + data[8:],
    "offsets behind the end": lambda data: _with_header(_tensor("F32", [4], 0, 16), b"\0" * 8),
    "offsets backwards": lambda data: _with_header(_tensor("F32", [4], 16, 0), b"\0" * 16),
    "a huge shape": lambda data: _with_header(_tensor("F32", [2**40, 2**40], 0, 16), b"\0" * 16),
    "an overflowing shape": lambda data: _with_header(_tensor("F32", [2**62, 4], 0, 0)),
    "an unknown type": lambda data: _with_header(_tensor("BOOM", [4], 0, 16), b"\0" * 16),
    "bfloat16": lambda data: _with_header(_tensor("BF16", [8], 0, 16), b"\0" * 16),
    "deep JSON": lambda data: _with_header("[" * 100_000),
    "nothing": lambda data: b"",
    "no arrays": lambda data: _with_header("{}"),
}


def _edit_tensors(change: Callable[[np.ndarray], np.ndarray], data: bytes) -> bytes:
    import safetensors.numpy

    arrays = safetensors.numpy.load(data)
    return safetensors.numpy.save({name: np.ascontiguousarray(change(values)) for name, values in arrays.items()})


TENSORS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "all NaN": lambda values: np.full_like(values, np.nan) if values.dtype.kind == "f" else values,
    "all -1": lambda values: np.full_like(values, -1),
    "all large": lambda values: np.full_like(values, 2**30),
    "one number": lambda values: values.ravel()[:1],
    "no numbers": lambda values: values.ravel()[:0],
    "twice as long": lambda values: np.concatenate([values, values]) if values.ndim else values,
    "another dimension": lambda values: values[None],
    "as uint8": lambda values: values.astype(np.uint8),
    "as float16": lambda values: values.astype(np.float16),
    "as bool": lambda values: values.astype(bool),
}
