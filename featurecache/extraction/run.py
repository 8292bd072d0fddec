"""One run of extraction: scan the source, plan what is missing, have it worked off."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featurecache.backbones.registry import request_digest
from featurecache.errors import ReportWarning, unique_warnings
from featurecache.extraction.engines import Engine
from featurecache.extraction.inventory import check_modality, look
from featurecache.extraction.meter import Usage
from featurecache.extraction.plan import ShardJob, plan_extraction
from featurecache.extraction.progress import Progress
from featurecache.hashing import digest_json
from featurecache.ignored import IgnoredFiles
from featurecache.sources.folder import Entries
from featurecache.sources.source import Source
from featurecache.specs import BackboneRequest, ExtractionSettings, ViewSpec, check_takes_views
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.flatness import rows_recorded
from featurecache.store.listings import Listing
from featurecache.store.samples import Ids, Rows
from featurecache.store.shards import load_hdf5
from featurecache.store.soundness import float32_warning, held_type, warnings_of
from featurecache.store.store import FeatureStore

if TYPE_CHECKING:
    from featurecache.backbones.backbone import Backbone
    from featurecache.backbones.taps import Tap


@dataclass
class ExtractionReport:
    """What a run found and did."""

    store: FeatureStore
    sets: list[FeatureSet]
    num_files: int
    num_samples: int
    num_extracted: int = 0
    """Samples that were computed now; with views, plain features and those of views count separately."""
    num_cached: int = 0
    """Samples that needed nothing, counted likewise."""
    ignored: IgnoredFiles = field(default_factory=IgnoredFiles)
    """Files that are no inputs by their name."""
    num_cut: int = 0
    """Samples of which only the beginning fits into the network."""
    noun: str = "files"
    """What the inputs of the source are called."""
    bad: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Every bad input that the source holds: path -> (status, reason)."""
    postponed: dict[str, str] = field(default_factory=dict)
    """Files that changed or vanished during the run; the next run takes them."""
    runtime: str | None = None
    seconds: float = 0.0
    trial: dict[str, float] = field(default_factory=dict)
    """Inputs per second of each runtime that was tried before one was chosen."""
    startup_seconds: float = 0.0
    """Of those, until the network was loaded and its runtime ready."""
    warnings: list[ReportWarning] = field(default_factory=list)
    """What is doubtful, of the source, the backbone and the stored features."""
    usage: list[Usage] = field(default_factory=list)
    """Where the time went, for each pass over inputs: of the plain ones, and of views."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "cache": str(self.store.path),
            "features": [s.to_json() for s in self.sets],
            "files": self.num_files,
            "samples": self.num_samples,
            "extracted": self.num_extracted,
            "ignored_files": self.ignored.count,
            "cut": self.num_cut,
            "bad": [{"path": path, "status": status, "reason": why} for path, (status, why) in self.bad.items()],
            "postponed": self.postponed,
            "runtime": self.runtime,
            "trial": {name: round(rate, 2) for name, rate in self.trial.items()},
            "seconds": round(self.seconds, 3),
            "startup_seconds": round(self.startup_seconds, 3),
            "usage": [usage.to_json() for usage in self.usage],
            "warnings": [warning.to_json() for warning in self.warnings],
        }


@dataclass
class ExtractionRun:
    """One call of `run_extraction`: scan, plan, guard, compute.

    With views, the plain features are cached too: heads that are trained on views are judged on them.
    """

    source: Source
    cache: Path
    request: BackboneRequest
    taps: tuple[str, ...]
    settings: ExtractionSettings
    engine: Engine
    progress: Progress
    views: ViewSpec | None = None
    _loaded: tuple[Backbone, tuple[Tap, ...]] | None = field(default=None, init=False)
    _loading_seconds: float = field(default=0.0, init=False)
    _chosen_types: dict[str, str] | None = field(default=None, init=False)

    def go(self) -> ExtractionReport:
        """Do it all."""
        if self.views is not None:
            check_takes_views(self.source.modality, f"the source {self.source.root}")
        self.source.check()
        variants = [None] if self.views is None else [None, self.views]
        known = {views: self._recall(self._digest(views)) for views in variants}
        if len({tuple(s.dtype for s in sets) for sets in known.values() if sets}) > 1:
            known = dict.fromkeys(variants)  # heads on views are judged on plain features of the same type
        # Wrong requests must fail before anything is written and before millions of files are read.
        if not all(known.values()):
            self._backbone()
        store = FeatureStore.create(self.cache)
        listing = self._scan(store)
        report = ExtractionReport(store, [], len(listing.paths), len(listing.unique_rows), noun=self.source.noun)
        report.ignored = listing.ignored
        report.warnings += listing.ignored.warnings()
        for views in variants:
            self._extract(report, listing, views, known[views])
        report.startup_seconds += self._loading_seconds
        report.num_cut = _count_cut(listing, report.sets)
        report.bad = _bad_inputs(listing, report.sets)
        report.warnings = self._warnings(report, listing)
        return report

    def _warnings(self, report: ExtractionReport, listing: Listing) -> list[ReportWarning]:
        """Return what is doubtful, of a set and of its views once; and where ``auto`` stands for another type."""
        found = [*report.warnings, *(w for s in report.sets for w in warnings_of(s, listing.unique_rows))]
        if self.settings.dtype == "auto":
            found += [w for s in report.sets if (w := float32_warning(report.store, s)) is not None]
        return unique_warnings(found)

    def _extract(
        self, report: ExtractionReport, listing: Listing, views: ViewSpec | None, sets: list[FeatureSet] | None
    ) -> None:
        """Make the cache hold the plain features of the source, or those of its views."""
        before = report.num_extracted
        if sets is None or self._missing(sets, listing):
            backbone, taps = self._backbone()
            identity = backbone.identity.with_views(views)
            types = self._types(report.store, listing, backbone, taps)
            sets = [report.store.add_feature_set(identity, about(backbone), tap.name, types[tap.name]) for tap in taps]
            for feature_set in sets:
                for warning in backbone.warnings:
                    feature_set.keep_warning(warning)
            self._compute(report, sets, listing, backbone, taps)
            if digest := self._digest(views):
                report.store.remember_request(digest, identity.fingerprint, [tap.name for tap in taps])
        report.sets += sets
        report.num_cached += report.num_samples - (report.num_extracted - before)

    def _digest(self, views: ViewSpec | None) -> str | None:
        if self._backbone_digest is None:
            return None
        request: dict[str, Any] = {"backbone": self._backbone_digest, "taps": list(self.taps)}
        if views is not None:
            request["views"] = asdict(views)
        # Notes of edition 1 were made when other defaults held.
        return digest_json("request", 2, request)

    @cached_property
    def _backbone_digest(self) -> str | None:
        return request_digest(self.request)

    def _recall(self, digest: str | None) -> list[FeatureSet] | None:
        """Return the feature sets that this very request led to before, without loading the backbone."""
        if digest is None or not (self.cache / "FORMAT.json").exists():
            return None
        store = FeatureStore.open(self.cache)
        remembered = store.recall_request(digest)
        if remembered is None:
            return None
        fingerprint, taps = remembered
        sets = [s for s in store.feature_sets() if s.fingerprint == fingerprint and s.tap in taps]
        if self.settings.dtype == "auto":
            types = {tap: held_type(sets, fingerprint, tap) for tap in taps}
        else:
            types = dict.fromkeys(taps, self.settings.dtype)
        known = {s.tap: s for s in sets if s.dtype == types[s.tap]}
        for feature_set in known.values():
            check_modality(self.source, feature_set.identity.preprocess, self.request.name)
        return [known[tap] for tap in taps] if set(taps) <= set(known) else None

    def _types(self, store: FeatureStore, listing: Listing, backbone: Backbone, taps: Sequence[Tap]) -> dict[str, str]:
        """Choose the stored type of each tap, once for the plain features and those of views."""
        from featurecache.extraction.stored_type import TypeChooser

        if self._chosen_types is None:
            started = perf_counter()
            chooser = TypeChooser(store, self.source, listing, backbone, self.settings, self.views)
            self._chosen_types = chooser.choose(taps)
            self._loading_seconds += perf_counter() - started
        return self._chosen_types

    def _backbone(self) -> tuple[Backbone, tuple[Tap, ...]]:
        """Load the backbone when it is first needed."""
        started = perf_counter()
        from featurecache.backbones.taps import with_default_warning
        from featurecache.extraction.continuity import load_or_continue
        from featurecache.extraction.modality import modality_of

        if self._loaded is None:
            load_hdf5()
            backbone, taps = load_or_continue(self.cache, self.request, self.taps)
            check_modality(self.source, backbone.preprocess, backbone.name)
            modality_of(backbone.preprocess, backbone.tokenizer)  # impossible settings show here
            self._loaded = with_default_warning(backbone, self.taps), taps
            self._loading_seconds += perf_counter() - started
        return self._loaded

    def _scan(self, store: FeatureStore) -> Listing:
        """Give every file of the source its row, and keep what the source holds now."""
        before = store.listings.load(self.source.root)

        def add(ids: Ids, places: NDArray[np.int64], listing: Entries) -> Rows:
            return store.samples.append(ids, listing.paths.take(places), listing.stamps[places, 0])

        _, listing = look(store, self.source, before, add, self.progress)
        if not listing.same_as(before):
            listing = store.listings.save(listing)
        return listing

    def _missing(self, sets: Sequence[FeatureSet], listing: Listing, postponed: Collection[int] = ()) -> list[ShardJob]:
        cached = {}
        for feature_set in sets:
            features = feature_set.open()
            features.check_files()  # a shard that is gone must not pass for cached
            cached[feature_set.tap] = features.rows
        wanted = listing.unique_rows
        if postponed:
            wanted = np.setdiff1d(wanted, np.array(sorted(postponed), np.int64))
        return plan_extraction(wanted, cached, shard_rows=self.settings.shard_rows)

    def _compute(
        self,
        report: ExtractionReport,
        sets: Sequence[FeatureSet],
        listing: Listing,
        backbone: Backbone,
        taps: Sequence[Tap],
    ) -> None:
        started = perf_counter()
        from featurecache.extraction.shard_work import ShardWork

        self._loading_seconds += perf_counter() - started
        work = ShardWork(
            store=report.store,
            sets=sets,
            source=self.source,
            listing=listing,
            backbone=backbone,
            taps={tap.name: tap for tap in taps},
            settings=self.settings,
            engine=self.engine,
            progress=self.progress,
        )
        done = work.do(lambda postponed: self._missing(sets, listing, postponed))
        report.num_extracted += done.num_rows
        report.runtime = done.runtime or report.runtime
        report.postponed |= done.postponed
        report.startup_seconds += done.startup_seconds
        report.trial |= done.trial
        if done.usage is not None:
            report.usage.append(done.usage)


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


def _count_cut(listing: Listing, sets: Sequence[FeatureSet]) -> int:
    commits = [commit for feature_set in sets for commit in feature_set.open().commits]
    return len(rows_recorded(commits, "cut", listing.unique_rows))


def _bad_inputs(listing: Listing, sets: Sequence[FeatureSet]) -> dict[str, tuple[str, str]]:
    bad = {path: ("unreadable", reason) for path, reason in listing.problems.items()}
    for feature_set in sets:
        rows = feature_set.open().bad
        for place in np.flatnonzero(np.isin(listing.rows, list(rows))).tolist():
            bad[listing.paths[place]] = rows[int(listing.rows[place])]
    return dict(sorted(bad.items()))
