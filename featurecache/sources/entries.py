"""All that a source lists, in columns.

A source yields its entries one by one, because that is how a source is written most easily; beyond this file they are
arrays, because ten million objects would take gigabytes where names and stamps take their bytes. Of a million files an
entry for each costs about a tenth of what the system takes to list them.
"""

from __future__ import annotations

import os
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from featurecache.errors import SourceError
from featurecache.ignored import IgnoredFiles
from featurecache.sources.source import NO_STAMP, Entry, Source, Unit
from featurecache.text import TextColumn

ENCODING, ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
"""As `os.fsencode` does it, which takes three times as long for a short name."""


@dataclass(frozen=True)
class Entries:
    """What a source lists now, sorted by the bytes of the names; no sample was read.

    Attributes
    ----------
    names : TextColumn
    stamps : ndarray of int64, shape (n, 4)
        See `Stamp`; where the source has none, the number of bytes is filled in when they are read.
    problems : dict of str to str
        Name -> why it cannot be read.
    ignored : IgnoredFiles
        What the source holds besides samples.
    has_stamps : bool
        Any entry has a stamp. Else the source is read whole at each scan.
    """

    names: TextColumn
    stamps: NDArray[np.int64]
    problems: dict[str, str]
    ignored: IgnoredFiles = field(default_factory=IgnoredFiles)
    has_stamps: bool = True

    @classmethod
    def of(cls, source: Source, earlier: Entries | None = None) -> Entries:
        """List a source.

        Parameters
        ----------
        source : Source
        earlier : Entries, optional
            What it listed earlier: units with a stamp that was known then are as they were.
        """
        known = None if earlier is None else _KnownUnits.of(source, earlier)
        text, ends, stamps, problems = bytearray(), array("Q", [0]), array("q"), dict[str, str]()
        num_stamps, is_sorted, before = 0, True, b""
        # One loop, with as little as can be for each entry: a generator or a function call more is seen in `info`.
        for unit in source.units():
            for name, stamp, problem in source.list(unit) if known is None else known.list(unit):
                encoded = name.encode(ENCODING, ERRORS)
                is_sorted &= encoded > before
                before = encoded
                text += encoded
                ends.append(len(text))
                stamps.extend(stamp or NO_STAMP)
                num_stamps += stamp is not None
                if problem:
                    problems[name] = problem
        column = TextColumn(np.frombuffer(text, np.uint8), np.frombuffer(ends, np.uint64))
        values = np.frombuffer(stamps, np.int64).reshape(-1, 4)
        if not is_sorted:
            texts = list(column.encoded())
            order = np.array(sorted(range(len(texts)), key=texts.__getitem__), np.int64)
            column, values = column.take(order), values[order]
            if twice := [second for first, second in pairwise(column.encoded()) if first == second]:
                raise SourceError(f"{source.key} lists {os.fsdecode(twice[0])!r} twice; give each sample its own name")
        ignored = getattr(source, "ignored", IgnoredFiles()) if known is None else known.ignored
        return cls(column, values, problems, ignored, num_stamps > 0)

    def unchanged_since(self, names: TextColumn, stamps: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the index of each entry in an earlier listing; -1 where it was not there, or may have changed.

        Parameters
        ----------
        names : TextColumn
            Of the earlier listing.
        stamps : ndarray of int64, shape (n, 4)
        """
        indices = names.find_all(self.names)
        known = np.flatnonzero(indices >= 0)
        # A stamp that was not settled when it was listed proves nothing.
        differs = (self.stamps[known] != stamps[indices[known]]).any(axis=1) | (self.stamps[known, 2] < 0)
        indices[known[differs]] = -1
        return indices


class _KnownUnits:
    """The units of a source, listed where an earlier listing does not know them.

    To list a tar on a server is to read it; whether it is still the same is one short question.
    """

    def __init__(self, source: Source, before: Entries, spans: Mapping[Unit, tuple[int, int]]) -> None:
        self._source, self._before, self._spans = source, before, spans

    @classmethod
    def of(cls, source: Source, before: Entries) -> _KnownUnits | None:
        """Return None where the source does not tell by its units, or all has to be listed."""
        if (unit_stamp := getattr(source, "unit_stamp", None)) is None:
            return None
        indices = range(len(before.names))
        spans = dict[Unit, tuple[int, int]]()
        units = list(source.units())
        for unit in units:
            prefix, stamp = unit_stamp(unit)
            encoded = prefix.encode(ENCODING, ERRORS)
            # No name begins with a byte that is no text, so this comes after all that begin like that.
            first, stop = (
                bisect_left(indices, bound, key=lambda index: os.fsencode(before.names[index]))
                for bound in (encoded, encoded + b"\xff")
            )
            stamps = before.stamps[first:stop, 1:]
            if stamp is not None and stamp[2] >= 0 and len(stamps) and (stamps == stamp[1:]).all():
                spans[unit] = first, stop
        # What was ignored in one unit is not told apart from what was in another.
        if not spans or (before.ignored.count and len(spans) < len(units)):
            return None
        return cls(source, before, spans)

    @property
    def ignored(self) -> IgnoredFiles:
        """What the source holds besides samples."""
        return self._before.ignored if self._before.ignored.count else getattr(self._source, "ignored", IgnoredFiles())

    def list(self, unit: Unit) -> Iterator[Entry]:
        """Yield the entries of a unit."""
        if unit not in self._spans:
            yield from self._source.list(unit)
            return
        for index in range(*self._spans[unit]):
            yield Entry(self._before.names[index], tuple(self._before.stamps[index].tolist()))
