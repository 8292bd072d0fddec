"""What ``--dtype auto`` stands for: the type of the features that are there, or else what a few samples show.

The samples are those of the source with the smallest ids, so the choice depends neither on the order of the files nor
on how many workers there are. The first choice is kept and holds for all writers; features of views have the type of
the plain ones, because heads on views are scored on these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.runtimes import open_runtime
from featurecache.backbones.taps import Tap
from featurecache.extraction.job import ExtractionJob
from featurecache.extraction.modality import modality_of
from featurecache.extraction.pipeline import run_pipeline
from featurecache.extraction.reading import inputs_of_rows
from featurecache.spill import Spill
from featurecache.store.listings import Listing
from featurecache.store.precision import MOST_ERROR, error_as, finite_rows
from featurecache.store.row_runs import RowRuns
from featurecache.store.samples import Column, Ids, Rows
from featurecache.store.schemas import StoredType
from featurecache.store.soundness import held_type
from featurecache.store.store import FeatureStore

# Good samples whose features are computed to choose a type.
_ROWS_MEASURED = 16
# Samples that are tried to find them, where many are bad.
_MOST_TRIED = 1024
# Fixed: a batch of another shape changes the last bits, and the choice must not depend on the machine.
_BATCH_SIZE = 8
_IDS_AT_ONCE = 1 << 20
# The first bytes of ids as big-endian numbers, which are in the order of the ids.
_ORDER = np.dtype(">u8")


def choose_types(
    job: ExtractionJob, store: FeatureStore, listing: Listing, kept: Spill | None, *, is_whole: bool = True
) -> dict[str, str]:
    """Return the stored type of each tap of a job, the same for the plain features and those of views.

    Parameters
    ----------
    job : ExtractionJob
    store : FeatureStore
        The cache of the job.
    listing : Listing
        What its source holds.
    kept : Spill or None
        Bytes of it that are kept.
    is_whole : bool
        It is all that the source holds. Of a part, nothing is chosen where every input is bad: the result is empty.
    """
    backbone, taps = job.network.backbone, job.network.taps
    if job.settings.dtype != "auto":
        return {tap.name: job.settings.dtype for tap in taps}
    fingerprints = [replace(backbone.identity, views=views).fingerprint for views in reversed(job.variants)]
    types = {tap.name: _known_type(store, fingerprints, tap.name) for tap in taps}
    unknown = [tap for tap in taps if types[tap.name] is None]
    features = _measured_features(job, store, listing, unknown, kept) if unknown else {}
    if not is_whole and not all(map(len, features.values())):
        return {}
    for tap in unknown:
        types[tap.name] = _choose_type(store, backbone, tap, features[tap.name])
    return {name: dtype for name, dtype in types.items() if dtype is not None}


def _known_type(store: FeatureStore, fingerprints: Sequence[str], tap: str) -> str | None:
    """Return the type of the features that are there, of views first, or that another worker has chosen."""
    for fingerprint in fingerprints:
        if (held := held_type(store.feature_sets(), fingerprint, tap)) is not None:
            return held
    record = store.recall_type(fingerprints[-1], tap)
    return None if record is None else record.dtype


def _choose_type(store: FeatureStore, backbone: Backbone, tap: Tap, values: NDArray[np.float32]) -> str:
    """Choose by the features of a few samples, and return what is kept: the choice of the first worker."""
    if not len(values):  # every input is bad: there is nothing to choose by, and nothing to lose
        return "float16"
    error = error_as(values, "float16")
    chosen = StoredType(
        dtype="float16" if error <= MOST_ERROR else "float32",
        rows=len(values),
        error=float(f"{error:.3g}") if isfinite(error) else None,
    )
    return store.remember_type(backbone.identity.fingerprint, tap.name, chosen).dtype


def _measured_features(
    job: ExtractionJob, store: FeatureStore, listing: Listing, taps: Sequence[Tap], kept: Spill | None
) -> dict[str, NDArray[np.float32]]:
    """Return finite features of the samples with the smallest ids, in the reference runtime."""
    backbone, settings = job.network.backbone, job.settings
    # The reference: what is chosen must not depend on which runtime is the fastest on this machine.
    runtime = open_runtime(
        backbone, taps, runtime="torch", device=settings.device, batch_size=_BATCH_SIZE, num_inputs=_ROWS_MEASURED
    )
    modality = modality_of(backbone.preprocess, backbone.tokenizer)
    found = {tap.name: [np.zeros((0, *tap.shape), np.float32)] for tap in taps}
    num_found, rows = 0, smallest(store.samples.ids, listing.held, _MOST_TRIED)
    try:
        with modality.undisturbed():
            for start in range(0, len(rows), _ROWS_MEASURED):
                some = rows[start : start + _ROWS_MEASURED]
                inputs = inputs_of_rows(job.opened_source, listing, store.samples, some, kept=kept)
                for outcome in run_pipeline(inputs, runtime, modality, num_workers=settings.num_workers):
                    good = np.array([problem is None for problem in outcome.problems], bool)
                    num_found += int(good.sum())
                    for name, values in outcome.features.items():
                        found[name].append(values[good & finite_rows(values)])
                if num_found >= _ROWS_MEASURED:
                    break
    finally:
        runtime.close()
    return {name: np.concatenate(pieces)[:_ROWS_MEASURED] for name, pieces in found.items()}


def smallest(ids: Column | Ids, rows: RowRuns | Rows, count: int) -> Rows:
    """Return the rows with the smallest ids, in the order of these.

    Parameters
    ----------
    ids : Column or ndarray
        Ids by row; they are read block by block, however many there are.
    rows : RowRuns or ndarray of int64
        Among which rows.
    count : int
        How many.
    """
    kept, keys = np.zeros(0, np.int64), np.zeros(0, np.uint64)
    for start in range(0, len(rows), _IDS_AT_ONCE):
        block = rows[start : start + _IDS_AT_ONCE]
        prefixes = np.ascontiguousarray(ids[block][:, :8]).view(_ORDER)[:, 0].astype(np.uint64)
        kept, keys = np.concatenate([kept, block]), np.concatenate([keys, prefixes])
        order = np.argsort(keys, kind="stable")[:count]
        kept, keys = kept[order], keys[order]
    return kept
