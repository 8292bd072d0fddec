"""Features as one lazy array over the mapped shards of a tap, addressed by row of the sample table."""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featurecache.errors import CorruptError, InputError, RequestError
from featurecache.store.commits import Commit
from featurecache.store.dtypes import RETURNED, Array, decode
from featurecache.store.folders import ShardFolder
from featurecache.store.gathering import RowGatherer, by_shard
from featurecache.store.row_runs import RowRuns, runs_of_rows
from featurecache.store.samples import Rows, SampleTable
from featurecache.store.shards import MappedShard
from featurecache.wording import counted

if TYPE_CHECKING:
    from featurecache.store.tasks import Task


class Features:
    """Cached features of one tap: row k belongs to row k of the sample table.

    Attributes
    ----------
    tap, dtype : str
        What was cached, and the stored number type.
    num_views : int or None
        Augmented views of each sample; ``None`` for plain features.
    sample_shape : tuple of int
        Shape of one sample's features, ``(n_features,)`` for a pooled tap; with views, their number comes first.
    rows : ndarray of int64, shape (n_cached,)
        Rows that are cached, sorted; bad inputs included.
    bad : dict of int to (status, reason)
        Rows whose input could not be turned into features.

    Parameters
    ----------
    tap, dtype, num_views
        As the attributes.
    folder : ShardFolder
    samples : SampleTable, optional
        With which the ids of each shard are compared when it is opened.
    """

    def __init__(
        self,
        tap: str,
        dtype: str,
        folder: ShardFolder,
        samples: SampleTable | None = None,
        *,
        num_views: int | None = None,
    ) -> None:
        self.tap, self.dtype, self.num_views = tap, dtype, num_views
        self._folder, self._samples = folder, samples
        self._mapped: dict[int, MappedShard] = {}
        # Made when rows are gathered: it refers back to this object, so both stay until a garbage collection.
        self._gatherer: RowGatherer | None = None
        self._renewed: Features | None = None
        self.commits = folder.commits()
        for commit in self.commits:
            if commit.body.get("tap", tap) != tap:
                raise CorruptError(f"{folder.path}: commit {commit.key} is of another tap; run `featurecache repair`")

    @property
    def view_shape(self) -> tuple[int, ...]:
        """Shape of one view of a sample; of plain features, of the sample."""
        return self.sample_shape[1:] if self.num_views else self.sample_shape

    @cached_property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample's features."""
        shapes = {commit.shard.arrays["features"].shape[1:] for commit in self.commits}
        if len(shapes) != 1:
            raise CorruptError(f"{self._folder.path}: shards disagree on the shape of a sample: {sorted(shapes)}")
        shape = shapes.pop()
        if self.num_views is not None and shape[:1] != (self.num_views,):
            raise CorruptError(
                f"{self._folder.path}: samples have the shape {shape} instead of {counted(self.num_views, 'view')}; "
                "restore the cache from a copy, or extract into a new one"
            )
        return shape

    @cached_property
    def rows(self) -> Rows:
        """Rows that are cached, sorted."""
        return self.held.rows()

    @property
    def held(self) -> RowRuns:
        """Rows that are cached, as runs."""
        return RowRuns.union([(self._runs[0], self._runs[1])])

    @cached_property
    def bad(self) -> dict[int, tuple[str, str]]:
        """Status and reason of every bad row."""
        listed = [(number, row, s, why) for number, c in enumerate(self.commits) for row, s, why in c.body["bad"]]
        if not listed:
            return {}
        for commit in self.commits:
            # A record of a stranger could call rows bad that another shard holds.
            if not np.isin([row for row, *_ in commit.body["bad"]], rows_of_commit(commit)).all():
                raise CorruptError(f"{self._folder.path}: commit {commit.key} calls rows bad that it does not hold")
        # Where two writers' shards overlap only one of them is read, and only its record of a row counts.
        runs, _ = self._find_runs(np.array([row for _, row, _, _ in listed]))
        owners = self._runs[2, runs].tolist()
        return {row: (s, why) for (number, row, s, why), owner in zip(listed, owners, strict=True) if number == owner}

    def first_rows(self, commit: Commit, count: int) -> Array:
        """Return the features of at most so many rows of a shard; none where a collection has withdrawn it since.

        Parameters
        ----------
        commit : Commit
        count : int
        """
        try:
            return self.read_shard(commit, count)
        except CorruptError:
            if self._folder.still_holds(commit):
                raise
        return np.zeros((0, *self.sample_shape), RETURNED[self.dtype])

    def read_shard(self, commit: Commit, count: int | None = None) -> Array:
        """Return the features of a shard in its order, of its first rows or of all; bad rows are NaN.

        Parameters
        ----------
        commit : Commit
        count : int, optional
            At most so many rows.
        """
        shard = self._folder.open(commit)
        num_rows = commit.shard.arrays["features"].shape[0]
        stored = shard.read("features", 0, num_rows if count is None else min(count, num_rows))
        values = self._values(shard, stored)
        is_bad = np.isin(rows_of_commit(commit)[: len(values)], [row for row, *_ in commit.body["bad"]])
        if is_bad.any():  # int8 has no NaN
            values = values.astype(np.float32)
            values[is_bad] = np.nan
        return values

    @property
    def nbytes(self) -> int:
        """Bytes of all shard files."""
        return sum(commit.shard.size for commit in self.commits)

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of cached rows, then the shape of a sample."""
        return (len(self), *self.sample_shape)

    def __len__(self) -> int:
        return int((self._runs[1] - self._runs[0]).sum())

    def __repr__(self) -> str:
        return f"Features({self.tap!r}, {self.dtype}, shape {self.shape})"

    def check_files(self) -> None:
        """Raise `CorruptError` when a shard is not there or not as long as its record says; reads no features."""
        for number, commit in enumerate(self.commits):
            if number in self._mapped:
                continue
            path = self._folder.path / "shards" / commit.file_name
            with suppress(FileNotFoundError):
                if path.is_file() and path.stat().st_size == commit.shard.size:
                    continue
            if self._folder.still_holds(commit):
                raise CorruptError(
                    f"{path} is missing or cut off although it was committed; run `featurecache repair`, then extract "
                    "again"
                )

    def usable(self, rows: Rows) -> NDArray[np.bool_]:
        """Tell which of ``rows`` are cached and good."""
        _, is_cached = self._find_runs(rows)
        return is_cached & ~is_among(rows, self._bad_rows)

    def read(self, rows: Rows) -> Array:
        """Return features of the given rows in their order, ``(n, *sample_shape)``; bfloat16 and int8 come as float32.

        What a collection has moved to other shards since these features were opened is found there.

        Raises
        ------
        RequestError
            A row is not cached.
        InputError
            A row belongs to a bad input.
        CorruptError
            Stored bytes do not match their checksum.
        """
        if self._renewed is None:
            try:
                return self._read(rows)
            except CorruptError:
                if all(map(self._folder.still_holds, self.commits)):
                    raise
            self._renewed = Features(self.tap, self.dtype, self._folder, self._samples, num_views=self.num_views)
        return self._renewed.read(rows)

    def _read(self, rows: Rows) -> Array:
        rows = np.asarray(rows, np.int64)
        # A range is copied without work for each row.
        if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
            return self._read_range(rows)
        run = self._locate(rows)
        shards = self._runs[2, run]
        if self._gatherer is None:
            self._gatherer = RowGatherer("features", self.dtype, self._shard, len(self.commits))
        stored = self._gatherer.take(shards, rows - self._runs[3, run], self.sample_shape)
        if self.dtype != "int8":
            return decode(stored, self.dtype)
        # Each shard of int8 has a scale of its own.
        values = np.empty(stored.shape, np.float32)
        for number, mine in by_shard(shards):
            values[mine] = self._values(self._shard(number), stored[mine])
        return values

    def _read_range(self, rows: Rows) -> Array:
        """Read consecutive rows run by run: nothing is done for each row but to copy it."""
        start, stop = int(rows[0]), int(rows[-1]) + 1
        first, last = self._find_runs(np.array([start, stop - 1]))[0].tolist()
        bad = np.searchsorted(self._bad_rows, [start, stop])
        starts, stops = self._runs[:2]
        joined = np.array_equal(starts[first + 1 : last + 1], stops[max(first, 0) : last])
        # Something is wrong with one of the rows: the way row by row finds which, and raises.
        if bad[0] != bad[1] or first < 0 or not joined or stop > stops[last]:
            self._locate(rows)
        values = np.empty((len(rows), *self.sample_shape), RETURNED[self.dtype])
        for run_start, run_stop, number, shift in self._runs[:, first : last + 1].T.tolist():
            low, high = max(start, run_start), min(stop, run_stop)
            shard = self._shard(number)
            stored = shard.read("features", low - shift, high - shift)
            values[low - start : high - start] = self._values(shard, stored)
        return values

    def _values(self, shard: MappedShard, stored: Array) -> Array:
        """Return the numbers that bytes of a shard stand for."""
        if self.dtype != "int8":
            return decode(stored, self.dtype)
        # One number for each channel, of the whole shard: they broadcast against any of its rows.
        return np.asarray(stored * shard.read("scale") + shard.read("offset"))

    def __getitem__(self, index: Any) -> Array:
        """Read by position in `rows`: ``features[:100]``, ``features[mask]``."""
        values = self.read(np.atleast_1d(self.rows[index]))
        return values[0] if isinstance(index, int | np.integer) else values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        values = self.read(self.rows)
        return values if dtype is None else values.astype(dtype)

    def to_arrow(self, task: Task | None = None) -> Any:
        """Return a pyarrow table: ``id``, ``name``, targets, ``split`` and ``features`` (a fixed-size list of float32).

        Parameters
        ----------
        task : Task, optional
            Whose samples are taken; all usable ones when left out.

        Raises
        ------
        MissingExtraError
            Without the extra ``parquet``.
        """
        from featurecache.interop.arrow_tables import to_arrow

        return to_arrow(self, self._table, task)

    def to_pandas(self, task: Task | None = None) -> Any:
        """Return a data frame of what `to_arrow` holds, with a column for each feature: ``f0``, ``f1``, ...

        Parameters
        ----------
        task : Task, optional
        """
        from featurecache.interop.arrow_tables import to_pandas

        return to_pandas(self, self._table, task)

    def to_hf(self, task: Task | None = None) -> Any:
        """Return a ``datasets.Dataset`` of what `to_arrow` holds.

        Parameters
        ----------
        task : Task, optional
        """
        from featurecache.interop.arrow_tables import to_hugging_face

        return to_hugging_face(self, self._table, task)

    def to_torch(
        self, task: Task | None = None, split: str | None = None, *, stream: bool = False, seed: int | None = 0
    ) -> Any:
        """Return a data set of torch: items are features float32, or pairs of them and targets.

        Parameters
        ----------
        task : Task, optional
            Whose samples are taken, with the targets of `Task.rows`.
        split : str, optional
            ``train``, ``validation`` or ``test``; all when left out.
        stream : bool
            An iterable data set that shuffles blocks and holds one at a time, for more than fits in memory; else one by
            index.
        seed : int, optional
            Of a stream's order, another for each epoch; None: as the rows lie.
        """
        from featurecache.interop.torch_data import torch_dataset
        from featurecache.store.store import FeatureStore

        # By its place in the cache, which another process opens anew: maps of files do not travel.
        root = self._folder.path.parents[3]
        folder = PurePosixPath(self._folder.path.relative_to(root).as_posix())
        return torch_dataset(FeatureStore.open(root), folder, self, task, split, stream=stream, seed=seed)

    @property
    def _table(self) -> SampleTable:
        if self._samples is None:
            raise RequestError("these features stand alone, without the table of their samples; open them by a store")
        return self._samples

    def let_go(self) -> None:
        """Close the files that were read, each of which is open while it is mapped; they are opened again for more."""
        self._mapped, self._gatherer = {}, None
        if self._renewed is not None:
            self._renewed.let_go()

    def _find_runs(self, rows: Rows) -> tuple[Rows, NDArray[np.bool_]]:
        """Return the run that would hold each row, and whether it does."""
        starts, stops = self._runs[:2]
        run = np.searchsorted(starts, rows, side="right") - 1
        is_cached = (run >= 0) & (rows < stops[run]) if len(starts) else np.zeros(len(rows), bool)
        return run, is_cached

    def _locate(self, rows: Rows) -> Rows:
        """Return the run that holds each row; refuse rows that are bad or not cached."""
        if self.bad and (bad := rows[is_among(rows, self._bad_rows)]).size:
            status, reason = self.bad[int(bad[0])]
            raise InputError(status, f"row {bad[0]} has no features ({reason}); drop bad rows with features.usable()")
        run, is_cached = self._find_runs(rows)
        if not is_cached.all():
            missing = ~is_cached
            raise RequestError(
                f"tap {self.tap!r} lacks {counted(missing.sum(), 'row')}, first {rows[missing][0]}; "
                "run `featurecache extract` again to add them"
            )
        return run

    def _shard(self, number: int) -> MappedShard:
        if number not in self._mapped:
            commit = self.commits[number]
            shard = self._folder.open(commit)
            self._check_ids(commit, shard)
            self._mapped[number] = shard
        return self._mapped[number]

    def _check_ids(self, commit: Commit, shard: MappedShard) -> None:
        """Refuse a shard whose rows belong to other samples than the table says: joins are by id, never by position."""
        if self._samples is None:
            return
        rows = rows_of_commit(commit)
        if not self._samples.reaches(int(rows[-1])) or not np.array_equal(shard.read("id"), self._samples.ids[rows]):
            raise CorruptError(
                f"{self._folder.path}: the samples in shard {commit.file_name} are not those of its rows in the sample "
                "table; restore the cache from a copy, or extract into a new one"
            )

    @cached_property
    def _bad_rows(self) -> Rows:
        return np.array(sorted(self.bad), np.int64)

    @cached_property
    def _runs(self) -> NDArray[np.int64]:
        """Sorted runs without overlap, (4, n_runs): start, stop, shard, shift; row k lies at k - shift in its shard."""
        runs: list[tuple[int, int, int, int]] = []
        end = 0
        for start, stop, shard, offset in sorted(
            run for number, commit in enumerate(self.commits) for run in _runs_of(commit, number)
        ):
            if (low := max(start, end)) < stop:  # two writers with different shard sizes may overlap
                runs.append((low, stop, shard, start - offset))
                end = stop
        # Transposed in memory too: searches in one of the four want its numbers side by side.
        return np.array(runs, np.int64).reshape(-1, 4).T.copy()


def is_among(rows: Rows, held: Rows) -> NDArray[np.bool_]:
    """Tell which rows are among those held, sorted and many: `numpy.isin` would sort them for every call."""
    if len(held) == 0:
        return np.zeros(len(rows), bool)
    index = np.searchsorted(held, rows)
    np.minimum(index, len(held) - 1, out=index)
    return held[index] == rows


def body_of_rows(commit: Commit, rows: Rows) -> dict[str, Any]:
    """Return the body of a commit for some of its rows."""
    numbers = set(rows.tolist())
    body = {**commit.body, "rows": runs_of_rows(rows)}
    # What is left of a commit must name no row that it does not hold.
    for name in ("bad", "probe"):
        if name in body:
            body[name] = [item for item in body[name] if item[0] in numbers]
    if "cut" in body:
        cut = [np.arange(start, stop) for start, stop in body["cut"]]
        body["cut"] = runs_of_rows(np.intersect1d(np.concatenate([rows[:0], *cut]), rows))
    return body


def rows_of_commit(commit: Commit) -> Rows:
    """Return the rows that a shard of features holds, in its order."""
    return np.concatenate([np.arange(start, stop) for start, stop, _, _ in _runs_of(commit, 0)])


def _runs_of(commit: Commit, number: int) -> list[tuple[int, int, int, int]]:
    runs, offset, before = [], 0, 0
    for start, stop in commit.body["rows"]:
        if not before <= start < stop:
            raise CorruptError(f"commit {commit.key} lists impossible rows {start}:{stop}; run `featurecache repair`")
        runs.append((start, stop, number, offset))
        offset, before = offset + stop - start, stop
    if offset != commit.shard.arrays["features"].shape[0]:
        raise CorruptError(
            f"commit {commit.key} lists {counted(offset, 'row')} but its shard holds another number; run "
            "`featurecache repair`"
        )
    return runs
