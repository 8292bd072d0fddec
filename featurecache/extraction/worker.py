"""One shard job: rows of one or more taps computed in one pass, written, and committed."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.runtimes import Runtime, open_runtime
from featurecache.backbones.taps import Tap
from featurecache.errors import InputError
from featurecache.extraction.pipeline import TRANSIENT, FileInput, run_pipeline, to_stored
from featurecache.extraction.plan import ShardJob
from featurecache.specs import ExtractionSettings
from featurecache.store.features import runs_of_rows
from featurecache.store.shards import ShardWriter
from featurecache.store.store import FeatureSet
from featurecache.versions import installed_versions

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardOutcome:
    """What a job did: ``num_rows`` committed rows, how many of them are bad, and inputs left for the next run."""

    num_rows: int
    num_bad: int
    postponed: dict[str, str]


@dataclass
class ShardExtractor:
    """Computes shard jobs with one backbone; loads the runtime when the first job comes."""

    backbone: Backbone
    taps: Mapping[str, Tap]
    sets: Mapping[str, FeatureSet]
    path_of: Callable[[NDArray[np.int64]], list[Path]]
    ids: NDArray[np.uint8]
    settings: ExtractionSettings
    remembered_runtime: str | None = None
    on_rows: Callable[[int, int], None] = lambda rows, bad: None
    _runtimes: dict[tuple[str, ...], Runtime] = field(default_factory=dict)

    def __call__(self, job: ShardJob) -> ShardOutcome:
        """Compute, write and commit one job."""
        runtime = self._runtime(job.taps)
        paths = self.path_of(job.rows)
        inputs = [FileInput(path, self.ids[row].tobytes().hex()) for path, row in zip(paths, job.rows, strict=True)]
        bad: dict[str, dict[int, InputError]] = {tap: {} for tap in job.taps}
        with ExitStack() as stack:
            writers = {tap: stack.enter_context(self._writer(tap, len(job.rows))) for tap in job.taps}
            start = 0
            for outcome in run_pipeline(
                inputs,
                runtime,
                self.backbone.preprocess,
                batch_size=self.settings.batch_size,
                num_workers=self.settings.num_workers,
            ):
                for tap, writer in writers.items():
                    stored, problems = to_stored(outcome.features[tap], outcome.problems, self.settings.dtype)
                    writer.append("features", stored)
                    bad[tap] |= {start + place: error for place, error in problems.items()}
                start += len(outcome.problems)
                self.on_rows(len(outcome.problems), sum(problem is not None for problem in outcome.problems))
            for tap, writer in writers.items():
                writer.append("id", self.ids[job.rows])
                self._publish(tap, job, writer, bad[tap], runtime)
        return _summary(job, inputs, bad)

    def close(self) -> None:
        """Release the runtimes."""
        for runtime in self._runtimes.values():
            runtime.close()

    @property
    def runtime_name(self) -> str | None:
        """Name of the runtime that ran, once one has."""
        return next((runtime.name for runtime in self._runtimes.values()), None)

    def _runtime(self, taps: tuple[str, ...]) -> Runtime:
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

    def _writer(self, tap: str, count: int) -> ShardWriter:
        layout = {
            "features": (self.settings.dtype, (count, *self.taps[tap].shape)),
            "id": ("uint8", (count, 32)),
        }
        identity = self.sets[tap].identity
        attributes = {
            "format": "featurecache",
            "kind": "features",
            "backbone": identity.backbone,
            "tap": tap,
            "fingerprint": identity.fingerprint,
        }
        return self.sets[tap].folder.writer(layout, attributes)

    def _publish(
        self, tap: str, job: ShardJob, writer: ShardWriter, bad: dict[int, InputError], runtime: Runtime
    ) -> None:
        keep = np.array([place not in bad or bad[place].status not in TRANSIENT for place in range(len(job.rows))])
        if not keep.any():
            return
        if not keep.all():
            with self._writer(tap, int(keep.sum())) as smaller:
                for name in ("features", "id"):
                    smaller.append(name, writer.written(name)[keep])
                self._commit(tap, job, smaller, keep, bad, runtime)
        else:
            self._commit(tap, job, writer, keep, bad, runtime)

    def _commit(
        self,
        tap: str,
        job: ShardJob,
        writer: ShardWriter,
        keep: NDArray[np.bool_],
        bad: dict[int, InputError],
        runtime: Runtime,
    ) -> None:
        rows = job.rows[keep]
        key = f"{rows[0]:012d}"
        shard = writer.finish(key)
        body = {
            "rows": runs_of_rows(rows),
            "bad": [[int(job.rows[place]), error.status, error.reason] for place, error in bad.items() if keep[place]],
            "fingerprint": self.sets[tap].fingerprint,
            "tap": tap,
            "provenance": provenance(runtime, self.settings),
        }
        if not self.sets[tap].folder.commit(key, shard, body):
            logger.info("rows from %d of tap %s were committed by another writer first", rows[0], tap)


def provenance(runtime: Runtime, settings: ExtractionSettings) -> dict[str, Any]:
    """What ran, for the record: no times and no names of machines, so that equal work gives equal records."""
    return {
        "runtime": runtime.name,
        "device": runtime.device,
        "batch_size": settings.batch_size,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "versions": installed_versions(),
    }


def _summary(job: ShardJob, inputs: list[FileInput], bad: dict[str, dict[int, InputError]]) -> ShardOutcome:
    union = {place: error for problems in bad.values() for place, error in problems.items()}
    postponed = {str(inputs[place].path): error.reason for place, error in union.items() if error.status in TRANSIENT}
    return ShardOutcome(len(job.rows) - len(postponed), len(union) - len(postponed), postponed)
