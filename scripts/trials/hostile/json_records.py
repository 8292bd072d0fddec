"""Attacks by JSON that is deep, large, or not quite JSON."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from trials.hostile.forgery import SET, Attack, Forgery, canonical


def json_attacks(*, quick: bool) -> Iterator[Attack]:
    """Text that is no JSON, too much of it, or too deep, in records of every kind."""
    records = {
        "FORMAT": ("FORMAT.json", ()),
        "samples": ("samples/commits/*.json", ("body",)),
        "features": (f"{SET}/commits/*.json", ("body", "provenance")),
        "source": ("sources/*/commits/*.json", ("body", "problems")),
        "task": ("tasks/*/commits/*.json", ("body", "about")),
        "spec": ("features/*/spec.json", ("about",)),
        "head": ("heads/logistic/head.json", ("meta",)),
        "probe": (f"{SET}/probe.json", ()),
        "request": ("requests/*.json", ()),
    }
    for kind, (pattern, place) in records.items():
        for label, (value, must) in VALUES.items():
            forge = partial(_plant, pattern, place, value)
            yield Attack("json", f"{kind}: {label}", forge, "structure" if must else None)
        for label, change in TEXTS.items():
            must = None if label in ("byte order mark", "UTF-16", "UTF-32") else "structure"
            yield Attack("json", f"{kind}: {label}", partial(_change_text, pattern, change), must)
        if kind == "FORMAT":
            continue
        for depth in (100, 300, 500, 700, 900, *range(930, 1001, 14)):
            yield Attack("json", f"{kind}: {depth} deep", partial(_plant, pattern, place, _nested(depth)), None)
    if not quick:
        for label, text in BOMBS.items():
            yield Attack("json", f"60 MB of {label}", partial(_bomb, text, 1), None)
        yield Attack("json", "four records with 60 MB of objects", partial(_bomb, BOMBS["objects"], 4), None)
    yield Attack("json", "a record of 1 TB", lambda f: os.truncate(f.find(f"{SET}/commits/*.json"), 1 << 40))


def _nested(depth: int) -> str:
    return "[" * depth + "]" * depth


VALUES = {
    "100 000 lists deep": (_nested(100_000), True),
    "100 000 objects deep": ('{"a":' * 100_000 + "0" + "}" * 100_000, True),
    "a number of 5001 digits": ("1" + "0" * 5000, True),
    "a number of 4201 digits": ("1" + "0" * 4200, False),
    "NaN": ("NaN", True),
    "Infinity": ("Infinity", True),
    "-Infinity": ("-Infinity", True),
    "1e999": ("1e999", True),
    "[1e999]": ("[1e999]", True),
    "a lone surrogate": (r'"\ud800"', False),
    "control characters": (r'"\u001b[2J\n\u0000\u009b"', False),
    "a key twice": ('{"a": 1, "a": 2}', True),
}
"""JSON of one value, and whether no record may hold it."""

TEXTS: dict[str, Callable[[bytes], bytes]] = {
    "byte order mark": lambda data: b"\xef\xbb\xbf" + data,
    "UTF-16": lambda data: data.decode().encode("utf-16"),
    "UTF-32": lambda data: data.decode().encode("utf-32"),
    "no UTF-8": lambda data: data.replace(b'"', b'"\xff', 1),
    "a list": lambda data: b"[" + data + b"]",
    "text": lambda data: b'"text"',
    "null": lambda data: b"null",
    "two documents": lambda data: data + data,
    "zeros": lambda data: bytes(len(data)),
    "cut off": lambda data: data[:-20],
    "the digest twice": lambda data: data.rstrip()[:-1] + b',"digest":"0","format":"featurecache"}',
}


def _plant(pattern: str, place: Sequence[str], value: str, forgery: Forgery) -> None:
    """Put JSON text that Python may be unable to write into a record, and sign as well as can be."""
    path = forgery.find(pattern)
    content = json.loads(path.read_bytes())
    target = content
    for name in place:
        target = target[name]
    target["zzz"] = "PLANTED"
    content.pop("digest", None)
    text = canonical(content).replace('"PLANTED"', value)
    digest = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(f'{text[:-1]},"digest":"{digest}"}}' if path.name != "FORMAT.json" else text)


def _change_text(pattern: str, change: Callable[[bytes], bytes], forgery: Forgery) -> None:
    path = forgery.find(pattern)
    path.write_bytes(change(path.read_bytes()))


BOMBS = {
    "digits": "1" * 60_000_000,
    "digits behind a point": "0." + "1" * 60_000_000,
    "text": '"' + "x" * 60_000_000 + '"',
    "zeros": "[" + "0," * 30_000_000 + "0]",
    "objects": "[" + '{"":0},' * 8_500_000 + "0]",
    "lists": "[" + "[]," * 20_000_000 + "0]",
}


def _bomb(value: str, copies: int, forgery: Forgery) -> None:
    _plant(f"{SET}/commits/*.json", ("body",), value, forgery)
    path = forgery.find(f"{SET}/commits/*.json")
    for k in range(1, copies):
        shutil.copy(path, path.parent / f"{k + 100:012d}.json")
