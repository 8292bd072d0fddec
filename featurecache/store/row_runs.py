"""Sets of rows as half-open runs: of a hundred million rows that follow each other, two numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featurecache.store.samples import Rows


@dataclass(frozen=True, eq=False)
class RowRuns:
    """Rows, sorted, each once; a slice of it is an array of them.

    Attributes
    ----------
    starts, stops : ndarray of int64, shape (n_runs,)
        Sorted; no two runs overlap or touch.
    """

    starts: Rows
    stops: Rows

    @classmethod
    def of(cls, rows: RowRuns | ArrayLike) -> RowRuns:
        """Return the runs of rows in any order."""
        if isinstance(rows, RowRuns):
            return rows
        rows = np.asarray(rows, np.int64)
        if (rows[1:] <= rows[:-1]).any():
            rows = np.unique(rows)
        breaks = np.flatnonzero(rows[1:] != rows[:-1] + 1) + 1
        firsts, lasts = np.append(0, breaks)[: len(rows)], np.append(breaks, len(rows))[: len(rows)] - 1
        return cls(rows[firsts], rows[lasts] + 1)

    @classmethod
    def union(cls, several: Iterable[tuple[Rows, Rows]]) -> RowRuns:
        """Return what any of several sets holds.

        Parameters
        ----------
        several : iterable of (starts, stops)
            In any order, and they may overlap.
        """
        pairs = [np.stack([starts, stops]) for starts, stops in several]
        starts, stops = np.concatenate([np.zeros((2, 0), np.int64), *pairs], axis=1)
        order = np.argsort(starts, kind="stable")
        starts, stops = starts[order], stops[order]
        # A run begins where all before it have ended.
        reached = np.maximum.accumulate(stops)
        is_first = np.append(True, starts[1:] > reached[:-1])[: len(starts)]
        firsts = np.flatnonzero(is_first)
        lasts = np.append(firsts[1:], len(starts))[: len(firsts)] - 1
        return cls(starts[firsts], reached[lasts])

    def rows(self) -> Rows:
        """Return all rows: eight bytes for each."""
        return self[:]

    def contains(self, rows: ArrayLike) -> NDArray[np.bool_]:
        """Tell which rows are in the set."""
        rows = np.asarray(rows, np.int64)
        if not len(self.starts):
            return np.zeros(len(rows), bool)
        run = np.searchsorted(self.starts, rows, side="right") - 1
        return (run >= 0) & (rows < self.stops[run])

    def count_below(self, rows: ArrayLike) -> NDArray[np.int64]:
        """Return how many rows of the set come before each of some numbers."""
        rows = np.asarray(rows, np.int64)
        if not len(self.starts):
            return np.zeros(len(rows), np.int64)
        run = np.searchsorted(self.starts, rows, side="right") - 1
        inside = np.minimum(rows, self.stops[run]) - self.starts[run]
        return np.where(run < 0, 0, self._before[run] + inside)

    def intersection(self, other: RowRuns) -> RowRuns:
        """Return the rows that both hold."""
        return self._where(other, held=True)

    def difference(self, other: RowRuns) -> RowRuns:
        """Return the rows that this one holds and the other does not."""
        return self._where(other, held=False)

    def _where(self, other: RowRuns, *, held: bool) -> RowRuns:
        # Between neighbouring edges of either set, a row is in a set or all of them are.
        edges = np.unique(np.concatenate([self.starts, self.stops, other.starts, other.stops]))
        inside = self.contains(edges[:-1]) & (other.contains(edges[:-1]) == held)
        return RowRuns.union([(edges[:-1][inside], edges[1:][inside])])

    def part(self, start: int, stop: int) -> RowRuns:
        """Return some rows by their position among all."""
        start, stop = max(start, 0), min(stop, len(self))
        if stop <= start:
            return RowRuns(self.starts[:0], self.stops[:0])
        first, last = (np.searchsorted(self._before, [start, stop - 1], side="right") - 1).tolist()
        starts, stops = self.starts[first : last + 1].copy(), self.stops[first : last + 1].copy()
        stops[-1] = starts[-1] + stop - self._before[last]
        starts[0] += start - self._before[first]
        return RowRuns(starts, stops)

    def at(self, positions: NDArray[np.int64]) -> Rows:
        """Return the rows at some positions."""
        run = np.searchsorted(self._before, positions, side="right") - 1
        return self.starts[run] + positions - self._before[run]

    def __len__(self) -> int:
        return int(self._before[-1])

    def __getitem__(self, positions: slice) -> Rows:
        start, stop, step = positions.indices(len(self))
        part = self.part(start, stop)
        sizes = part.stops - part.starts
        # Of each run its first row, then one more for each step within it.
        rows = np.arange(int(sizes.sum())) + np.repeat(part.starts - np.cumsum(sizes) + sizes, sizes)
        return rows[::step]

    @cached_property
    def _before(self) -> NDArray[np.int64]:
        """Rows before each run, and all rows."""
        return np.append(0, np.cumsum(self.stops - self.starts))


def runs_of_rows(rows: Rows) -> list[list[int]]:
    """Write sorted rows as half-open runs ``[[start, stop], ...]``, as commits have them."""
    runs = RowRuns.of(rows)
    return np.stack([runs.starts, runs.stops], axis=1).tolist()
