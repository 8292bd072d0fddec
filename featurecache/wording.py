"""Quantities as people write them."""

from __future__ import annotations

from collections.abc import Sequence

_VERBS = {"is": "are", "has": "have", "was": "were"}


def human_bytes(count: float) -> str:
    """Write a number of bytes as people do."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def counted(count: int, noun: str, *, of: int | None = None, verb: str = "") -> str:
    """Write how many there are: ``1 file``, ``2 files``, ``1 of 3 files``, and with a verb ``1 of 3 files is``.

    Parameters
    ----------
    count : int
    noun : str
        For one of them.
    of : int, optional
        How many there are in all, whose number the noun then has.
    verb : str
        As of one: ``is``, ``has``, ``was``, or what ends in an s.
    """
    number = count if of is None else of
    several = _VERBS.get(verb, verb.removesuffix("s"))
    words = [f"{count:,}", *([] if of is None else [f"of {of:,}"]), noun if number == 1 else _plural(noun)]
    return " ".join([*words, *([verb if count == 1 else several] if verb else [])])


def some_of(names: Sequence[str], most: int) -> str:
    """Write names for a message of one line: of many, the first ones and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _plural(noun: str) -> str:
    if noun.endswith("y"):
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"
