"""One run of extraction: scan the source, plan what is missing, have it worked off."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featurecache.backbones.registry import load_backbone, request_digest
from featurecache.extraction.engines import Engine
from featurecache.extraction.inventory import check_modality, look
from featurecache.extraction.plan import ShardJob, plan_extraction
from featurecache.extraction.progress import Progress
from featurecache.hashing import digest_json
from featurecache.sources.folder import Listing
from featurecache.sources.modality import modality_of
from featurecache.sources.source import Source
from featurecache.specs import BackboneRequest, ExtractionSettings
from featurecache.store.samples import Ids, Rows
from featurecache.store.store import FeatureSet, FeatureStore
from featurecache.store.views import SourceView

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
    """Samples that were computed now; the others were cached."""
    num_ignored: int = 0
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

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "cache": str(self.store.path),
            "features": [s.to_json() for s in self.sets],
            "files": self.num_files,
            "samples": self.num_samples,
            "extracted": self.num_extracted,
            "ignored_files": self.num_ignored,
            "cut": self.num_cut,
            "bad": [{"path": path, "status": status, "reason": why} for path, (status, why) in self.bad.items()],
            "postponed": self.postponed,
            "runtime": self.runtime,
            "seconds": round(self.seconds, 3),
        }


@dataclass
class ExtractionRun:
    """One call of `run_extraction`: scan, plan, guard, compute."""

    source: Source
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
            self._compute(report, view, backbone, resolved)
            if digest:
                store.remember_request(digest, backbone.identity.fingerprint, [tap.name for tap in resolved])
        else:
            report = ExtractionReport(store, sets, len(view.paths), len(view.unique_rows))
        report.num_ignored, report.noun = listing.num_ignored, self.source.noun
        report.num_cut = _count_cut(view, report.sets)
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
        for feature_set in known.values():
            check_modality(self.source, feature_set.identity.preprocess, self.request.name)
        return [known[tap] for tap in taps] if set(taps) <= set(known) else None

    def _load(self) -> tuple[Backbone, tuple[Tap, ...]]:
        from featurecache.backbones.taps import resolve_taps

        backbone = load_backbone(self.request)
        check_modality(self.source, backbone.preprocess, backbone.name)
        modality_of(backbone.preprocess, backbone.tokenizer)  # impossible settings show here
        return backbone, resolve_taps(backbone, self.taps)

    def _scan(self, store: FeatureStore) -> tuple[Listing, SourceView]:
        """Give every file of the source its row, and keep what the source holds now."""
        before = store.views.load(self.source.root)

        def add(ids: Ids, places: NDArray[np.int64], listing: Listing) -> Rows:
            return store.samples.append(ids, listing.paths.take(places), listing.stamps[places, 0])

        listing, view = look(store, self.source, before, add, self.progress)
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

    def _compute(self, report: ExtractionReport, view: SourceView, backbone: Backbone, taps: Sequence[Tap]) -> None:
        from featurecache.extraction.shard_work import ShardWork

        work = ShardWork(
            store=report.store,
            sets=report.sets,
            source=self.source,
            view=view,
            backbone=backbone,
            taps={tap.name: tap for tap in taps},
            settings=self.settings,
            engine=self.engine,
            progress=self.progress,
        )
        done = work.do(lambda postponed: self._missing(report.sets, view, postponed))
        report.num_extracted, report.runtime, report.postponed = done.num_rows, done.runtime, done.postponed


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


def _count_cut(view: SourceView, sets: Sequence[FeatureSet]) -> int:
    runs = [run for s in sets for commit in s.open().commits for run in commit.body.get("cut", [])]
    cut = np.concatenate([np.zeros(0, np.int64), *(np.arange(start, stop) for start, stop in runs)])
    return len(np.intersect1d(cut, view.unique_rows))


def _bad_inputs(view: SourceView, sets: Sequence[FeatureSet]) -> dict[str, tuple[str, str]]:
    bad = {path: ("unreadable", reason) for path, reason in view.problems.items()}
    for feature_set in sets:
        rows = feature_set.open().bad
        for place in np.flatnonzero(np.isin(view.rows, list(rows))).tolist():
            bad[view.paths[place]] = rows[int(view.rows[place])]
    return dict(sorted(bad.items()))
