"""One run of extraction: scan the source, plan what is missing, guard against drift, work it off."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featurecache.backbones.registry import load_backbone, request_digest
from featurecache.errors import InputError
from featurecache.extraction import drift
from featurecache.extraction.engines import Engine
from featurecache.extraction.plan import ShardJob, plan_extraction
from featurecache.extraction.progress import Progress
from featurecache.hashing import digest_json
from featurecache.sources.folder import FolderSource, Listing
from featurecache.sources.images import pillow_defaults
from featurecache.specs import BackboneRequest, ExtractionSettings
from featurecache.store.leases import Leases
from featurecache.store.store import FeatureSet, FeatureStore
from featurecache.store.views import SourceView

if TYPE_CHECKING:
    from featurecache.backbones.backbone import Backbone
    from featurecache.backbones.taps import Tap
    from featurecache.extraction.worker import ShardExtractor

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
"""Seconds between two looks at shards that other writers hold."""


@dataclass
class ExtractionReport:
    """What a run found and did."""

    store: FeatureStore
    sets: list[FeatureSet]
    num_files: int
    num_samples: int
    num_extracted: int = 0
    """Samples that were computed now; the others were cached."""
    num_ignored: int = 0
    bad: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Every bad input that the source holds: path -> (status, reason)."""
    postponed: dict[str, str] = field(default_factory=dict)
    """Files that changed or vanished during the run; the next run takes them."""
    runtime: str | None = None
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "cache": str(self.store.path),
            "features": [describe_set(s) for s in self.sets],
            "files": self.num_files,
            "samples": self.num_samples,
            "extracted": self.num_extracted,
            "ignored_files": self.num_ignored,
            "bad": [{"path": path, "status": status, "reason": why} for path, (status, why) in self.bad.items()],
            "postponed": self.postponed,
            "runtime": self.runtime,
            "seconds": round(self.seconds, 3),
        }


def describe_set(feature_set: FeatureSet) -> dict[str, Any]:
    """Name a feature set in plain JSON values."""
    return {
        "backbone": feature_set.identity.backbone,
        "tap": feature_set.tap,
        "dtype": feature_set.dtype,
        "fingerprint": feature_set.fingerprint,
    }


@dataclass
class ExtractionRun:
    """One call of `run_extraction`: scan, plan, guard, compute."""

    source: FolderSource
    cache: Path
    request: BackboneRequest
    taps: tuple[str, ...]
    settings: ExtractionSettings
    engine: Engine
    progress: Progress

    def go(self) -> ExtractionReport:
        """Do it all."""
        self.source.check()
        digest = self._digest()
        sets = self._recall(digest)
        # Wrong requests must fail before anything is written and before millions of files are read.
        loaded = None if sets else self._load()
        store = FeatureStore.create(self.cache)
        listing, view = self._scan(store)
        if sets is None or self._missing(sets, view):
            backbone, resolved = loaded or self._load()
            sets = [
                store.add_feature_set(backbone.identity, about(backbone), tap.name, self.settings.dtype)
                for tap in resolved
            ]
            report = ExtractionReport(store, sets, len(view.paths), len(view.unique_rows))
            self._compute(report, view, backbone, {tap.name: tap for tap in resolved})
            if digest:
                store.remember_request(digest, backbone.identity.fingerprint, [tap.name for tap in resolved])
        else:
            report = ExtractionReport(store, sets, len(view.paths), len(view.unique_rows))
        report.num_ignored = listing.num_ignored
        report.bad = _bad_inputs(view, report.sets)
        return report

    def _digest(self) -> str | None:
        backbone = request_digest(self.request)
        return digest_json("request", 1, {"backbone": backbone, "taps": list(self.taps)}) if backbone else None

    def _recall(self, digest: str | None) -> list[FeatureSet] | None:
        """Return the feature sets that this very request led to before, without loading the backbone."""
        if digest is None or not (self.cache / "FORMAT.json").exists():
            return None
        store = FeatureStore.open(self.cache)
        remembered = store.recall_request(digest)
        if remembered is None:
            return None
        fingerprint, taps = remembered
        dtype = self.settings.dtype
        known = {s.tap: s for s in store.feature_sets() if s.fingerprint == fingerprint and s.dtype == dtype}
        return [known[tap] for tap in taps] if set(taps) <= set(known) else None

    def _load(self) -> tuple[Backbone, tuple[Tap, ...]]:
        from featurecache.backbones.taps import resolve_taps

        backbone = load_backbone(self.request)
        return backbone, resolve_taps(backbone, self.taps)

    def _scan(self, store: FeatureStore) -> tuple[Listing, SourceView]:
        """Give every file of the source its row; only files that may have changed are read."""
        before = store.views.load(self.source.root)
        listing = self.source.find()
        rows = known_rows(listing, before, len(store.samples))
        unknown = np.flatnonzero(rows < 0)
        self.progress.start("reading", len(unknown))
        for places, ids in self.source.identify(listing, unknown, on_read=self.progress.advance):
            rows[places] = store.samples.append(ids, listing.paths.take(places), listing.stamps[places, 0])
        root = str(self.source.root.resolve())
        view = SourceView(root, listing.paths, listing.stamps, rows, listing.problems)
        if not view.same_as(before):
            view = store.views.save(view)
        return listing, view

    def _missing(self, sets: Sequence[FeatureSet], view: SourceView, postponed: Collection[int] = ()) -> list[ShardJob]:
        cached = {}
        for feature_set in sets:
            features = feature_set.open()
            features.check_files()  # a shard that is gone must not pass for cached
            cached[feature_set.tap] = features.rows
        wanted = view.unique_rows
        if postponed:
            wanted = np.setdiff1d(wanted, np.array(sorted(postponed), np.int64))
        return plan_extraction(wanted, cached, shard_rows=self.settings.shard_rows)

    def _compute(self, report: ExtractionReport, view: SourceView, backbone: Backbone, taps: Mapping[str, Tap]) -> None:
        from featurecache.extraction.worker import ShardExtractor

        jobs = self._missing(report.sets, view)
        fingerprint = report.store.path / "features" / backbone.identity.fingerprint
        extractor = ShardExtractor(
            backbone=backbone,
            taps=taps,
            sets={s.tap: s for s in report.sets},
            path_of=lambda rows: [self.source.root / path for path in view.paths_of(rows)],
            ids=report.store.samples.ids,
            # For a look at a few images a faster runtime is not worth its preparation.
            settings=self.settings if jobs else replace(self.settings, runtime="torch"),
            leases=Leases(fingerprint / "leases"),
            remembered_runtime=_remembered_runtime(report.sets),
            on_rows=lambda count, bad: self.progress.advance(count, bad=bad),
        )
        try:
            with pillow_defaults():
                self._guard(report.sets, view, extractor, jobs)
                if not jobs:
                    self._record_probes(report.sets, extractor, tuple(taps))
                    return
                self.progress.start("extracting", sum(len(job.rows) for job in jobs))
                self._work_off(report, view, extractor, jobs)
                self._record_probes(report.sets, extractor, tuple(taps))
            report.runtime = extractor.runtime_name
        finally:
            extractor.close()

    def _work_off(
        self, report: ExtractionReport, view: SourceView, extractor: ShardExtractor, jobs: list[ShardJob]
    ) -> None:
        """Do all jobs; look again until what other writers held is done, by them or by us."""
        postponed: dict[int, tuple[str, str]] = {}
        pause = _FIRST_PAUSE
        while jobs:
            num_rows, leased = 0, False
            for outcome in self.engine.map(extractor, jobs):
                num_rows += outcome.num_rows
                postponed |= outcome.postponed
                leased = leased or outcome.leased
            report.num_extracted += num_rows
            jobs = self._missing(report.sets, view, postponed)
            if not num_rows and not leased:
                break
            pause = _FIRST_PAUSE if num_rows else min(2 * pause, _LONGEST_PAUSE)
            if jobs and not num_rows:
                sleep(pause)
        report.postponed = dict(postponed.values())

    def _guard(
        self, sets: Sequence[FeatureSet], view: SourceView, extractor: ShardExtractor, jobs: Sequence[ShardJob]
    ) -> None:
        """Refuse to extend features that this machine would make differently."""
        for feature_set in sets:
            last = feature_set.folder.last()
            if last is None:
                continue
            taps = next((job.taps for job in jobs if feature_set.tap in job.taps), tuple(extractor.taps))
            runtime = extractor.runtime(taps)
            preprocess, batch_size = extractor.backbone.preprocess, self.settings.batch_size
            differing = drift.changes(last.body["provenance"], drift.provenance(runtime, self.settings))
            if (known := feature_set.probe()) is not None:
                with drift.explained(differing, "extract into another cache"):
                    drift.check_probe(known, feature_set.tap, runtime, preprocess, batch_size=batch_size)
            if differing and jobs:
                features = feature_set.open()
                held = np.intersect1d(drift.probed_rows(features), view.unique_rows)
                files = [self.source.root / path for path in view.paths_of(held)]
                paths = dict(zip(held.tolist(), files, strict=True))
                with drift.explained(differing, "extract into another cache"):
                    drift.check_stored(features, paths, runtime, preprocess, batch_size=batch_size)

    def _record_probes(self, sets: Sequence[FeatureSet], extractor: ShardExtractor, taps: tuple[str, ...]) -> None:
        """Keep what the program's own images gave, so that `predict` can notice another environment elsewhere."""
        lacking = [feature_set for feature_set in sets if feature_set.probe() is None]
        if not lacking:
            return
        runtime = extractor.runtime(taps)
        preprocess, batch_size = extractor.backbone.preprocess, self.settings.batch_size
        try:
            record = drift.probe(runtime, preprocess, batch_size=batch_size)
        except InputError:  # this preprocess has limits that the program's own images exceed
            return
        for feature_set in lacking:
            features = {feature_set.tap: record["features"][feature_set.tap]}
            feature_set.keep_probe(
                {**record, "features": features, "provenance": drift.provenance(runtime, self.settings)}
            )


def about(backbone: Backbone) -> dict[str, Any]:
    """What `info` says of a backbone beside its identity."""
    return {
        "num_parameters": backbone.num_parameters,
        "num_trainable": backbone.num_trainable,
        "weights_source": backbone.weights_source,
        "license": backbone.license,
        "classifier": backbone.classifier,
        "notes": list(backbone.notes),
    }


def known_rows(listing: Listing, view: SourceView | None, num_samples: int) -> NDArray[np.int64]:
    """Return the row of each listed file that is as it was when the source was last extracted, -1 for the others."""
    if view is None:
        return np.full(len(listing.paths), -1, np.int64)
    places = listing.unchanged_since(view.paths, view.stamps)
    rows = np.where(places < 0, -1, view.rows[places])
    return np.where(rows < num_samples, rows, -1)


def _remembered_runtime(sets: Sequence[FeatureSet]) -> str | None:
    """The runtime of the newest commit: a resumed run must not mix runtimes in one array."""
    for feature_set in sets:
        commit = feature_set.folder.last()
        if commit is not None:
            return str(commit.body["provenance"]["runtime"])
    return None


def _bad_inputs(view: SourceView, sets: Sequence[FeatureSet]) -> dict[str, tuple[str, str]]:
    bad = {path: ("unreadable", reason) for path, reason in view.problems.items()}
    for feature_set in sets:
        rows = feature_set.open().bad
        for place in np.flatnonzero(np.isin(view.rows, list(rows))).tolist():
            bad[view.paths[place]] = rows[int(view.rows[place])]
    return dict(sorted(bad.items()))
