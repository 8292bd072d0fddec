"""Shard jobs: rows of one or more taps computed in one pass, written by a thread of their own, and committed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import groupby
from time import perf_counter
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.runtimes import Runtime, open_runtime
from featurecache.backbones.taps import Tap
from featurecache.backbones.torch_runtime import checked_device
from featurecache.errors import InputError
from featurecache.extraction.drift import provenance
from featurecache.extraction.meter import Meter
from featurecache.extraction.modality import Modality, Stages
from featurecache.extraction.pipeline import TRANSIENT, Outcome, joined, run_parts, to_stored
from featurecache.extraction.plan import ShardJob
from featurecache.machine import num_cores
from featurecache.sources.inputs import Input
from featurecache.specs import ExtractionSettings, shape_of_row
from featurecache.store.constants import ConstantFinder
from featurecache.store.dtypes import Array, decode
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.features import runs_of_rows
from featurecache.store.leases import Leases
from featurecache.store.precision import finite_rows, measure_error, read_back, stored_arrays
from featurecache.store.samples import Column, Ids, Rows
from featurecache.store.shards import ShardWriter

_REFERENCE_ROWS_PER_SHARD, _MOST_DIGESTED = 2, 4
"""Good rows of a shard whose digests before the network are kept, for the drift guard of later runs, and how many rows
are digested to have them although some are bad."""
_ROWS_AT_A_TIME, _BYTES_AT_A_TIME = 64, 32 << 20
"""What is worth writing by itself: the lesser of the two."""
_ROWS_MEASURED = 32
"""Whose error in the stored type is told; a fixed number, so that equal work gives equal records."""
_MOST_UNWRITTEN = 2
"""So many times that may wait to be written."""


@dataclass(frozen=True)
class ShardOutcome:
    """What a job did.

    Attributes
    ----------
    num_rows, num_bad : int
        Committed rows, and how many of them are bad.
    postponed : dict of int to (name, reason)
        Rows whose inputs changed or vanished: left for the next run.
    leased : bool
        Another writer is at it, or was first: what it left over is for another look.
    """

    num_rows: int = 0
    num_bad: int = 0
    postponed: dict[int, tuple[str, str]] = field(default_factory=dict)
    leased: bool = False


@dataclass(eq=False)
class _Started:
    """A job whose lease is held, on its way through the pipeline."""

    taps: tuple[str, ...]
    rows: Rows
    inputs: Sequence[Input]
    lease: ExitStack
    drafts: list[Draft] = field(default_factory=list)
    """Opened when the first features come, so that not every job that is loaded ahead has files open."""
    collected: list[Outcome] = field(default_factory=list)
    """Features that wait until there are enough of them to be worth writing."""
    num_rows: int = 0
    num_bytes: int = 0
    """Of those."""
    stages: dict[int, Stages] = field(default_factory=dict)
    """Of rows that were digested on their way."""
    num_left: int = 0
    """Rows whose features have not come."""
    num_unwritten: int = 0

    def __post_init__(self) -> None:
        self.num_left = self.num_unwritten = len(self.rows)

    def note(self, stages: Sequence[Stages | None]) -> None:
        """Keep the digests of the inputs that come next."""
        start = len(self.rows) - self.num_left
        self.stages |= {start + place: each for place, each in enumerate(stages) if each is not None}

    def reference_rows(self) -> list[list[Any]]:
        """Row, and digests before the network, of the first good inputs."""
        good = [place for place in sorted(self.stages) if place not in self.drafts[0].bad]
        return [
            [int(self.rows[place]), self.stages[place].decoded, self.stages[place].prepared]
            for place in good[:_REFERENCE_ROWS_PER_SHARD]
        ]

    def close(self) -> None:
        """Give the lease back, and leave nothing behind that is not committed."""
        with self.lease:
            for draft in self.drafts:
                draft.__exit__()


@dataclass
class ShardExtractor:
    """Computes shard jobs with one backbone; loads the runtime when the first job comes.

    All sets are of one fingerprint, so they have the same views.
    """

    backbone: Backbone
    modality: Modality
    taps: Mapping[str, Tap]
    sets: Mapping[str, FeatureSet]
    inputs_of: Callable[[Rows], Sequence[Input]]
    ids: Column
    settings: ExtractionSettings
    leases: Leases
    remembered: Mapping[str, Any] | None = None
    """Provenance of the features that are there, or of the writer that began."""
    meter: Meter = field(default_factory=lambda: Meter(cores=num_cores()))
    on_rows: Callable[[int, int], None] = lambda rows, bad: None
    _runtimes: dict[tuple[str, ...], Runtime] = field(default_factory=dict)
    _started: list[_Started] = field(default_factory=list)

    def __call__(self, jobs: Iterable[ShardJob]) -> Iterator[ShardOutcome]:
        """Compute, write and commit jobs, except those that another writer is at or has done.

        Yields
        ------
        ShardOutcome
            One for each job. The next jobs are begun before the outcome of one is there.
        """
        idle: deque[ShardOutcome] = deque()
        try:
            for taps, started in groupby(self._start(jobs, idle), key=lambda job: job.taps):
                yield from self._compute(taps, started)
            yield from idle
        finally:
            for job in self._started:
                job.close()
            self._started.clear()

    def runtime(self, taps: tuple[str, ...]) -> Runtime:
        """Return the runtime for some taps, the same one each time."""
        if taps not in self._runtimes:
            remembered = self._remembered_choice()
            runtime = open_runtime(
                self.backbone,
                [self.taps[tap] for tap in taps],
                runtime=self.settings.runtime,
                device=self.settings.device,
                batch_size=self.settings.batch_size or remembered.get("batch_size"),
                remembered=remembered.get("runtime"),
            )
            self._runtimes[taps], self.meter.device = runtime, runtime.device
        return self._runtimes[taps]

    def agree(self, remembered: Mapping[str, Any] | None) -> None:
        """Let go of a runtime that was opened before a writer who was first had made another choice known."""
        self.remembered = remembered or {}
        for taps, runtime in list(self._runtimes.items()):
            given = {"runtime": runtime.name, "batch_size": runtime.batch_size}
            if any(given[name] != wanted for name, wanted in self._remembered_choice().items()):
                runtime.close()
                del self._runtimes[taps]

    def close(self) -> None:
        """Release the runtimes."""
        for runtime in self._runtimes.values():
            runtime.close()

    def _remembered_choice(self) -> dict[str, Any]:
        """Return what earlier features decide and the settings leave open."""
        remembered, choice = self.remembered or {}, {}
        if self.settings.runtime == "auto" and "runtime" in remembered:
            choice["runtime"] = remembered["runtime"]
        # What suits one device is of no use to another.
        if self.settings.batch_size is None and remembered.get("device") == str(checked_device(self.settings.device)):
            choice["batch_size"] = remembered["batch_size"]
        return choice

    @property
    def runtime_name(self) -> str | None:
        """Name of the runtime that ran, once one has."""
        return next((runtime.name for runtime in self._runtimes.values()), None)

    @property
    def trial(self) -> Mapping[str, float]:
        """Inputs per second of each runtime that was tried."""
        return next((runtime.trial for runtime in self._runtimes.values() if runtime.trial), {})

    def _start(self, jobs: Iterable[ShardJob], idle: deque[ShardOutcome]) -> Iterator[_Started]:
        """Take the lease of each job that is free and not done; the others' outcomes are known at once."""
        for job in jobs:
            with ExitStack() as lease:
                mine = lease.enter_context(self.leases.hold(job.key))
                taps = tuple(tap for tap in job.taps if not self.sets[tap].folder.has(job.key)) if mine else ()
                if not taps:
                    idle.append(ShardOutcome(leased=not mine))
                    continue
                started = _Started(taps, job.rows, self.inputs_of(job.rows), lease.pop_all())
                self._started.append(started)
            yield started

    def _compute(self, taps: tuple[str, ...], jobs: Iterable[_Started]) -> Iterator[ShardOutcome]:
        runtime = self.runtime(taps)
        runtime.compare_again()  # on real inputs
        parts = ((job, job.inputs) for job in jobs)
        outcomes = run_parts(
            parts,
            runtime,
            self.modality,
            num_workers=self.settings.num_workers,
            num_digested=_MOST_DIGESTED,
            meter=self.meter,
        )
        with closing(outcomes), _Writer(self.meter) as writer:
            for job, outcome in outcomes:
                num_rows, num_bad = len(outcome.problems), sum(problem is not None for problem in outcome.problems)
                self.meter.add_inputs(num_rows)
                self.on_rows(num_rows, num_bad)
                job.collected.append(outcome)
                job.note(outcome.stages)
                job.num_bytes += sum(values.nbytes for values in outcome.features.values())
                job.num_left -= num_rows
                job.num_rows += num_rows
                if job.num_left == 0 or job.num_rows >= _ROWS_AT_A_TIME or job.num_bytes >= _BYTES_AT_A_TIME:
                    yield from writer.submit(self._write, job, joined(job.collected), runtime)
                    job.collected, job.num_rows, job.num_bytes = [], 0, 0
            yield from writer.finish()

    def _write(self, job: _Started, outcome: Outcome, runtime: Runtime) -> ShardOutcome | None:
        """Write features, and commit the job when they were its last."""
        if not job.drafts:
            for tap in job.taps:
                draft = Draft(self.sets[tap], self.taps[tap].shape, len(job.inputs))
                job.drafts.append(draft)
        for draft in job.drafts:
            draft.add(outcome)
        job.num_unwritten -= len(outcome.problems)
        return self._publish(job, runtime) if job.num_unwritten == 0 else None

    def _publish(self, job: _Started, runtime: Runtime) -> ShardOutcome:
        """Commit a job whose features are all there."""
        record = {
            "provenance": provenance(runtime),
            "probe": job.reference_rows(),
        }
        won = [draft.publish(job.rows, self.ids[job.rows], record) for draft in job.drafts]
        bad = {place: error for draft in job.drafts for place, error in draft.bad.items()}
        job.close()
        self._started.remove(job)
        return _summary(job.rows, job.inputs, bad) if all(won) else ShardOutcome(leased=True)


class _Writer:
    """A thread that writes in the order in which it is told to, so that disks and digests hold nobody up."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._pending: deque[Future[ShardOutcome | None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, write: Callable[..., ShardOutcome | None], *work: Any) -> Iterator[ShardOutcome]:
        """Have something written, and yield what is done by now; waits when the disk cannot keep up."""
        self._pending.append(self._pool.submit(self._measured, write, *work))
        while self._pending and (len(self._pending) > _MOST_UNWRITTEN or self._pending[0].done()):
            yield from self._next()

    def finish(self) -> Iterator[ShardOutcome]:
        """Wait for everything, and yield what it led to."""
        while self._pending:
            yield from self._next()

    def _measured(self, write: Callable[..., ShardOutcome | None], *work: Any) -> ShardOutcome | None:
        with self._meter.writing():
            return write(*work)

    def _next(self) -> Iterator[ShardOutcome]:
        started = perf_counter()
        done = self._pending.popleft().result()
        self._meter.add_wait("write", perf_counter() - started)
        if done is not None:
            yield done


class Draft:
    """Features of one tap on their way to a commit; a context manager that leaves nothing behind by itself."""

    def __init__(self, feature_set: FeatureSet, shape: tuple[int, ...], count: int) -> None:
        self.bad: dict[int, InputError] = {}
        self._cut: list[bool] = []
        self._set, self._dtype = feature_set, feature_set.dtype
        self._flat: list[str] = []
        self._views = feature_set.identity.views
        # The scale of int8 is known only when all rows are: until then they are kept as they come.
        self._draft_dtype = "float32" if self._dtype == "int8" else self._dtype
        self._writer = self._new_writer(
            {
                "features": (self._draft_dtype, (count, *shape_of_row(shape, self._views))),
                "id": ("uint8", (count, 32)),
            }
        )
        self._start = 0
        self._precision: dict[str, Any] | None = None
        self._constant = ConstantFinder(self._views)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.__exit__()

    def add(self, outcome: Outcome) -> None:
        """Take the next batch."""
        values = outcome.features[self._set.tap]
        stored, problems = to_stored(values, outcome.problems, self._draft_dtype)
        self._writer.append("features", stored)
        self._cut += outcome.cut
        self._flat += outcome.flat
        self.bad |= {self._start + place: error for place, error in problems.items()}
        self._start += len(values)
        self._constant.add(decode(np.delete(stored, list(problems), axis=0), self._draft_dtype))
        if self._precision is None and len(good := np.delete(values, list(problems), axis=0)[:_ROWS_MEASURED]):
            arrays = stored_arrays(good, self._dtype, self._views)
            self._precision = measure_error(good, arrays, against="float32", views=self._views)

    def publish(self, rows: Rows, ids: Ids, record: Mapping[str, Any]) -> bool:
        """Commit everything but rows whose inputs changed or vanished meanwhile; False if another writer was first."""
        keep = np.array([p not in self.bad or self.bad[p].status not in TRANSIENT for p in range(len(rows))], bool)
        if not keep.any():
            return True
        if keep.all() and self._dtype == self._draft_dtype:
            self._writer.append("id", ids)
            return self._commit(self._writer, rows, keep, record)
        arrays = {"features": (self._dtype, self._writer.written("features")[keep])}
        if self._dtype == "int8":
            arrays = self._as_int8(arrays["features"][1])
        arrays["id"] = ("uint8", ids[keep])
        with self._new_writer({name: (dtype, values.shape) for name, (dtype, values) in arrays.items()}) as writer:
            for name, (_, values) in arrays.items():
                writer.append(name, values)
            return self._commit(writer, rows, keep, record)

    def _as_int8(self, values: NDArray[np.float32]) -> dict[str, tuple[str, Array]]:
        """Return int8 features; only now are their steps known, and what is constant in them."""
        arrays = stored_arrays(values, "int8", self._views)
        good = finite_rows(values)
        measured = np.flatnonzero(good)[:_ROWS_MEASURED]
        some = {**arrays, "features": ("int8", arrays["features"][1][measured])}
        self._precision = measure_error(values[measured], some, against="float32", views=self._views)
        self._constant = ConstantFinder(self._views)
        self._constant.add(read_back(arrays)[good])
        return arrays

    def _new_writer(self, layout: Mapping[str, tuple[str, tuple[int, ...]]]) -> ShardWriter:
        attributes = {
            "format": "featurecache",
            "kind": "features",
            "backbone": self._set.identity.backbone,
            "tap": self._set.tap,
            "fingerprint": self._set.fingerprint,
        }
        return self._set.folder.writer(layout, attributes)

    def _commit(self, writer: ShardWriter, rows: Rows, keep: NDArray[np.bool_], record: Mapping[str, Any]) -> bool:
        kept, cut = rows[keep], rows[keep & np.array(self._cut, bool)]
        flat = np.array(self._flat)[keep]
        key = f"{kept[0]:012d}"
        body = {
            "rows": runs_of_rows(kept),
            "bad": [[int(rows[place]), error.status, error.reason] for place, error in self.bad.items() if keep[place]],
            "fingerprint": self._set.fingerprint,
            "tap": self._set.tap,
            "precision": self._precision,
            **({"cut": runs_of_rows(cut)} if len(cut) else {}),
            **({} if (constant := self._constant.runs()) is None else {"constant": constant}),
            **{f"flat_{kind}": runs_of_rows(kept[flat == kind]) for kind in np.unique(flat).tolist() if kind},
            **record,
        }
        return self._set.folder.commit(key, writer.finish(key), body)


def _summary(rows: Rows, inputs: Sequence[Input], bad: Mapping[int, InputError]) -> ShardOutcome:
    postponed = {
        int(rows[place]): (inputs[place].name, error.reason)
        for place, error in bad.items()
        if error.status in TRANSIENT
    }
    return ShardOutcome(len(rows) - len(postponed), len(bad) - len(postponed), postponed)
