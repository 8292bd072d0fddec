"""Labels as people have them: names of folders, or a list of paths or ids with a label for each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Literal, get_args

from featurecache.errors import ReportWarning, TaskError
from featurecache.specs import TaskKind

ClassFolder = Literal["innermost", "outermost"]
"""Of the folders that a file lies in, those with names of splits left out."""
SPLITS = ("train", "validation", "test")
# Split by the names that people use for it.
SPLIT_OF = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}

# As tables and folders write classes that are numbers. Exponents are not among them: 1e3 may be half of a hash.
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)")


def class_order(name: str) -> tuple[bool, Decimal, str]:
    """Return the key by which names of classes are sorted: numbers as numbers, before all others; so 2 before 10.

    Names that are the same number stay different classes, as 007 and 7.
    """
    # Decimal, not float or int: it compares any number of digits exactly, and takes more than 4,300 of them.
    is_number = _NUMBER.fullmatch(name) is not None
    return not is_number, Decimal(name if is_number else 0), name


@dataclass(frozen=True, slots=True)
class Label:
    """The label of one sample: ``key`` is a path relative to its source, or a sample id (hex).

    Attributes
    ----------
    label : str
        The class. Of a multilabel task, the labels that hold; of a regression, the numbers (``nan`` where not known);
        both one on each line.
    split : str or None
        One of `SPLITS`; None where the split is to be made.
    shown : str or None
        Name in messages, where the key is of no use to people.
    group : str or None
        Samples of one group (a photo, a patient) stay in one split and one fold.
    weight : float or None
        Sample weight in fitting, above 0.
    unknown : tuple of str
        Of several labels, those of which it is not known whether they hold.
    domain : str or None
        Where the sample comes from: a camera, a site.
    """

    key: str
    label: str
    split: str | None = None
    shown: str | None = None
    group: str | None = None
    weight: float | None = None
    unknown: tuple[str, ...] = ()
    domain: str | None = None

    @property
    def name(self) -> str:
        """Name in messages."""
        return self.shown or self.key


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderLabels:
    """The class of a file is its folder; a folder named train, val or test above it is its split.

    Attributes
    ----------
    root : path, str or None
        The source, by its path or key, whose files get labels; every source of the cache where it is None.
    merge_spellings : bool
        Classes that differ only in case or spaces are one.
    class_folder : {"innermost", "outermost"}
        Which folder is the class, of a file that lies in several.
    """

    root: str | Path | None = None
    kind: TaskKind = "classification"
    origin: str = "folders"
    merge_spellings: bool = False
    class_folder: ClassFolder = "innermost"


@dataclass(frozen=True, kw_only=True, slots=True)
class TableLabels:
    """Labels listed one by one.

    Attributes
    ----------
    origin : str
        Where they came from, for messages and the task's record.
    names : tuple of str
        Of the numbers, or of labels that have columns of their own.
    warnings : tuple of ReportWarning
        What is doubtful about the table.
    merge_spellings : bool
        Classes that differ only in case or spaces are one.
    key_column : str, optional
        The column that names the samples, where it was found by its entries and not by its name.
    """

    labels: tuple[Label, ...]
    origin: str
    root: str | Path | None = None
    kind: TaskKind = "classification"
    names: tuple[str, ...] = ()
    warnings: tuple[ReportWarning, ...] = ()
    merge_spellings: bool = False
    key_column: str | None = None


def labels_from_folders(
    root: str | Path | None = None, *, merge_spellings: bool = False, class_folder: ClassFolder = "innermost"
) -> FolderLabels:
    """Take the folder of each file as its class.

    Parameters
    ----------
    root : path, optional
        The source that was extracted; all sources of the cache when left out.
    merge_spellings : bool
        Classes that differ only in case or spaces are one, under the spelling that is used most.
    class_folder : {"innermost", "outermost"}
        Which folder is the class, of a file that lies in several: ``cats`` or ``animals`` of ``animals/cats/1.jpg``.

    Raises
    ------
    TaskError
        Another word for the folder.
    """
    if class_folder not in get_args(ClassFolder):
        raise TaskError(f"class_folder is 'innermost' or 'outermost', not {class_folder!r}")
    return FolderLabels(root=root, merge_spellings=merge_spellings, class_folder=class_folder)
