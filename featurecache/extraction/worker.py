"""One worker on some feature sets: guard against drift, then lease, load, compute, write and commit shard by shard.

The main thread feeds the network; threads of the pipeline read and decode ahead of it, and one thread writes behind it,
so that neither disks nor digests hold the network up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import groupby
from threading import Lock
from time import perf_counter, sleep
from typing import Self

import msgspec

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.runtimes import Runtime
from featurecache.backbones.taps import Tap
from featurecache.backbones.torch_runtime import checked_device
from featurecache.errors import InputError, RequestError
from featurecache.extraction import drift
from featurecache.extraction.blocks import ReadBlock
from featurecache.extraction.drafts import Draft
from featurecache.extraction.estimate import estimate
from featurecache.extraction.loading_processes import LoadingProcesses, open_processes
from featurecache.extraction.meter import Meter
from featurecache.extraction.modality import Modality, modality_of, without_resizing
from featurecache.extraction.open_shards import MOST_DIGESTED, OpenShard
from featurecache.extraction.pipeline import Outcome, run_chunks
from featurecache.extraction.plan import (
    LARGEST_SHARD,
    SMALLEST_SHARD,
    SMALLEST_SHARD_ON_GPU,
    PlannedShard,
    missing_shards,
    plan_extraction,
)
from featurecache.extraction.reading import inputs_of_rows
from featurecache.extraction.runtimes import Runtimes
from featurecache.extraction.worker_report import Round, WorkerReport
from featurecache.machine import num_cores
from featurecache.progress import Progress
from featurecache.sources.opening import SourceSpec
from featurecache.sources.source import Source
from featurecache.specs import ExtractionSettings
from featurecache.spill import Spill
from featurecache.store.bad_inputs import TRANSIENT
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.leases import Leases
from featurecache.store.listings import Listing
from featurecache.store.row_runs import RowRuns
from featurecache.store.samples import Rows
from featurecache.store.schemas import ReferenceBody
from featurecache.store.store import FeatureStore

# Writes that may wait: more would fill the memory with features where the disk is the slower.
_MOST_UNWRITTEN = 2
# Seconds until shards that other workers hold are tried again: short at first, because most shards take seconds, then
# longer, because a worker that waits must not keep the file system busy.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
# Of what the run is waiting for: more often than a reader could follow would cost a draw for each batch.
_SECONDS_BETWEEN_REMARKS = 1.0


@dataclass(kw_only=True)
class Worker:
    """Everything that computing takes, held once; to be entered, and then given rows as often as there are some.

    Attributes
    ----------
    store : FeatureStore
    sets : sequence of FeatureSet
        What is extended: all of one fingerprint, so of the same views, each in its own number type.
    source, listing : Source, Listing
        Where the samples come from, and what it held when it was scanned.
    backbone, taps : Backbone, mapping of str to Tap
        What computes, and the tap of each set.
    settings : ExtractionSettings
    progress : Progress
    lengths : tuple of int, optional
        Of texts, the padded lengths, where they are not to be those of the newest features.
    kept : Spill, optional
        Bytes that the scan of the source has kept.
    spec : SourceSpec, optional
        What other processes open the source by.
    startup_seconds : float
        Until it could begin.
    """

    store: FeatureStore
    sets: Sequence[FeatureSet]
    source: Source
    listing: Listing
    backbone: Backbone
    taps: Mapping[str, Tap]
    settings: ExtractionSettings
    progress: Progress
    lengths: tuple[int, ...] | None = None
    kept: Spill | None = None
    spec: SourceSpec | None = None
    startup_seconds: float = 0.0
    meter: Meter = field(default_factory=lambda: Meter(cores=num_cores()))
    _open: list[OpenShard] = field(default_factory=list)
    _last_remark: float = field(default_factory=perf_counter)
    _processes: LoadingProcesses | None = None
    _block: _OpenBlock | None = None
    _done: Round = field(default_factory=Round)
    _is_ready: bool = False
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        self._stack.callback(self._close)
        self._stack.enter_context(self.modality.undisturbed())
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @cached_property
    def modality(self) -> Modality:
        """What loads the inputs of this backbone, as plain ones or as views."""
        return modality_of(self.backbone.preprocess, self.backbone.tokenizer, self.sets[0].identity.views)

    @cached_property
    def runtimes(self) -> Runtimes:
        """What executes the backbone."""
        # When first needed, not with the worker: `complete` may still change the settings, and the later the records
        # are read, the more of other workers' choices are among them.
        return Runtimes(self.backbone, self.taps, self.settings, drift.recorded_provenance(self.sets), self.lengths)

    def run(self, rows: RowRuns | Rows) -> WorkerReport:
        """Have the features of some rows cached, and end; see `complete`."""
        with self:
            self.complete(rows)
            return self.report()

    def report(self) -> WorkerReport:
        """Return what was done so far."""
        usage, runtimes = self.meter.usage(), self.runtimes.opened.values()
        return WorkerReport(
            num_rows=self._done.num_rows,
            postponed=self._done.postponed,
            runtime=next((runtime.name for runtime in runtimes), None) if usage.seconds else None,
            trial=next((runtime.trial for runtime in runtimes if runtime.trial), {}),
            startup_seconds=self.startup_seconds,
            usage=(usage,) if usage.seconds else (),
        )

    def extend(self, block: ReadBlock, following: Callable[[], ReadBlock | None], *, num_expected: int) -> None:
        """Compute the rows of blocks that are new, so that no feature set has them; what others are at is left to them.

        They are one stream, as the device would wait at the beginning of each one. The lease of a block is given back
        when all of it is in the cache.

        Parameters
        ----------
        block : ReadBlock
            The first.
        following : callable
            Returns the next one when loading gets there; None ends it.
        num_expected : int
            Rows that are about to come, those of the first block among them.

        Raises
        ------
        DriftError
            This machine makes other features than those that are there.
        """
        self._prepare(self._plan(block))
        refused: list[RequestError] = []
        self._done.add(self._compute(self._stream(block, following, refused), num_expected))
        self._block = None
        if refused:  # now: what was on its way is in the cache
            raise refused[0]

    def _plan(self, block: ReadBlock) -> list[PlannedShard]:
        none = dict.fromkeys(self.taps, RowRuns.of([]))
        return plan_extraction(block.new_rows, none, shard_rows=self.settings.shard_rows or LARGEST_SHARD)

    def _stream(
        self, block: ReadBlock | None, following: Callable[[], ReadBlock | None], refused: list[RequestError]
    ) -> Iterator[PlannedShard]:
        """Yield the shards of blocks, each of which is what is opened by then, until there is no room for one."""
        while block is not None:
            shards = self._plan(block)
            try:
                estimate(shards, self.sets, self.taps, cache=self.store.path)
            except RequestError as error:
                refused.append(error)
                return
            self.listing, self.kept = block.listing, block.kept
            self._block = _OpenBlock(block.lease, len(shards))
            yield from shards
            block = following()

    def complete(self, rows: RowRuns | Rows) -> None:
        """Have the features of some rows cached, by this worker or by others that are at it.

        Parameters
        ----------
        rows : RowRuns or ndarray of int64
            Rows that the source holds.

        Raises
        ------
        DriftError
            This machine makes other features than those that are there.
        """
        on_cpu = checked_device(self.settings.device).type == "cpu"
        plan = partial(
            missing_shards,
            self.sets,
            rows,
            shard_rows=self.settings.shard_rows,
            smallest=SMALLEST_SHARD if on_cpu else SMALLEST_SHARD_ON_GPU,
        )
        shards, pause = plan(postponed=self._done.postponed), _FIRST_PAUSE
        self._prepare(shards)
        if shards:
            # None where the runtime was chosen without a trial.
            # Of texts the trial was at one length, and what theirs are is not known yet.
            of_one_shape = (r for r in self.runtimes.opened.values() if len(r.lengths) < 2)
            rate = next((runtime.trial.get(runtime.name) for runtime in of_one_shape), None)
            expected = estimate(shards, self.sets, self.taps, cache=self.store.path, rate=rate)
            self.progress.start("extracting", expected.num_rows)
            self.progress.note(expected.sentence())
        while shards:
            done = self._compute(shards, sum(len(shard.runs) for shard in shards))
            self._done.add(done)
            # What other workers held may be done by now, or left over by one that was killed.
            shards = plan(postponed=self._done.postponed)
            if not done.num_rows and not done.leased:
                break
            pause = _FIRST_PAUSE if done.num_rows else min(2 * pause, _LONGEST_PAUSE)
            if shards and not done.num_rows:
                sleep(pause)

    def _prepare(self, shards: Sequence[PlannedShard]) -> None:
        """Compare with what is there, and open what the first shards need, the first time."""
        if self._is_ready:
            return
        started = perf_counter()
        if not shards:  # to compare a few inputs, a faster runtime is not worth its preparation
            self.settings = replace(self.settings, runtime="torch")
        self._guard(shards)
        if shards:
            self.runtimes.of(shards[0].taps)
        self._keep_references()
        self.startup_seconds += perf_counter() - started
        self._is_ready = True

    def _close(self) -> None:
        """Close what was opened."""
        if self._processes is not None:
            self._processes.close()
        for runtime in self.runtimes.opened.values():
            runtime.close()

    def _guard(self, shards: Sequence[PlannedShard]) -> None:
        """Refuse to extend features that this machine would make differently."""
        for feature_set in self.sets:
            before = drift.recorded_provenance([feature_set])
            if before is None:
                continue
            # Of a shard that misses it, so that the runtime which is compared is the one that will compute.
            taps = next((shard.taps for shard in shards if feature_set.tap in shard.taps), tuple(self.taps))
            runtime = self.runtimes.of(taps)
            with drift.explained(before, runtime, "extract into another cache"):
                if (known := feature_set.reference()) is not None:
                    recorded = msgspec.convert(known, ReferenceBody)
                    drift.check_reference(recorded, feature_set.tap, runtime, self.modality)
                if shards and drift.changes(before, runtime):
                    drift.check_stored(feature_set, self.source, self.listing, runtime, self.modality)

    def _keep_references(self) -> None:
        """See what the program's own inputs give, so that `predict` can notice another environment elsewhere.

        The record that is published first stays, and decides for all workers which runtime and which size of batches
        make the features: several that begin at once may find one or the other faster.
        """
        lacking = [feature_set for feature_set in self.sets if feature_set.reference() is None]
        if lacking:
            try:
                record = msgspec.to_builtins(drift.reference(self.runtimes.of(tuple(self.taps)), self.modality))
            except InputError:  # this preprocess has limits that the program's own inputs exceed
                return
            for feature_set in lacking:
                features = {feature_set.tap: record["features"][feature_set.tap]}
                feature_set.keep_reference({**record, "features": features})
        # Also where nothing lacks: another worker may have published its own while ours was opening its runtime.
        self.runtimes.agree(drift.recorded_provenance(self.sets))

    def _compute(self, shards: Iterable[PlannedShard], num_expected: int) -> Round:
        """Compute, write and commit shards, except those that another worker is at or has done."""
        done, writing = Round(), deque[Future[Round]]()
        with ExitStack() as stack:
            stack.enter_context(self.meter.running())
            stack.callback(self._give_back)
            pool = ThreadPoolExecutor(1, thread_name_prefix="write")
            # On an error or Ctrl-C, what has not begun to be written is dropped with its shard.
            stack.callback(pool.shutdown, wait=True, cancel_futures=True)
            # One stream for each run of shards that miss the same taps: what a runtime computes is fixed.
            for taps, opened in groupby(self._take(shards, done), key=lambda shard: shard.taps):
                runtime = self.runtimes.of(taps)
                self.meter.device = runtime.device
                runtime.compare_again()  # on real inputs
                chunks = ((shard, shard.inputs) for shard in opened)
                outcomes = run_chunks(
                    chunks,
                    runtime,
                    self.modality,
                    num_workers=self.settings.num_workers,
                    num_digested=MOST_DIGESTED,
                    meter=self.meter,
                    progress=self.progress,
                    pool=self._processes_for(runtime, num_expected),
                )
                with closing(outcomes):
                    for shard, outcome in outcomes:
                        self._report(outcome)
                        if (waiting := shard.collect(outcome)) is not None:
                            writing.append(pool.submit(self._write, shard, waiting, runtime))
                            self._settle(writing, done, most=_MOST_UNWRITTEN)
                self._settle(writing, done, most=0)
        return done

    def _processes_for(self, runtime: Runtime, num_rows: int) -> LoadingProcesses | None:
        """Return processes that load batches of a runtime, those of before where they do; None: threads load."""
        if self._processes is not None and self._processes.batch_size != runtime.batch_size:
            self._processes.close()
            self._processes = None
        # Tokens are made by compiled code, without the interpreter's lock.
        if self._processes is None and not runtime.lengths:
            self._processes = open_processes(
                self.spec,
                without_resizing(self.modality) if runtime.resizes else self.modality,
                runtime.batch_size,
                self.settings.num_workers,
                self.meter,
                device=runtime.device,
                num_inputs=num_rows,
            )
        return self._processes

    def _take(self, shards: Iterable[PlannedShard], done: Round) -> Iterator[OpenShard]:
        """Take the lease of each shard that is free and not done."""
        features = {feature_set.tap: feature_set for feature_set in self.sets}
        leases = Leases(self.store.path / "features" / self.sets[0].fingerprint / "leases")
        for shard in shards:
            with ExitStack() as lease:
                if self._block is not None:
                    lease.callback(self._block.one_less)
                if not lease.enter_context(leases.hold(shard.key)):
                    done.leased = True
                    continue
                # Under the lease, because others may have committed it since the plan was made.
                taps = tuple(tap for tap in shard.taps if not features[tap].folder.record(shard.key).exists())
                if not taps:
                    # Perhaps with fewer rows than planned here: what it left over is for another plan.
                    done.leased = True
                    continue
                # Inputs are objects, so they are made for one shard at a time: for all rows they would fill the memory.
                rows = shard.rows
                inputs = inputs_of_rows(self.source, self.listing, self.store.samples, rows, kept=self.kept)
                taken = OpenShard(taps, rows, inputs, lease.pop_all())
                self._open.append(taken)
            yield taken

    def _report(self, outcome: Outcome) -> None:
        """Count what is done, and report from time to time what the run is waiting for."""
        self.meter.num_inputs += len(outcome.problems)
        if perf_counter() - self._last_remark > _SECONDS_BETWEEN_REMARKS:
            self._last_remark = perf_counter()
            self.progress.say(self.meter.usage().sentence())

    def _settle(self, writing: deque[Future[Round]], done: Round, *, most: int) -> None:
        """Count the writes that are done, and wait where more than ``most`` are not."""
        while writing and (len(writing) > most or writing[0].done()):
            # Waiting here keeps features from filling the memory where the disk is slower than the network.
            started = perf_counter()
            written = writing.popleft().result()
            self.meter.waited["write"] += perf_counter() - started
            done.add(written)

    def _write(self, shard: OpenShard, outcome: Outcome, runtime: Runtime) -> Round:
        """Write features, and commit the shard when they were its last."""
        with self.meter.writing():
            if not shard.drafts:
                for feature_set in self.sets:
                    if (tap := feature_set.tap) in shard.taps:
                        shard.drafts.append(Draft(feature_set, self.taps[tap].shape, len(shard.inputs)))
            for draft in shard.drafts:
                draft.add(outcome)
            shard.num_written += len(outcome.problems)
            return self._publish(shard, runtime) if shard.num_written == len(shard.rows) else Round()

    def _publish(self, shard: OpenShard, runtime: Runtime) -> Round:
        """Commit a shard whose features are all there."""
        won = shard.publish(self.store.samples.ids, {"provenance": msgspec.to_builtins(drift.provenance_of(runtime))})
        bad = {index: error for draft in shard.drafts for index, error in draft.bad.items()}
        shard.close()
        self._open.remove(shard)
        if not won:  # the other worker may have had fewer rows in its shard: plan once more
            return Round(leased=True)
        postponed = {
            int(shard.rows[index]): (shard.inputs[index].name, error.reason)
            for index, error in bad.items()
            if error.status in TRANSIENT
        }
        return Round(len(shard.rows) - len(postponed), postponed)

    def _give_back(self) -> None:
        """Give back the leases of shards that were not committed."""
        for shard in self._open:
            shard.close()
        self._open.clear()


@dataclass
class _OpenBlock:
    """A block of which some shards are not in the cache yet.

    Attributes
    ----------
    lease : ExitStack
        Gives the block back.
    num_left : int
        Shards that are on their way, or to come.
    """

    lease: ExitStack
    num_left: int
    _lock: Lock = field(default_factory=Lock)

    def one_less(self) -> None:
        """Count a shard that has gone its way."""
        with self._lock:
            self.num_left -= 1
            if not self.num_left:
                self.lease.close()
