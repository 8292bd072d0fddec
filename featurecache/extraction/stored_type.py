"""What ``--dtype auto`` stands for: the type of the features that are there, or else what a few samples show.

The samples are those of the source with the smallest ids, so the choice depends neither on the order of the files nor
on how many workers there are. The first choice is kept and holds for all writers; features of views have the type of
the plain ones, because heads on views are judged on these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.runtimes import open_runtime
from featurecache.backbones.taps import Tap
from featurecache.extraction.modality import modality_of
from featurecache.extraction.pipeline import run_pipeline
from featurecache.sources.source import Source
from featurecache.specs import ExtractionSettings, ViewSpec
from featurecache.store.listings import Listing
from featurecache.store.precision import MOST_ERROR, error_as, finite_rows
from featurecache.store.samples import Column, Ids, Rows
from featurecache.store.soundness import held_type
from featurecache.store.store import FeatureStore

_ROWS_MEASURED = 16
"""Good samples whose features are computed to choose a type."""
_MOST_TRIED = 1024
"""Samples that are looked at to find them, where many are bad."""
_BATCH_SIZE = 8
_IDS_AT_ONCE = 1 << 20
_ORDER = np.dtype(">u8")


@dataclass(frozen=True)
class TypeChooser:
    """Chooses the stored type of each tap of a backbone, in one run over one source."""

    store: FeatureStore
    source: Source
    listing: Listing
    backbone: Backbone
    settings: ExtractionSettings
    views: ViewSpec | None

    def choose(self, taps: Sequence[Tap]) -> dict[str, str]:
        """Return the type of each tap."""
        if self.settings.dtype != "auto":
            return {tap.name: self.settings.dtype for tap in taps}
        types = {tap.name: self._known(tap) for tap in taps}
        unknown = [tap for tap in taps if types[tap.name] is None]
        chosen = self._measured(unknown) if unknown else {}
        return {name: chosen[name] if known is None else known for name, known in types.items()}

    def _known(self, tap: Tap) -> str | None:
        """Return the type of the features that are there, of views first, or that another run has chosen."""
        identity = self.backbone.identity
        for fingerprint in self._fingerprints():
            if (held := held_type(self.store.feature_sets(), fingerprint, tap.name)) is not None:
                return held
        record = self.store.recall_type(identity.fingerprint, tap.name)
        return None if record is None else str(record["dtype"])

    def _fingerprints(self) -> Iterator[str]:
        if self.views is not None:
            yield self.backbone.identity.with_views(self.views).fingerprint
        yield self.backbone.identity.fingerprint

    def _measured(self, taps: Sequence[Tap]) -> dict[str, str]:
        """Compute the features of a few samples, choose by them, and return what is kept."""
        features = self._features(taps)
        chosen = {}
        for tap in taps:
            values = features.get(tap.name, np.zeros((0, *tap.shape), np.float32))
            if not len(values):  # every input is bad: there is nothing to choose by, and nothing to lose
                chosen[tap.name] = "float16"
                continue
            error = error_as(values, "float16")
            record = {
                "dtype": "float16" if error <= MOST_ERROR else "float32",
                "rows": len(values),
                "error": float(f"{error:.3g}") if isfinite(error) else None,
            }
            kept = self.store.remember_type(self.backbone.identity.fingerprint, tap.name, record)
            chosen[tap.name] = str(kept["dtype"])
        return chosen

    def _features(self, taps: Sequence[Tap]) -> dict[str, NDArray[np.float32]]:
        """Return finite features of the samples with the smallest ids, in the reference runtime."""
        runtime = open_runtime(
            self.backbone, taps, runtime="torch", device=self.settings.device, batch_size=_BATCH_SIZE
        )
        modality = modality_of(self.backbone.preprocess, self.backbone.tokenizer)
        found: dict[str, list[NDArray[np.float32]]] = {tap.name: [] for tap in taps}
        num_found = 0
        try:
            with modality.undisturbed():
                for rows in self._sample():
                    ids = [identity.tobytes().hex() for identity in self.store.samples.ids[rows]]
                    inputs = self.source.inputs(self.listing.paths_of(rows), ids, self.listing.stamps_of(rows))
                    for outcome in run_pipeline(inputs, runtime, modality, num_workers=self.settings.num_workers):
                        good = np.array([problem is None for problem in outcome.problems], bool)
                        num_found += int(good.sum())
                        for name, values in outcome.features.items():
                            finite = finite_rows(values)
                            found[name].append(values[good & finite])
                    if num_found >= _ROWS_MEASURED:
                        break
        finally:
            runtime.close()
        return {name: np.concatenate(parts)[:_ROWS_MEASURED] for name, parts in found.items() if parts}

    def _sample(self) -> Iterator[Rows]:
        """Yield rows of the source in the order of their ids, a few at a time."""
        rows = iter(smallest(self.store.samples.ids, self.listing.unique_rows, _MOST_TRIED).tolist())
        while some := list(islice(rows, _ROWS_MEASURED)):
            yield np.array(some, np.int64)


def smallest(ids: Column | Ids, rows: Rows, count: int) -> Rows:
    """Return the rows with the smallest ids, in the order of these; ids of any number are read block by block."""
    kept, keys = np.zeros(0, np.int64), np.zeros(0, np.uint64)
    for start in range(0, len(rows), _IDS_AT_ONCE):
        block = rows[start : start + _IDS_AT_ONCE]
        beginning = np.ascontiguousarray(ids[block][:, :8]).view(_ORDER)[:, 0].astype(np.uint64)
        kept, keys = np.concatenate([kept, block]), np.concatenate([keys, beginning])
        order = np.argsort(keys, kind="stable")[:count]
        kept, keys = kept[order], keys[order]
    return kept
