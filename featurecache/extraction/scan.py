"""What a source holds now: every input gets its row of the sample table, and only what may have changed is read."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from featurecache.extraction.job import ExtractionJob
from featurecache.extraction.progress import Progress, Silent
from featurecache.extraction.recall import recall
from featurecache.sources.folder import Entries
from featurecache.sources.source import Source
from featurecache.specs import check_takes_views
from featurecache.store.listings import Listing
from featurecache.store.samples import Ids
from featurecache.store.store import FeatureStore


def scan(job: ExtractionJob, *, progress: Progress | None = None) -> Listing:
    """Give every input of a job's source its row, and keep the listing in the cache, which is made where there is none.

    Once for a job, before its workers: they take from the cache what the source holds. A wrong request fails here,
    before anything is written and before millions of inputs are read.

    Parameters
    ----------
    job : ExtractionJob
    progress : Progress, optional
        Told how much is read.

    Returns
    -------
    Listing
        As it lies in the cache.
    """
    source, progress = job.opened_source, progress or Silent()
    if job.views is not None:
        check_takes_views(source.modality, f"the source {source.root}")
    source.check()
    store = FeatureStore.open(job.cache) if (job.cache / "FORMAT.json").exists() else None
    if not all(recall(job, store).values()):
        _ = job.network
    store = store or FeatureStore.create(job.cache)
    before = store.listings.load(source.root)
    entries = source.find()
    rows = known_rows(entries, before, len(store.samples))
    for indices, ids in identified(source, entries, np.flatnonzero(rows < 0), progress):
        rows[indices] = store.samples.append(ids, entries.paths.take(indices), entries.stamps[indices, 0])
    listing = listing_of_source(source, entries, rows)
    return listing if before is not None and listing.same_as(before) else store.listings.save(listing)


def identified(
    source: Source, entries: Entries, unknown: NDArray[np.int64], progress: Progress
) -> Iterator[tuple[NDArray[np.int64], Ids]]:
    """Read some entries and yield blocks of (indices, ids); what cannot be read is in ``entries.problems``.

    Parameters
    ----------
    source, entries : Source, Entries
    unknown : ndarray of int64
        Indices of the entries to read.
    progress : Progress
    """
    progress.start("reading", len(unknown))
    return source.identify(entries, unknown, on_read=progress.advance)


def known_rows(entries: Entries, before: Listing | None, num_samples: int) -> NDArray[np.int64]:
    """Return the row of each entry that is as it was when the source was last extracted, -1 for the others."""
    if before is None:
        return np.full(len(entries.paths), -1, np.int64)
    indices = entries.unchanged_since(before.paths, before.stamps)
    rows = np.where(indices < 0, -1, before.rows[indices])
    return np.where(rows < num_samples, rows, -1)


def listing_of_source(source: Source, entries: Entries, rows: NDArray[np.int64]) -> Listing:
    """Return what a source holds as a cache keeps it."""
    root = str(source.root.resolve())
    return Listing(root, entries.paths, entries.stamps, rows, entries.problems, ignored=entries.ignored)
