"""Tables in JSON: a list of objects, one for each row, or one object on each line (JSON lines)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

JsonRow = tuple[int, dict[str, Any]]
"""The number of a line, or of an object in a list, and its fields by column."""

_BEGINS = re.compile(rb"\s*(\[\s*)?\{")
_MARKS = b"\xef\xbb\xbf\xff\xfe"
MAX_LIST_BYTES = 1 << 28
"""A list is parsed whole and takes some ten times as much memory; lines are read one by one."""
_RECORDS = (
    "a table is a list of objects, one for each row, or one object on each line, as "
    "pandas.DataFrame.to_json(orient='records') writes it"
)


class JsonTableError(ValueError):
    """JSON that holds no table; the message says why."""


def is_json(start: bytes) -> bool:
    """Tell by the first bytes of a file whether it holds objects of JSON, in any encoding that JSON may have."""
    # Of UTF-16 and UTF-32, the letters that count here have zeros beside them.
    return _BEGINS.match(start.lstrip(_MARKS).replace(b"\0", b"")) is not None


def is_list(start: bytes) -> bool:
    """Tell whether JSON is one list, and not an object on each line."""
    return start.lstrip(_MARKS).replace(b"\0", b"").lstrip()[:1] == b"["


def rows_of_list(content: bytes) -> list[JsonRow]:
    """Return the objects of a list, numbered from 1.

    Raises
    ------
    JsonTableError
        It is no list of objects, or a large one.
    """
    if len(content) > MAX_LIST_BYTES:
        raise JsonTableError(
            f"it is a JSON list of more than {MAX_LIST_BYTES >> 20} MiB; write one object on each line instead "
            "(pandas.DataFrame.to_json(orient='records', lines=True))"
        )
    found = _parsed(content, "it")
    assert isinstance(found, list)  # by its first letter
    return [(number, _fields(item, f"item {number}")) for number, item in enumerate(found, 1)]


def rows_of_lines(lines: Iterable[str]) -> Iterator[JsonRow]:
    """Yield the objects that stand on lines, each with the number of its line.

    Raises
    ------
    JsonTableError
        A line holds something else.
    """
    num_rows, found = 0, dict[str, Any]()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found = _parsed(line, f"line {number}")
        except JsonTableError:
            if num_rows == 0:  # an object that goes on in the next lines
                raise JsonTableError(f"it is one JSON object; {_RECORDS}") from None
            raise
        num_rows += 1
        yield number, _fields(found, f"line {number}")
    # One row may have plain fields only; whole tables in one object are columns as pandas writes them, or COCO's lists.
    if num_rows == 1 and all(isinstance(value, dict | list) for value in found.values()):
        raise JsonTableError(f"it is one JSON object; {_RECORDS}")


def columns_of(rows: Iterable[JsonRow]) -> list[str]:
    """Return all names of fields, in the order in which they come first."""
    return list(dict.fromkeys(name for _, row in rows for name in row))


def _parsed(text: str | bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except UnicodeDecodeError:
        raise JsonTableError(f"{where} is JSON in no encoding that JSON has; save it in UTF-8") from None
    except RecursionError:
        raise JsonTableError(f"{where} is nested too deep for a table") from None
    except ValueError as error:  # also for numbers of more digits than Python reads
        raise JsonTableError(f"{where} is no whole JSON ({error})") from None


def _fields(item: Any, where: str) -> dict[str, Any]:
    """Return what an object says by column; objects in it have columns of their own, as ``outer.inner``."""
    if not isinstance(item, dict):
        raise JsonTableError(f"{where} is no JSON object; {_RECORDS}")
    try:
        return dict(_flat(item, ""))
    except RecursionError:
        raise JsonTableError(f"{where} is nested too deep for a table") from None


def _flat(item: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in item.items():
        column = f"{prefix}{_text(name).strip()}"
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{column}.")
        else:
            yield column, _text(value) if isinstance(value, str) else value


def _text(text: str) -> str:
    """Return a text without halves of letters, which JSON can escape and no encoding writes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
