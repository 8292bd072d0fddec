"""All that a source lists, in columns.

A source yields its entries one by one, because that is how a source is written most easily; beyond this file they are
arrays, because ten million objects would take gigabytes where names and stamps take their bytes. Of a million files an
entry for each costs about a tenth of what the system takes to list them.
"""

from __future__ import annotations

import os
import sys
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from featurecache.errors import SourceError
from featurecache.ignored import IgnoredFiles
from featurecache.sources.source import NO_STAMP, Source, Unit
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
    def of(cls, source: Source, units: Iterable[Unit] | None = None) -> Entries:
        """List a source.

        Parameters
        ----------
        source : Source
        units : iterable of Unit, optional
            Which of its units; all when left out.
        """
        text, ends, stamps, problems = bytearray(), array("Q", [0]), array("q"), dict[str, str]()
        num_stamps, is_sorted, before = 0, True, b""
        # One loop, with as little as can be for each entry: a generator or a function call more is seen in `info`.
        for unit in source.units() if units is None else units:
            for name, stamp, problem in source.list(unit):
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
        # What the source tells is of all its units.
        ignored = getattr(source, "ignored", IgnoredFiles()) if units is None else IgnoredFiles()
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
