"""Labels joined to the samples of a cache: by the folders that files lie in, by their names, or by their ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from featurecache.errors import ReportWarning, TaskError, shortened
from featurecache.store.label_folders import label_of_path
from featurecache.store.label_matching import NameMatches, is_sample_id, match_names
from featurecache.store.labels import ClassFolder, Label, TableLabels
from featurecache.store.listings import Listing
from featurecache.store.samples import SampleTable
from featurecache.wording import counted

MISSING, _UNREADABLE = -1, -2


def labels_of_folders(listings: Sequence[Listing], class_folder: ClassFolder) -> tuple[list[Label], list[int]]:
    """Return a label for every file, and its row; of a sample in several sources the last one counts."""
    newest: dict[int, int] = {}
    for number, listing in enumerate(listings):
        newest |= dict.fromkeys(listing.row_of.values(), number)
    listed, rows = [], []
    for number, listing in enumerate(listings):
        for path, row in listing.row_of.items():
            if newest[row] == number and (label := label_of_path(path, class_folder)) is not None:
                listed.append(label)
                rows.append(row)
    return listed, rows


def rows_of_labels(
    labels: TableLabels, samples: SampleTable, listings: Sequence[Listing], warnings: list[ReportWarning]
) -> list[int]:
    """Return the row of each label by its name, else by its id; `MISSING` where the cache has neither.

    Where a file could not be read the row is `_UNREADABLE`, and a warning says how many are.
    """
    listed = labels.labels
    in_cache = [listing.row_of for listing in listings]
    unreadable = {path for listing in listings for path in listing.problems}
    # Ids are looked for in the sample table, and need no names.
    names = [
        label.key for label in listed if not is_sample_id(label.key) or any(label.key in rows for rows in in_cache)
    ]
    # With those that could not be read: a label of one would be matched to another file.
    matches = match_names(names, [path for rows in in_cache for path in rows] + sorted(unreadable))
    warnings += matches.warnings if labels.key_column is None else _of_key_column(labels.key_column, names, matches)
    rows = np.full(len(listed), MISSING, np.int64)
    ids: dict[int, bytes] = {}
    for index, label in enumerate(listed):
        path = matches.paths.get(label.key)
        found = {of_path[path] for of_path in in_cache if path in of_path}
        if len(found) > 1:
            raise TaskError(
                f"{label.key!r} names different inputs in {counted(len(found), 'source')} of this cache; say "
                "which with --source"
            )
        if found:
            rows[index] = found.pop()
        elif path is not None:
            rows[index] = _UNREADABLE
        elif is_sample_id(label.key):
            ids[index] = bytes.fromhex(label.key)
    if ids:
        # All at once, as the whole table streams past them.
        rows[list(ids)] = samples.rows_of(np.frombuffer(b"".join(ids.values()), np.uint8).reshape(-1, 32))
    if (bad := np.flatnonzero(rows == _UNREADABLE)).size:
        first = listed[int(bad[0])].name
        text = (
            f"{counted(bad.size, 'label', of=len(listed), verb='is')} for inputs that cannot be read, left "
            f"out, first {first}"
        )
        warnings.append(ReportWarning(kind="unreadable_inputs", count=int(bad.size), text=text))
    return rows.tolist()


def _of_key_column(column: str, names: Sequence[str], matches: NameMatches) -> list[ReportWarning]:
    """Return the warnings of how names matched, of which the first says in which column they were found."""
    count, total = len(matches.paths), len(set(names))
    # In one line where all were matched in one way.
    whole = [warning for warning in matches.warnings if warning.count == count]
    text = whole[0].text if whole else f"{counted(count, 'name', of=total, verb='is')} in the source"
    text = f"column {column!r} names the samples: {text}; --path-column names another"
    others = [warning for warning in matches.warnings if warning not in whole]
    return [ReportWarning(kind="path_column", count=count, text=text), *others]


def missing_error(missing: Sequence[Label], labels: TableLabels, paths: Iterable[str], tried: str = "") -> TaskError:
    """Return the error about labels of inputs that are not there, with a name that shows how names of a source look.

    Parameters
    ----------
    missing : sequence of Label
    labels : TableLabels
        All of them.
    paths : iterable of str
        Of the source.
    tried : str
        How other columns fit.
    """
    name, example = missing[0].name, next(iter(paths), None)
    shown = "" if example is None else f" (the source has names such as {shortened(repr(example))})"
    where = "" if labels.key_column is None else f" by the column {labels.key_column!r}"
    advice = "or pass --allow-missing" if not tried else f"or say --path-column: {tried}"
    return TaskError(
        f"{counted(len(missing), 'label', of=len(labels.labels), verb='is')} for inputs that are not in the "
        f"cache{where}, "
        f"first {shortened(repr(name))}{shown}; extract them, correct the names, {advice}"
    )


def check_names(labels: TableLabels, names: Sequence[str], *, allow_missing: bool) -> None:
    """Raise `TaskError` for labels of inputs that a source does not have, before anything is extracted.

    Parameters
    ----------
    labels : TableLabels
    names : sequence of str
        Of the source.
    allow_missing : bool
        Labels of other inputs are left out.
    """
    by_name = [label for label in labels.labels if not is_sample_id(label.key)]
    found = match_names([label.key for label in by_name], names).paths
    missing = [label for label in by_name if label.key not in found]
    if missing and not allow_missing:
        raise missing_error(missing, labels, names)
