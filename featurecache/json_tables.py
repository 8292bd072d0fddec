"""Tables in JSON: a list of objects, one for each row, one object on each line (JSON lines), or COCO's annotations."""

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


class OneObjectError(JsonTableError):
    """JSON that is one object."""

    def __init__(self) -> None:
        super().__init__(f"it is one JSON object; {_RECORDS}; COCO's images, annotations and categories are read too")


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
    _check_size(
        content, "list", "one object on each line instead (pandas.DataFrame.to_json(orient='records', lines=True))"
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
                raise OneObjectError from None
            raise
        num_rows += 1
        yield number, _fields(found, f"line {number}")
    # One row may have plain fields only; whole tables in one object are columns as pandas writes them, or COCO's lists.
    if num_rows == 1 and all(isinstance(value, dict | list) for value in found.values()):
        raise OneObjectError


def rows_of_coco(content: bytes) -> list[JsonRow] | None:
    """Return a row for each category of each image, and one for an image without any; None for other objects.

    Parameters
    ----------
    content : bytes
        Of the whole file, an object with the lists ``images``, ``annotations`` and ``categories``.

    Raises
    ------
    JsonTableError
        It is too large, or an entry of the lists is not as COCO has it.
    """
    _check_size(content, "object", "a table of file names and labels")
    try:
        found = _parsed(content, "it")
    except JsonTableError:
        return None
    lists = ("images", "annotations", "categories")
    if not isinstance(found, dict) or not all(isinstance(found.get(name), list) for name in lists):
        return None
    try:
        files = {image["id"]: _text(image["file_name"]) for image in found["images"]}
        names = {category["id"]: _text(category["name"]) for category in found["categories"]}
        # Of several boxes of one category the first one counts.
        pairs = dict.fromkeys((files[one["image_id"]], names[one["category_id"]]) for one in found["annotations"])
        labelled = {file for file, _ in pairs}
        rows = [*pairs, *((file, "") for file in files.values() if file not in labelled)]
    except (KeyError, TypeError, AttributeError) as error:
        raise JsonTableError(
            f"its images, annotations and categories are not as COCO has them ({error!r:.100})"
        ) from None
    return [(number, {"file_name": file, "label": label}) for number, (file, label) in enumerate(rows, 1)]


def columns_of(rows: Iterable[JsonRow]) -> list[str]:
    """Return all names of fields, in the order in which they come first."""
    return list(dict.fromkeys(name for _, row in rows for name in row))


def _check_size(content: bytes, what: str, advice: str) -> None:
    if len(content) > MAX_LIST_BYTES:
        raise JsonTableError(f"it is a JSON {what} of more than {MAX_LIST_BYTES >> 20} MiB; write {advice}")


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
