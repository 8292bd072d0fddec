"""What a source holds now: every input gets its row of the sample table, and only what may have changed is read."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from itertools import chain
from time import sleep

import numpy as np
from numpy.typing import NDArray

from featurecache.errors import InputError
from featurecache.extraction.job import ExtractionJob
from featurecache.extraction.recall import recall
from featurecache.machine import num_cores
from featurecache.progress import Progress, Silent
from featurecache.sources.entries import Entries
from featurecache.sources.source import Source, check_source
from featurecache.specs import check_takes_views
from featurecache.store.listings import Listing
from featurecache.store.samples import Ids
from featurecache.store.store import FeatureStore

# Samples that get their rows at once.
_BLOCK = 1 << 18
# Seconds until the lease of a scan is tried again.
_PAUSE = 0.25
# Samples that a thread reads before it asks for more: handing them out one by one took longer than small files do.
_HANDFUL = 8


def scan(job: ExtractionJob, *, progress: Progress | None = None) -> Listing:
    """Give every input of a job's source its row, and keep the listing in the cache, which is made where there is none.

    Once for a job, before its workers: they take from the cache what the source holds. A wrong request fails here,
    before anything is written and before millions of inputs are read.

    Parameters
    ----------
    job : ExtractionJob
    progress : Progress, optional
        Told how much is read.

    Returns
    -------
    Listing
        As it lies in the cache.
    """
    source, progress = job.opened_source, progress or Silent()
    if job.views is not None:
        check_takes_views(source.modality, f"the source {source.key}")
    check_source(source)
    # Not made yet: a wrong request must leave no empty cache behind.
    store = FeatureStore.open(job.cache) if (job.cache / "FORMAT.json").exists() else None
    if not all(recall(job, store).values()):
        _ = job.network  # an unknown backbone or tap, or one for other samples, shows here
    return scan_into(store or FeatureStore.create(job.cache), source, progress)[0]


def scan_into(store: FeatureStore, source: Source, progress: Progress) -> tuple[Listing, int]:
    """Give every input of a source its row in a cache, and keep the listing there.

    Parameters
    ----------
    store : FeatureStore
    source : Source
        It holds something: see `check_source`.
    progress : Progress

    Returns
    -------
    listing : Listing
        As it lies in the cache.
    num_read : int
        Inputs that were read here; the others are as they were, or another process has read them meanwhile.
    """
    with _alone(store, source.key, progress) as made_meanwhile:
        if made_meanwhile is not None:
            return made_meanwhile, 0
        before = store.listings.load(source.key)
        entries = Entries.of(source)
        rows = known_rows(entries, before, len(store.samples))
        num_read = 0
        for indices, ids in identified(source, entries, np.flatnonzero(rows < 0), progress):
            num_read += len(indices)
            rows[indices] = store.samples.append(ids, entries.names.take(indices), entries.stamps[indices, 0])
        listing = Listing(source.key, entries.names, entries.stamps, rows, entries.problems, ignored=entries.ignored)
        # A listing that is as before is not written again: of a million files it has some 60 MB.
        is_as_before = before is not None and listing.same_as(before)
        return listing if is_as_before else store.listings.save(listing), num_read


@contextmanager
def _alone(store: FeatureStore, source: str, progress: Progress) -> Iterator[Listing | None]:
    """Scan a source while no other process does: of several that begin together one reads and hashes it, for all.

    Yields
    ------
    Listing or None
        That another process has made while this one waited.
    """
    leases, before, has_waited = store.listings.leases(source), store.listings.load(source), False
    while True:
        with leases.hold("scan") as is_mine:
            if is_mine:
                now = store.listings.load(source) if has_waited else None
                is_newer = now is not None and (before is None or now.order > before.order)
                yield now if is_newer else None
                return
        if not has_waited:
            progress.say("another process scans the source")
        has_waited = True
        sleep(_PAUSE)


def identified(
    source: Source, entries: Entries, unknown: NDArray[np.int64], progress: Progress
) -> Iterator[tuple[NDArray[np.int64], Ids]]:
    """Read some entries and yield blocks of (indices, ids): an id is the SHA-256 of the bytes.

    Parameters
    ----------
    source : Source
    entries : Entries
        What cannot be read is added to its ``problems``.
    unknown : ndarray of int64
        Indices of the entries to read.
    progress : Progress
        Told of each entry that was read.
    """
    progress.start("reading", len(unknown))
    # Without stamps every sample is read at each scan: one pass over each unit is the quickest.
    if not entries.has_stamps:
        return _read_whole(source, entries, progress)
    return _read_each(source, entries, unknown, progress)


def _read_each(
    source: Source, entries: Entries, unknown: NDArray[np.int64], progress: Progress
) -> Iterator[tuple[NDArray[np.int64], Ids]]:
    """Open entries one by one in threads: storage answers several at once, and digests take every core."""
    with ThreadPoolExecutor(num_cores()) as pool:
        for first in range(0, len(unknown), _BLOCK):
            block = unknown[first : first + _BLOCK]
            names = [entries.names[index] for index in block.tolist()]
            ids, readable = np.zeros((len(block), 32), np.uint8), np.ones(len(block), bool)
            handfuls = (names[start : start + _HANDFUL] for start in range(0, len(names), _HANDFUL))
            for i, digest in enumerate(chain.from_iterable(pool.map(partial(_digests, source), handfuls))):
                if isinstance(digest, str):
                    entries.problems[names[i]] = digest
                    readable[i] = False
                else:
                    ids[i] = np.frombuffer(digest, np.uint8)
                progress.advance(1)
            yield block[readable], ids[readable]


def _digests(source: Source, names: Sequence[str]) -> list[bytes | str]:
    """Return the digest of each sample, or why it cannot be read."""
    found: list[bytes | str] = []
    for name in names:
        try:
            found.append(sha256(source.open(name, stamp=None)).digest())
        except InputError as error:
            found.append(error.reason)
    return found


def _read_whole(source: Source, entries: Entries, progress: Progress) -> Iterator[tuple[NDArray[np.int64], Ids]]:
    """Read every unit in one go, where no entry has a stamp: of a table that is one pass instead of a million calls."""
    index_of = {name: index for index, name in enumerate(entries.names)}
    indices, lengths, digests = array("q"), array("q"), bytearray()
    for unit in source.units():
        before = len(indices)
        for name, data in source.read(unit):
            # What came after the listing is for the next scan.
            if (index := index_of.pop(name, None)) is None:
                continue
            indices.append(index)
            lengths.append(len(data))
            digests += sha256(data).digest()
        progress.advance(len(indices) - before)
    for name in index_of:  # what was given out has been taken from it
        entries.problems.setdefault(name, "its source lists it and does not give it out")
    entries.stamps[indices, 0] = lengths
    order = np.argsort(indices)  # rows follow the names, not the order of a table: two writers must agree on them
    ids = np.frombuffer(digests, np.uint8).reshape(-1, 32)
    for first in range(0, len(order), _BLOCK):
        block = order[first : first + _BLOCK]
        yield np.array(indices, np.int64)[block], ids[block]


def known_rows(entries: Entries, before: Listing | None, num_samples: int) -> NDArray[np.int64]:
    """Return the row of each entry that is as it was when the source was last extracted, -1 for the others.

    Parameters
    ----------
    entries : Entries
        What the source lists now.
    before : Listing or None
        What the cache knows of it.
    num_samples : int
        Rows of the sample table: a listing may be newer than a table that was restored from a copy.
    """
    if before is None:
        return np.full(len(entries.names), -1, np.int64)
    indices = entries.unchanged_since(before.paths, before.stamps)
    rows = np.where(indices < 0, -1, before.rows[indices])
    return np.where(rows < num_samples, rows, -1)
