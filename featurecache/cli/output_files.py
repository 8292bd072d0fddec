"""Files that a verb writes: their options, what is checked before the work, and tables."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from featurecache.errors import RequestError


def check_outputs(outputs: Mapping[str, tuple[Path | None, tuple[str, ...]]], *, replace: bool) -> None:
    """Raise `RequestError` where a file cannot be written, or has been, before there is anything to lose.

    Parameters
    ----------
    outputs
        By option, the file that it names and the endings that it may have.
    replace
        Files that are there may be replaced.
    """
    from featurecache.table_output import check_writable
    from featurecache.tables import TableError

    named = {option: (path, suffixes) for option, (path, suffixes) in outputs.items() if path is not None}
    for option, (path, suffixes) in named.items():
        try:
            check_writable(path)
        except TableError as error:
            raise RequestError(f"{option} {path}: {error}") from None
        # The ending says the format; a wrong one must not be found out after hours of work.
        if path.suffix.lower() not in suffixes:
            raise RequestError(f"{option} {path} must end in {', '.join(suffixes)}")
        if path.exists() and not replace:
            raise RequestError(f"{option} {path} is there already; pass --replace, or name another place")
    # An option that says nothing is refused: whoever gave it would believe that something is replaced.
    if replace and not named:
        raise RequestError(f"--replace is for what {' and '.join(outputs)} name, and nothing is named; leave it out")


def add_raw_cells_option(parser: Any) -> None:
    """Add how texts are written into tables."""
    parser.add_argument(
        "--raw-cells",
        action="store_true",
        help="write texts as they are; else control characters are written out, and what a spreadsheet would take for "
        "a formula gets an apostrophe in front",
    )


def write_table_at(
    option: str,
    path: Path,
    columns: Sequence[str],
    rows: Iterable[Mapping[str, Any]],
    *,
    replace: bool,
    numbers: Collection[str] | None = None,
    raw: bool = False,
) -> None:
    """Write a table where `check_outputs` allowed it; raise `RequestError` where that fails after all.

    Parameters
    ----------
    option
        The option that names the file.
    path, columns, rows, replace, numbers, raw
        As for `featurecache.table_output.write_table`.
    """
    from featurecache.table_output import write_table
    from featurecache.tables import TableError

    try:
        write_table(path, columns, rows, replace=replace, numbers=numbers, raw=raw)
    except TableError as error:
        raise RequestError(f"{option} {path}: {error}") from None
