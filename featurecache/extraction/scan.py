"""What a source holds now: every input gets its row of the sample table, and only what may have changed is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import sleep

import numpy as np

from featurecache.errors import SourceError
from featurecache.extraction.blocks import unlisted_blocks
from featurecache.extraction.identify import identified, known_rows
from featurecache.extraction.job import ExtractionJob
from featurecache.extraction.known_units import FoundUnit, units_of
from featurecache.extraction.recall import recall
from featurecache.extraction.unit_scan import scan_units
from featurecache.progress import Progress, Silent
from featurecache.sources.entries import Entries
from featurecache.sources.source import Source, check_source
from featurecache.specs import check_takes_views
from featurecache.spill import Spill
from featurecache.store.listings import Listing
from featurecache.store.store import FeatureStore

# Seconds until the lease of a scan is tried again.
_PAUSE = 0.25


def scan(job: ExtractionJob, *, progress: Progress | None = None, keeps: bool = False) -> Listing | None:
    """Give every input of a job's source its row, and keep the listing in the cache, which is made where there is none.

    Once for a job, before its workers: they take from the cache what the source holds. A wrong request fails here,
    before anything is written and before millions of inputs are read. A large source in units is left to the workers,
    which read it in blocks and compute each in the same pass.

    Parameters
    ----------
    job : ExtractionJob
    progress : Progress, optional
        Told how much is read.
    keeps : bool
        Keep the bytes of a source that is far away for the worker of this process, as far as there is room: they come
        over the network once, and those that are decoded are those that were identified. Of a local folder nothing is
        kept: what was read lies in the page cache, which the system empties for others where the memory is needed.

    Returns
    -------
    Listing or None
        As it lies in the cache; None where the workers are to make it.
    """
    source, progress = job.opened_source, progress or Silent()
    if job.views is not None:
        check_takes_views(source.modality, f"the source {source.key}")
    # Not made yet: a wrong request must leave no empty cache behind.
    store = FeatureStore.open(job.cache) if (job.cache / "FORMAT.json").exists() else None
    kept = job.kept if keeps and getattr(source, "is_far", False) else None
    if kept is not None and hasattr(source, "kept"):
        source.kept = kept
    # To look into a unit is to read it where that is far away; one that is known has been looked into.
    if store is None or not hasattr(source, "unit_stamp") or not store.listings.generation(source.key):
        check_source(source)
    if not all(recall(job, store).values()):
        _ = job.network  # an unknown backbone or tap, or one for other samples, shows here
    units = units_of(source)
    if unlisted_blocks(job, store, units):
        FeatureStore.create(job.cache)
        return None
    return scan_into(store or FeatureStore.create(job.cache), source, progress, kept, units)[0]


def scan_into(
    store: FeatureStore,
    source: Source,
    progress: Progress,
    kept: Spill | None = None,
    units: Sequence[FoundUnit] | None = None,
    *,
    generation: int | None = None,
) -> tuple[Listing, int]:
    """Give every input of a source its row in a cache, and keep the listing there.

    Parameters
    ----------
    store : FeatureStore
    source : Source
        It holds something: see `check_source`.
    progress : Progress
    kept : Spill, optional
        Keeps the bytes that are read, for a worker of this process.
    units : sequence of FoundUnit, optional
        Those of the source, where they are at hand.
    generation : int, optional
        A listing after this one needs no scan, whoever has made it; by default one that was made while this one waited.

    Returns
    -------
    listing : Listing
        As it lies in the cache.
    num_read : int
        Inputs that were read here; the others are as they were, or another process has read them meanwhile.
    """
    with _alone(store, source.key, progress, generation) as made_meanwhile:
        if made_meanwhile is not None:
            return made_meanwhile, 0
        if (units := units_of(source) if units is None else units) is not None:
            return scan_units(store, source, units, progress, kept)
        before = store.listings.load(source.key)
        entries = Entries.of(source)
        if not len(entries.names):
            raise SourceError(f"{source.key} holds no {source.modality}s; name another source")
        rows = known_rows(entries, before, len(store.samples))
        num_read = 0
        for indices, ids in identified(source, entries, np.flatnonzero(rows < 0), progress, kept):
            num_read += len(indices)
            rows[indices] = store.samples.append(ids, entries.names.take(indices), entries.stamps[indices, 0])
        listing = Listing(source.key, entries.names, entries.stamps, rows, entries.problems, ignored=entries.ignored)
        # A listing that is as before is not written again: of a million files it has some 80 MB.
        is_as_before = before is not None and listing.same_as(before)
        return listing if is_as_before else store.listings.save(listing), num_read


@contextmanager
def _alone(store: FeatureStore, source: str, progress: Progress, generation: int | None) -> Iterator[Listing | None]:
    """Scan a source while no other process does: of several that begin together one reads and hashes it, for all.

    Yields
    ------
    Listing or None
        That another process has made while this one waited.
    """
    leases, has_waited = store.listings.leases(source), generation is not None
    before = store.listings.generation(source) if generation is None else generation
    while True:
        with leases.hold("scan") as is_mine:
            if is_mine:
                is_newer = has_waited and store.listings.generation(source) > before
                yield store.listings.load(source) if is_newer else None
                return
        if not has_waited:
            progress.say("another process scans the source")
        has_waited = True
        sleep(_PAUSE)
