"""The worker of a job: its network, its feature sets, and the number type of each; here torch is imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter

from featurecache.extraction.blocks import Block, BlockReader, ReadBlock, listed_so_far
from featurecache.extraction.job import ExtractionJob, LoadedNetwork
from featurecache.extraction.known_units import FoundUnit
from featurecache.extraction.recall import Variant
from featurecache.extraction.stored_type import choose_types
from featurecache.extraction.worker import Worker
from featurecache.progress import Progress
from featurecache.sources.opening import SourceSpec
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.listings import Listing
from featurecache.store.schemas import BackboneAbout
from featurecache.store.store import FeatureStore
from featurecache.wording import human_bytes


def make_worker(
    job: ExtractionJob,
    store: FeatureStore,
    listing: Listing,
    progress: Progress,
    *,
    views: Variant = None,
    types: Mapping[str, str] | None = None,
) -> Worker:
    """Return what computes one variant of a job.

    Parameters
    ----------
    job, store, listing, progress
        As for `Worker`.
    views : ViewSpec or None
        The variant.
    types : mapping of str to str, optional
        Number type of each tap, where they are chosen; else they are here, by samples of the listing.
    """
    network, started = job.network, perf_counter()
    sets = _add_sets(network, store, views, types or choose_types(job, store, listing, job.kept))
    return Worker(
        store=store,
        sets=sets,
        source=job.opened_source,
        listing=listing,
        backbone=network.backbone,
        taps={tap.name: tap for tap in network.taps},
        settings=job.settings,
        progress=progress,
        kept=job.kept,
        spec=job.source if isinstance(job.source, SourceSpec) else None,
        startup_seconds=perf_counter() - started,
    )


def work_on_blocks(
    job: ExtractionJob,
    store: FeatureStore,
    units: Sequence[FoundUnit],
    blocks: Sequence[Block],
    progress: Progress,
    opened: ExitStack,
) -> Worker | None:
    """Read blocks of units and compute each at once, until all are read, by this worker or by others.

    Rows that the cache had before are left: copies of other samples, and what a worker had read that was killed.

    Parameters
    ----------
    job, store, progress
        As for `Worker`.
    units : sequence of FoundUnit
        What the source has.
    blocks : sequence of Block
        What is not listed of it.
    opened : ExitStack
        Closes the worker.

    Returns
    -------
    Worker or None
        That has computed; None where nothing was new.
    """
    worker, num_units = None, sum(len(block.units) for block in blocks)
    num_bytes = sum(0 if unit.stamp is None else unit.stamp[0] for block in blocks for unit in block.units)
    shown = _ProgressOfUnits(progress, num_units)
    shown.note(f"{num_units:,} units of {human_bytes(num_bytes)} are read and computed in {len(blocks):,} blocks")
    shown.start("extracting", 0)  # how many samples there are is known when all are read
    with ExitStack() as held, closing(BlockReader(job, blocks)) as reader:

        def with_rows(take: Callable[[], ReadBlock | None]) -> ReadBlock | None:
            """Return the next block that holds something new."""
            while (block := take()) is not None:
                held.callback(block.lease.close)  # whatever comes of it
                shown.num_listed = num_units - sum(len(other.units) for other in block.left)
                if len(block.new_rows):
                    return block
                block.lease.close()
            return None

        while (block := with_rows(reader.next)) is not None:
            if worker is None:
                # Of a part, and with its bytes; other workers take what the first of them has chosen.
                types = choose_types(job, store, block.listing, block.kept, is_whole=False)
                if not types:
                    block.lease.close()
                    continue
                # What was listed before: if features of it are there, some are compared.
                worker = make_worker(job, store, listed_so_far(store, job.opened_source.key, units), shown, types=types)
                opened.enter_context(worker)
            num_expected = len(block.new_rows) * (1 + len(block.left))
            worker.extend(block, partial(with_rows, reader.next_if_read), num_expected=num_expected)
    if worker is not None:
        worker.progress = progress
    return worker


@dataclass
class _ProgressOfUnits:
    """Says how many units are listed, beside what is said anyhow.

    Attributes
    ----------
    progress : Progress
        Told everything.
    num_units, num_listed : int
    """

    progress: Progress
    num_units: int
    num_listed: int = 0

    def start(self, phase: str, total: int) -> None:
        self.progress.start(phase, total)

    def advance(self, count: int, *, bad: int = 0) -> None:
        self.progress.advance(count, bad=bad)

    def say(self, text: str) -> None:
        self.progress.say(f"{self.num_listed} of {self.num_units} units read; {text}")

    def note(self, text: str) -> None:
        self.progress.note(text)


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
