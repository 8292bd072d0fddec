"""The rows of one table of labels: read one by one, with what is doubtful about them counted."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from featurecache.errors import ReportWarning, TaskError, shortened
from featurecache.hashing import digest_bytes
from featurecache.store.label_columns import SPLIT_WORDS, LabelColumns
from featurecache.store.label_entries import BLANK, NO, NO_CLASS, YES, TargetReader, number_of
from featurecache.store.label_matching import name_of
from featurecache.store.labels import Label
from featurecache.store.spellings import joined_labels
from featurecache.tables import ListField, Row, Table, to_bytes
from featurecache.wording import counted


@dataclass(slots=True)
class LabelRows:
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
            fields = [row.get(column) for column in columns.labels]
            # Not of lists: they would become plain text, and one value of what were several.
            entries = [entry if isinstance(entry, ListField) else (entry or "").strip() for entry in fields]
            if self.is_text and key is None:
                raise TaskError(f"{where} has fewer fields than the header; put texts in double quotes")
            target = self.targets.read(where, entries)
            if target is None:
                # Of several columns they are counted by cells.
                is_class = self.targets.kind == "classification"
                self.unlabelled[entries[0]] += is_class or (len(entries) == 1 and self.targets.kind != "multilabel")
                continue
            if self.is_text:
                # The sample id that the bytes of the text have as an input.
                key, shown = digest_bytes(to_bytes(key or "")), f"row {number:09d}"
            elif not (key := (key or "").strip()):
                raise TaskError(f"{where}: the {columns.key} is empty; fill it or drop the line")
            else:
                key = name_of(key)
            split, group, weight = self._split(where, row), self._group(where, row), self._weight(where, row)
            self._note_splits(row)
            yield Label(key, target[0], split, shown, group, weight, target[1], self._domain(where, row))

    def _note_splits(self, row: Row) -> None:
        for column in list(self.maybe_split):
            word = (row.get(column) or "").strip().lower()
            if word and word not in SPLIT_WORDS:
                # One other word is enough: the column is about something else.
                del self.maybe_split[column]
            else:
                self.maybe_split[column].append(SPLIT_WORDS.get(word))

    def with_split(self, labels: list[Label]) -> tuple[Label, ...]:
        """Return labels with the splits of a column that holds nothing else, where one does."""
        # A column with one split only, or a second column of splits, leaves it open which is meant.
        able = {name: splits for name, splits in self.maybe_split.items() if len(set(splits)) > 1}
        if len(able) != 1:
            return tuple(labels)
        ((self.found_split, splits),) = able.items()
        return tuple(replace(label, split=split) for label, split in zip(labels, splits, strict=True))

    def _split(self, where: str, row: Row) -> str | None:
        splits = []
        for column, (yes, no) in self.columns.flags:
            word = (row.get(column) or "").strip().lower()
            if word not in YES and word not in NO and word not in BLANK:
                raise TaskError(f"{where}: the {column} is neither yes nor no: {word!r:.100}")
            # An empty flag is a no.
            splits.append(yes if word in YES else no)
        if splits:
            # What is of a test or validation split by one column is, whatever others say.
            return next((split for split in ("test", "validation") if split in splits), "train")
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
            advice = "" if example is None else f"; look whether {example!r:.100} is what was meant"
            yield ReportWarning(
                kind="encoding", count=1, text=f"the table was read as {table.format.encoding}, not UTF-8{advice}"
            )
        if table.format is not None and not table.format.has_quotes:
            text = "quotes are read as letters: read as marks around texts, they would join rows of the table"
            yield ReportWarning(kind="quotes", count=1, text=text)
        for remark in table.remarks:
            yield ReportWarning(kind="table", count=1, text=remark)
        if count := sum(self.unlabelled.values()):
            named = ", ".join(f"{entry!r}: {number}" for entry, number in self.unlabelled.most_common(5) if entry)
            what = f" (empty: {self.unlabelled['']}, {named})" if named else ""
            advice = "; --keep-na if these are names of classes" if named and self.targets.kind != "regression" else ""
            yield ReportWarning(
                kind="unlabelled_rows",
                count=count,
                text=f"{counted(count, 'row', of=self.num_rows, verb='has')} no label, left out{what}{advice}",
            )
        if self.targets.kind == "classification" and (number := len(self.columns.labels)) > 1:
            names = shortened(", ".join(self.columns.labels))
            text = f"{number} columns are the classes, as each row has a 1 in one of them: {names}"
            yield ReportWarning(kind="label_column", count=number, text=text)
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
            rows = f"; {counted(num_unknown, 'row', verb='says')} nothing at all, left out" if num_unknown else ""
            advice = "; --blank negative or --uncertain negative where such a cell means no"
            yield ReportWarning(
                kind="unknown_targets",
                count=sum(of_label) + num_unknown,
                text=f"{counted(sum(of_label), 'cell', of=len(labels) * len(self.columns.labels), verb='is')} not "
                "known, and left out of "
                f"fitting and judging{rows}{advice if self.targets.kind == 'multilabel' else ''}",
            )
        if count := self.targets.num_without_labels:
            yield ReportWarning(
                kind="unknown_targets",
                count=count,
                text=f"{counted(count, 'row', verb='has')} no label in {self.columns.labels[0]!r}, which is taken "
                "for none of them; "
                "--blank missing where that is not known",
            )


def joined_rows(labels: Sequence[Label]) -> tuple[tuple[Label, ...], list[ReportWarning]]:
    """Return one label for each name of a table that has a row for each label of a sample, and a word about it.

    Rows that list several labels, or that differ in more than the label, are left as they are: they contradict each
    other.

    Parameters
    ----------
    labels : sequence of Label
        Of kind ``multilabel``.
    """
    by_key = defaultdict[str, list[Label]](list)
    for label in labels:
        by_key[label.key].append(label)
    joined: list[Label] = []
    count, example = 0, ""
    for rows in by_key.values():
        names = {name for row in rows for name in row.label.split("\n")} - {""}
        is_plain = all("\n" not in row.label and _bare(row) == _bare(rows[0]) for row in rows)
        if len(names) > 1 and is_plain:
            joined.append(replace(rows[0], label="\n".join(sorted(names))))
            count += 1
            example = example or f"{rows[0].name} is {', '.join(sorted(names))}"
        else:
            joined += rows
    if not count:
        return tuple(labels), []
    text = (
        f"{counted(count, 'sample', verb='has')} a row for each of their labels, first {shortened(example)}: "
        "they hold together"
    )
    return tuple(joined), [ReportWarning(kind="joined_rows", count=count, text=text)]


def _bare(label: Label) -> Label:
    return replace(label, label="", shown=None)
