"""How far all workers of a cache are, by what anybody can see of them: commits and leases. Nothing is written.

Records of commits never change, so each is read once, and a look costs the names in some folders.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.store.feature_sets import FeatureSet
from featurecache.store.leases import Leases
from featurecache.store.listings import Listing, merged_rows
from featurecache.store.row_runs import RowRuns
from featurecache.store.store import FeatureStore
from featurecache.store.unit_listings import UnitPart

# Of a rate: long enough for some shards of a slow network, short enough that a worker more is soon seen.
_WHILE_SECONDS = 120.0
# Where that holds fewer commits than three, the last three count, but for those of a run long ago.
_FEWEST_COMMITS, _LONG_AGO_SECONDS = 3, 3600.0
# A folder that changes once more within that time may keep its stamp: FAT has the coarsest clock of those in use.
_UNSETTLED_SECONDS = 2.0


@dataclass(frozen=True)
class SetProgress:
    """How far a feature set is.

    Attributes
    ----------
    features : str
        Which, as people name it.
    num_rows, num_listed : int
        Rows that are committed, of those that the sources list; a source counts once a row of it is committed.
    rate : float or None
        Rows per second over the last while; None where nothing was committed lately.
    is_open : bool
        More rows will be listed: its source is read while it is computed.
    """

    features: str
    num_rows: int
    num_listed: int
    rate: float | None
    is_open: bool = False

    @property
    def seconds_left(self) -> float | None:
        """Time until all is committed, at that rate."""
        return (self.num_listed - self.num_rows) / self.rate if self.rate and not self.is_open else None


@dataclass(frozen=True)
class LiveWorker:
    """A process that holds leases.

    Attributes
    ----------
    host, pid : str, int
    num_shards : int
        That it is at.
    is_scanning : bool
        It reads a source.
    age : float
        Seconds since it last gave a sign of life; a live one gives one every ten.
    """

    host: str
    pid: int
    num_shards: int
    is_scanning: bool
    age: float


@dataclass(frozen=True)
class CacheProgress:
    """What `Watch.update` saw.

    Attributes
    ----------
    sets : tuple of SetProgress
        Of which a row is committed.
    workers : tuple of LiveWorker
    waiting : tuple of str
        Keys of sources of which no row is committed.
    is_listing : bool
        Some source is listed in part.
    """

    sets: tuple[SetProgress, ...]
    workers: tuple[LiveWorker, ...]
    waiting: tuple[str, ...]
    is_listing: bool = False

    @property
    def is_done(self) -> bool:
        """Tell whether nothing is missing and nobody is at work."""
        is_whole = all(item.num_rows == item.num_listed for item in self.sets)
        return bool(self.sets) and is_whole and not self.workers and not self.waiting and not self.is_listing

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        sets = [
            {
                "features": item.features,
                "rows": item.num_rows,
                "listed": item.num_listed,
                "rows_per_second": None if item.rate is None else round(item.rate, 2),
                "seconds_left": None if item.seconds_left is None else round(item.seconds_left, 1),
            }
            for item in self.sets
        ]
        return {
            "features": sets,
            "workers": [asdict(worker) for worker in self.workers],
            "waiting": list(self.waiting),
            "listing": self.is_listing,
        }


class Watch:
    """Looks at a cache again and again.

    Parameters
    ----------
    store : FeatureStore
    """

    def __init__(self, store: FeatureStore) -> None:
        self._store = store
        self._seen: dict[Path, _Commits] = {}
        """By the folder of a feature set."""
        self._listings: list[Listing] = []
        self._listed: tuple[str, ...] = ()
        """Names of the records that the listings come from."""
        self._parts: list[UnitPart] = []
        """What no listing names yet."""
        self._rows: dict[tuple[str, ...], RowRuns] = {}
        """What `_rows_of` has found."""

    def update(self) -> CacheProgress:
        """Return how far it is now."""
        self._parts = self._store.listings.loose(self._parts)
        loose = RowRuns.union((part.held.starts, part.held.stops) for part in self._parts)
        self._update_listings()
        sets, touched = [], set[str]()
        # Workers first: one that ends in between has committed what it held, and is seen to be done in the next look.
        workers = self._workers()
        for commits in self._commits():
            commits.update()
            counts = {listing.root: commits.count(listing.held) for listing in self._listings}
            mine = [listing for listing in self._listings if counts[listing.root]]
            touched |= {listing.root for listing in mine}
            listed = self._rows_of(mine)
            if is_open := commits.count(loose) > 0:
                listed = RowRuns.union((runs.starts, runs.stops) for runs in (listed, loose))
            sets.append(SetProgress(commits.name, commits.count(listed), len(listed), commits.rate(), is_open))
        waiting = tuple(listing.root for listing in self._listings if listing.root not in touched)
        return CacheProgress(tuple(sets), workers, waiting, bool(self._parts))

    def _commits(self) -> list[_Commits]:
        """Return what is known of each feature set, by its name."""
        folders = {path.parent for path in self._store.path.glob("features/*/*/*/commits")}
        self._seen = {folder: commits for folder, commits in self._seen.items() if folder in folders}
        if folders - self._seen.keys():  # else all folders of commits would be listed
            for feature_set in self._store.feature_sets():
                self._seen.setdefault(feature_set.folder.path, _Commits(feature_set))
        return sorted(self._seen.values(), key=lambda commits: commits.name)

    def _update_listings(self) -> None:
        records = tuple(sorted(map(str, self._store.listings.path.glob("*/commits/*.json"))))
        if records != self._listed:  # of millions of files they take seconds to read
            self._listings, self._listed = self._store.listings.all(), records
            self._rows.clear()

    def _rows_of(self, listings: list[Listing]) -> RowRuns:
        """Return the rows that some listings hold: copies of one sample in several sources are one row."""
        roots = tuple(listing.root for listing in listings)
        if roots not in self._rows:
            self._rows[roots] = merged_rows(listings)
        return self._rows[roots]

    def _workers(self) -> tuple[LiveWorker, ...]:
        shards, ages, scanning = dict[tuple[str, int], int](), dict[tuple[str, int], float](), set[tuple[str, int]]()
        for kind in ("features", "sources"):
            for folder in sorted((self._store.path / kind).glob("*/leases")):
                for holder in Leases(folder).holders():
                    who = (holder.host, holder.pid)
                    shards[who] = shards.get(who, 0) + (kind == "features")
                    ages[who] = min(ages.get(who, holder.age), holder.age)
                    if kind == "sources":
                        scanning.add(who)
        return tuple(LiveWorker(*who, count, who in scanning, round(ages[who], 1)) for who, count in shards.items())


class _Commits:
    """What is known of the commits of one feature set."""

    def __init__(self, feature_set: FeatureSet) -> None:
        self.name = str(feature_set)
        self._folder = feature_set.folder
        self._found: dict[str, tuple[float, list[list[int]]]] = {}
        """Name of a record -> when it was published, and its rows as runs."""
        self._rows: dict[float, int] = {}
        """Rows that were published, by time."""
        self._runs = RowRuns.of([])
        self._stamp, self._since = -1, 0.0
        """When the folder changed, by its own clock, and since when that is known, by ours."""

    def update(self) -> None:
        """Read the records that are new."""
        try:
            stamp = (self._folder.path / "commits").stat().st_mtime_ns
        except FileNotFoundError:  # removed in this moment
            return
        if stamp != self._stamp:
            self._stamp, self._since = stamp, time.monotonic()
        elif time.monotonic() - self._since > _UNSETTLED_SECONDS:
            return  # to list ten thousand names each second would keep a file system busy for nothing
        records = {record.name: record for record in self._folder.records()}
        new, gone = records.keys() - self._found.keys(), self._found.keys() - records.keys()
        for name in gone:  # by a repair
            del self._found[name]
        for name in new:
            with suppress(FileNotFoundError):
                published = records[name].stat().st_mtime
                self._found[name] = published, self._folder.read(records[name]).body["rows"]
        if new or gone:
            found = np.array([run for _, runs in self._found.values() for run in runs], np.int64).reshape(-1, 2).T
            self._runs = RowRuns.union([(found[0], found[1])])
            self._rows.clear()
            for when, runs in self._found.values():
                self._rows[when] = self._rows.get(when, 0) + sum(stop - start for start, stop in runs)

    def count(self, rows: RowRuns) -> int:
        """Return how many of some rows are committed."""
        return len(rows.intersection(self._runs))

    def rate(self) -> float | None:
        """Return the rows per second of the last while, by when the records were published."""
        return recent_rate(self._rows, now=time.time())


def recent_rate(rows: Mapping[float, int], *, now: float) -> float | None:
    """Return rows per second over the last while; None where too little was committed to tell.

    Parameters
    ----------
    rows : mapping of float to int
        Rows that were committed, by time in seconds.
    now : float
        On the same clock.
    """
    times = sorted(when for when in rows if when > now - _LONG_AGO_SECONDS)
    recent = [when for when in times if when > now - _WHILE_SECONDS]
    times = recent if len(recent) >= _FEWEST_COMMITS else times[-_FEWEST_COMMITS:]
    if len(times) < 2:
        return None
    first, steps = times[0], len(times) - 1
    # Commits come in steps. Where the next one is overdue the rate falls, as it does when a worker is lost.
    seconds = max(times[-1] - first, (now - first) * steps / (steps + 1))
    return sum(rows[when] for when in times[1:]) / seconds
