"""Removal of what has a name in a cache: it loses its name first, all at once, and its bytes after that."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from featurecache.atomic import partial_name
from featurecache.errors import RequestError, StoreError, UnknownNameError
from featurecache.records import PlainValues
from featurecache.store.naming import is_name
from featurecache.store.store import FeatureStore

Kind = Literal["head", "task", "features"]


@dataclass(frozen=True, slots=True)
class Removal(PlainValues):
    """What was removed, or would be.

    Attributes
    ----------
    what : str
        In words.
    paths : tuple of str
        Folders, relative to the cache.
    num_bytes : int
    is_dry : bool
        Nothing was removed.
    """

    what: str
    paths: tuple[str, ...]
    num_bytes: int
    is_dry: bool


def remove(store: FeatureStore, kind: Kind, name: str, *, dry_run: bool = False) -> Removal:
    """Remove one head, one task with its history, or features.

    Parameters
    ----------
    store : FeatureStore
    kind : {"head", "task", "features"}
    name : str
        Of features their tap, or the beginning of their fingerprint (all taps of it).
    dry_run : bool
        Only say what would be removed.

    Raises
    ------
    UnknownNameError
        There is none of that name.
    RequestError
        Features that several networks have, or that somebody writes at the moment.
    StoreError
        They could not be moved away.
    """
    folders = _folders(store, kind, name)
    paths = tuple(folder.relative_to(store.path).as_posix() for folder in folders)
    sizes = [path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file()]
    found = Removal(f"{kind} {name}", paths, sum(sizes), dry_run)
    if dry_run:
        return found
    for folder in folders:
        # Under a temporary name it counts for nothing, and `gc` clears it away if this ends here.
        gone = partial_name(folder)
        try:
            folder.rename(gone)
        except OSError as error:
            raise StoreError(f"{folder} cannot be removed: {error.strerror}") from None
        shutil.rmtree(gone, ignore_errors=True)
    return found


def _folders(store: FeatureStore, kind: Kind, name: str) -> list[Path]:
    if kind != "features":
        names = store.head_names() if kind == "head" else store.task_names()
        if not is_name(name) or name not in names:
            raise UnknownNameError(kind, name, names)
        # The history of a task goes too: another task of that name must not be compared with it.
        places = ("heads",) if kind == "head" else ("tasks", "history")
        return [path for place in places if (path := store.path / place / name).is_dir()]
    sets = store.feature_sets()
    of_print = [found for found in sets if found.fingerprint.startswith(name)] if len(name) >= 6 else []
    if of_print:
        prints = sorted({found.fingerprint for found in of_print})
        if len(prints) > 1:
            raise RequestError(f"{name} begins {len(prints)} fingerprints; write more of one: {', '.join(prints)}")
        folders: Iterable[Path] = [store.path / "features" / prints[0]]
    else:
        of_tap = [found for found in sets if found.tap == name]
        if not of_tap:
            known = sorted({found.tap for found in sets} | {found.fingerprint[:12] for found in sets})
            raise UnknownNameError("tap or fingerprint", name, known)
        prints = sorted({found.fingerprint[:12] for found in of_tap})
        if len(prints) > 1:
            raise RequestError(
                f"{len(prints)} networks have the tap {name!r}; name one by its fingerprint: {', '.join(prints)}"
            )
        folders = sorted({found.folder.path.parent for found in of_tap})
    for folder in folders:
        if next(folder.rglob("*.lease"), None) is not None:
            raise RequestError(f"somebody writes to {folder}; wait until that has ended, or run `featurecache gc`")
    return list(folders)
