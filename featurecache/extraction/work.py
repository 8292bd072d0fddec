"""What a worker does with a job: take a free shard of what is missing, compute it, commit it, until nothing is left.

Any number of workers may be at one job at once, in this process, in others, on other machines. They need nothing of
each other: leases in the cache show who is at which shard, the first commit of a shard counts, and the record that the
first of them leaves decides for all which runtime and size of batches make the features. Nothing here imports torch
until something has to be computed.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace

from featurecache.errors import RequestError
from featurecache.extraction.blocks import unlisted_blocks
from featurecache.extraction.job import ExtractionJob
from featurecache.extraction.known_units import units_of
from featurecache.extraction.plan import missing_shards
from featurecache.extraction.recall import recall
from featurecache.extraction.scan import scan_into
from featurecache.extraction.worker_report import WorkerReport
from featurecache.machine import at_most_cores
from featurecache.progress import Progress, Silent
from featurecache.specs import ExtractionSettings
from featurecache.store.store import FeatureStore
from featurecache.wording import counted


@dataclass(frozen=True)
class ExtractionWork:
    """An extraction as engines run it: see `featurecache.extraction.engines.job.Job`.

    Attributes
    ----------
    job : ExtractionJob
        Its source was scanned into its cache.
    is_listed : bool, optional
        Whether the scan has listed the source, or has left that to its workers; seen at work where it is left out.
    """

    job: ExtractionJob
    is_listed: bool | None = None

    @property
    def settings(self) -> ExtractionSettings:
        """How to run."""
        return self.job.settings

    def work(
        self, *, device: str | None = None, cores: int | None = None, progress: Progress | None = None
    ) -> WorkerReport:
        """Work until nothing is left that this worker could do; see `work`."""
        job, is_listed = self.job, self.is_listed
        if device is not None:  # else the same object, with what this process has loaded for it
            job = replace(job, settings=replace(job.settings, device=device))
        progress, key = progress or Silent(), job.opened_source.key
        # Around everything: torch and the threads that decode both ask how many cores there are.
        with at_most_cores(cores), ExitStack() as opened:
            store, worker = FeatureStore.open(job.cache), None
            units = None if is_listed else units_of(job.opened_source)
            if units is not None:
                generation = store.listings.generation(key)
                if blocks := unlisted_blocks(job, store, units):
                    # Late: torch takes seconds to import, and a run over untouched inputs takes hundredths of one.
                    from featurecache.extraction.job_worker import work_on_blocks

                    worker = work_on_blocks(job, store, units, blocks, progress, opened)
                if blocks or not generation or is_listed is False:
                    # The first that gets here; what it may have to read has no stamp, is empty, or could not be read.
                    scan_into(store, job.opened_source, progress, units=units, generation=generation)
            if (listing := store.listings.load(key)) is None:
                raise RequestError(f"{job.cache} holds no listing of {key}; scan the source before work begins")
            report, types = WorkerReport(), dict[str, str]()
            for views, sets in recall(job, store).items():
                if worker is None and (sets is None or missing_shards(sets, listing.held)):
                    from featurecache.extraction.job_worker import make_worker

                    worker = opened.enter_context(make_worker(job, store, listing, progress, views=views, types=types))
                if worker is not None:
                    worker.listing, worker.kept = listing, job.kept
                    worker.complete(listing.held)
                    report, sets = report + worker.report(), list(worker.sets)
                    # Once for all variants: heads on views are scored on plain features, so both have one type.
                    types = {feature_set.tap: feature_set.dtype for feature_set in sets}
                    # Now: the next variant takes the device for itself.
                    opened.close()
                    worker = None
                    # Only now: what is remembered must be there, or the next run would take it for cached.
                    if (digest := job.digests.get(views)) is not None:
                        store.remember_request(digest, sets[0].fingerprint, [s.tap for s in sets])
                report += WorkerReport(sets=tuple(s.folder.path.relative_to(store.path).as_posix() for s in sets or ()))
            return report + WorkerReport(startup_seconds=job.network.seconds) if types else report

    def progress_in_words(self) -> str:
        """Say how many shards are in the cache."""
        return f"{counted(sum(1 for _ in self.job.cache.glob('features/*/*/*/commits/*.json')), 'shard')} committed"


def work(
    job: ExtractionJob, *, device: str | None = None, cores: int | None = None, progress: Progress | None = None
) -> WorkerReport:
    """Work on a job until nothing is left that this worker could do.

    Parameters
    ----------
    job : ExtractionJob
        Its source was scanned into its cache: see `featurecache.extraction.scan.scan`.
    device : str, optional
        Where this worker computes, instead of the job's own device: ``cuda:1``.
    cores : int, optional
        Cores that this worker counts on; all where left out.
    progress : Progress, optional
        Told how far it is.

    Raises
    ------
    RequestError
        The source was not scanned into this cache.
    DriftError
        This machine makes other features than those that are there.
    """
    return ExtractionWork(job).work(device=device, cores=cores, progress=progress)
