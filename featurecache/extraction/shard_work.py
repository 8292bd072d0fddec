"""Shard jobs from plan to commits: guard against drift, spread them, look again until none is left."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.taps import Tap
from featurecache.errors import InputError
from featurecache.extraction import drift
from featurecache.extraction.engines import Engine
from featurecache.extraction.plan import ShardJob
from featurecache.extraction.progress import Progress
from featurecache.extraction.worker import ShardExtractor
from featurecache.sources.images import pillow_defaults
from featurecache.specs import ExtractionSettings
from featurecache.store.leases import Leases
from featurecache.store.store import FeatureSet, FeatureStore
from featurecache.store.views import SourceView

Plan = Callable[[Collection[int]], list[ShardJob]]
"""Returns the jobs that are left to do; told the rows that cannot be computed now."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
"""Seconds between two looks at shards that other writers hold."""


@dataclass(frozen=True)
class WorkDone:
    """What was computed now, by which runtime, and what had to be left: path -> reason."""

    num_rows: int
    runtime: str | None
    postponed: dict[str, str]


@dataclass(frozen=True)
class ShardWork:
    """Everything that shard jobs need.

    Attributes
    ----------
    sets : sequence of FeatureSet
        What is extended; all of one fingerprint and one number type.
    view, root : SourceView, Path
        The files of the source, and where they lie.
    taps : mapping of str to Tap
        The tap of each set.
    """

    store: FeatureStore
    sets: Sequence[FeatureSet]
    view: SourceView
    root: Path
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
        jobs = plan(())
        extractor = self._extractor(any_jobs=bool(jobs))
        try:
            with pillow_defaults():
                self._guard(extractor, jobs)
                done = self._work_off(extractor, plan, jobs) if jobs else WorkDone(0, None, {})
                self._record_probes(extractor)
            return done
        finally:
            extractor.close()

    def _extractor(self, *, any_jobs: bool) -> ShardExtractor:
        fingerprint = self.store.path / "features" / self.sets[0].fingerprint
        return ShardExtractor(
            backbone=self.backbone,
            taps=self.taps,
            sets={s.tap: s for s in self.sets},
            path_of=lambda rows: [self.root / path for path in self.view.paths_of(rows)],
            ids=self.store.samples.ids,
            # For a look at a few images a faster runtime is not worth its preparation.
            settings=self.settings if any_jobs else replace(self.settings, runtime="torch"),
            leases=Leases(fingerprint / "leases"),
            remembered_runtime=remembered_runtime(self.sets),
            on_rows=lambda count, bad: self.progress.advance(count, bad=bad),
        )

    def _work_off(self, extractor: ShardExtractor, plan: Plan, jobs: list[ShardJob]) -> WorkDone:
        """Do all jobs; look again until what other writers held is done, by them or by us."""
        self.progress.start("extracting", sum(len(job.rows) for job in jobs))
        postponed: dict[int, tuple[str, str]] = {}
        total, pause = 0, _FIRST_PAUSE
        while jobs:
            num_rows, leased = 0, False
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
        return WorkDone(total, extractor.runtime_name, dict(postponed.values()))

    def _guard(self, extractor: ShardExtractor, jobs: Sequence[ShardJob]) -> None:
        """Refuse to extend features that this machine would make differently."""
        for feature_set in self.sets:
            last = feature_set.folder.last()
            if last is None:
                continue
            taps = next((job.taps for job in jobs if feature_set.tap in job.taps), tuple(self.taps))
            runtime = extractor.runtime(taps)
            preprocess, how = self.backbone.preprocess, self._how_to_check()
            differing = drift.changes(last.body["provenance"], drift.provenance(runtime, self.settings))
            if (known := feature_set.probe()) is not None:
                with drift.explained(differing, "extract into another cache"):
                    drift.check_probe(known, feature_set.tap, runtime, preprocess, **how)
            if differing and jobs:
                features = feature_set.open()
                held = np.intersect1d(drift.probed_rows(features), self.view.unique_rows)
                files = [self.root / path for path in self.view.paths_of(held)]
                paths = dict(zip(held.tolist(), files, strict=True))
                with drift.explained(differing, "extract into another cache"):
                    drift.check_stored(features, paths, runtime, preprocess, **how)

    def _how_to_check(self) -> dict[str, Any]:
        return {"views": self.sets[0].identity.views, "batch_size": self.settings.batch_size}

    def _record_probes(self, extractor: ShardExtractor) -> None:
        """Keep what the program's own images gave, so that `predict` can notice another environment elsewhere."""
        lacking = [feature_set for feature_set in self.sets if feature_set.probe() is None]
        if not lacking:
            return
        runtime = extractor.runtime(tuple(self.taps))
        try:
            record = drift.probe(runtime, self.backbone.preprocess, **self._how_to_check())
        except InputError:  # this preprocess has limits that the program's own images exceed
            return
        for feature_set in lacking:
            features = {feature_set.tap: record["features"][feature_set.tap]}
            feature_set.keep_probe(
                {**record, "features": features, "provenance": drift.provenance(runtime, self.settings)}
            )


def remembered_runtime(sets: Sequence[FeatureSet]) -> str | None:
    """The runtime of the newest commit: a resumed run must not mix runtimes in one array."""
    for feature_set in sets:
        commit = feature_set.folder.last()
        if commit is not None:
            return str(commit.body["provenance"]["runtime"])
    return None
