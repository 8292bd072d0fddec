"""The scan of a source that comes in units, as tars do: what is known of a unit that is as it was is not looked at.

Some units at a time are listed, read and written down. A scan that is killed leaves what it wrote, and the next one
takes it up; it counts once the listing of the whole source names it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from featurecache.errors import SourceError
from featurecache.extraction.identify import identified
from featurecache.extraction.known_units import FoundUnit, KnownUnits, UnitPointer
from featurecache.ignored import IgnoredFiles
from featurecache.progress import Progress, Silent
from featurecache.sources.entries import Entries
from featurecache.sources.source import NO_STAMP, Source
from featurecache.spill import Spill
from featurecache.store.format_file import UNITS, require
from featurecache.store.listings import Listing, UnitListing
from featurecache.store.row_runs import RowRuns
from featurecache.store.samples import Ids, Rows
from featurecache.store.store import FeatureStore
from featurecache.store.unit_listings import ListedUnit, UnitPart, UnitWriter
from featurecache.text import TextColumn

# What is written down together: at most so many samples, units (each may have a note) and bytes of samples, which a
# killed scan reads again. Each time the ids of all samples stream past the new ones, so not more often.
_MOST_SAMPLES, _MOST_UNITS, _MOST_BYTES = 1 << 18, 1 << 10, 16 << 30
# Parts with fewer samples, of which so many may be: a tar that comes each day must not make a file that stays for ever.
_SMALL_PART, _MOST_SMALL_PARTS = 1 << 16, 16


def scan_units(
    store: FeatureStore, source: Source, units: Sequence[FoundUnit], progress: Progress, kept: Spill | None
) -> tuple[Listing, int]:
    """Do for a source in units what `featurecache.extraction.scan.scan_into` does.

    Parameters
    ----------
    store : FeatureStore
    source : Source
    units : sequence of FoundUnit
        Those that it has now.
    progress : Progress
    kept : Spill, optional
        Keeps the bytes that are read.

    Returns
    -------
    listing : Listing
        As it lies in the cache.
    num_read : int
        Samples that were read.
    """
    require(store.path, UNITS)
    # The writer first: a listing that another process publishes meanwhile is not replaced by one that knows it not.
    writer = store.listings.writer(source.key)
    before = store.listings.load(source.key, without_damaged=True)
    known = KnownUnits(before, writer.loose(), len(store.samples))
    found = [(unit, known.find(unit)) for unit in units]
    num_new = sum(pointer is None or not known.is_whole(pointer) for _, pointer in found)
    if num_new > 1:
        progress.start("reading", num_new)
    gathered = Gathered(store, writer)
    for unit, pointer in found:
        if pointer is not None and known.is_whole(pointer):
            gathered.keep(pointer)
            continue
        # Of one unit the samples are counted, of several the units: how many samples they hold is not known yet.
        new = read_unit(source, unit, known, Silent() if num_new > 1 else progress, kept)
        if num_new > 1:
            progress.advance(1)
        if pointer is not None and new.is_as_before(*pointer):
            gathered.keep(pointer)
        else:
            gathered.add(new)
    gathered.write()
    pointers = _with_fewer_parts([pointer for pointer in gathered.pointers if pointer is not None], writer)
    if not pointers:
        raise SourceError(f"{source.key} holds no {source.modality}s; name another source")
    if isinstance(before, UnitListing) and _names(pointers) == _names(before.index):
        return before, gathered.num_read
    writer.finish(pointers, store.listings.next_order())
    listing = store.listings.load(source.key)
    assert listing is not None
    return listing, gathered.num_read


def look_at_units(
    store: FeatureStore, source: Source, units: Sequence[FoundUnit], before: Listing | None, progress: Progress
) -> tuple[Listing, Ids]:
    """Return what a source in units holds now, by reading what may have changed; the cache is not changed.

    Parameters
    ----------
    store : FeatureStore
    source : Source
    units : sequence of FoundUnit
    before : Listing or None
        What the cache knows of it.
    progress : Progress

    Returns
    -------
    listing : Listing
        Row -1 for bytes that the cache has never seen, or that cannot be read.
    new : ndarray of uint8, shape (n, 32)
        Ids of what the cache has never seen.
    """
    loose = store.listings.writer(source.key).loose()
    known, seen = KnownUnits(before, loose, len(store.samples)), list[NewUnit]()
    for unit in units:
        new = read_unit(source, unit, known, progress, None)
        if len(new.rows):
            seen.append(new)
    # All at once: the whole table streams past them.
    read = [(unit.rows, indices, ids) for unit in seen for indices, ids in unit.read]
    ids = np.concatenate([np.zeros((0, 32), np.uint8), *(ids for _, _, ids in read)])
    rows, first = store.samples.rows_of(ids), 0
    for of_unit, indices, _ in read:
        of_unit[indices] = rows[first : first + len(indices)]
        first += len(indices)
    return listing_of_units(source.key, seen), ids[rows < 0]


def listing_of_units(key: str, units: Sequence[NewUnit]) -> Listing:
    """Return, in columns, what some units of a source hold.

    Parameters
    ----------
    key : str
        Of the source.
    units : sequence of NewUnit
        In the order of names.
    """
    return Listing(
        key,
        TextColumn.joined([unit.entries.names for unit in units]),
        np.concatenate([np.zeros((0, 4), np.int64), *(unit.entries.stamps for unit in units)]),
        np.concatenate([np.zeros(0, np.int64), *(unit.rows for unit in units)]),
        {name: why for unit in units for name, why in unit.entries.problems.items()},
        ignored=IgnoredFiles.joined(unit.ignored for unit in units),
    )


@dataclass
class NewUnit:
    """A unit that is not written down yet.

    Attributes
    ----------
    prefix : bytes
    entries : Entries
    rows : ndarray of int64
        -1 for what is not known yet.
    ignored : IgnoredFiles
    read : list of (indices, ids)
        What was read of it.
    """

    prefix: bytes
    entries: Entries
    rows: Rows
    ignored: IgnoredFiles
    read: list[tuple[NDArray[np.int64], Ids]] = field(default_factory=list)

    @property
    def problems(self) -> dict[str, str]:
        """Why samples could not be read, by their names after the prefix."""
        length = len(os.fsdecode(self.prefix))
        return {name[length:]: why for name, why in self.entries.problems.items()}

    def is_as_before(self, part: UnitPart, number: int) -> bool:
        """Tell whether nothing has come of reading what could not be read before."""
        return not any(len(indices) for indices, _ in self.read) and self.problems == part.problems(number)

    def listed(self) -> ListedUnit:
        """Return what is written down."""
        stamps = self.entries.stamps
        shared = stamps[0, 1:]
        # Where members differ, which no tar's do, nothing tells that the unit is as it was.
        stamp = (0, *shared.tolist()) if (stamps[:, 1:] == shared).all() else NO_STAMP
        return ListedUnit(
            prefix=self.prefix,
            stamp=np.array(stamp, np.int64),
            names=self.entries.names.without_prefix(self.prefix),
            sizes=stamps[:, 0],
            rows=self.rows,
            problems=self.problems,
            ignored=self.ignored,
        )


def read_unit(source: Source, found: FoundUnit, known: KnownUnits, progress: Progress, kept: Spill | None) -> NewUnit:
    """List a unit, unless that is known, and read those of its samples that may have changed.

    Parameters
    ----------
    source : Source
    found : FoundUnit
    known : KnownUnits
        What the cache knows of it.
    progress : Progress
        Told of each sample that is read.
    kept : Spill, optional
        Keeps the bytes that are read.
    """
    new = _listed(source, found, known)
    unknown = np.flatnonzero(new.rows < 0)
    if len(unknown):
        new.read += identified(source, new.entries, unknown, progress, kept, [found.unit])
    return new


def _listed(source: Source, found: FoundUnit, known: KnownUnits) -> NewUnit:
    """Return the entries of a unit, and the rows of those that are as they were; it is listed unless that is known."""
    was = known.as_it_was(found, known.find(found))
    if was is not None:
        return NewUnit(found.prefix, _entries_of(was), was.rows, was.ignored)
    entries = Entries.of(source, [found.unit])
    try:
        entries.names.without_prefix(found.prefix)
    except ValueError as error:
        raise SourceError(f"{source.key}: of the unit {found.unit.name}, {error}") from None
    ignored_of = getattr(source, "ignored_of", None)
    ignored = IgnoredFiles() if ignored_of is None else ignored_of(found.unit)
    rows, earlier = np.full(len(entries.names), -1, np.int64), known.earlier(found.prefix)
    if earlier is not None:
        before = _entries_of(earlier)
        indices = entries.unchanged_since(before.names, before.stamps)
        rows = np.where(indices < 0, -1, earlier.rows[indices])
    return NewUnit(found.prefix, entries, rows, ignored)


def _entries_of(unit: ListedUnit) -> Entries:
    """Return what was listed of a unit."""
    stamps = np.tile(unit.stamp, (len(unit.rows), 1))
    stamps[:, 0] = unit.sizes
    names = TextColumn.pack(unit.prefix + name for name in unit.names.encoded())
    return Entries(names, stamps, {}, unit.ignored, has_stamps=bool((stamps[:, 1:] != NO_STAMP[1:]).any()))


@dataclass
class Gathered:
    """Gathers units until they are worth a part, and gives their samples rows.

    Attributes
    ----------
    pointers : list of (UnitPart, int) or None
        Where each unit is written down, in order; None of those that wait.
    num_read : int
    new_rows : RowRuns
        Rows that the sample table did not have.
    """

    store: FeatureStore
    writer: UnitWriter
    pointers: list[UnitPointer | None] = field(default_factory=list)
    num_read: int = 0
    new_rows: RowRuns = field(default_factory=lambda: RowRuns.of([]))
    _waiting: list[NewUnit] = field(default_factory=list)

    def keep(self, pointer: UnitPointer) -> None:
        """Take a unit that is written down."""
        self.pointers.append(pointer)

    def add(self, new: NewUnit) -> None:
        """Take a unit that is to be written; one that holds nothing is no unit."""
        if not len(new.rows):
            return
        self._waiting.append(new)
        self.pointers.append(None)
        num_samples = sum(len(unit.rows) for unit in self._waiting)
        num_bytes = sum(int(unit.entries.stamps[i, 0].sum()) for unit in self._waiting for i, _ in unit.read)
        if num_samples >= _MOST_SAMPLES or len(self._waiting) >= _MOST_UNITS or num_bytes >= _MOST_BYTES:
            self.write()

    def write(self) -> None:
        """Give rows, and write the units that wait."""
        read = [
            (number, unit, indices, ids)
            for number, unit in enumerate(self._waiting)
            for indices, ids in unit.read
            if len(indices)
        ]
        if read:
            names = [unit.entries.names.take(indices).without_prefix(unit.prefix) for _, unit, indices, _ in read]
            rows, added = self.store.samples.add(
                np.concatenate([ids for _, _, _, ids in read]),
                TextColumn.joined(names),
                np.concatenate([unit.entries.stamps[indices, 0] for _, unit, indices, _ in read]),
                prefixes=TextColumn.pack(unit.prefix for unit in self._waiting),
                prefix_of=np.concatenate([np.full(len(indices), number) for number, _, indices, _ in read]),
            )
            ends = np.cumsum([len(indices) for _, _, indices, _ in read])
            for (_, unit, indices, _), of_unit in zip(read, np.split(rows, ends[:-1]), strict=True):
                unit.rows[indices] = of_unit
            self.num_read += len(rows)
            starts, stops = np.array(added, np.int64).reshape(-1, 2).T
            self.new_rows = RowRuns.union([(self.new_rows.starts, self.new_rows.stops), (starts, stops)])
        if self._waiting:
            part = self.writer.add([unit.listed() for unit in self._waiting])
            free = [index for index, pointer in enumerate(self.pointers) if pointer is None]
            for number, index in enumerate(free):
                self.pointers[index] = part, number
            self._waiting = []


def _with_fewer_parts(pointers: Sequence[UnitPointer], writer: UnitWriter) -> list[UnitPointer]:
    """Write the units of small parts together, where there are many of them."""
    sizes: dict[str, int] = {}
    for part, number in pointers:
        sizes[part.key] = sizes.get(part.key, 0) + int(part.starts[number + 1] - part.starts[number])
    small = {key for key, size in sizes.items() if size < _SMALL_PART}
    if len(small) <= _MOST_SMALL_PARTS:
        return list(pointers)
    moved = [index for index, (part, _) in enumerate(pointers) if part.key in small]
    found, units = list(pointers), [pointers[index] for index in moved]
    # What is written down together is in memory at once, here as elsewhere.
    ends = np.cumsum([part.starts[number + 1] - part.starts[number] for part, number in units])
    of_part = ends // _MOST_SAMPLES + np.arange(len(units)) // _MOST_UNITS
    for some in np.split(np.array(moved), np.flatnonzero(np.diff(of_part)) + 1):
        part = writer.add([pointers[index][0].unit(pointers[index][1]) for index in some.tolist()])
        for number, index in enumerate(some.tolist()):
            found[index] = part, number
    return found


def _names(pointers: Iterable[UnitPointer]) -> list[tuple[str, int]]:
    return [(part.key, number) for part, number in pointers]
