"""How predictions become tables: all that is known, the columns that somebody names, or those of a sample of theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from featurecache.errors import RequestError

if TYPE_CHECKING:
    from featurecache.deployment.predict import Prediction

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
    """

    columns: list[str]
    numbers: list[str]
    values: dict[str, Callable[[Prediction], Value]]

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
        values |= {name: _number(name) for name in numbers}
    else:
        values |= {"label": lambda item: item.label, "probability": lambda item: item.probability}
        of_numbers.append("probability")
    for rank in range(min(top_k or 0, len(classes))):
        values |= {f"label_{rank + 1}": _ranked_label(rank), f"probability_{rank + 1}": _ranked_probability(rank)}
        of_numbers.append(f"probability_{rank + 1}")
    if proba:
        # A class may be called as one of the columns is.
        names = {name: f"probability of {name}" if name in values else name for name in classes}
        values |= {column: _probability(name) for name, column in names.items()}
        of_numbers += names.values()
    if outliers:
        values["outlier"] = lambda item: {True: "yes", False: "no", None: None}[item.is_outlier]
    values |= {"status": lambda item: item.status, "reason": lambda item: item.reason}
    return PredictionTable(list(values), of_numbers, values)


def named_table(columns: Sequence[str], classes: Sequence[str], numbers: Sequence[str]) -> PredictionTable:
    """Return the table of some columns: one names the inputs, others say a class, a probability or a number.

    A column that ends in ``id`` has names of files without folder and suffix, ``path`` has them as they were named,
    others that are known have names of files.

    Parameters
    ----------
    columns : sequence of str
        As somebody wants them.
    classes, numbers : sequence of str
        Of the head.

    Raises
    ------
    RequestError
        A column may mean nothing, or several things.
    """
    from featurecache.store.label_columns import LABEL_COLUMNS
    from featurecache.tables import plain_name, sample_columns

    if len(set(columns)) < len(columns):
        raise RequestError(f"the columns {', '.join(columns)} have one twice; name each once")
    if not (names := sample_columns(columns)):
        raise RequestError(f"none of the columns {', '.join(columns)} is known to name inputs; add path or image_id")
    values: dict[str, Callable[[Prediction], Value]] = {}
    of_numbers = [name for name in columns if name in numbers or name in classes or name == "probability"]
    whole = whole_table(classes, numbers, outliers=False, proba=False, top_k=None).values
    unknown = []
    for name in columns:
        if name in numbers:
            values[name] = _number(name)
        elif name in classes:
            values[name] = _probability(name)
        elif name == names[0]:
            values[name] = _name_of(plain_name(name))
        elif name in whole:
            values[name] = whole[name]
        else:
            unknown.append(name)
            values[name] = whole[numbers[0] if numbers else "label"]
    # Whatever it is called, the one column that is left is for what the head predicts.
    likely = [name for name in unknown if plain_name(name) in LABEL_COLUMNS]
    if len(unknown) > 1 or (unknown and len(numbers) > 1) or (unknown and not likely and "label" in columns):
        known = ", ".join(dict.fromkeys(["label", *whole, *classes]))
        raise RequestError(f"the column {unknown[-1]!r} says nothing that this head knows; it knows {known}")
    if unknown and numbers:
        of_numbers.append(unknown[0])
    return PredictionTable(list(columns), of_numbers, values)


def rows_like(path: Path, predictions: Iterable[Prediction], table: PredictionTable) -> Iterator[dict[str, Value]]:
    """Yield a row for each row of somebody's table, in its order and with its names.

    Parameters
    ----------
    path : Path
        The table; its column of names says which inputs are wanted.
    predictions : iterable of Prediction
        Of all inputs.
    table : PredictionTable
        With the columns of that table.

    Raises
    ------
    RequestError
        An input that it names was not predicted.
    """
    from featurecache.errors import TaskError
    from featurecache.store.label_matching import match_names
    from featurecache.tables import open_table, sample_columns

    by_path = {item.path: table.row(item) for item in predictions}
    key = sample_columns(table.columns)[0]
    with open_table(path) as wanted:
        names = [str(row[key]).strip() for _, row in wanted if (row.get(key) or "").strip()]
    try:
        found = match_names([name.replace("\\", "/") for name in names], list(by_path)).paths
    except TaskError as error:
        raise RequestError(f"--like {path}: {error}") from None
    missing = [name for name in names if name.replace("\\", "/") not in found]
    if missing:
        raise RequestError(
            f"--like {path}: {len(missing)} of its {len(names)} rows are of inputs that were not named, first "
            f"{missing[0]!r}; name their folder too"
        )
    for name in names:
        yield by_path[found[name.replace("\\", "/")]] | {key: name}


def columns_of(path: Path) -> list[str]:
    """Return the columns of somebody's table.

    Parameters
    ----------
    path : Path

    Raises
    ------
    RequestError
        It is no table.
    """
    from featurecache.tables import TableError, open_table

    try:
        with open_table(path) as table:
            return table.columns
    except TableError as error:
        raise RequestError(f"--like {path}: {error}") from None


def _number(name: str) -> Callable[[Prediction], Value]:
    return lambda item: item.numbers.get(name)


def _probability(name: str) -> Callable[[Prediction], Value]:
    return lambda item: item.probabilities.get(name)


def _ranked(item: Prediction, rank: int) -> tuple[str | None, float | None]:
    order = sorted(item.probabilities.items(), key=lambda pair: -pair[1])
    return order[rank] if order else (None, None)


def _ranked_label(rank: int) -> Callable[[Prediction], Value]:
    return lambda item: _ranked(item, rank)[0]


def _ranked_probability(rank: int) -> Callable[[Prediction], Value]:
    return lambda item: _ranked(item, rank)[1]


def _name_of(column: str) -> Callable[[Prediction], Value]:
    if column.endswith("id"):
        return lambda item: PurePosixPath(item.path).stem
    if column.endswith("path"):
        return lambda item: item.path
    return lambda item: PurePosixPath(item.path).name
