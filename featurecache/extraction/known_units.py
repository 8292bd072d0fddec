"""What a cache knows of the units of a source: which of them are as they were, and what was listed of the others."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from featurecache.sources.source import Source, Stamp, Unit
from featurecache.store.listings import Listing, UnitListing
from featurecache.store.unit_listings import ListedUnit, UnitPart

# Asked of a server at a time.
_QUESTIONS = 16

UnitPointer = tuple[UnitPart, int]
"""A part, and the number of a unit in it."""


class FoundUnit(NamedTuple):
    """A unit that a source has now, what its names begin with, and its stamp if it has one."""

    unit: Unit
    prefix: bytes
    stamp: Stamp | None


def units_of(source: Source) -> list[FoundUnit] | None:
    """Return the units of a source in the order of names; None where it does not tell, or names don't tell units apart.

    Parameters
    ----------
    source : Source
    """
    if (unit_stamp := getattr(source, "unit_stamp", None)) is None:
        return None
    units = list(source.units())
    # A server is asked about several at once; for a local file a thread takes longer than the answer.
    with ThreadPoolExecutor(_QUESTIONS if getattr(source, "is_far", False) else 1) as pool:
        stamps = list(pool.map(unit_stamp, units))
    found = [FoundUnit(unit, os.fsencode(prefix), stamp) for unit, (prefix, stamp) in zip(units, stamps, strict=True)]
    found.sort(key=lambda unit: unit.prefix)
    # Neighbours are enough: all that begins with a prefix comes right after it.
    return None if any(b.prefix.startswith(a.prefix) for a, b in pairwise(found)) else found


class KnownUnits:
    """What a cache knows of the units of a source.

    Parameters
    ----------
    before : Listing or None
        Its last listing, by units or, of an earlier release, as a whole.
    loose : sequence of UnitPart
        What a scan wrote that was killed.
    num_samples : int
        Rows of the sample table: a listing may be newer than a table that was restored from a copy.
    """

    def __init__(self, before: Listing | None, loose: Sequence[UnitPart], num_samples: int) -> None:
        self._num_samples = num_samples
        self._whole = None if isinstance(before, UnitListing) else before
        self._pointers: dict[bytes, list[UnitPointer]] = {}
        known = list(before.index) if isinstance(before, UnitListing) else []
        known += [(part, number) for part in loose for number in range(len(part.prefixes))]
        for part, number in known:
            self._pointers.setdefault(part.prefixes.bytes_at(number), []).append((part, number))

    def find(self, found: FoundUnit) -> UnitPointer | None:
        """Return where a unit that is as it was is written down."""
        # A stamp that was not settled when it was listed proves nothing.
        if found.stamp is not None and found.stamp[2] >= 0:
            for part, number in self._pointers.get(found.prefix, []):
                if tuple(part.stamps[number, 1:].tolist()) == found.stamp[1:]:
                    return part, number
        return None

    def has(self, found: FoundUnit) -> bool:
        """Tell whether a unit is written down as it is, and the sample table has its rows.

        Samples that could not be read have none.
        """
        if (pointer := self.find(found)) is None:
            return False
        _, rows, lengths = pointer[0].runs(pointer[1])
        return bool((rows + np.where(rows < 0, 0, lengths)).max() <= self._num_samples)

    def is_whole(self, pointer: UnitPointer) -> bool:
        """Tell whether all samples of a unit have a row of the sample table."""
        _, rows, lengths = pointer[0].runs(pointer[1])
        return bool(rows.min() >= 0 and (rows + lengths).max() <= self._num_samples)

    def as_it_was(self, found: FoundUnit, pointer: UnitPointer | None) -> ListedUnit | None:
        """Return what is known of a unit that is as it was; None where it has to be listed."""
        if pointer is not None:
            return self._with_rows(pointer[0].unit(pointer[1]))
        if self._whole is None or found.stamp is None or found.stamp[2] < 0:
            return None
        earlier = self.earlier(found.prefix)
        # What they hold besides samples is known of all units together.
        if earlier is None or self._whole.ignored.count or tuple(earlier.stamp[1:].tolist()) != found.stamp[1:]:
            return None
        return earlier

    def earlier(self, prefix: bytes) -> ListedUnit | None:
        """Return what was listed of a unit, which may have changed since."""
        if pointers := self._pointers.get(prefix, []):
            part, number = pointers[0]
            return self._with_rows(part.unit(number))
        if self._whole is None:
            return None
        names = self._whole.paths
        # No name begins with a byte that is no text, so this comes after all that begin like that.
        first, stop = (
            bisect_left(range(len(names)), bound, key=lambda index: os.fsencode(names[index]))
            for bound in (prefix, prefix + b"\xff")
        )
        stamps = self._whole.stamps[first:stop]
        if not len(stamps) or (stamps[:, 1:] != stamps[0, 1:]).any():
            return None
        own = names.take(np.arange(first, stop)).without_prefix(prefix)
        return self._with_rows(ListedUnit(prefix, stamps[0], own, stamps[:, 0], self._whole.rows[first:stop]))

    def _with_rows(self, unit: ListedUnit) -> ListedUnit:
        """Return a unit with the rows that the sample table has."""
        rows = np.where(unit.rows < self._num_samples, unit.rows, -1)
        return ListedUnit(unit.prefix, unit.stamp, unit.names, unit.sizes, rows, {}, unit.ignored)
