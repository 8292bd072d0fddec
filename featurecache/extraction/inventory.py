"""What a source holds now, and what a cache knows of it: only files that may have changed are read.

The source is always one that the user named. A cache may come from a stranger, so the path in its record of a source
is shown to people and never opened.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurecache.extraction.identify import identified, known_rows
from featurecache.extraction.known_units import units_of
from featurecache.extraction.unit_scan import look_at_units
from featurecache.progress import Progress, Silent
from featurecache.sources.entries import Entries
from featurecache.sources.source import Source
from featurecache.store.listings import Listing, merged_rows
from featurecache.store.samples import Rows
from featurecache.store.store import FeatureStore
from featurecache.text import TextColumn


@dataclass(frozen=True)
class Inventory:
    """A source now, compared with what it was when it was last extracted.

    Attributes
    ----------
    now, before : Listing
        The files and the row of each; -1 for a file whose bytes the cache has never seen, or that cannot be read.
    num_new : int
        Samples that the cache has never seen; copies count once.
    """

    now: Listing
    before: Listing | None
    num_new: int

    def to_json(self) -> dict[str, Any]:
        """Return how many files are in which state, as plain JSON values."""
        return {
            "root": self.now.root,
            "files": len(self.now),
            "samples": len(self.now.held) + self.num_new,
            **{state: len(names) for state, names in asdict(self.changes).items()},
            "unreadable": len(self.now.problems),
            "ignored_files": self.now.ignored.count,
            "warnings": [warning.to_json() for warning in self.now.ignored.warnings()],
        }

    def describe(self, store: FeatureStore) -> dict[str, Any]:
        """Return `to_json`, with the samples that each feature set of the cache has, and those that no source holds."""
        rows = self.now.held
        cached = [{**s.to_json(), "samples": len(rows.intersection(s.open().held))} for s in store.feature_sets()]
        # Of the other sources it is known only what they held when they were last extracted.
        others = [listing for listing in store.listings.all() if listing.root != self.now.root]
        num_orphans = len(store.samples) - len(merged_rows([self.now, *others]))
        return {**self.to_json(), "cached": cached, "orphaned_samples": num_orphans}

    @cached_property
    def changes(self) -> Changes:
        """Compare by name and by bytes: each file that came and each that went counts once.

        Bytes that came under one name and went under another are one rename, however often that happened to them. So
        swapped names are two renames, and a folder whose files were numbered anew holds no edited file.
        """
        rows = self.now.rows
        problems = TextColumn.pack(sorted(self.now.problems, key=os.fsencode))
        readable = np.ones(len(rows), bool)
        readable[self.now.paths.find_all(problems)] = False
        paths_before = TextColumn.pack([]) if self.before is None else self.before.paths
        rows_before = np.zeros(0, np.int64) if self.before is None else self.before.rows
        was = paths_before.find_all(self.now.paths)
        same = (rows >= 0) & (np.append(rows_before, -1)[was] == rows)
        gone = rows_before >= 0
        gone[was[same]] = False
        came, went = np.flatnonzero(readable & ~same), np.flatnonzero(gone)
        moved_here, moved_away = _paired(rows[came], rows_before[went]), _paired(rows_before[went], rows[came])
        renamed, rest, lost = came[moved_here], came[~moved_here], went[~moved_away]
        edited = np.isin(was[rest], lost)  # bytes that were renamed left their name to another file
        new = rest[~edited]
        # The name of what is lost is still there where its file was edited, or cannot be read now.
        kept = was[np.setdiff1d(np.flatnonzero(was >= 0), renamed)]
        return Changes(
            added=list(self.now.paths.take(new[rows[new] < 0])),
            edited=list(self.now.paths.take(rest[edited])),
            renamed=list(self.now.paths.take(renamed)),
            copied=list(self.now.paths.take(new[rows[new] >= 0])),
            removed=list(paths_before.take(lost[~np.isin(lost, kept)])),
        )


@dataclass(frozen=True)
class Changes:
    """Names of files by what became of them since a source was last extracted.

    Attributes
    ----------
    added : list of str
        Bytes that the cache has never seen, under names that were free.
    edited : list of str
        The bytes of before are gone, under the same name.
    renamed : list of str
        The bytes had another name, under which they are no more; it may have been given to others since.
    copied : list of str
        New names for bytes that the cache knows, which no rename explains.
    removed : list of str
        Gone, or another file was renamed over it.
    """

    added: list[str]
    edited: list[str]
    renamed: list[str]
    copied: list[str]
    removed: list[str]


def _paired(rows: Rows, others: Rows) -> NDArray[np.bool_]:
    """Tell which of ``rows`` have a partner of the same number in ``others``, each partner serving one."""
    order = np.argsort(rows, kind="stable")
    ordered, others = rows[order], np.sort(others)
    rank = np.arange(len(rows)) - np.searchsorted(ordered, ordered)
    count = np.searchsorted(others, ordered, side="right") - np.searchsorted(others, ordered)
    # Of equal rows, the first so many have a partner as there are partners.
    paired = np.zeros(len(rows), bool)
    paired[order] = rank < count
    return paired


def take_inventory(store: FeatureStore, source: Source, progress: Progress | None = None) -> Inventory:
    """Compare a source with a cache, which is not changed.

    Parameters
    ----------
    store : FeatureStore
    source : Source
    progress : Progress, optional
        Told how much is read.

    Raises
    ------
    SourceError
        The folder is missing, or holds no images.
    """
    before = store.listings.load(source.key)
    if (units := units_of(source)) is not None:
        listing, unseen = look_at_units(store, source, units, before, progress or Silent())
        return Inventory(listing, before, len(np.unique(unseen, axis=0)))
    entries = Entries.of(source)
    rows, new = known_rows(entries, before, len(store.samples)), [np.zeros((0, 32), np.uint8)]
    for indices, ids in identified(source, entries, np.flatnonzero(rows < 0), progress or Silent()):
        rows[indices] = found = store.samples.rows_of(ids)
        new.append(ids[found < 0])
    now = Listing(source.key, entries.names, entries.stamps, rows, entries.problems, ignored=entries.ignored)
    # Copies among new files have one id, and count once.
    return Inventory(now, before, len(np.unique(np.concatenate(new), axis=0)))
