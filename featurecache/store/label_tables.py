"""Labels read from tables as people have them: files, data frames, and mappings from names to labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from featurecache.errors import ReportWarning, TaskError
from featurecache.specs import TaskKind, task_kind
from featurecache.store.label_columns import NoKeyColumnError, find_columns, holds_one_each, key_candidates
from featurecache.store.label_entries import Reading, TargetReader
from featurecache.store.label_join import missing_error
from featurecache.store.label_metadata import joined_tables, metadata_tables, named_beside
from featurecache.store.label_rows import LabelRows, joined_rows
from featurecache.store.label_search import MOST_FIELDS, MOST_ROWS, begins_with_row, names_some, search_key_column
from featurecache.store.labels import TableLabels
from featurecache.tables import (
    Row,
    Table,
    TableError,
    columns_of_files,
    field_of,
    open_table,
    sample_columns,
)
from featurecache.wording import counted

_SAMPLE = 200
"""Rows by which columns are told apart."""


def labels_from_csv(
    path: str | Path,
    *,
    path_column: str | None = None,
    label_column: str | Sequence[str] | None = None,
    kind: TaskKind = "classification",
    text_column: str | None = None,
    group_column: str | None = None,
    weight_column: str | None = None,
    domain_column: str | None = None,
    split_column: str | None = None,
    root: str | Path | None = None,
    blank: Reading | None = None,
    uncertain: Reading = "missing",
    separator: str = ";|",
    delimiter: str | None = None,
    has_header: bool = True,
    keep_na: bool = False,
    merge_spellings: bool = False,
    names: Sequence[str] | None = None,
) -> TableLabels:
    """Read labels from a table in a file: CSV, TSV, JSON, Parquet or Excel, in UTF-8, UTF-16 or Windows' cp1252.

    A label or number that a table leaves open is unknown, and never taken for a no: it is left out of fitting and
    scores. A column ``split``, one that holds nothing but train, validation and test, or columns ``is_valid``,
    ``is_test`` and ``is_train`` of yes and no, say the split.

    Parameters
    ----------
    path : path
    path_column : str, optional
        Names the samples: paths, names with or without suffix, or ids; see `featurecache.store.label_matching`. When
        left out, ``path``, ``file``, ``filename``, ``image``, ``image_id``, ``img``, ``id`` and the like.
    label_column : str or sequence of str, optional
        Of kind ``classification``, the column of the class. Of kind ``multilabel``, one column that lists the labels
        that hold (or is empty), or several columns with 1 or 0. Of kind ``regression``, each column holds a number.
        When left out, ``label``, ``class``, ``target``, ``species`` and the like, or the only column that is left.
    kind : str
    text_column : str, optional
        Column of the texts, where these are what is labelled.
    group_column : str, optional
        Samples with the same entry there (a photo, a patient) stay in one split and one fold.
    weight_column : str, optional
        Sample weights in fitting, above 0.
    domain_column : str, optional
        Where samples come from: a camera, a site; what ``--target-domain`` names.
    split_column : str, optional
        Says the split, when it is called otherwise.
    root : path, optional
        The source of the paths; all sources of the cache when left out.
    blank, uncertain : {"missing", "negative", "positive"}, optional
        How empty entries (NaN, NA, None, null), and -1, u, ? and unknown, are read of kind ``multilabel``. An empty
        list of labels is none of them by default.
    separator : str
        Characters between labels in one column; spaces count only where there is nothing else.
    delimiter : str, optional
        Between columns; found in the first rows when left out.
    has_header : bool
        The first row names the columns; else they are called ``1``, ``2`` and so on. A first row that names a sample as
        the others do is taken for one, with a warning, unless a column is named here.
    keep_na : bool
        NA, NaN, None and null are names of classes; else rows with them have no label, as empty ones.
    merge_spellings : bool
        Classes that differ only in case or spaces are one, under the spelling that is used most.
    names : sequence of str, optional
        Of the samples of a source, as `Listings.names` gives them. Where no column of a known name names
        any of them, the one is taken whose entries do.

    Raises
    ------
    TaskError
        No such file, a column is missing, or an entry says nothing that is known.
    """
    options = LabelOptions(
        kind=kind,
        path_column=path_column,
        label_column=label_column,
        text_column=text_column,
        group_column=group_column,
        weight_column=weight_column,
        domain_column=domain_column,
        split_column=split_column,
        blank=blank,
        uncertain=uncertain,
        separator=separator,
        keep_na=keep_na,
        merge_spellings=merge_spellings,
    )
    return LabelTable(Path(path), options, delimiter, has_header).read(root=root, names=names)


def labels_from_frame(
    frame: Any,
    *,
    path_column: str | None = None,
    label_column: str | Sequence[str] | None = None,
    kind: TaskKind = "classification",
    group_column: str | None = None,
    weight_column: str | None = None,
    domain_column: str | None = None,
    split_column: str | None = None,
    root: str | Path | None = None,
    blank: Reading | None = None,
    uncertain: Reading = "missing",
    separator: str = ";|",
    merge_spellings: bool = False,
    names: Sequence[str] | None = None,
) -> TableLabels:
    """Take labels from a data frame (pandas, polars), by the same rules as from a file.

    Parameters
    ----------
    frame : DataFrame
        Where no column names the samples, the index does, if it holds texts. An empty cell is None or NaN; the text
        "NA" is the name of a class.
    path_column, label_column, kind, group_column, weight_column, domain_column, split_column
        As for `labels_from_csv`.
    root, blank, uncertain, separator, merge_spellings, names
        As for `labels_from_csv`.

    Raises
    ------
    TaskError
        A column is missing, or an entry says nothing that is known.
    """
    if not hasattr(frame, "columns"):
        raise TaskError(f"labels_from_frame takes a data frame with columns, not a {type(frame).__name__}")
    called = [str(name) for name in frame.columns]
    # Of two columns of one name a data frame gives both at once.
    if len(set(called)) < len(called):
        twice = next(name for name in called if called.count(name) > 1)
        raise TaskError(
            f"{called.count(twice)} columns of the data frame are called {twice!r}; give them names of their own"
        )
    columns = {str(name): [field_of(value) for value in frame[name]] for name in frame.columns}
    # Texts in the index may name samples, numbers of rows do not.
    index = list(getattr(frame, "index", ()))
    if path_column is None and not sample_columns(list(columns)) and all(isinstance(name, str) for name in index):
        columns = {"path": index, **columns} if index else columns
    options = LabelOptions(
        kind=kind,
        path_column=path_column,
        label_column=label_column,
        group_column=group_column,
        weight_column=weight_column,
        domain_column=domain_column,
        split_column=split_column,
        blank=blank,
        uncertain=uncertain,
        separator=separator,
        keep_na=True,
        merge_spellings=merge_spellings,
    )
    return _read(lambda: _opened(columns), options, "a data frame", "row", root, names)


def labels_from_mapping(
    labels: Mapping[str, Any], *, root: str | Path | None = None, merge_spellings: bool = False
) -> TableLabels:
    """Take the class of each sample from a mapping of names to classes, by the same rules as from a file.

    Parameters
    ----------
    labels : mapping of str to str
    root, merge_spellings
        As for `labels_from_csv`.

    Raises
    ------
    TaskError
        It is empty, or a name is.
    """
    options = LabelOptions(path_column="path", label_column="label", keep_na=True, merge_spellings=merge_spellings)
    columns: dict[str, list[str | None]] = {"path": [str(name) for name in labels]}
    columns["label"] = [field_of(label) for label in labels.values()]
    return _read(lambda: _opened(columns), options, "a mapping", "entry", root, None)


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelOptions:
    """What somebody says of a table of labels; see `labels_from_csv`."""

    kind: TaskKind = "classification"
    path_column: str | None = None
    label_column: str | Sequence[str] | None = None
    text_column: str | None = None
    group_column: str | None = None
    weight_column: str | None = None
    domain_column: str | None = None
    split_column: str | None = None
    blank: Reading | None = None
    uncertain: Reading = "missing"
    separator: str = ";|"
    keep_na: bool = False
    merge_spellings: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", task_kind(self.kind))

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The columns that are named for the label."""
        named = self.label_column or ()
        return (named,) if isinstance(named, str) else tuple(named)

    @property
    def named_columns(self) -> tuple[str, ...]:
        """All columns that are named for something else than the samples."""
        others = (self.group_column, self.weight_column, self.domain_column, self.split_column)
        return (*self.label_columns, *filter(None, others))


@dataclass(frozen=True, slots=True)
class LabelTable:
    """A table of labels in a file that is not read yet: which column names the samples may take the source to tell.

    Attributes
    ----------
    path : Path
    options : LabelOptions
    delimiter, has_header
        As for `labels_from_csv`.
    """

    path: Path
    options: LabelOptions
    delimiter: str | None = None
    has_header: bool = True

    def read(self, *, root: str | Path | None = None, names: Sequence[str] | None = None) -> TableLabels:
        """Return the labels; see `labels_from_csv`."""
        if self.path.is_dir():
            paths = metadata_tables(self.path)
            return joined_tables(self.path, paths, [replace(self, path=p).read(root=root, names=names) for p in paths])
        return named_beside(self.path, self._read_file(root=root, names=names), names)

    def _read_file(self, *, root: str | Path | None, names: Sequence[str] | None) -> TableLabels:
        options, is_text = self.options, self.options.text_column is not None
        is_named, has_header = is_text or options.path_column is not None, self.has_header

        def opened() -> AbstractContextManager[Table]:
            return open_table(self.path, raw=is_text, delimiter=self.delimiter, has_header=has_header)

        try:
            if has_header and not is_named and not options.named_columns:
                with opened() as table:
                    has_header = not begins_with_row(table, names)
            if not has_header and not is_named and names is None:
                with opened() as table:
                    of_files = columns_of_files(table.columns, [row for _, row in islice(table, _SAMPLE)])
                options = replace(options, path_column=of_files[0] if len(of_files) == 1 else "1")
            found = _read(opened, options, self.path.name, f"{self.path} line", root, names)
        except TableError as error:
            raise TaskError(f"cannot read labels from {self.path}: {error}") from None
        if has_header == self.has_header:
            return found
        text = "the first line names a sample as the others do and is read as a row; columns are called 1, 2 and so on"
        return replace(found, warnings=(ReportWarning(kind="no_header", count=1, text=text), *found.warnings))


def _opened(columns: Mapping[str, Sequence[str | None]]) -> AbstractContextManager[Table]:
    every: Iterator[Row] = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    return nullcontext(Table(list(columns), enumerate(every, 1)))


def _read(
    opened: Callable[[], AbstractContextManager[Table]],
    options: LabelOptions,
    origin: str,
    where: str,
    root: str | Path | None,
    names: Sequence[str] | None,
) -> TableLabels:
    """Return the labels of a whole table, with what is doubtful about it.

    ``where`` stands before the number of a row in messages. Where no column of a known name names any sample of
    ``names``, the table is opened again, for one whose entries do.
    """
    is_given = options.path_column is not None or options.text_column is not None
    labels, unnamed = None, None
    try:
        with opened() as table:
            labels = _read_rows(table, options, origin, where, root)
        if is_given or names is None or names_some(labels.labels, names):
            return labels
    except NoKeyColumnError as error:
        if names is None or not error.able:
            raise TaskError(f"{where.removesuffix(' line')}: {error}") from None
        unnamed = error
    with opened() as table:
        able = unnamed.able if unnamed else key_candidates(table.columns, options.named_columns)
        most = min(MOST_ROWS, MOST_FIELDS // max(len(table.columns), 1))
        rows = [row for _, row in islice(table, most) if any(row.values())]
    column, tried = search_key_column(able, rows, names)
    if column is not None:
        with opened() as table:
            found = _read_rows(table, replace(options, path_column=column), origin, where, root)
        return replace(found, key_column=column)
    if labels is not None:
        raise missing_error(labels.labels, labels, names, tried)
    raise TaskError(f"{where.removesuffix(' line')}: {NoKeyColumnError(able, tried)}")


def _read_rows(table: Table, options: LabelOptions, origin: str, where: str, root: str | Path | None) -> TableLabels:
    """Return the labels of a table whose column of samples is named, or known by its name."""
    if options.kind != "multilabel" and (options.blank or options.uncertain != "missing"):
        raise TaskError(f"--blank and --uncertain are for tasks of kind multilabel, not {options.kind}; leave them out")
    if not options.separator:
        raise TaskError("--separator is one or more characters between labels; got none")
    rows = iter(table)
    # A table is read once: the rows that tell the columns apart are put in front again.
    first = list(islice(rows, _SAMPLE))
    try:
        columns = find_columns(
            table.columns,
            options.kind,
            path_column=options.path_column,
            label_columns=options.label_columns,
            text_column=options.text_column,
            group_column=options.group_column,
            weight_column=options.weight_column,
            domain_column=options.domain_column,
            split_column=options.split_column,
            sample=[row for _, row in first],
        )
    except NoKeyColumnError:
        raise
    except TaskError as error:
        raise TaskError(f"{where.removesuffix(' line')}: {error}") from None
    several = len(columns.labels)
    if options.kind == "classification" and several > 1 and not holds_one_each(columns.labels, [r for _, r in first]):
        raise TaskError(
            f"{several} label columns are named, and a sample has one class; name one column, or columns of which each "
            "row has a 1 in one and 0 in the others, or say --kind multilabel or --kind regression"
        )
    targets = TargetReader(
        options.kind, columns.labels, options.blank, options.uncertain, options.separator, options.keep_na,
        # A comma is free for decimals only where another sign stands between columns.
        decimal_comma=table.format is not None and table.format.delimiter == ";",
    )  # fmt: skip
    reader = LabelRows(columns, targets, where, is_text=options.text_column is not None)
    known = (columns.key, *columns.labels, columns.group, columns.weight, columns.domain)
    if columns.split is None and not columns.flags:
        # A split column of any name is looked for only where nothing else says the split.
        reader.maybe_split = {name: [] for name in table.columns if name and name not in known}
    labels = reader.with_split(list(reader.labels(chain(first, rows))))
    if not labels:
        nothing = f"says nothing in {counted(reader.num_rows, 'row')} of {', '.join(map(repr, columns.labels))}"
        nothing = nothing if reader.num_rows else "has names of columns but no rows"
        raise TaskError(f"{where.removesuffix(' line') if table.format is not None else origin} {nothing}")
    # Names of classes are entries; of labels and numbers in columns of their own, names of columns.
    is_listed = options.kind == "classification" or (options.kind == "multilabel" and len(columns.labels) == 1)
    warnings = list(reader.warnings(labels, table))
    if options.kind == "multilabel" and is_listed:
        labels, joined = joined_rows(labels)
        warnings += joined
    return TableLabels(
        labels=labels,
        origin=origin,
        root=root,
        kind=options.kind,
        names=() if is_listed else columns.labels,
        warnings=tuple(warnings),
        merge_spellings=options.merge_spellings,
    )
