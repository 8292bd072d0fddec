"""Labels read from tables as people have them: files, data frames, and mappings from names to labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any

from featurecache.errors import ReportWarning, TaskError
from featurecache.hashing import digest_bytes
from featurecache.specs import TaskKind, task_kind
from featurecache.store.label_columns import SPLIT_WORDS, LabelColumns, find_columns
from featurecache.store.label_entries import BLANK, NO, NO_CLASS, YES, Reading, TargetReader, number_of
from featurecache.store.labels import Label, TableLabels
from featurecache.store.spellings import joined_labels
from featurecache.tables import ListField, Row, Table, TableError, field_of, open_table, sample_columns, to_bytes

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
) -> TableLabels:
    """Read labels from a table in a file: CSV, TSV or Parquet, in UTF-8, UTF-16 or Windows' cp1252.

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
        Characters between labels in one column.
    delimiter : str, optional
        Between columns; found in the first rows when left out.
    has_header : bool
        The first row names the columns; else they are called ``1``, ``2`` and so on, of which the first names the
        samples and the second says the label.
    keep_na : bool
        NA, NaN, None and null are names of classes; else rows with them have no label, as empty ones.
    merge_spellings : bool
        Classes that differ only in case or spaces are one, under the spelling that is used most.

    Raises
    ------
    TaskError
        No such file, a column is missing, or an entry says nothing that is known.
    """
    file = Path(path)
    if not has_header:
        if text_column is not None:
            raise TaskError("--no-header is for tables that name images; give a table of texts a first row of names")
        path_column, label_column = path_column or "1", label_column or "2"
    options = _Options(
        task_kind(kind), path_column, _columns(label_column), text_column, group_column, weight_column,
        domain_column, split_column, blank, uncertain, separator, keep_na, merge_spellings,
    )  # fmt: skip
    try:
        with open_table(file, raw=text_column is not None, delimiter=delimiter, has_header=has_header) as table:
            return _read(table, options, file.name, f"{file} line", root)
    except TableError as error:
        raise TaskError(f"cannot read labels from {file}: {error}") from None


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
) -> TableLabels:
    """Take labels from a data frame (pandas, polars), by the same rules as from a file.

    Parameters
    ----------
    frame : DataFrame
        Where no column names the samples, the index does, if it holds texts. An empty cell is None or NaN; the text
        "NA" is the name of a class.
    path_column, label_column, kind, group_column, weight_column, domain_column, split_column
        As for `labels_from_csv`.
    root, blank, uncertain, separator, merge_spellings
        As for `labels_from_csv`.

    Raises
    ------
    TaskError
        A column is missing, or an entry says nothing that is known.
    """
    if not hasattr(frame, "columns"):
        raise TaskError(f"labels_from_frame takes a data frame with columns, not a {type(frame).__name__}")
    names = [str(name) for name in frame.columns]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise TaskError(
            f"{names.count(twice)} columns of the data frame are called {twice!r}; give them names of their own"
        )
    columns = {str(name): [field_of(value) for value in frame[name]] for name in frame.columns}
    index = list(getattr(frame, "index", ()))
    if path_column is None and not sample_columns(list(columns)) and all(isinstance(name, str) for name in index):
        columns = {"path": index, **columns} if index else columns
    every: Iterator[Row] = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    options = _Options(
        task_kind(kind), path_column, _columns(label_column), None, group_column, weight_column, domain_column,
        split_column, blank, uncertain, separator, True, merge_spellings,
    )  # fmt: skip
    return _read(Table(list(columns), enumerate(every, 1)), options, "a data frame", "row", root)


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
    every: Iterator[Row] = ({"path": str(name), "label": field_of(label)} for name, label in labels.items())
    options = _Options(
        "classification", "path", ("label",), None, None, None, None, None, None, "missing", ";|", True, merge_spellings
    )
    table = Table(["path", "label"], enumerate(every, 1))
    return _read(table, options, "a mapping", "entry", root)


def _entry(field: str | None) -> str:
    """Return an entry without spaces around; one of several values stays that."""
    return field if isinstance(field, ListField) else (field or "").strip()


def _columns(label_column: str | Sequence[str] | None) -> tuple[str, ...]:
    return (label_column,) if isinstance(label_column, str) else tuple(label_column or ())


@dataclass(frozen=True, slots=True)
class _Options:
    """What a caller says of a table of labels; see `labels_from_csv`."""

    kind: TaskKind
    path_column: str | None
    label_columns: tuple[str, ...]
    text_column: str | None
    group_column: str | None
    weight_column: str | None
    domain_column: str | None
    split_column: str | None
    blank: Reading | None
    uncertain: Reading
    separator: str
    keep_na: bool
    merge_spellings: bool


def _read(table: Table, options: _Options, origin: str, where: str, root: str | Path | None) -> TableLabels:
    """Return the labels of a whole table, with what is doubtful about it.

    ``where`` stands before the number of a row in messages.
    """
    if options.kind == "classification" and len(options.label_columns) > 1:
        raise TaskError(
            f"{len(options.label_columns)} label columns are named, and a sample has one class; name one column, or "
            "say --kind multilabel or --kind regression"
        )
    if options.kind != "multilabel" and (options.blank or options.uncertain != "missing"):
        raise TaskError(f"--blank and --uncertain are for tasks of kind multilabel, not {options.kind}; leave them out")
    if not options.separator:
        raise TaskError("--separator is one or more characters between labels; got none")
    rows = iter(table)
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
    except TaskError as error:
        raise TaskError(f"{where.removesuffix(' line')}: {error}") from None
    targets = TargetReader(
        options.kind, columns.labels, options.blank, options.uncertain, options.separator, options.keep_na,
        decimal_comma=table.format is not None and table.format.delimiter == ";",
    )  # fmt: skip
    reader = _RowReader(columns, targets, where, is_text=options.text_column is not None)
    known = (columns.key, *columns.labels, columns.group, columns.weight, columns.domain)
    if columns.split is None and not columns.flags:
        reader.maybe_split = {name: [] for name in table.columns if name and name not in known}
    labels = reader.with_split(list(reader.labels(chain(first, rows))))
    if not labels:
        nothing = f"says nothing of any of its {reader.num_rows} rows in {', '.join(map(repr, columns.labels))}"
        nothing = nothing if reader.num_rows else "has names of columns but no rows"
        raise TaskError(f"{where.removesuffix(' line') if table.format is not None else origin} {nothing}")
    is_listed = options.kind == "classification" or (options.kind == "multilabel" and len(columns.labels) == 1)
    found = TableLabels(
        labels=labels,
        origin=origin,
        root=root,
        kind=options.kind,
        names=() if is_listed else columns.labels,
        merge_spellings=options.merge_spellings,
    )
    return found.with_warnings(reader.warnings(labels, table))


@dataclass(slots=True)
class _RowReader:
    """Reads the rows of one table, and counts those without a label."""

    columns: LabelColumns
    targets: TargetReader
    where: str
    is_text: bool
    num_rows: int = 0
    unlabelled: Counter[str] = field(default_factory=Counter)
    """Rows that have no label, by what stands there."""
    maybe_split: dict[str, list[str | None]] = field(default_factory=dict)
    """Columns that nobody named and that hold nothing but words for splits so far, with the split of each label."""
    found_split: str = ""
    """The one of them that was taken."""

    def labels(self, table: Iterable[tuple[int, Row]]) -> Iterator[Label]:
        """Yield the label of each row that has one."""
        columns = self.columns
        for number, (line, row) in enumerate(table, start=1):
            if not any(entry and entry.strip() for entry in row.values()):
                continue  # a spreadsheet writes them at the end
            self.num_rows += 1
            if surplus := (row.get(None) or "").strip():
                raise TaskError(
                    f"{self.where} {line} has more fields than there are columns, first {surplus!r:.60}; put what "
                    "holds the delimiter in double quotes, and give a column of row names a name too"
                )
            where, key, shown = f"{self.where} {line}", row.get(columns.key), None
            entries = [_entry(row.get(column)) for column in columns.labels]
            if self.is_text and key is None:
                raise TaskError(f"{where} has fewer fields than the header; put texts in double quotes")
            target = self.targets.read(where, entries)
            if target is None:
                # Of several columns they are counted by cells.
                self.unlabelled[entries[0]] += len(entries) == 1 and self.targets.kind != "multilabel"
                continue
            if self.is_text:
                # The sample id that the bytes of the text have as an input.
                key, shown = digest_bytes(to_bytes(key or "")), f"row {number:09d}"
            elif not (key := (key or "").strip()):
                raise TaskError(f"{where}: the {columns.key} is empty; fill it or drop the line")
            else:
                key = str(PurePosixPath(key.replace("\\", "/")))
            split, group, weight = self._split(where, row), self._group(where, row), self._weight(where, row)
            self._note_splits(row)
            yield Label(key, target[0], split, shown, group, weight, target[1], self._domain(where, row))

    def _note_splits(self, row: Row) -> None:
        for column in list(self.maybe_split):
            word = (row.get(column) or "").strip().lower()
            if word and word not in SPLIT_WORDS:
                del self.maybe_split[column]
            else:
                self.maybe_split[column].append(SPLIT_WORDS.get(word))

    def with_split(self, labels: list[Label]) -> tuple[Label, ...]:
        """Return labels with the splits of a column that holds nothing else, where one does."""
        able = {name: splits for name, splits in self.maybe_split.items() if len(set(splits)) > 1}
        if len(able) != 1:
            return tuple(labels)
        ((self.found_split, splits),) = able.items()
        return tuple(replace(label, split=split) for label, split in zip(labels, splits, strict=True))

    def _split(self, where: str, row: Row) -> str | None:
        said = []
        for column, (yes, no) in self.columns.flags:
            word = (row.get(column) or "").strip().lower()
            if word not in YES and word not in NO and word not in BLANK:
                raise TaskError(f"{where}: the {column} is neither yes nor no: {word!r:.100}")
            said.append(yes if word in YES else no)
        if said:
            # What is of a test or validation split by one column is, whatever others say.
            return next((split for split in ("test", "validation") if split in said), "train")
        if self.columns.split is None:
            return None
        word = (row.get(self.columns.split) or "").strip().lower()
        if word and word not in SPLIT_WORDS:
            raise TaskError(f"{where}: unknown split {word!r:.100}; use train, validation or test")
        return SPLIT_WORDS[word] if word else None

    def _group(self, where: str, row: Row) -> str | None:
        if (column := self.columns.group) is None:
            return None
        if not (group := (row.get(column) or "").strip()):
            raise TaskError(f"{where}: the {column} is empty; fill it, with a name of its own where alone")
        return group

    def _domain(self, where: str, row: Row) -> str | None:
        if (column := self.columns.domain) is None:
            return None
        domain = (row.get(column) or "").strip()
        if not domain or domain in NO_CLASS:
            raise TaskError(f"{where}: the {column} is empty; say where the sample comes from")
        return domain

    def _weight(self, where: str, row: Row) -> float | None:
        if (column := self.columns.weight) is None:
            return None
        entry = (row.get(column) or "").strip()
        comma = self.targets.decimal_comma
        if entry and (weight := number_of(where, column, entry, decimal_comma=comma)) > 0:
            return weight
        wrong = f"must be above 0, not {entry!r:.100}" if entry else "is empty; say 1 where a sample counts as most do"
        raise TaskError(f"{where}: the {column} {wrong}; drop the line to leave it out")

    def warnings(self, labels: Sequence[Label], table: Table) -> Iterator[ReportWarning]:
        """Yield what is doubtful about the table."""
        yield from self._of_reading(labels, table)
        yield from self._of_unknown(labels)
        if self.targets.kind != "regression" and len(self.columns.labels) == 1:
            yield from joined_labels(self.columns.labels[0], self.targets.kind, labels)

    def _of_reading(self, labels: Sequence[Label], table: Table) -> Iterator[ReportWarning]:
        if table.format is not None and table.format.encoding not in ("utf-8", "utf-8-sig"):
            strange = (text for label in labels for text in (label.label, label.key) if not text.isascii())
            example = next(strange, None)
            look = "" if example is None else f"; look whether {example!r:.100} is what was meant"
            yield ReportWarning(
                kind="encoding", count=1, text=f"the table was read as {table.format.encoding}, not UTF-8{look}"
            )
        if count := sum(self.unlabelled.values()):
            named = ", ".join(f"{entry!r}: {number}" for entry, number in self.unlabelled.most_common(5) if entry)
            what = f" (empty: {self.unlabelled['']}, {named})" if named else ""
            advice = "; --keep-na if these are names of classes" if named and self.targets.kind != "regression" else ""
            yield ReportWarning(
                kind="unlabelled_rows",
                count=count,
                text=f"{count} of {self.num_rows} rows have no label and are left out{what}{advice}",
            )
        if self.found_split:
            text = f"the column {self.found_split!r} holds nothing but names of splits, and says the split"
            yield ReportWarning(kind="split_column", count=1, text=text)
        if self.columns.unused:
            what = f"{', '.join(map(repr, self.columns.labels))} says the label"
            what += f" and {self.columns.split!r} the split" if self.columns.split is not None else ""
            names = ", ".join(map(repr, self.columns.unused))
            text = f"{names} {'is' if len(self.columns.unused) == 1 else 'are'} not looked at, as {what}"
            yield ReportWarning(kind="unused_column", count=len(self.columns.unused), text=text)

    def _of_unknown(self, labels: Sequence[Label]) -> Iterator[ReportWarning]:
        of_label = [
            label.label.split("\n").count("nan") if self.targets.kind == "regression" else len(label.unknown)
            for label in labels
        ]
        num_unknown = self.targets.num_unknown_rows
        if num_unknown or sum(of_label):
            rows = f"; {num_unknown} rows say nothing at all and are left out" if num_unknown else ""
            advice = "; --blank negative or --uncertain negative where such a cell means no"
            yield ReportWarning(
                kind="unknown_targets",
                count=sum(of_label) + num_unknown,
                text=f"{sum(of_label)} of {len(labels) * len(self.columns.labels)} cells are not known, and have no "
                f"part in fitting and judging{rows}{advice if self.targets.kind == 'multilabel' else ''}",
            )
        if count := self.targets.num_without_labels:
            yield ReportWarning(
                kind="unknown_targets",
                count=count,
                text=f"{count} rows have no label in {self.columns.labels[0]!r}, which is taken for none of them; "
                "--blank missing where that is not known",
            )
