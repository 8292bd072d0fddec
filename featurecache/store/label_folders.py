"""Folders as classes: which folder of a path is one, and what is doubtful about that."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from featurecache.errors import ReportWarning, shortened
from featurecache.store.labels import SPLIT_OF, ClassFolder, Label
from featurecache.wording import counted


def label_of_path(path: str, class_folder: ClassFolder = "innermost") -> Label | None:
    """Return the label and the split that the folders of a relative path name; None where no class folder is.

    Parameters
    ----------
    path : str
    class_folder : {"innermost", "outermost"}
        Which folder is the class. Folders with the name of a split are none; below an innermost one, no class is.
    """
    folders = PurePosixPath(path).parts[:-1]
    if class_folder == "outermost":
        classes = [folder for folder in folders if folder.lower() not in SPLIT_OF]
        splits = [SPLIT_OF[folder.lower()] for folder in folders if folder.lower() in SPLIT_OF]
        return Label(key=path, label=classes[0], split=splits[0] if splits else None) if classes else None
    if not folders or SPLIT_OF.get(folders[-1].lower()):
        return None  # directly in the root, or in a split folder: no class
    splits = [split for folder in folders[:-1] if (split := SPLIT_OF.get(folder.lower()))]
    return Label(key=path, label=folders[-1], split=splits[-1] if splits else None)


_FILES = (".tar", ".tar.gz", ".tgz", ".parquet")
"""Of files that hold samples, whose names stand where those of folders do."""


def folder_warnings(labels: Iterable[Label]) -> Iterator[ReportWarning]:
    """Yield what is doubtful about innermost folders as classes: they are files, hold others, or share a name.

    Parameters
    ----------
    labels : iterable of Label
        Of `label_of_path`, each with the path of its file.
    """
    folders_of = defaultdict[str, set[str]](set)
    for label in labels:
        folders = (folder for folder in PurePosixPath(label.key).parts[:-1] if folder.lower() not in SPLIT_OF)
        folders_of[label.label].add("/".join(folders))
    every = {folder for several in folders_of.values() for folder in several}
    if files := sorted(name for name in folders_of if name.lower().endswith(_FILES)):
        yield ReportWarning(
            kind="file_classes",
            count=len(files),
            text=f"{counted(len(files), 'class', of=len(folders_of), verb='is')} called by the file that holds the "
            f"samples, such as {files[0]!r}: if its name says no class, give a table of labels",
            examples=tuple(files),
        )
    inside = sorted(
        (str(outer), folder) for folder in every for outer in PurePosixPath(folder).parents if str(outer) in every
    )
    advice = "the class is the innermost folder; --class-folder outermost takes the first one"
    if inside:
        yield ReportWarning(
            kind="folder_classes",
            count=len(inside),
            text=f"{counted(len(inside), 'folder')} of a class within the folder of another one, {inside[0][1]!r} in "
            f"{inside[0][0]!r}: {advice}",
            examples=tuple(folder for _, folder in inside),
        )
    # Classes below each of several sites or sessions are meant to be one: nearly all of their names come again.
    shared = {name: sorted(several) for name, several in folders_of.items() if len(several) > 1}
    if shared and 2 * len(shared) < len(folders_of):
        name, several = min(shared.items())
        yield ReportWarning(
            kind="folder_classes",
            count=len(shared),
            text=f"{counted(len(shared), 'class', of=len(folders_of), verb='is')} of several folders with one "
            f"name, {name!r} of "
            f"{shortened(', '.join(several))}: {advice}",
            examples=tuple(folder for several in shared.values() for folder in several),
        )
