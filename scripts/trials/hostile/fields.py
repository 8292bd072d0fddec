"""Attacks on one field of one record, all of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from trials.hostile.forgery import ALL_HEADS, OTHER_TASKS, SET, TASK, WRONG, Attack, Forgery, canonical, signed


def fuzz_attacks(good: Path) -> Iterator[Attack]:
    """Replace or remove every field of every record, one at a time, and sign again."""
    patterns = [
        "FORMAT.json",
        "samples/commits/*.json",
        "sources/*/commits/*.json",
        f"{SET}/commits/*.json",
        "features/*/*=avg/int8/commits/*.json",
        *(f"tasks/{name}/commits/*.json" for name in (TASK, *OTHER_TASKS)),
        "features/*/spec.json",
        f"{SET}/probe.json",
        "requests/*.json",
        *(f"heads/{name}/head.json" for name in ALL_HEADS),
    ]
    for pattern in patterns:
        content = json.loads(sorted(good.glob(pattern))[0].read_bytes())
        for path in fields_of(content):
            once = pattern.startswith("heads/") and path[0] == "meta" and "logistic" not in pattern
            known = "int8" in pattern and path[:2] not in (("arrays", "scale"), ("body", "precision"))
            renamed = pattern.endswith("spec.json") and path[0] == "identity"  # below, with its folder
            if path == ("digest",) or once or known or (renamed and len(path) > 2) or "versions" in path[:-1]:
                continue
            for number in range(len(WRONG) + 1):
                name = f"{pattern}: {'.'.join(map(str, path))} {_shown(number)}"
                yield Attack("fields", name, partial(replace_field, pattern, path, number), None, small=True)
            if pattern.endswith("spec.json") and path[0] == "identity":
                for number in range(len(WRONG) + 1):
                    name = f"{pattern} and its folder: {'.'.join(map(str, path))} {_shown(number)}"
                    forge = partial(replace_field, pattern, path, number, rename=True)
                    yield Attack("fields", name, forge, None, small=True)


def _shown(number: int) -> str:
    return "removed" if number == len(WRONG) else f"is {WRONG[number]!r}"


def fields_of(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items: list[tuple[Any, Any]] = []
    if isinstance(content, dict):
        items = list(content.items())
    elif isinstance(content, list):
        items = list(enumerate(content))[:: max(len(content) - 1, 1)]  # the first and the last
    for name, value in items:
        yield from fields_of(value, (*path, name))


def replace_field(pattern: str, path: tuple[Any, ...], number: int, forgery: Forgery, *, rename: bool = False) -> None:
    file = forgery.find(pattern)
    content = json.loads(file.read_bytes())
    target = content
    for name in path[:-1]:
        target = target[name]
    if number == len(WRONG):
        del target[path[-1]]
    else:
        target[path[-1]] = WRONG[number]
    file.write_bytes(json.dumps(content).encode() if file.name == "FORMAT.json" else signed(content))
    if rename:
        identity = content.get("identity")
        text = canonical({"kind": "features", "version": 1, **(identity if isinstance(identity, dict) else {})})
        file.parent.rename(file.parent.with_name(hashlib.sha256(text.encode()).hexdigest()))
