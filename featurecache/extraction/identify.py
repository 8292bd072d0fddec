"""Inputs get their ids: those that may have changed are read, and hashed on every core."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from featurecache.errors import InputError
from featurecache.machine import num_cores
from featurecache.progress import Progress
from featurecache.sources.entries import Entries
from featurecache.sources.source import Source, Unit
from featurecache.spill import Spill
from featurecache.store.listings import Listing
from featurecache.store.samples import Ids, Rows

# Samples that get their rows at once.
_BLOCK = 1 << 18
# Samples that a thread reads before it asks for more: handing them out one by one took longer than small files do.
_HANDFUL = 8


def identified(
    source: Source,
    entries: Entries,
    unknown: NDArray[np.int64],
    progress: Progress,
    kept: Spill | None = None,
    units: Sequence[Unit] | None = None,
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
    kept : Spill, optional
        Where the bytes are kept, by their ids.
    units : sequence of Unit, optional
        That the entries are of; all of the source when left out.
    """
    progress.start("reading", len(unknown))
    # Without stamps every sample is read at each scan: one pass over each unit is the quickest. Of what was read before
    # but for some samples, that would read all of them again.
    is_whole = getattr(source, "reads_units", False) and len(unknown) == len(entries.names)
    if is_whole or not entries.has_stamps:
        return _read_whole(source, source.units() if units is None else units, entries, progress, kept)
    return _read_each(source, entries, unknown, progress, kept)


def _read_each(
    source: Source, entries: Entries, unknown: NDArray[np.int64], progress: Progress, kept: Spill | None
) -> Iterator[tuple[NDArray[np.int64], Ids]]:
    """Open entries one by one in threads: storage answers several at once, and digests take every core."""
    with ThreadPoolExecutor(num_cores()) as pool:
        for first in range(0, len(unknown), _BLOCK):
            block = unknown[first : first + _BLOCK]
            names = [entries.names[index] for index in block.tolist()]
            ids, readable = np.zeros((len(block), 32), np.uint8), np.ones(len(block), bool)
            handfuls = (names[start : start + _HANDFUL] for start in range(0, len(names), _HANDFUL))
            for i, digest in enumerate(chain.from_iterable(pool.map(partial(_digests, source, kept), handfuls))):
                if isinstance(digest, str):
                    entries.problems[names[i]] = digest
                    readable[i] = False
                else:
                    ids[i] = np.frombuffer(digest, np.uint8)
                progress.advance(1)
            yield block[readable], ids[readable]


def _digests(source: Source, kept: Spill | None, names: Sequence[str]) -> list[bytes | str]:
    """Return the digest of each sample, or why it cannot be read."""
    found: list[bytes | str] = []
    for name in names:
        try:
            found.append(_identify(source.open(name, stamp=None), kept))
        except InputError as error:
            found.append(error.reason)
    return found


def _identify(data: bytes, kept: Spill | None) -> bytes:
    """Return the digest of a sample, which is kept if it is to be."""
    digest = sha256(data).digest()
    if kept is not None:
        kept.add(digest, data)
    return digest


def _read_whole(
    source: Source, units: Iterable[Unit], entries: Entries, progress: Progress, kept: Spill | None
) -> Iterator[tuple[NDArray[np.int64], Ids]]:
    """Read every unit in one go: of a table that is one pass instead of a million calls."""
    index_of = {name: index for index, name in enumerate(entries.names)}
    indices, lengths, digests = array("q"), array("q"), bytearray()
    for unit in units:
        for name, data in source.read(unit):
            # What came after the listing is for the next scan.
            if (index := index_of.pop(name, None)) is None:
                continue
            indices.append(index)
            lengths.append(len(data))
            digests += _identify(data, kept)
            progress.advance(1)
    for name in index_of:  # what was given out has been taken from it
        entries.problems.setdefault(name, _why_not(source, name))
    entries.stamps[indices, 0] = lengths
    order = np.argsort(indices)  # rows follow the names, not the order of a table: two writers must agree on them
    ids = np.frombuffer(digests, np.uint8).reshape(-1, 32)
    for first in range(0, len(order), _BLOCK):
        block = order[first : first + _BLOCK]
        yield np.array(indices, np.int64)[block], ids[block]


def _why_not(source: Source, name: str) -> str:
    """Return why a sample was not given out with its unit."""
    try:
        source.open(name, stamp=None)
    except InputError as error:
        return error.reason
    return "its source lists it and does not give it out"


def known_rows(entries: Entries, before: Listing | None, num_samples: int) -> Rows:
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
