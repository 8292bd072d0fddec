"""Shard jobs from plan to commits: guard against drift, spread them, look again until none is left."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter, sleep
from typing import Any

import numpy as np

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.taps import Tap
from featurecache.errors import InputError
from featurecache.extraction import drift
from featurecache.extraction.engines import Engine
from featurecache.extraction.meter import Meter, Usage
from featurecache.extraction.modality import modality_of
from featurecache.extraction.plan import ShardJob
from featurecache.extraction.progress import Progress
from featurecache.extraction.worker import ShardExtractor
from featurecache.sources.inputs import Input
from featurecache.sources.source import Source
from featurecache.specs import ExtractionSettings
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.leases import Leases
from featurecache.store.listings import Listing
from featurecache.store.samples import Rows
from featurecache.store.store import FeatureStore

Plan = Callable[[Collection[int]], list[ShardJob]]
"""Returns the jobs that are left to do; told the rows that cannot be computed now."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
"""Seconds between two looks at shards that other writers hold."""
_SECONDS_BETWEEN_REMARKS = 1.0


@dataclass(frozen=True)
class WorkDone:
    """What was computed now, by which runtime, and what had to be left: name -> reason."""

    num_rows: int
    runtime: str | None
    postponed: dict[str, str]
    usage: Usage | None = None
    """Where the time went; ``None`` if nothing had to be computed."""
    trial: Mapping[str, float] = field(default_factory=dict)
    """Inputs per second of each runtime that was tried before one was chosen."""
    startup_seconds: float = 0.0
    """Until the runtime was ready and compared with what it had made before."""


@dataclass(frozen=True)
class ShardWork:
    """Everything that shard jobs need.

    Attributes
    ----------
    sets : sequence of FeatureSet
        What is extended; all of one fingerprint, each in its own number type.
    source, listing : Source, Listing
        Where the inputs come from, and what it holds.
    taps : mapping of str to Tap
        The tap of each set.
    """

    store: FeatureStore
    sets: Sequence[FeatureSet]
    source: Source
    listing: Listing
    backbone: Backbone
    taps: Mapping[str, Tap]
    settings: ExtractionSettings
    engine: Engine
    progress: Progress

    def do(self, plan: Plan) -> WorkDone:
        """Do all jobs that a plan gives, by this process or by others that are at it.

        Raises
        ------
        DriftError
            This machine makes other features than those that are there.
        """
        jobs, started = plan(()), perf_counter()
        extractor = self._extractor(any_jobs=bool(jobs))
        try:
            with extractor.modality.undisturbed():
                self._guard(extractor, jobs)
                if jobs:
                    extractor.runtime(jobs[0].taps)
                self._keep_references(extractor)
                startup = perf_counter() - started
                done = self._work_off(extractor, plan, jobs) if jobs else WorkDone(0, None, {})
            return replace(done, trial=extractor.trial, startup_seconds=startup)
        finally:
            extractor.close()

    def _extractor(self, *, any_jobs: bool) -> ShardExtractor:
        fingerprint = self.store.path / "features" / self.sets[0].fingerprint
        return ShardExtractor(
            backbone=self.backbone,
            modality=modality_of(self.backbone.preprocess, self.backbone.tokenizer, self.sets[0].identity.views),
            taps=self.taps,
            sets={s.tap: s for s in self.sets},
            inputs_of=self._inputs_of,
            ids=self.store.samples.ids,
            # For a look at a few inputs a faster runtime is not worth its preparation.
            settings=self.settings if any_jobs else replace(self.settings, runtime="torch"),
            leases=Leases(fingerprint / "leases"),
            remembered=remembered_provenance(self.sets),
        )

    def _inputs_of(self, rows: Rows) -> Sequence[Input]:
        ids = [identity.tobytes().hex() for identity in self.store.samples.ids[rows]]
        return self.source.inputs(self.listing.paths_of(rows), ids, self.listing.stamps_of(rows))

    def _work_off(self, extractor: ShardExtractor, plan: Plan, jobs: list[ShardJob]) -> WorkDone:
        """Do all jobs; look again until what other writers held is done, by them or by us."""
        self.progress.start("extracting", sum(len(job.rows) for job in jobs))
        postponed: dict[int, tuple[str, str]] = {}
        total, pause = 0, _FIRST_PAUSE
        extractor.on_rows = self._shown(extractor.meter)
        while jobs:
            num_rows, leased = 0, False
            with extractor.meter.running():
                for outcome in self.engine.map(extractor, jobs):
                    num_rows += outcome.num_rows
                    postponed |= outcome.postponed
                    leased = leased or outcome.leased
            total += num_rows
            jobs = plan(postponed)
            if not num_rows and not leased:
                break
            pause = _FIRST_PAUSE if num_rows else min(2 * pause, _LONGEST_PAUSE)
            if jobs and not num_rows:
                sleep(pause)
        return WorkDone(total, extractor.runtime_name, dict(postponed.values()), extractor.meter.usage())

    def _shown(self, meter: Meter) -> Callable[[int, int], None]:
        """Return what draws progress, and from time to time says what the run is waiting for."""
        said = perf_counter()

        def show(count: int, bad: int) -> None:
            nonlocal said
            self.progress.advance(count, bad=bad)
            if perf_counter() - said > _SECONDS_BETWEEN_REMARKS:
                said = perf_counter()
                self.progress.say(meter.usage().sentence())

        return show

    def _guard(self, extractor: ShardExtractor, jobs: Sequence[ShardJob]) -> None:
        """Refuse to extend features that this machine would make differently."""
        for feature_set in self.sets:
            made_with = provenance_of(feature_set)
            if made_with is None:
                continue
            taps = next((job.taps for job in jobs if feature_set.tap in job.taps), tuple(self.taps))
            runtime = extractor.runtime(taps)
            modality = extractor.modality
            differing = drift.changes(made_with, drift.provenance(runtime))
            if (known := feature_set.reference()) is not None:
                with drift.explained(differing, "extract into another cache"):
                    drift.check_reference(known, feature_set.tap, runtime, modality)
            if differing and jobs:
                features = feature_set.open()
                held = np.intersect1d(drift.reference_rows(features), self.listing.unique_rows)
                inputs = dict(zip(held.tolist(), self._inputs_of(held), strict=True))
                with drift.explained(differing, "extract into another cache"):
                    drift.check_stored(features, inputs, runtime, modality)

    def _keep_references(self, extractor: ShardExtractor) -> None:
        """See what the program's own inputs give, so that `predict` can notice another environment elsewhere.

        The record that is published first stays, and says for all writers which runtime and which size of batches make
        the features: several that begin at once may find one or the other faster.
        """
        lacking = [feature_set for feature_set in self.sets if feature_set.reference() is None]
        if not lacking:
            return
        runtime = extractor.runtime(tuple(self.taps))
        try:
            record = drift.reference_record(runtime, extractor.modality)
        except InputError:  # this preprocess has limits that the program's own inputs exceed
            return
        record["provenance"] = drift.provenance(runtime)
        for feature_set in lacking:
            feature_set.keep_reference({**record, "features": {feature_set.tap: record["features"][feature_set.tap]}})
        extractor.agree(remembered_provenance(self.sets))


def remembered_provenance(sets: Sequence[FeatureSet]) -> dict[str, Any] | None:
    """Provenance of what some set holds: a resumed run must not mix runtimes or sizes of batches in one array."""
    return next((made_with for each in sets if (made_with := provenance_of(each)) is not None), None)


def provenance_of(feature_set: FeatureSet) -> dict[str, Any] | None:
    """Provenance of the newest commit, or, before there is one, of the writer that began."""
    if (commit := feature_set.folder.last()) is not None:
        return dict(commit.body["provenance"])
    if (known := feature_set.reference()) is not None:
        return dict(known["provenance"])
    return None
