"""Listings of sources that come in units, as tars do: what is listed of a unit is written once and named ever after.

The listing of a source names, in the order of names, units in parts: shards that hold the members of some units. Where
one tar changes, one part is written, and the listing anew, which has sixteen bytes for each unit. Parts are mapped;
what is held in memory are units and runs of rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import msgspec
import numpy as np
from numpy.typing import NDArray

from featurecache.errors import CorruptError
from featurecache.hashing import digest_bytes
from featurecache.ignored import IgnoredFiles
from featurecache.store.commits import Commit
from featurecache.store.folders import ShardFolder
from featurecache.store.row_runs import RowRuns
from featurecache.store.samples import Rows
from featurecache.store.schemas import UNITS, UnitsBody
from featurecache.store.shards import MappedShard
from featurecache.text import PrefixedText, TextColumn, narrowed

PARTS = "parts"
"""Folder of the parts, beside the shards of a listing."""
# Parts whose names are at hand: rows come in their order, so those of one part nearly always.
_MOST_NAMES = 4


@dataclass(frozen=True)
class ListedUnit:
    """What a unit holds.

    Attributes
    ----------
    prefix : bytes
        What the names of all its samples begin with, and those of no other unit.
    stamp : ndarray of int64, shape (4,)
        Of the unit: the stamp of each of its samples but for the size.
    names : TextColumn
        What comes after the prefix, sorted.
    sizes : ndarray of int64, shape (n,)
        Bytes of each sample.
    rows : ndarray of int64, shape (n,)
        Row of each sample, -1 where it could not be read.
    problems : mapping of str to str
        Name after the prefix -> why it could not be read.
    ignored : IgnoredFiles
        What the unit holds besides samples.
    """

    prefix: bytes
    stamp: NDArray[np.int64]
    names: TextColumn
    sizes: NDArray[np.int64]
    rows: Rows
    problems: Mapping[str, str] = field(default_factory=dict)
    ignored: IgnoredFiles = field(default_factory=IgnoredFiles)


class UnitPart:
    """Units that are stored together.

    Parameters
    ----------
    commit : Commit
    shard : MappedShard

    Raises
    ------
    CorruptError
        What it holds is impossible.
    """

    def __init__(self, commit: Commit, shard: MappedShard) -> None:
        self.key, self._shard = commit.key, shard
        self.num_rows = commit.shard.arrays["size"].shape[0]
        self._notes = {int(number): note for number, note in msgspec.convert(commit.body, UnitsBody).units.items()}
        self.stamps, self.starts = shard.read("unit_stamp"), shard.read("unit_start")
        self._run_starts, self._run_rows = shard.read("run_start"), shard.read("run_row")
        try:
            self.prefixes = TextColumn(shard.read("unit_text"), shard.read("unit_text_start"))
            _check_edges(self.starts, self.num_rows, "units")
            _check_edges(np.append(self._run_starts, self.num_rows), self.num_rows, "runs")
            # A run of one unit must not go on in the next one.
            if not np.isin(self.starts[:-1], self._run_starts).all():
                raise ValueError("units without their rows")
            if self._run_rows.min() < -1 or self._run_rows.max() > 1 << 48:
                raise ValueError("impossible rows")
        except ValueError as error:
            raise CorruptError(f"{shard.path} holds {error}; extract the source again") from None

    @property
    def held(self) -> RowRuns:
        """Rows of all units."""
        edges, good = np.append(self._run_starts, self.num_rows), self._run_rows >= 0
        return RowRuns.union([(self._run_rows[good], (self._run_rows + np.diff(edges))[good])])

    def names(self) -> PrefixedText:
        """Return all names."""
        try:
            rests = TextColumn.of_lengths(self._shard.read("text"), self._shard.read("text_length"))
            return PrefixedText(self.prefixes, self.starts, rests)
        except ValueError as error:
            raise CorruptError(f"{self._shard.path} holds {error}; extract the source again") from None

    def sizes(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the bytes of some samples."""
        return self._shard.read("size", start, stop).astype(np.int64)

    def runs(self, unit: int) -> tuple[NDArray[np.int64], Rows, NDArray[np.int64]]:
        """Return where in a unit runs of rows begin, the first row of each (-1: none), and how long they are."""
        first, stop = self.starts[unit : unit + 2].tolist()
        low, high = np.searchsorted(self._run_starts, [first, stop]).tolist()
        edges = np.append(self._run_starts[low:high], stop)
        return edges[:-1] - first, self._run_rows[low:high], np.diff(edges)

    def problems(self, unit: int) -> dict[str, str]:
        """Return why samples of a unit could not be read, by their names after the prefix."""
        return self._notes[unit].problems if unit in self._notes else {}

    def ignored(self, unit: int) -> IgnoredFiles:
        """Return what a unit holds besides samples."""
        note = self._notes.get(unit)
        return IgnoredFiles() if note is None else IgnoredFiles.from_json(msgspec.to_builtins(note.ignored))

    def unit(self, number: int, names: PrefixedText | None = None) -> ListedUnit:
        """Return a unit with all that it holds.

        Parameters
        ----------
        number : int
        names : PrefixedText, optional
            Those of the part, where they are at hand.
        """
        first, stop = self.starts[number : number + 2].tolist()
        begins, rows, lengths = self.runs(number)
        within = np.arange(stop - first) - np.repeat(begins, lengths)
        firsts = np.repeat(rows, lengths)
        return ListedUnit(
            prefix=self.prefixes.bytes_at(number),
            stamp=self.stamps[number],
            names=(self.names() if names is None else names).rests.take(np.arange(first, stop)),
            sizes=self.sizes(first, stop),
            rows=np.where(firsts < 0, -1, firsts + within),
            problems=self.problems(number),
            ignored=self.ignored(number),
        )


@dataclass(frozen=True, slots=True, eq=False)
class UnitWriter:
    """Writes what is listed of units, and at the end the listing that names it.

    Attributes
    ----------
    generation : int
        Of the listing that is being made.
    """

    folder: ShardFolder
    root: str
    generation: int

    def loose(self, known: Sequence[UnitPart] = ()) -> list[UnitPart]:
        """Return the parts that were written for this generation: by one that was killed, or is at it as well.

        Parameters
        ----------
        known : sequence of UnitPart
            Those that were read before.
        """
        parts, read = parts_of(self.folder), {part.key: part for part in known}
        keys = [key for key in parts.keys() if int(key[:12]) == self.generation]  # noqa: SIM118
        # One that goes meanwhile belongs to a listing that somebody has finished without it.
        found = (read.get(key) or parts.find(key, UnitPart) for key in keys)
        return [part for part in found if part is not None]

    def add(self, units: Sequence[ListedUnit]) -> UnitPart:
        """Write some units; they count once `finish` names them."""
        return publish_part(self.folder, self.generation, units)

    def finish(self, units: Sequence[tuple[UnitPart, int]], order: int) -> None:
        """Publish the listing of some units, and remove parts that neither it nor the one before names.

        Parameters
        ----------
        units : sequence of (UnitPart, int)
            Part and number in it, in the order of names.
        order : int
            See `Listing.order`.
        """
        keys = sorted({part.key for part, _ in units})
        index = {key: number for number, key in enumerate(keys)}
        body = {"root": self.root, "order": order, "parts": keys}
        numbers = np.array([(index[part.key], unit) for part, unit in units], np.int64)
        won = self.folder.publish_next(
            {"unit": ("int64", numbers)}, body, kind="listing of units", generation=self.generation
        )
        if won:
            there = self.folder.still_there(self.folder.keys())
            named = {key for commit in there for key in commit.body.get("parts", [])}
            parts = parts_of(self.folder)
            # Those of later generations belong to a scan that is at work.
            old = [key for key in parts.keys() if key not in named and int(key[:12]) <= self.generation]  # noqa: SIM118
            parts.discard(parts.still_there(old))


def publish_part(folder: ShardFolder, generation: int, units: Sequence[ListedUnit]) -> UnitPart:
    """Write units as a part, which nothing names yet.

    Parameters
    ----------
    folder : ShardFolder
        Of the listing.
    generation : int
        Of the listing that will name it.
    units : sequence of ListedUnit
        Sorted by their prefixes; each holds something.
    """
    ends = np.cumsum([len(unit.rows) for unit in units])
    begins, rows = zip(*(_runs_of(unit.rows) for unit in units), strict=True)
    sizes = np.concatenate([unit.sizes for unit in units])
    prefixes = TextColumn.pack(unit.prefix for unit in units)
    arrays = {
        **{f"unit_{name}": array for name, array in prefixes.arrays().items()},
        "unit_stamp": ("int64", np.stack([unit.stamp for unit in units])),
        "unit_start": ("int64", np.append(0, ends)),
        **TextColumn.joined([unit.names for unit in units]).compact(),
        "size": narrowed(sizes, "int32", "int64"),
        "run_start": ("int64", np.concatenate(begins) + np.repeat(np.append(0, ends[:-1]), [*map(len, begins)])),
        "run_row": ("int64", np.concatenate(rows)),
    }
    notes = {
        str(number): {"problems": dict(unit.problems), "ignored": unit.ignored.to_json()}
        for number, unit in enumerate(units)
        if unit.problems or unit.ignored != IgnoredFiles()
    }
    # Two scans of one generation that list the same write the same part; what they list differently has another key.
    digest = digest_bytes(b"".join(np.ascontiguousarray(values).tobytes() for _, values in arrays.values()))
    digest = digest_bytes(digest.encode() + repr(notes).encode())
    key = f"{generation:012d}{int(digest[:16], 16):020d}"
    parts, part = parts_of(folder), None
    while part is None:  # whoever finishes a listing of this generation removes what that does not name
        parts.publish(key, arrays, {"units": notes}, kind="listed units")
        part = parts.find(key, UnitPart)
    return part


def parts_of(folder: ShardFolder) -> ShardFolder:
    """Return the folder of the parts of a listing."""
    return ShardFolder(folder.path / PARTS, UNITS)


def read_part(parts: ShardFolder, key: str) -> UnitPart:
    """Read a part.

    Raises
    ------
    CorruptError
        It is not there, or damaged.
    """
    if (part := parts.find(key, UnitPart)) is None:
        raise CorruptError(
            f"{parts.path}: a part of the listing is missing; extract the source again, or `featurecache scan` it"
        )
    return part


def _runs_of(rows: Rows) -> tuple[NDArray[np.int64], Rows]:
    """Return where in some rows runs begin, and the first row of each; what could not be read is a run of -1."""
    # Rows of one run grow by one, and -1 stays -1: row 0 after it is another run.
    step = np.where(rows[:-1] < 0, 0, 1)
    begins = np.append(0, np.flatnonzero(rows[1:] != rows[:-1] + step) + 1)
    return begins, rows[begins]


def _check_edges(edges: NDArray[np.int64], end: int, what: str) -> None:
    if edges[0] != 0 or edges[-1] != end or (edges[1:] <= edges[:-1]).any():
        raise ValueError(f"{what} that overlap or lie elsewhere")


@dataclass(frozen=True, eq=False)
class UnitIndex:
    """The units of a listing, in the order of their names.

    Attributes
    ----------
    parts : sequence of UnitPart
    units : ndarray of int64, shape (n_units, 2)
        Index of the part, and number of the unit in it.
    """

    parts: Sequence[UnitPart]
    units: NDArray[np.int64]
    _names: dict[int, PrefixedText] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[UnitPart, int]]:
        return ((self.parts[part], unit) for part, unit in self.units.tolist())

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Index of the first sample of each unit, and the number of all samples."""
        sizes = [part.starts[unit + 1] - part.starts[unit] for part, unit in self]
        return np.append(0, np.cumsum(sizes, dtype=np.int64))

    @cached_property
    def runs(self) -> tuple[Rows, Rows, NDArray[np.int64]]:
        """Runs of rows in the order of names, of what could be read: starts, stops, index of the first sample."""
        starts, stops, indices = [], [], []
        for (part, unit), offset in zip(self, self.offsets.tolist(), strict=False):
            begins, rows, lengths = part.runs(unit)
            good = rows >= 0
            starts.append(rows[good])
            stops.append(rows[good] + lengths[good])
            indices.append(begins[good] + offset)
        none = [np.zeros(0, np.int64)]
        return np.concatenate(none + starts), np.concatenate(none + stops), np.concatenate(none + indices)

    @cached_property
    def first_runs(self) -> tuple[Rows, Rows, NDArray[np.int64]]:
        """The same, sorted by rows and without overlap: of copies the first sample counts."""
        starts, stops, indices = self.runs
        edges = np.unique(np.concatenate([starts, stops]))
        # Between neighbouring edges a run holds all rows or none.
        low, high = np.searchsorted(edges, starts), np.searchsorted(edges, stops)
        run = np.repeat(np.arange(len(starts)), high - low)
        piece = np.arange(len(run)) - np.repeat(np.cumsum(high - low) - high, high - low)
        first = indices[run] + edges[piece] - starts[run]
        order = np.lexsort((first, piece))
        order = order[np.append(True, piece[order][1:] != piece[order][:-1])[: len(order)]]
        return edges[piece[order]], edges[piece[order] + 1], first[order]

    def unit_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return in which unit each sample lies."""
        return np.searchsorted(self.offsets, indices, side="right") - 1

    def names_of(self, indices: NDArray[np.int64]) -> list[bytes]:
        """Return the names of some samples."""
        found, units = [], self.unit_of(indices).tolist()
        for index, number in zip(indices.tolist(), units, strict=True):
            at, unit = self.units[number].tolist()
            part, names = self.parts[at], self.part_names(at)
            found.append(names.bytes_at(int(part.starts[unit]) + index - int(self.offsets[number])))
        return found

    def sizes_of(self, indices: NDArray[np.int64], units: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the bytes of some samples of known units."""
        sizes = np.zeros(len(indices), np.int64)
        for number in np.unique(units).tolist():
            at, unit = self.units[number].tolist()
            first, stop = self.parts[at].starts[unit : unit + 2].tolist()
            mine = units == number
            sizes[mine] = self.parts[at].sizes(first, stop)[indices[mine] - self.offsets[number]]
        return sizes

    def part_names(self, number: int) -> PrefixedText:
        """Return the names of a part."""
        if (names := self._names.get(number)) is None:
            while len(self._names) >= _MOST_NAMES:
                self._names.pop(next(iter(self._names)), None)
            names = self._names.setdefault(number, self.parts[number].names())
        return names

    def listed(self) -> Iterator[ListedUnit]:
        """Yield each unit with all that it holds."""
        return (self.parts[at].unit(unit, self.part_names(at)) for at, unit in self.units.tolist())
