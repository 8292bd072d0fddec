"""What a source holds now, and what a cache knows of it: only files that may have changed are read.

The source is always one that the user named. A cache may come from a stranger, so the place that its record of a source
mentions is shown to people and never opened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurecache.errors import SourceError
from featurecache.extraction.progress import Progress, Silent
from featurecache.sources.folder import Listing
from featurecache.sources.source import Source
from featurecache.specs import AnyPreprocess
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.features import Features
from featurecache.store.samples import Ids, Rows
from featurecache.store.store import FeatureStore
from featurecache.store.views import SourceView, merged_rows

GiveRows = Callable[[Ids, NDArray[np.int64], Listing], Rows]
"""Returns the row of each id; also told the files' places in the listing."""


@dataclass(frozen=True)
class Inventory:
    """A source now, beside what it was when it was last extracted.

    Attributes
    ----------
    now, before : SourceView
        The files and the row of each; -1 for a file whose bytes the cache has never seen, or that cannot be read.
    num_new : int
        Samples that the cache has never seen; copies count once.
    """

    now: SourceView
    before: SourceView | None
    num_new: int

    @cached_property
    def added(self) -> list[str]:
        """Files at new places, with bytes that the cache has never seen."""
        return [path for path in self._new_places if self._row_now(path) < 0]

    @cached_property
    def edited(self) -> list[str]:
        """Files that were there before with other bytes."""
        both = self._place_before >= 0
        rows = self.before.rows[self._place_before[both]] if self.before else self.now.rows[both]
        places = np.flatnonzero(both)[rows != self.now.rows[both]]
        edited = [self.now.paths[place] for place in places.tolist()]
        return [path for path in edited if path not in self.now.problems]

    @cached_property
    def renamed(self) -> list[str]:
        """Files at new places whose bytes lay somewhere else, where they are no more."""
        gone = set() if self.before is None else {self.before.row_of.get(path, -1) for path in self.removed}
        return [path for path in self._new_places if self._row_now(path) >= 0 and self._row_now(path) in gone]

    @cached_property
    def copied(self) -> list[str]:
        """Files at new places whose bytes the cache knows and that are where they were, too."""
        renamed = set(self.renamed)
        return [path for path in self._new_places if self._row_now(path) >= 0 and path not in renamed]

    @cached_property
    def removed(self) -> list[str]:
        """Places where there is no file any more."""
        if self.before is None:
            return []
        kept = np.isin(np.arange(len(self.before.paths)), self._place_before)
        return [self.before.paths[place] for place in np.flatnonzero(~kept).tolist()]

    def to_json(self) -> dict[str, Any]:
        """Return how many files are in which state, as plain JSON values."""
        states = ("added", "edited", "renamed", "copied", "removed")
        return {
            "root": self.now.root,
            "files": len(self.now.paths),
            "samples": len(self.now.unique_rows) + self.num_new,
            **{state: len(getattr(self, state)) for state in states},
            "unreadable": len(self.now.problems),
        }

    def count_cached(self, features: Features) -> int:
        """Count the samples that the source holds now and that have a row in some features."""
        return int(np.isin(self.now.unique_rows, features.rows).sum())

    def count_orphans(self, store: FeatureStore) -> int:
        """Count the samples that neither this source now nor another one, when last extracted, holds."""
        others = [view for view in store.views.all() if view.root != self.now.root]
        return len(store.samples) - len(merged_rows([self.now, *others]))

    @cached_property
    def _place_before(self) -> NDArray[np.int64]:
        """Where each file of now was in the listing before, -1 for new places."""
        if self.before is None:
            return np.full(len(self.now.paths), -1, np.int64)
        return self.before.paths.find_all(self.now.paths)

    @cached_property
    def _new_places(self) -> list[str]:
        paths = [self.now.paths[place] for place in np.flatnonzero(self._place_before < 0).tolist()]
        return [path for path in paths if path not in self.now.problems]

    def _row_now(self, path: str) -> int:
        return self.now.row_of.get(path, -1)


def take_inventory(store: FeatureStore, source: Source, progress: Progress | None = None) -> Inventory:
    """Look at a source without changing the cache.

    Raises
    ------
    SourceError
        The folder is missing, or holds no images.
    """
    before, new = store.views.load(source.root), [np.zeros((0, 32), np.uint8)]

    def look_up(ids: Ids, places: NDArray[np.int64], listing: Listing) -> Rows:
        rows = store.samples.rows_of(ids)
        new.append(ids[rows < 0])
        return rows

    _, now = look(store, source, before, look_up, progress or Silent())
    return Inventory(now, before, len(np.unique(np.concatenate(new), axis=0)))


def check_modality(source: Source, preprocess: AnyPreprocess, backbone: str) -> None:
    """Raise `SourceError` when a backbone takes another kind of input than a source holds."""
    if source.modality != preprocess.modality:
        advice = "name a table and its --text-column" if preprocess.modality == "text" else "name a folder of images"
        raise SourceError(
            f"{backbone} takes {preprocess.modality}s, and {source.root} holds {source.modality}s; {advice}, or choose "
            "another backbone"
        )


def sets_for(source: Source, sets: Sequence[FeatureSet]) -> list[FeatureSet]:
    """Return the feature sets whose kind of input a source holds; it is an error if there are only others."""
    fitting = [s for s in sets if s.identity.preprocess.modality == source.modality]
    if sets and not fitting:
        check_modality(source, sets[0].identity.preprocess, sets[0].identity.backbone)
    return fitting


def look(
    store: FeatureStore, source: Source, before: SourceView | None, give_rows: GiveRows, progress: Progress
) -> tuple[Listing, SourceView]:
    """Give every file of a source its row; a file that is as it was is not read."""
    listing = source.find()
    rows = known_rows(listing, before, len(store.samples))
    unknown = np.flatnonzero(rows < 0)
    progress.start("reading", len(unknown))
    for places, ids in source.identify(listing, unknown, on_read=progress.advance):
        rows[places] = give_rows(ids, places, listing)
    root = str(source.root.resolve())
    return listing, SourceView(root, listing.paths, listing.stamps, rows, listing.problems)


def known_rows(listing: Listing, view: SourceView | None, num_samples: int) -> NDArray[np.int64]:
    """Return the row of each listed file that is as it was when the source was last extracted, -1 for the others."""
    if view is None:
        return np.full(len(listing.paths), -1, np.int64)
    places = listing.unchanged_since(view.paths, view.stamps)
    rows = np.where(places < 0, -1, view.rows[places])
    return np.where(rows < num_samples, rows, -1)
