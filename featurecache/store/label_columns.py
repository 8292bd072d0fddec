"""Which columns of a table of labels name the samples, say their label and their split: named by the user, or found."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from featurecache.errors import TaskError, UnknownNameError
from featurecache.specs import TaskKind
from featurecache.store.label_entries import BLANK, NO, YES
from featurecache.store.labels import SPLIT_OF
from featurecache.tables import PATH_COLUMNS, columns_of_files, first_line_is_row, plain_name, sample_columns
from featurecache.wording import counted, some_of

# Compared as `plain_name` writes them; the first that a table has is taken.
LABEL_COLUMNS = (
    *("label", "labels", "class", "classname", "classlabel", "labelname", "category", "categoryname", "target"),
    *("species", "speciesname", "breed", "diagnosis", "tags", "tag", "y"),
    *("klasse", "kategorie", "classe", "clase", "categorie", "categoria"),
)
SPLIT_COLUMN = "split"
FLAGS = {
    "isvalid": ("validation", "train"),
    "isval": ("validation", "train"),
    "isvalidation": ("validation", "train"),
    "istest": ("test", "train"),
    "istrain": ("train", "test"),
    "istraining": ("train", "test"),
    "istrainingimage": ("train", "test"),
}
"""Columns of yes and no, and the splits that they say."""
_PLAIN_FLAGS = {
    **dict.fromkeys(("val", "valid", "validation"), ("validation", "train")),
    **dict.fromkeys(("test", "testing", "istesting", "holdout", "isholdout"), ("test", "train")),
    **dict.fromkeys(("train", "training"), ("train", "test")),
}
"""The same, under names that may mean something else: only where they hold nothing but yes and no."""
SPLIT_WORDS = {**SPLIT_OF, "training": "train", "dev": "validation", "eval": "validation", "testing": "test"}
SPLIT_WORDS |= {"publictest": "validation", "privatetest": "test", "holdout": "test"}
"""Besides the names that folders have."""
_INDEX = re.compile(r"(Unnamed: ?\d+)?|index|#|(k[-_ ]?)?folds?", re.IGNORECASE)
"""What data frames call the column of their row numbers when they are written; and numbers of folds are no classes."""
_FEWEST_ROWS = 10
"""In which what stands in columns tells which of them says the class."""
_MOST_NAMED = 20
"""Columns in a message."""


class NoKeyColumnError(TaskError):
    """No column is known by its name to name the samples.

    Attributes
    ----------
    able : list of str
        Columns that may name them under another name.
    """

    def __init__(self, able: Sequence[str], has: str) -> None:
        self.able = list(able)
        super().__init__(
            f"needs a column that names the samples, such as 'path', 'file', 'image_id' or 'id'; {has}; name it with "
            "--path-column, or if it holds texts themselves, with --text-column (where the first line is a row "
            "already, say --no-header)"
        )


@dataclass(frozen=True, slots=True)
class LabelColumns:
    """Columns of one table, by what they say.

    Attributes
    ----------
    key : str
        Names the samples, or holds them where they are texts.
    labels : tuple of str
        Say the label, or one of several labels or numbers each.
    split : str or None
    flags : tuple of (str, (str, str))
        Columns of yes and no, and the splits that they say.
    group, weight, domain : str or None
    unused : tuple of str
        Columns that were not named, and could say what another one was taken for.
    """

    key: str
    labels: tuple[str, ...]
    split: str | None = None
    flags: tuple[tuple[str, tuple[str, str]], ...] = ()
    group: str | None = None
    weight: str | None = None
    domain: str | None = None
    unused: tuple[str, ...] = ()


def find_columns(
    columns: Sequence[str],
    kind: TaskKind,
    *,
    path_column: str | None = None,
    label_columns: Sequence[str] = (),
    text_column: str | None = None,
    group_column: str | None = None,
    weight_column: str | None = None,
    domain_column: str | None = None,
    split_column: str | None = None,
    sample: Sequence[Mapping[str | None, str | None]] = (),
) -> LabelColumns:
    """Find the columns of a table of labels.

    Parameters
    ----------
    columns : sequence of str
        Of the table.
    kind : str
    path_column, text_column : str, optional
        Which names the samples, or holds them as texts; known names when left out.
    label_columns : sequence of str
        Which say the label; when empty, a known name, or the only column that is left.
    group_column, weight_column, domain_column, split_column : str, optional
    sample : sequence of mapping
        The first rows. A column of names of image files names the samples rather than one of ids.

    Raises
    ------
    NoKeyColumnError
        None names the samples.
    TaskError
        A column that is named is not there or there twice, or none can be told.
    """
    named = {
        "--label-column": label_columns,
        "--path-column": [path_column],
        "--text-column": [text_column],
        "--group-column": [group_column],
        "--weight-column": [weight_column],
        "--domain-column": [domain_column],
        "--split-column": [split_column],
    }
    found = {option: [_named(columns, name, option) for name in names if name] for option, names in named.items()}
    group, weight, domain = (next(iter(found[f"--{what}-column"]), None) for what in ("group", "weight", "domain"))
    # Reversed, so that of names that read alike the first counts.
    plain = {plain_name(name): name for name in reversed(columns)}
    split = next(iter(found["--split-column"]), plain.get(SPLIT_COLUMN))
    labels = found["--label-column"]
    flags = tuple((plain[flag], splits) for flag, splits in FLAGS.items() if flag in plain)
    if not flags and kind == "classification":
        for name, splits in [(plain[flag], splits) for flag, splits in _PLAIN_FLAGS.items() if flag in plain]:
            entries = {(row.get(name) or "").strip().lower() for row in sample}
            if name not in labels and entries & YES and entries <= YES | NO | BLANK:
                flags = (*flags, (name, splits))
    given = [*found["--path-column"], *found["--text-column"]]
    taken = [*labels, *filter(None, (group, weight, domain, split))]
    key = given[0] if given else _key_column(columns, taken, sample)
    is_found = not labels
    if is_found:
        others = [key, *taken, *(flag for flag, _ in flags)]
        able = [name for name in columns if name not in others]
        # Without a header, what stands behind the name.
        is_second = key == "1" and able[:1] == ["2"]
        labels = ["2"] if is_second else _label_columns(able, kind, sample)
    for name in (key, *labels, *filter(None, [split])):
        if (count := list(columns).count(name)) > 1:
            raise TaskError(f"{count} columns are called {name!r}; give them names of their own")
    if key in labels:
        raise TaskError(f"the column {key!r} would both name the samples and say their label; name another one")
    # A column of that name may be the label itself.
    split = None if split in labels else split
    flags = tuple(pair for pair in flags if pair[0] not in labels)
    unused = [flag for flag, _ in flags] if split is not None else []
    if is_found:
        unused += [name for name in columns if plain_name(name) in LABEL_COLUMNS and name not in labels]
        if not is_second and plain_name(labels[0]) not in LABEL_COLUMNS:
            unused += [name for name in _unknown(able) if name not in labels]
    return LabelColumns(
        key, tuple(labels), split, flags if split is None else (), group, weight, domain, tuple(dict.fromkeys(unused))
    )


def _named(columns: Sequence[str], name: str, option: str) -> str:
    """Return the column that a user means: as it is written, else without spaces around or in another case."""
    # Strictest first: names that differ only in case may both be there.
    for form in (str, str.strip, lambda text: text.strip().casefold()):
        if able := [column for column in columns if form(column) == form(name)]:
            return able[0]
    error = UnknownNameError("column", name, columns, advice=f"choose one with {option}")
    raise TaskError(str(error))


def _key_column(columns: Sequence[str], taken: Sequence[str], sample: Sequence[Mapping[str | None, str | None]]) -> str:
    if first_line_is_row(columns):
        raise TaskError(
            f"the first line looks like a row and not like names of columns: {', '.join(columns)}; say --no-header if "
            "the table has none"
        )
    known = sample_columns([name for name in columns if name not in taken])
    if known and not plain_name(known[0]).endswith("id"):
        return known[0]
    # An id may be the number of a row: names of files say more.
    of_files = [name for name in columns_of_files(columns, sample) if name not in taken]
    if len(of_files) == 1:
        return of_files[0]
    if known:
        return known[0]
    if len(columns) == 1:
        raise TaskError(
            f"it has one column, {columns[0]!r}, and takes one that names the samples and one that says their label; "
            "if something unusual stands between columns, name it with --delimiter"
        )
    raise NoKeyColumnError(key_candidates(columns, taken), f"it has: {some_of(columns, _MOST_NAMED)}")


def key_candidates(columns: Sequence[str], taken: Sequence[str]) -> list[str]:
    """Return the columns that may name the samples by what stands in them.

    Parameters
    ----------
    columns : sequence of str
    taken : sequence of str
        Those that say something else.
    """
    known = {*LABEL_COLUMNS, SPLIT_COLUMN, *FLAGS, *_PLAIN_FLAGS}
    return [name for name in dict.fromkeys(columns) if name not in taken and plain_name(name) not in known]


def _unknown(able: Sequence[str]) -> list[str]:
    """Return the columns that neither name samples in another way nor number rows."""
    return [name for name in able if plain_name(name) not in PATH_COLUMNS and not _INDEX.fullmatch(name)]


def _label_columns(able: Sequence[str], kind: TaskKind, sample: Sequence[Mapping[str | None, str | None]]) -> list[str]:
    """Return the columns of labels among those that say nothing else."""
    plain = {plain_name(name): name for name in reversed(able)}
    for name in LABEL_COLUMNS:
        if name in plain:
            return [plain[name]]
    left = _unknown(able)
    if len(left) == 1:
        return left
    entries = {name: [(row.get(name) or "").strip() for row in sample] for name in left[:_MOST_NAMED]}
    is_flag = ({(row.get(name) or "").strip().lower() for row in sample} <= YES | NO | BLANK for name in left)
    if kind == "multilabel" and left and sample and all(is_flag):
        return left
    if kind == "classification" and holds_one_each(left, sample):
        return left
    if kind == "classification" and len(left) == len(entries) and len(sample) >= _FEWEST_ROWS:
        # What is the same everywhere says no class, nor does what comes but once.
        telling = [name for name, es in entries.items() if 1 < len({*es} - {""}) < len(list(filter(None, es)))]
        if len(telling) == 1:
            return telling
    what = {"classification": "the class", "multilabel": "the labels", "regression": "the number"}[kind]
    if not left:
        raise TaskError(f"no column is left that could say {what}; name it with --label-column")
    # How many values tell a class from a number or a note.
    counts = {name: len({*several} - {""}) for name, several in entries.items()}
    named = some_of([f"{name} ({counts[name]})" if name in counts else name for name in left], _MOST_NAMED)
    raise TaskError(
        f"it does not say which column holds {what} (in brackets its distinct values in "
        f"{counted(len(sample), 'row')}): {named}; "
        "name it with --label-column"
        + (
            "; columns of 1 and 0 for each label are --kind multilabel"
            if kind == "classification"
            else ", which may repeat"
        )
    )


def holds_one_each(columns: Sequence[str], sample: Sequence[Mapping[str | None, str | None]]) -> bool:
    """Tell whether columns of yes and no are one for each class: each row that says anything has one yes.

    Parameters
    ----------
    columns : sequence of str
    sample : sequence of mapping
        The first rows.
    """
    rows = [[(row.get(name) or "").strip().lower() for name in columns] for row in sample]
    rows = [row for row in rows if not BLANK.issuperset(row)]
    if len(columns) < 2 or not rows or not all((YES | NO).issuperset(row) for row in rows):
        return False
    held = [[entry in YES for entry in row] for row in rows]
    # What all rows are is no class among others.
    return all(sum(row) == 1 for row in held) and len({tuple(row) for row in held}) > 1
