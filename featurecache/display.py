"""How objects show themselves in a notebook: a few plain lines, or a small table."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from featurecache.errors import plain_text, shortened

MAX_ROWS = 20
"""Of a table; more are counted."""
# Names of files may be of any length.
_MOST_CHARACTERS = 200


def html_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table as HTML; texts may come from strangers, and are escaped.

    Parameters
    ----------
    title : str
    columns : sequence of str
    rows : sequence of sequence
        Anything that `str` writes.
    """
    # Title and columns too: names of classes and files are in them.
    (heading,), titles, *lines = (
        [escape(shortened(plain_text(str(value)), _MOST_CHARACTERS)) for value in row]
        for row in ([title], columns, *rows[:MAX_ROWS])
    )
    head = "".join(f"<th>{text}</th>" for text in titles)
    body = "".join(f"<tr>{''.join(f'<td>{text}</td>' for text in line)}</tr>" for line in lines)
    more = f"<p>and {len(rows) - MAX_ROWS} more</p>" if len(rows) > MAX_ROWS else ""
    return f"<p>{heading}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"
