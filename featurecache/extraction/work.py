"""What a worker does with a job: take a free shard of what is missing, compute it, commit it, until nothing is left.

Any number of workers may be at one job at once, in this process, in others, on other machines. They need nothing of
each other: leases in the cache show who is at which shard, the first commit of a shard counts, and the record that the
first of them leaves decides for all which runtime and size of batches make the features. Nothing here imports torch
until something has to be computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from time import perf_counter

from featurecache.errors import RequestError
from featurecache.extraction.job import ExtractionJob, LoadedNetwork
from featurecache.extraction.plan import missing_shards
from featurecache.extraction.recall import Variant, recall
from featurecache.extraction.worker_report import WorkerReport
from featurecache.machine import at_most_cores
from featurecache.progress import Progress, Silent
from featurecache.sources.opening import SourceSpec
from featurecache.specs import ExtractionSettings
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.schemas import BackboneAbout
from featurecache.store.store import FeatureStore
from featurecache.wording import counted


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
    if device is not None:  # else the same object, with what this process has loaded for it
        job = replace(job, settings=replace(job.settings, device=device))
    # Around everything: torch and the threads that decode both ask how many cores there are.
    with at_most_cores(cores):
        store = FeatureStore.open(job.cache)
        listing = store.listings.load(job.opened_source.key)
        if listing is None:
            raise RequestError(
                f"{job.cache} holds no listing of {job.opened_source.key}; scan the source before work begins"
            )
        report, types = WorkerReport(), dict[str, str]()
        for views, sets in recall(job, store).items():
            if sets is None or missing_shards(sets, listing.held):
                network, started = job.network, perf_counter()
                # Late: torch takes seconds to import, and a run over untouched inputs takes hundredths of one.
                from featurecache.extraction.stored_type import choose_types
                from featurecache.extraction.worker import Worker

                # Once for all variants: heads on views are scored on plain features, so both have one type.
                types = types or choose_types(job, store, listing)
                sets = _add_sets(network, store, views, types)
                worker = Worker(
                    store=store,
                    sets=sets,
                    source=job.opened_source,
                    listing=listing,
                    backbone=network.backbone,
                    taps={tap.name: tap for tap in network.taps},
                    settings=job.settings,
                    progress=progress or Silent(),
                    kept=job.kept,
                    spec=job.source if isinstance(job.source, SourceSpec) else None,
                )
                startup = WorkerReport(startup_seconds=perf_counter() - started)
                report += worker.run(listing.held) + startup
                # Only now: what is remembered must be there, or the next run would take it for cached.
                if (digest := job.digests.get(views)) is not None:
                    store.remember_request(digest, sets[0].fingerprint, [s.tap for s in sets])
            report += WorkerReport(sets=tuple(s.folder.path.relative_to(store.path).as_posix() for s in sets))
        return report + WorkerReport(startup_seconds=job.network.seconds) if types else report


@dataclass(frozen=True)
class ExtractionWork:
    """An extraction as engines run it: see `featurecache.extraction.engines.job.Job`.

    Attributes
    ----------
    job : ExtractionJob
        Its source was scanned into its cache.
    """

    job: ExtractionJob

    @property
    def settings(self) -> ExtractionSettings:
        """How to run."""
        return self.job.settings

    def work(
        self, *, device: str | None = None, cores: int | None = None, progress: Progress | None = None
    ) -> WorkerReport:
        """Work until nothing is left that this worker could do; see `work`."""
        return work(self.job, device=device, cores=cores, progress=progress)

    def progress_in_words(self) -> str:
        """Say how many shards are in the cache."""
        return f"{counted(sum(1 for _ in self.job.cache.glob('features/*/*/*/commits/*.json')), 'shard')} committed"


def _add_sets(
    network: LoadedNetwork, store: FeatureStore, views: Variant, types: Mapping[str, str]
) -> list[FeatureSet]:
    """Add a feature set for each tap, and keep with it what is doubtful about the backbone."""
    backbone = network.backbone
    identity = replace(backbone.identity, views=views)
    about = BackboneAbout(
        num_parameters=backbone.num_parameters,
        num_trainable=backbone.num_trainable,
        weights_source=backbone.weights_source,
        license=backbone.license,
        classifier=backbone.classifier,
        notes=list(backbone.notes),
    )
    sets = [store.add_feature_set(identity, about, tap.name, types[tap.name]) for tap in network.taps]
    for feature_set in sets:
        for warning in backbone.warnings:
            feature_set.keep_warning(warning)
    return sets
