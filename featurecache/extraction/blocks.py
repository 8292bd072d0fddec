"""Blocks of a large source in units: each is read, hashed, listed and computed before the next one is read.

So the bytes of a hundred million samples are read once, and the device begins with the first gigabyte. Blocks follow
from the stamps of the units alone, so all workers cut the same ones; whoever has the lease of a block reads it. What
is written down of it is what a scan writes, and a run that is killed is gone on with by a scan or by workers.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from contextvars import copy_context
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from featurecache.extraction.job import ExtractionJob
from featurecache.extraction.known_units import FoundUnit, KnownUnits
from featurecache.extraction.unit_scan import Gathered, NewUnit, listing_of_units, read_unit
from featurecache.hashing import digest_bytes
from featurecache.progress import Silent
from featurecache.spill import Spill
from featurecache.store.format_file import UNITS, require
from featurecache.store.listings import Listing, UnitListing
from featurecache.store.row_runs import RowRuns
from featurecache.store.store import FeatureStore
from featurecache.store.unit_listings import UnitIndex, UnitPart

# Some ten thousand photographs, a shard: less would have the network wait often for the first of a block, more is what
# a killed worker has read for nothing.
_BLOCK_BYTES = 1 << 30
# Each block adds a file to the sample table, which every process that looks for ids maps.
_MOST_BLOCKS = 4_096
# Seconds until the blocks that others hold are looked at again.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0


@dataclass(frozen=True)
class Block:
    """Units that one worker reads in one go.

    Attributes
    ----------
    units : tuple of FoundUnit
    """

    units: tuple[FoundUnit, ...]

    @cached_property
    def key(self) -> str:
        """Name of its lease."""
        return f"block-{digest_bytes(self.units[0].prefix)[:16]}"


@dataclass
class ReadBlock:
    """A block that was read, listed and written down, and not computed yet.

    Attributes
    ----------
    listing : Listing
        What was read of it.
    new_rows : RowRuns
        Those of its rows that the sample table did not have.
    kept : Spill or None
        The bytes, of a source that is far away: they come over the network once.
    left : sequence of Block
        Those that nobody has listed yet.
    lease : ExitStack
        Gives back the lease, and the room of the bytes: when all is computed, as others take it for that then.
    """

    listing: Listing
    new_rows: RowRuns
    kept: Spill | None
    left: Sequence[Block]
    lease: ExitStack


def unlisted_blocks(job: ExtractionJob, store: FeatureStore | None, units: Sequence[FoundUnit] | None) -> list[Block]:
    """Return the blocks of a job's source that workers are to read; none where it is scanned as a whole before.

    It is decided by the last listing, which stays as it is until all blocks are read, so that workers that come while
    others are at it decide alike.

    Parameters
    ----------
    job : ExtractionJob
    store : FeatureStore or None
        Its cache, if there is one.
    units : sequence of FoundUnit or None
        What the source has now.
    """
    # Views are computed after all plain features: both at once would hold two networks on the device.
    if units is None or job.views is not None or len(blocks := _cut(units)) < 2:
        return []
    before = None if store is None else store.listings.load(job.opened_source.key, without_damaged=True)
    if before is not None and not isinstance(before, UnitListing):
        return []  # of an earlier release, which a scan takes over without reading
    known = KnownUnits(before, [], 0 if store is None else len(store.samples))
    settled = [[unit for unit in block if _is_settled(unit)] for block in blocks]
    unlisted = [Block(tuple(block)) for block in settled if not all(map(known.has, block))]
    # One block is read as quickly by a scan, and its rows are in shards of the usual sizes.
    return unlisted if len(unlisted) > 1 else []


def _is_settled(unit: FoundUnit) -> bool:
    """Tell whether a unit can be recognised: others are left to the scan at the end."""
    return unit.stamp is not None and unit.stamp[2] >= 0


def _cut(units: Sequence[FoundUnit]) -> list[list[FoundUnit]]:
    """Cut units where their bytes have come to a block."""
    sizes = [0 if unit.stamp is None else unit.stamp[0] for unit in units]
    most, size = max(_BLOCK_BYTES, sum(sizes) // _MOST_BLOCKS), 0
    blocks: list[list[FoundUnit]] = [[]]
    for unit, more in zip(units, sizes, strict=True):
        if size >= most:
            blocks.append([])
            size = 0
        blocks[-1].append(unit)
        size += more
    return blocks


class BlockReader:
    """Reads the blocks that this worker gets, one ahead in a thread of its own, until all are done by somebody.

    Parameters
    ----------
    job : ExtractionJob
    blocks : sequence of Block
        As `unlisted_blocks` returns them.
    """

    def __init__(self, job: ExtractionJob, blocks: Sequence[Block]) -> None:
        self._reader = _Reader(job, blocks)
        # How many cores this worker counts on.
        self._read = partial(copy_context().run, self._reader.next)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="read")
        self._ahead: Future[ReadBlock | None] = self._pool.submit(self._read)

    def next(self) -> ReadBlock | None:
        """Return the next block, once it is read; None when all of them are done, or others are at the last."""
        if (block := self._ahead.result()) is not None:
            self._ahead = self._pool.submit(self._read)
        return block

    def next_if_read(self) -> ReadBlock | None:
        """Return the next block where it is read already; `next` says what went wrong with it."""
        return self.next() if self._ahead.done() and self._ahead.exception() is None else None

    def close(self) -> None:
        """End reading, and give back the lease of what was read ahead for nothing."""
        self._reader.ended.set()
        self._ahead.add_done_callback(_give_back)
        self._pool.shutdown()


def _give_back(ahead: Future[ReadBlock | None]) -> None:
    """Give back the lease of a block."""
    if ahead.exception() is None and (block := ahead.result()) is not None:
        block.lease.close()


class _EndedError(Exception):
    """Nobody waits any more for what is read ahead."""


class _Reader:
    """Takes leases of blocks and reads them, in a thread of its own.

    Parameters
    ----------
    job : ExtractionJob
    blocks : sequence of Block
    """

    def __init__(self, job: ExtractionJob, blocks: Sequence[Block]) -> None:
        self._source, self.ended = job.opened_source, threading.Event()
        self._store = FeatureStore(job.cache)  # of its own: a sample table is for one thread
        require(self._store.path, UNITS)
        self._leases = self._store.listings.leases(self._source.key)
        self._left, self._parts, self._generation = list(blocks), list[UnitPart](), -1
        self._before: Listing | None = None

    def next(self) -> ReadBlock | None:
        """Read the next block that is free; None when all are read, and computed unless their worker was lost."""
        pause = _FIRST_PAUSE
        while not self.ended.is_set():
            known = self._known()
            for block in [block for block in self._left if not all(map(known.has, block.units))]:
                if (read := self._read(block)) is not None:
                    return read
            known = self._known()
            self._left = [block for block in self._left if not self._is_done(block, known)]
            if not self._left:
                break
            self.ended.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        return None

    def _read(self, block: Block) -> ReadBlock | None:
        """Read a block if its lease is free, and nobody was faster."""
        with ExitStack() as stack:
            if not stack.enter_context(self._leases.hold(block.key)):
                return None
            known, key = self._known(), self._source.key
            units = [unit for unit in block.units if not known.has(unit)]
            if not units:
                return None
            self._left.remove(block)
            kept = stack.enter_context(closing(Spill())) if getattr(self._source, "is_far", False) else None
            if kept is not None and hasattr(self._source, "kept"):
                self._source.kept = kept
            gathered, read = Gathered(self._store, self._store.listings.writer(key)), list[NewUnit]()
            for unit in units:
                read.append(read_unit(self._source, unit, known, _Until(self.ended), kept))
                gathered.add(read[-1])
            gathered.write()
            left = [other for other in self._left if not all(map(known.has, other.units))]
            return ReadBlock(listing_of_units(key, read), gathered.new_rows, kept, left, stack.pop_all())

    def _known(self) -> KnownUnits:
        """Return what is written down of the units by now, by whomever."""
        key, writer = self._source.key, self._store.listings.writer(self._source.key)
        if writer.generation != self._generation:  # the first time, or a listing has been finished meanwhile
            self._before = self._store.listings.load(key, without_damaged=True)
            self._generation, self._parts = writer.generation, []
        self._parts = writer.loose(self._parts)
        self._store.samples.reload()
        return KnownUnits(self._before, self._parts, len(self._store.samples))

    def _is_done(self, block: Block, known: KnownUnits) -> bool:
        """Tell whether a block is listed, and nobody is at it any more.

        What others compute of it is in shards that are not those which the last round would plan.
        """
        if not all(map(known.has, block.units)):
            return False
        with ExitStack() as stack:
            return not self._leases.is_taken(block.key) or stack.enter_context(self._leases.hold(block.key))


@dataclass(frozen=True)
class _Until(Silent):
    """Ends reading ahead when nobody waits for it any more."""

    ended: threading.Event

    def advance(self, count: int, *, bad: int = 0) -> None:
        """Raise then."""
        if self.ended.is_set():
            raise _EndedError


def listed_so_far(store: FeatureStore, key: str, units: Sequence[FoundUnit]) -> Listing:
    """Return what is listed by now of a source that no listing names as a whole.

    Parameters
    ----------
    store : FeatureStore
    key : str
        Of the source.
    units : sequence of FoundUnit
        Of the source, in the order of names.
    """
    writer = store.listings.writer(key)
    known = KnownUnits(store.listings.load(key, without_damaged=True), writer.loose(), len(store.samples))
    pointers = [pointer for unit in units if known.has(unit) and (pointer := known.find(unit)) is not None]
    parts = list({part.key: part for part, _ in pointers}.values())
    index = {part.key: number for number, part in enumerate(parts)}
    numbers = np.array([(index[part.key], number) for part, number in pointers], np.int64).reshape(-1, 2)
    return UnitListing(UnitIndex(parts, numbers), {"root": key, "order": 0})
