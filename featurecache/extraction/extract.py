"""The main job: make a cache hold the features of everything that a source holds now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from featurecache.backbones.registry import load_backbone, request_digest
from featurecache.extraction.engines import Engine, make_engine
from featurecache.extraction.plan import ShardJob, plan_extraction
from featurecache.extraction.progress import Progress, Silent
from featurecache.hashing import digest_json
from featurecache.sources.folder import FolderSource, Scan
from featurecache.sources.images import pillow_defaults
from featurecache.specs import BackboneRequest, ExtractionSettings
from featurecache.store.store import FeatureSet, FeatureStore
from featurecache.store.views import SourceView


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


def extract(
    source: str | Path,
    cache: str | Path,
    *,
    backbone: str,
    weights: str | Path | None = None,
    taps: Sequence[str] = ("default",),
    preprocess: Mapping[str, Any] | None = None,
    settings: ExtractionSettings | None = None,
    engine: str = "local",
    progress: Progress | None = None,
) -> FeatureStore:
    """Run a frozen backbone over a folder of images and keep its features; what is cached is not computed again.

    Parameters
    ----------
    source : path
        Folder of images.
    cache : path
        Folder of the cache; made when it does not exist.
    backbone : str
        Name of the network, e.g. ``timm:vit_tiny_patch16_224``.
    weights : path, optional
        A weights file; the provider's own when left out.
    taps : sequence of str
        Layers to keep, each ``node:pooling``; ``default`` is the input of the removed output layer.
    preprocess : mapping, optional
        Changes to the preprocess that belongs to the weights, e.g. ``{"crop": 192}``.
    settings : ExtractionSettings, optional
        How to run; never changes what the numbers mean.
    engine : str
        Where to run.
    progress : Progress, optional
        Told how far the run is.

    Returns
    -------
    FeatureStore
        The cache, open.
    """
    request = make_request(backbone, weights=weights, preprocess=preprocess)
    report = run_extraction(source, cache, request, taps=taps, settings=settings, engine=engine, progress=progress)
    return report.store


def make_request(
    backbone: str, *, weights: str | Path | None = None, preprocess: Mapping[str, Any] | None = None
) -> BackboneRequest:
    """Bundle what identifies a backbone for a caller."""
    changes = {name: value for name, value in (preprocess or {}).items() if value is not None}
    return BackboneRequest(
        name=backbone, weights=None if weights is None else Path(weights), preprocess=tuple(sorted(changes.items()))
    )


def run_extraction(
    source: str | Path,
    cache: str | Path,
    request: BackboneRequest,
    *,
    taps: Sequence[str] = ("default",),
    settings: ExtractionSettings | None = None,
    engine: str = "local",
    progress: Progress | None = None,
) -> ExtractionReport:
    """Do what `extract` does, and report what was done."""
    started = perf_counter()
    run = _Run(
        source=FolderSource(Path(source)),
        cache=Path(cache),
        request=request,
        taps=tuple(taps),
        settings=settings or ExtractionSettings(),
        engine=make_engine(engine),
        progress=progress or Silent(),
    )
    report = run.go()
    report.seconds = perf_counter() - started
    return report


@dataclass
class _Run:
    source: FolderSource
    cache: Path
    request: BackboneRequest
    taps: tuple[str, ...]
    settings: ExtractionSettings
    engine: Engine
    progress: Progress

    def go(self) -> ExtractionReport:
        self.source.check()
        digest = self._digest()
        sets = self._recall(digest)
        # Wrong requests must fail before anything is written and before millions of files are read.
        loaded = None if sets else self._load()
        store = FeatureStore.create(self.cache)
        scan, view = self._scan(store)
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
        report.num_ignored = scan.num_ignored
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

    def _load(self) -> Any:
        from featurecache.backbones.taps import resolve_taps

        backbone = load_backbone(self.request)
        return backbone, resolve_taps(backbone, self.taps)

    def _scan(self, store: FeatureStore) -> tuple[Scan, SourceView]:
        before = store.views.load(self.source.root)
        known = _known(before, store) if before else None
        self.progress.start("reading", 0)
        scan = self.source.scan(known, on_read=lambda done, total: self.progress.advance(1))
        readable = np.array([path not in scan.problems for path in scan.paths])
        rows = np.full(len(scan.paths), -1, np.int64)
        rows[readable] = store.samples.append(
            scan.ids[readable],
            [path for path, good in zip(scan.paths, readable, strict=True) if good],
            scan.sizes[readable],
        )
        root = str(self.source.root.resolve())
        view = SourceView(root, scan.paths, scan.sizes, scan.mtimes_ns, rows, scan.problems)
        if not view.same_as(before):
            store.views.save(view)
        return scan, view

    def _missing(self, sets: Sequence[FeatureSet], view: SourceView) -> list[ShardJob]:
        cached = {s.tap: s.open().rows for s in sets}
        return plan_extraction(view.unique_rows, cached, shard_rows=self.settings.shard_rows)

    def _compute(self, report: ExtractionReport, view: SourceView, backbone: Any, taps: Mapping[str, Any]) -> None:
        from featurecache.extraction.worker import ShardExtractor

        jobs = self._missing(report.sets, view)
        if not jobs:
            return
        extractor = ShardExtractor(
            backbone=backbone,
            taps=taps,
            sets={s.tap: s for s in report.sets},
            path_of=lambda rows: [self.source.root / path for path in view.paths_of(rows)],
            ids=report.store.samples.ids,
            settings=self.settings,
            remembered_runtime=_remembered_runtime(report.sets),
            on_rows=lambda count, bad: self.progress.advance(count, bad=bad),
        )
        self.progress.start("extracting", sum(len(job.rows) for job in jobs))
        with pillow_defaults():
            for outcome in self.engine.map(extractor, jobs):
                report.num_extracted += outcome.num_rows
                report.postponed |= outcome.postponed
        report.runtime = extractor.runtime_name
        extractor.close()


def about(backbone: Any) -> dict[str, Any]:
    """What `info` says of a backbone beside its identity."""
    return {
        "num_parameters": backbone.num_parameters,
        "num_trainable": backbone.num_trainable,
        "weights_source": backbone.weights_source,
        "license": backbone.license,
        "classifier": backbone.classifier,
        "notes": list(backbone.notes),
    }


def _known(view: SourceView, store: FeatureStore) -> dict[str, tuple[int, int, bytes]]:
    ids = store.samples.ids
    return {
        path: (size, mtime, ids[row].tobytes())
        for path, size, mtime, row in zip(
            view.paths, view.sizes.tolist(), view.mtimes_ns.tolist(), view.rows.tolist(), strict=True
        )
        if 0 <= row < len(ids)
    }


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
        for path, row in zip(view.paths, view.rows.tolist(), strict=True):
            if row in rows:
                bad[path] = rows[row]
    return dict(sorted(bad.items()))
