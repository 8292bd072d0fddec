"""One shard job: rows of one or more taps computed in one pass, written, and committed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.runtimes import Runtime, open_runtime
from featurecache.backbones.taps import Tap
from featurecache.errors import InputError
from featurecache.extraction.drift import provenance
from featurecache.extraction.modality import Modality
from featurecache.extraction.pipeline import TRANSIENT, Outcome, run_pipeline, to_stored
from featurecache.extraction.plan import ShardJob
from featurecache.sources.inputs import Input
from featurecache.specs import ExtractionSettings, shape_of_row
from featurecache.store.convert import measure_error, stored_arrays
from featurecache.store.features import runs_of_rows
from featurecache.store.leases import Leases
from featurecache.store.samples import Column, Ids, Rows
from featurecache.store.shards import ShardWriter
from featurecache.store.store import FeatureSet

_PROBES_PER_SHARD = 2


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
    remembered_runtime: str | None = None
    on_rows: Callable[[int, int], None] = lambda rows, bad: None
    _runtimes: dict[tuple[str, ...], Runtime] = field(default_factory=dict)

    def __call__(self, job: ShardJob) -> ShardOutcome:
        """Compute, write and commit one job, unless another writer is at it or has done it."""
        with self.leases.hold(job.key) as mine:
            if not mine:
                return ShardOutcome(leased=True)
            taps = tuple(tap for tap in job.taps if not self.sets[tap].folder.has(job.key))
            return self._compute(ShardJob(taps, job.rows)) if taps else ShardOutcome()

    def runtime(self, taps: tuple[str, ...]) -> Runtime:
        """Return the runtime for some taps, the same one each time."""
        if taps not in self._runtimes:
            self._runtimes[taps] = open_runtime(
                self.backbone,
                [self.taps[tap] for tap in taps],
                runtime=self.settings.runtime,
                device=self.settings.device,
                batch_size=self.settings.batch_size,
                remembered=self.remembered_runtime,
            )
        return self._runtimes[taps]

    def close(self) -> None:
        """Release the runtimes."""
        for runtime in self._runtimes.values():
            runtime.close()

    @property
    def runtime_name(self) -> str | None:
        """Name of the runtime that ran, once one has."""
        return next((runtime.name for runtime in self._runtimes.values()), None)

    def _compute(self, job: ShardJob) -> ShardOutcome:
        runtime, inputs, ids = self.runtime(job.taps), self.inputs_of(job.rows), self.ids[job.rows]
        with ExitStack() as stack:
            drafts = [
                stack.enter_context(Draft(self.sets[tap], self.taps[tap].shape, self.settings.dtype, len(inputs)))
                for tap in job.taps
            ]
            for outcome in run_pipeline(
                inputs,
                runtime,
                self.modality,
                batch_size=self.settings.batch_size,
                num_workers=self.settings.num_workers,
            ):
                for draft in drafts:
                    draft.add(outcome)
                self.on_rows(len(outcome.problems), sum(problem is not None for problem in outcome.problems))
            record = {
                "provenance": provenance(runtime, self.settings),
                "probe": self._probe(inputs, job.rows, drafts[0].bad),
            }
            won = [draft.publish(job.rows, ids, record) for draft in drafts]
        bad = {place: error for draft in drafts for place, error in draft.bad.items()}
        return _summary(job.rows, inputs, bad) if all(won) else ShardOutcome(leased=True)

    def _probe(self, inputs: Sequence[Input], rows: Rows, bad: Mapping[int, InputError]) -> list[list[Any]]:
        """Digests of the first good inputs before the network, for the drift guard of later runs."""
        good = [place for place in range(len(inputs)) if place not in bad][:_PROBES_PER_SHARD]
        probes: list[list[Any]] = []
        for place in good:
            try:
                stages = self.modality.stages(inputs[place].read())
            except InputError:  # edited since it was read a moment ago
                continue
            probes.append([int(rows[place]), stages.decoded, stages.prepared])
        return probes


class Draft:
    """Features of one tap on their way to a commit; a context manager that leaves nothing behind by itself."""

    def __init__(self, feature_set: FeatureSet, shape: tuple[int, ...], dtype: str, count: int) -> None:
        self.bad: dict[int, InputError] = {}
        self._cut: list[bool] = []
        self._set, self._dtype = feature_set, dtype
        self._views = feature_set.identity.views
        # The scale of int8 is known only when all rows are: until then they are kept as they come.
        self._draft_dtype = "float32" if dtype == "int8" else dtype
        self._writer = self._new_writer(
            {
                "features": (self._draft_dtype, (count, *shape_of_row(shape, self._views))),
                "id": ("uint8", (count, 32)),
            }
        )
        self._start = 0
        self._precision: dict[str, Any] | None = None

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
        self.bad |= {self._start + place: error for place, error in problems.items()}
        self._start += len(values)
        good = np.delete(values, list(problems), axis=0)
        if self._precision is None and len(good):
            self._precision = measure_error(good, stored_arrays(good, self._dtype, self._views), against="float32")

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
            arrays = stored_arrays(arrays["features"][1], "int8", self._views)
        arrays["id"] = ("uint8", ids[keep])
        with self._new_writer({name: (dtype, values.shape) for name, (dtype, values) in arrays.items()}) as writer:
            for name, (_, values) in arrays.items():
                writer.append(name, values)
            return self._commit(writer, rows, keep, record)

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
        key = f"{kept[0]:012d}"
        body = {
            "rows": runs_of_rows(kept),
            "bad": [[int(rows[place]), error.status, error.reason] for place, error in self.bad.items() if keep[place]],
            "fingerprint": self._set.fingerprint,
            "tap": self._set.tap,
            "precision": self._precision,
            **({"cut": runs_of_rows(cut)} if len(cut) else {}),
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
