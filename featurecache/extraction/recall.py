"""Which feature sets a request led to before: an unchanged source is recognised without loading the backbone."""

from __future__ import annotations

from featurecache.extraction.job import ExtractionJob
from featurecache.sources.source import check_modality
from featurecache.specs import ViewSpec
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.schemas import RequestBody
from featurecache.store.soundness import held_type
from featurecache.store.store import FeatureStore

Variant = ViewSpec | None
"""Plain features, or those of some views."""


def recall(job: ExtractionJob, store: FeatureStore | None) -> dict[Variant, list[FeatureSet] | None]:
    """Return the feature sets of each variant of a job, ``None`` where only the backbone can tell.

    Parameters
    ----------
    job : ExtractionJob
    store : FeatureStore or None
        The cache, if there is one.

    Raises
    ------
    SourceError
        The backbone takes another kind of sample than the source holds.
    """
    known = {views: None if store is None else _recall(job, store, views) for views in job.variants}
    if len({tuple(s.dtype for s in sets) for sets in known.values() if sets}) > 1:
        return dict.fromkeys(job.variants)  # heads on views are scored on plain features of the same type
    return known


def _recall(job: ExtractionJob, store: FeatureStore, views: Variant) -> list[FeatureSet] | None:
    digest = job.digests.get(views)
    remembered = None if digest is None else store.recall(RequestBody, digest)
    if remembered is None:
        return None
    fingerprint, taps = remembered.fingerprint, remembered.taps
    sets = [s for s in store.feature_sets() if s.fingerprint == fingerprint and s.tap in taps]
    if job.settings.dtype == "auto":
        types = {tap: held_type(sets, fingerprint, tap) for tap in taps}
    else:
        types = dict.fromkeys(taps, job.settings.dtype)
    # What was remembered may have been removed since: then the backbone has to be loaded after all.
    known = {s.tap: s for s in sets if s.dtype == types[s.tap]}
    for feature_set in known.values():
        check_modality(job.opened_source, feature_set.identity.preprocess, job.backbone.name)
    return [known[tap] for tap in taps] if set(taps) <= set(known) else None
