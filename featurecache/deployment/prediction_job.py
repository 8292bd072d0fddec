"""Predictions by several workers: what was asked for in plain values, and what one worker does with it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from time import sleep
from typing import Any

from featurecache.backbones.torch_runtime import checked_device
from featurecache.deployment.listed_inputs import ListedInputs, OpenedSource, list_inputs, open_inputs
from featurecache.deployment.part_files import PartDraft
from featurecache.deployment.parts import Part, PartsFolder, PartsGoneError, Plan
from featurecache.deployment.prediction import Prediction
from featurecache.deployment.predictor import OpenPredictor, Predictor, RuntimeChoice
from featurecache.deployment.saved import SavedHead, network_of, open_head
from featurecache.devices import device_kind
from featurecache.errors import ReportWarning, RequestError
from featurecache.extraction.loading import texts_together
from featurecache.extraction.plan import SMALLEST_SHARD, SMALLEST_SHARD_ON_GPU
from featurecache.hashing import digest_file, digest_json
from featurecache.heads.bundle import JSON_NAME
from featurecache.heads.gradient.finetuned import FineTuned
from featurecache.heads.outliers import LEAST_ROWS
from featurecache.machine import at_most_cores
from featurecache.progress import Progress, Silent
from featurecache.sources.inputs import Input
from featurecache.sources.opening import SourceSpec
from featurecache.specs import ExtractionSettings, ViewSpec, check_takes_views, num_views
from featurecache.store.image_warnings import RemarkCounter
from featurecache.versions import installed_versions
from featurecache.wording import counted

# Seconds until parts that other workers hold are looked at again: short at first, then longer.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
# Beyond so many the number of inputs decides nothing of how they are computed: see `open_runtime`.
_MANY_BATCHES, _MANY_INPUTS = 16, 1024


@dataclass(frozen=True)
class PredictionReport:
    """What one worker did: parts made with which runtime, and how many inputs it predicted."""

    made_with: str
    part_size: int
    num_predicted: int = 0


@dataclass(frozen=True, kw_only=True)
class PredictionJob:
    """What was asked for; what a process derives from it stays there, as with an `ExtractionJob`.

    Attributes
    ----------
    head : Path
    inputs : tuple
        Files, folders, tables, specs of sources; or samples in memory, whose job stays in this process.
    backbone, weights, weights_key, layers, text_column, id_column, tta, outliers
        As for `featurecache.deployment.predict.predict`.
    settings : ExtractionSettings
        How to run. Its ``shard_rows`` are the least inputs of a part.
    parts : Path, optional
        Folder for what is finished; all processes that work on the job see it there.
    plan : str
        Name of the plan, once the inputs were listed.
    """

    head: Path
    inputs: tuple[Any, ...]
    backbone: str | None = None
    weights: str | Path | None = None
    weights_key: str | None = None
    layers: str | None = None
    text_column: str | None = None
    id_column: str | None = None
    tta: int | None = None
    outliers: float | None = None
    settings: ExtractionSettings = field(default_factory=ExtractionSettings)
    parts: Path | None = None
    plan: str = ""

    def __getstate__(self) -> dict[str, object]:
        """Leave behind what this process has derived.

        Raises
        ------
        RequestError
            The samples are in the memory of this process.
        """
        if not all(isinstance(one, str | Path | SourceSpec) for one in self.inputs):
            raise RequestError(
                "the inputs are in the memory of this process, where the engine local runs; write them to files for "
                "another one"
            )
        names = {field.name for field in fields(self)}
        return {name: value for name, value in vars(self).items() if name in names}

    @cached_property
    def saved(self) -> SavedHead:
        """The head, opened in this process.

        Raises
        ------
        RequestError
            Outliers or views are asked of a head that has none.
        """
        saved = open_head(self.head, agreed=self.layers)
        if self.tta is not None:
            if self.outliers is not None:
                raise RequestError(
                    "outliers are told of inputs as they are, not of views; leave --tta or --outliers out"
                )
            check_takes_views(saved.identity.preprocess.modality, f"the head {self.head}", option="--tta")
        # Without being asked for, p-values cost a search of neighbours for each input.
        if self.outliers is None:
            return replace(saved, outliers=None)
        _check_outliers(saved, self.head, self.outliers)
        return saved

    @cached_property
    def views(self) -> ViewSpec | None:
        """Views of each input whose mean is predicted."""
        return None if self.tta is None else replace(self.saved.identity.views or ViewSpec(), count=self.tta)

    @cached_property
    def opened(self) -> list[OpenedSource]:
        """The sources, opened in this process."""
        preprocess = self.saved.identity.preprocess
        return open_inputs(self.inputs, preprocess, text_column=self.text_column, id_column=self.id_column)

    @cached_property
    def listed(self) -> tuple[ListedInputs, list[ReportWarning]]:
        """All inputs, and what is left out of the sources."""
        inputs, _, warnings = list_inputs(self.opened)
        return inputs, warnings

    @cached_property
    def folder(self) -> PartsFolder:
        """Where finished parts lie."""
        assert self.parts is not None
        return PartsFolder(self.parts)

    @cached_property
    def predictor(self) -> Predictor:
        """The head with its backbone, loaded in this process."""
        saved, weights, key = self.saved, self.weights, self.weights_key
        network = network_of(saved, backbone=self.backbone, weights=weights, weights_key=key, layers=self.layers)
        if isinstance(saved.estimator, FineTuned):
            # The device of the training may not be in this machine.
            saved.estimator.set_params(device=str(checked_device(self.settings.device)))
        return Predictor(saved=saved, network=network, views=self.views, settings=self.settings)

    @cached_property
    def asked(self) -> dict[str, object]:
        """What predictions follow from besides the inputs and the runtime, as plain values."""
        # The record of a head has the digest of its arrays, and those of its backbone and weights.
        head = digest_file(self.head / JSON_NAME)
        views = None if self.views is None else asdict(self.views)
        return {"head": head, "views": views, "p_values": self.outliers is not None}

    def scan(self, progress: Progress) -> Plan:
        """List the inputs, before any worker begins: they take from the folder what there is to do."""
        named = {"inputs": [repr(one) for one in self.inputs], "columns": [self.text_column, self.id_column]}
        return self.folder.plan(self.opened, digest_json("prediction", 1, {**self.asked, **named}), progress)

    def planned(self, plan: Plan) -> PredictionJob:
        """Return the job with its plan."""
        return self._changed(plan=plan.name)

    def _changed(self, **changes: Any) -> PredictionJob:
        """Return another job with what this process has opened for this one: a table is read once."""
        job = replace(self, **changes)
        vars(job).update({name: value for name, value in vars(self).items() if name in ("saved", "opened")})
        return job

    def work(
        self, *, device: str | None = None, cores: int | None = None, progress: Progress | None = None
    ) -> PredictionReport:
        """Predict parts until none is left that this worker could do; see `Job.work`.

        Raises
        ------
        PartsGoneError
            Another process has finished the run.
        """
        job = self if device is None else self._changed(settings=replace(self.settings, device=device))
        # Around everything: torch and the threads that decode both ask how many cores there are.
        with at_most_cores(cores):
            try:
                return _Worker(job, progress or Silent()).run()
            except PartsGoneError:
                self.folder.remove_if_empty()
                raise

    def progress_in_words(self) -> str:
        """Say how many parts are finished."""
        return f"{counted(self.folder.num_parts(), 'part')} finished"

    def joined(self, plan: Plan, report: PredictionReport, warnings: list[ReportWarning]) -> Iterator[Prediction]:
        """Yield the predictions of all parts, in the order of the inputs.

        Parameters
        ----------
        plan : Plan
        report : PredictionReport
            Of any worker.
        warnings : list of ReportWarning
            Gets, after the last, those of images that the network sees as one colour.
        """
        remarks = RemarkCounter()
        for part in plan.cut(report.made_with, report.part_size):
            yield from self.folder.read(part, list(dict.fromkeys(self.saved.classes)), remarks)
        warnings += remarks.warnings(self.saved.identity.preprocess)


@dataclass(eq=False)
class _OpenPart:
    """A part that this worker has the lease of."""

    part: Part
    lease: ExitStack
    draft: PartDraft = field(default_factory=PartDraft)


class _Worker:
    """One worker on one job."""

    def __init__(self, job: PredictionJob, progress: Progress) -> None:
        self._job, self._progress, self._folder = job, progress, job.folder
        self._plan = job.folder.load_plan(job.plan, job.opened)
        self._open: list[_OpenPart] = []

    def run(self) -> PredictionReport:
        """Predict until all parts are there."""
        key, device = self._key(), str(checked_device(self._job.settings.device))
        choice, predictor = self._folder.choice(key), None
        # A run that lacks the table alone needs no network.
        if choice is None or self._missing(self._cut(key, choice, device)):
            predictor, choice = self._opened(key, choice)
        report = PredictionReport(made_with(key, choice), part_size(choice, self._job.settings, device))
        if predictor is None:
            return report
        num_predicted, pause = 0, _FIRST_PAUSE
        with closing(predictor):
            missing = self._missing(parts := self._cut(key, choice, device))
            self._progress.start("predicting", sum(part.stop - part.start for part in missing))
            while missing:
                done = self._compute(predictor, missing)
                num_predicted += done
                pause = _FIRST_PAUSE if done else min(2 * pause, _LONGEST_PAUSE)
                # What other workers held may be done by now, or left over by one that was killed.
                if (missing := self._missing(parts)) and not done:
                    sleep(pause)
        return replace(report, num_predicted=num_predicted)

    def _key(self) -> str:
        """Return the digest of all that may decide how a runtime computes: one choice holds for all who have it."""
        job = self._job
        size = job.settings.batch_size or 0
        count = min(len(self._plan.inputs) * num_views(job.views), max(_MANY_BATCHES * size, _MANY_INPUTS))
        asked = {
            **job.asked,
            "num_inputs": count,
            "runtime": job.settings.runtime,
            "batch_size": size,
            "device": list(device_kind(str(checked_device(job.settings.device)))),
            "versions": installed_versions(),
        }
        return digest_json("prediction runtime", 1, asked)

    def _opened(self, key: str, choice: RuntimeChoice | None) -> tuple[OpenPredictor, RuntimeChoice]:
        """Open the predictor with the runtime that the first worker chose for all."""
        count, predictor = len(self._plan.inputs), self._job.predictor
        opened = predictor.open(count, choice)
        try:
            if choice is None:
                mine = RuntimeChoice.of(opened.runtime)
                choice = self._folder.choose(key, mine)
                if choice != mine:
                    opened.close()
                    opened = predictor.open(count, choice)
        # Interrupts too: a runtime holds threads and memory of the device.
        except BaseException:
            opened.close()
            raise
        return opened, choice

    def _cut(self, key: str, choice: RuntimeChoice, device: str) -> list[Part]:
        return self._plan.cut(made_with(key, choice), part_size(choice, self._job.settings, device))

    def _missing(self, parts: Sequence[Part]) -> list[Part]:
        missing = [part for part in parts if not self._folder.has(part)]
        if missing and not self._folder.has_plan(self._plan.name):
            raise PartsGoneError(self._folder.path)
        return missing

    def _compute(self, predictor: OpenPredictor, missing: Sequence[Part]) -> int:
        """Predict those parts that no other worker is at, and return how many inputs that were."""
        num_predicted = 0
        try:
            with closing(predictor.predict(self._taken(missing))) as batches:
                for taken, predictions, remarks in batches:
                    before = taken.draft.num_bad
                    taken.draft.add(predictions, remarks)
                    self._progress.advance(len(predictions), bad=taken.draft.num_bad - before)
                    if taken.draft.count == taken.part.stop - taken.part.start:
                        self._publish(taken)
                        num_predicted += taken.draft.count
        finally:
            for taken in self._open:
                taken.lease.close()
            self._open.clear()
        return num_predicted

    def _publish(self, taken: _OpenPart) -> None:
        # Nothing may be put where the run has ended: a lease that was lost had the part computed twice.
        if not self._folder.has_plan(self._plan.name):
            raise PartsGoneError(self._folder.path)
        self._folder.publish(taken.part, taken.draft)
        taken.lease.close()
        self._open.remove(taken)

    def _taken(self, missing: Sequence[Part]) -> Iterator[tuple[_OpenPart, list[Input]]]:
        """Take the lease of each part that is free and not done."""
        for part in missing:
            with ExitStack() as lease:
                # Under the lease, because others may have finished it since they were looked at.
                if not lease.enter_context(self._folder.leases.hold(part.key)) or self._folder.has(part):
                    continue
                if not self._folder.has_plan(self._plan.name):
                    return
                taken = _OpenPart(part, lease.pop_all())
                self._open.append(taken)
            yield taken, self._plan.inputs[part.start : part.stop]


def made_with(key: str, choice: RuntimeChoice) -> str:
    """Return the digest that parts are named by: of what was asked for, and of what executes the network."""
    return digest_json("prediction part", 1, {"key": key, **asdict(choice), "lengths": list(choice.lengths)})


def part_size(choice: RuntimeChoice, settings: ExtractionSettings, device: str) -> int:
    """Return how many inputs are in a part: whole batches, so that batches are those of a run in one piece.

    Parameters
    ----------
    choice : RuntimeChoice
    settings : ExtractionSettings
    device : str
        Where the worker computes.
    """
    together = texts_together(choice.batch_size) if len(choice.lengths) > 1 else choice.batch_size
    smallest = SMALLEST_SHARD if device == "cpu" else SMALLEST_SHARD_ON_GPU
    return math.ceil((settings.shard_rows or smallest) / together) * together


def _check_outliers(saved: SavedHead, head: str | Path, rate: float) -> None:
    if not 0 < rate < 1:
        raise RequestError(f"outliers are a share of samples between 0 and 1, such as 0.05; got {rate:g}")
    if saved.outliers is None:
        raise RequestError(
            f"the head {head} cannot tell outliers: it was fitted on fewer than {LEAST_ROWS} samples or on "
            "activations, or saved by an earlier release; save it again, or leave --outliers out"
        )
    # A conformal p-value by n usual samples is at least 1 / (n + 1).
    if (least := 1 / (len(saved.outliers.usual) + 1)) > rate:
        raise RequestError(
            f"the head {head} was fitted on {counted(len(saved.outliers.usual), 'sample')}, which tell no share below "
            f"{least:.3f}; ask for a share of {math.ceil(least * 100) / 100:g}"
        )
