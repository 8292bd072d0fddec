"""How predictions become tables: all that is known, the columns that somebody names, or those of a sample of theirs."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from featurecache.errors import RequestError
from featurecache.wording import counted

if TYPE_CHECKING:
    from featurecache.deployment.prediction import Prediction
    from featurecache.errors import ReportWarning

Value = str | float | None


@dataclass(frozen=True, slots=True)
class PredictionTable:
    """Columns of a table of predictions.

    Attributes
    ----------
    columns : list of str
    numbers : list of str
        Those that hold numbers.
    values : dict of str to callable
        Takes a prediction and returns what stands in a column.
    key : str
        The column that names the inputs.
    """

    columns: list[str]
    numbers: list[str]
    values: dict[str, Callable[[Prediction], Value]]
    key: str = "path"

    def row(self, item: Prediction) -> dict[str, Value]:
        """Return the row of a prediction."""
        return {name: value(item) for name, value in self.values.items()}


def whole_table(
    classes: Sequence[str], numbers: Sequence[str], *, outliers: bool, proba: bool, top_k: int | None
) -> PredictionTable:
    """Return the table of all that is known of each input.

    Parameters
    ----------
    classes : sequence of str
        Classes or labels of the head; none where it predicts numbers.
    numbers : sequence of str
        What it predicts, where these are numbers.
    outliers : bool
        Whether inputs are told to be outliers.
    proba : bool
        The probability of each class, in a column of its name.
    top_k : int, optional
        The most probable classes and their probabilities, as ``label_1``, ``probability_1`` and so on.
    """
    values: dict[str, Callable[[Prediction], Value]] = {"path": lambda item: item.path}
    of_numbers = list(numbers)
    if numbers:
        values |= {name: _output(name) for name in numbers}
    else:
        values |= {"label": lambda item: item.label, "probability": lambda item: item.probability}
        of_numbers.append("probability")
    for rank in range(min(top_k or 0, len(classes))):
        values |= _ranked(rank)
        of_numbers.append(f"probability_{rank + 1}")
    if proba:
        # A class may be called as one of the columns is.
        own = {*values, "outlier", "status", "reason"}
        names = {name: f"probability of {name}" if name in own else name for name in classes}
        values |= {column: _output(name) for name, column in names.items()}
        of_numbers += names.values()
    if outliers:
        # None where nothing can be told, which is neither yes nor no.
        values["outlier"] = lambda item: {True: "yes", False: "no", None: None}[item.is_outlier]
    values |= {"status": lambda item: item.status, "reason": lambda item: item.reason}
    return PredictionTable(list(values), of_numbers, values)


def named_table(
    columns: Sequence[str], classes: Sequence[str], numbers: Sequence[str], *, key: str | None = None
) -> PredictionTable:
    """Return the table of some columns: one names the inputs, others say a class, a probability or a number.

    A column that ends in ``id`` has names of files without folder and suffix, ``path`` has them as they were named,
    others that are known have names of files.

    Parameters
    ----------
    columns : sequence of str
        As somebody wants them.
    classes, numbers : sequence of str
        Of the head.
    key : str, optional
        The column that names the inputs; the first that is known to when left out.

    Raises
    ------
    RequestError
        A column may mean nothing, or several things.
    """
    from featurecache.store.label_columns import LABEL_COLUMNS
    from featurecache.tables import plain_name, sample_columns

    if len(set(columns)) < len(columns):
        raise RequestError(f"the columns {', '.join(columns)} have one twice; name each once")
    if key is None and (key := next(iter(sample_columns(columns)), None)) is None:
        raise RequestError(f"none of the columns {', '.join(columns)} is known to name inputs; add path or image_id")
    values: dict[str, Callable[[Prediction], Value]] = {}
    of_numbers = [name for name in columns if name in numbers or name == "probability"]
    whole = whole_table(classes, numbers, outliers=False, proba=False, top_k=None).values
    # Of classes that differ in case alone each has its own column.
    by_case = {name.casefold(): name for name in classes if sum(name.casefold() == n.casefold() for n in classes) == 1}
    # Whatever it is called, one column that is left is for what the head predicts, unless it asks for something else.
    left = [name for name in columns if name not in (key, *numbers, *whole) and name.casefold() not in by_case]
    left = [name for name in left if name not in classes]
    is_unclear = len(left) > 1
    if len(left) == 1 and plain_name(left[0]) not in LABEL_COLUMNS:
        # A column of a probability or a rank does not say of which class.
        is_unclear = len(columns) > 2 or re.search(r"prob|score|confidence|likelihood|rank", left[0]) is not None
        is_unclear = is_unclear or bool(sample_columns(left))  # another name of the inputs is no label
    if is_unclear:
        known = ", ".join(dict.fromkeys(["label", *whole, *classes]))
        raise RequestError(f"the column {left[-1]!r} says nothing that this head knows; it knows {known}")
    # Numbers and classes first: a head may predict something that is called like a column of names.
    for name in columns:
        if name in numbers:
            values[name] = _output(name)
        elif name in classes or (name not in whole and name.casefold() in by_case):
            values[name] = _output(name if name in classes else by_case[name.casefold()])
            of_numbers.append(name)
        elif name == key:
            values[name] = _name_of(plain_name(name))
        elif name in left:
            values[name] = whole[numbers[0] if numbers else "label"]
            of_numbers += [name] if numbers else []
        else:
            values[name] = whole[name]
    if left and len(numbers) > 1:
        raise RequestError(f"the column {left[0]!r} could be any of {', '.join(numbers)}; name one of them")
    return PredictionTable(list(columns), of_numbers, values, key)


@dataclass(frozen=True, slots=True)
class LikeTable:
    """Somebody's table: its columns and its rows are those of a table of predictions.

    Attributes
    ----------
    columns : list of str
    key : str
        The column that names inputs.
    names : list of str
        What stands there, a row each.
    paths : list of str
        The inputs that these are.
    warnings : tuple of ReportWarning
        How they were found, where not exactly.
    """

    columns: list[str]
    key: str
    names: list[str]
    paths: list[str]
    warnings: tuple[ReportWarning, ...]

    def rows(self, predictions: Iterable[Prediction], table: PredictionTable) -> Iterator[dict[str, Value]]:
        """Yield a row for each of its rows, in its order and with its names.

        Parameters
        ----------
        predictions : iterable of Prediction
            Of all inputs.
        table : PredictionTable
            With its columns.
        """
        # Rows, not predictions: a probability of each class would be held for nothing.
        by_path = {item.path: table.row(item) for item in predictions}
        for name, path in zip(self.names, self.paths, strict=True):
            yield by_path[path] | {self.key: name}


def like_table(path: Path, inputs: Sequence[str], taken: Collection[str]) -> LikeTable:
    """Return somebody's table, with the input that each of its rows names.

    Its column of names is one that is known to be, where that names inputs; else the one whose entries do.

    Parameters
    ----------
    path : Path
    inputs : sequence of str
        Names of all that is predicted.
    taken : collection of str
        Columns that say something else.

    Raises
    ------
    RequestError
        It is no table, none of its columns names the inputs, or a row names none.
    """
    from featurecache.errors import ReportWarning
    from featurecache.store.label_columns import key_candidates
    from featurecache.store.label_search import MOST_FIELDS, MOST_ROWS, search_key_column
    from featurecache.tables import TableError, open_table, sample_columns

    try:
        with open_table(path) as table:
            columns, most = table.columns, min(MOST_ROWS, MOST_FIELDS // len(table.columns))
            rows = [row for _, row in islice(table, most) if any(row.values())]
    except TableError as error:
        raise RequestError(f"--like {path}: {error}") from None
    known, problem = sample_columns(columns)[:1], None
    for key in known:
        try:
            return _matched(path, columns, key, inputs)
        except RequestError as error:
            problem = error
    column, tried = search_key_column(key_candidates(columns, [*known, *taken]), rows, inputs)
    if column is None:
        raise problem or RequestError(
            f"--like {path}: no column is known to name inputs, such as path or image_id, and by their entries none "
            f"does alone: {tried}"
        )
    found = _matched(path, columns, column, inputs)
    word = ReportWarning(kind="path_column", count=len(found.names), text=f"the column {column!r} names the inputs")
    return replace(found, warnings=(word, *found.warnings))


def _matched(path: Path, columns: list[str], key: str, inputs: Sequence[str]) -> LikeTable:
    from featurecache.errors import TaskError
    from featurecache.store.label_matching import match_names
    from featurecache.tables import open_table

    with open_table(path) as table:
        names = [str(row[key]).strip() for _, row in table if (row.get(key) or "").strip()]
    wanted = [name.replace("\\", "/") for name in names]
    try:
        # A name in another folder is another input here: samples of a contest are never trained on.
        matches = match_names(wanted, inputs, by_file=False)
    except TaskError as error:
        raise RequestError(f"--like {path}: {error}") from None
    if missing := [name for name, want in zip(names, wanted, strict=True) if want not in matches.paths]:
        raise RequestError(
            f"--like {path}: {counted(len(missing), 'row', of=len(names), verb='is')} of inputs that were not named, "
            f"first {missing[0]!r}; name their folder too"
        )
    return LikeTable(columns, key, names, [matches.paths[want] for want in wanted], matches.warnings)


def once_each(rows: Iterable[dict[str, Value]], column: str) -> Iterator[dict[str, Value]]:
    """Yield rows, and refuse two with one name: whoever reads them could not tell them apart.

    Parameters
    ----------
    rows : iterable of dict
    column : str
        Holds the names.

    Raises
    ------
    RequestError
        Two inputs are called the same.
    """
    # Names only: rows go on as they come.
    seen: set[Value] = set()
    for row in rows:
        if row[column] in seen:
            raise RequestError(f"two inputs are called {row[column]!r} in the column {column!r}; call it path instead")
        seen.add(row[column])
        yield row


def with_quoted_counted(
    rows: Iterable[dict[str, Value]], warnings: list[ReportWarning], *, raw: bool
) -> Iterator[dict[str, Value]]:
    """Yield rows, and say at the end how many have a cell that is not written as it is.

    Parameters
    ----------
    rows : iterable of dict
    warnings : list of ReportWarning
    raw : bool
        Cells are written as they are.
    """
    from featurecache.errors import ReportWarning
    from featurecache.table_output import safe_row

    # Counted on their way: the rows are too many to be looked through twice.
    count, first = 0, ""
    for row in rows:
        if not raw and (safe := safe_row(row)) != row:
            count += 1
            first = first or next(str(safe[name]) for name in row if safe[name] != row[name])
        yield row
    if count:
        text = (
            f"{counted(count, 'row', verb='has')} a cell that a spreadsheet would run, written with an "
            "apostrophe in front, first "
        )
        text += f"{first!r:.60}; --raw-cells leaves them as they are"
        warnings.append(ReportWarning(kind="quoted_cells", count=count, text=text))


def _output(name: str) -> Callable[[Prediction], Value]:
    """Return what reads a number of a prediction, or the probability of a class: a head gives one or the other."""
    return lambda item: (item.numbers or item.probabilities).get(name)


def _ranked(rank: int) -> dict[str, Callable[[Prediction], Value]]:
    """Return the two columns of the class of a rank, from 0: its name and its probability."""

    def ranked(item: Prediction) -> tuple[str | None, float | None]:
        # `sorted` is stable: of equal probabilities, the class that the head has first.
        order = sorted(item.probabilities.items(), key=lambda pair: -pair[1])
        return order[rank] if order else (None, None)

    return {f"label_{rank + 1}": lambda item: ranked(item)[0], f"probability_{rank + 1}": lambda item: ranked(item)[1]}


def _name_of(column: str) -> Callable[[Prediction], Value]:
    if column.endswith("id"):
        return lambda item: PurePosixPath(item.path).stem
    if column.endswith("path"):
        return lambda item: item.path
    return lambda item: PurePosixPath(item.path).name
