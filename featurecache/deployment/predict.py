"""New inputs to labels: the same preprocess, backbone, tap and head as in training, or a refusal."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from featurecache.deployment.listed_inputs import ListedInputs
from featurecache.deployment.prediction import Prediction
from featurecache.deployment.prediction_job import PredictionJob
from featurecache.deployment.predictor import Predictor
from featurecache.deployment.saved import SavedHead
from featurecache.deployment.shared_run import SharedRun, run_shared
from featurecache.errors import MAX_EXAMPLES, ReportWarning, RequestError
from featurecache.extraction.engines import make_engine
from featurecache.progress import Progress, Silent
from featurecache.specs import ExtractionSettings
from featurecache.store.image_warnings import RemarkCounter
from featurecache.wording import counted


class Predictions(Iterator[Prediction]):
    """Predictions as they come; nothing of them is kept.

    Attributes
    ----------
    classes, numbers : list of str
        Names of the classes or labels, or of the numbers that the head predicts; the others are empty.
    """

    def __init__(
        self, saved: SavedHead, predictions: Generator[Prediction, None, None], run: SharedRun | None = None
    ) -> None:
        names, is_regression = list(saved.classes), saved.kind == "regression"
        self.classes, self.numbers = ([], names) if is_regression else (names, [])
        self._predictions, self._run = predictions, run

    def __next__(self) -> Prediction:
        return next(self._predictions)

    def close(self) -> None:
        """Release the network, or the parts."""
        self._predictions.close()
        # A generator that has not begun does not end either.
        if self._run is not None:
            self._run.close()


def predict(
    head: str | Path,
    inputs: Any,
    *,
    backbone: str | None = None,
    weights: str | Path | None = None,
    weights_key: str | None = None,
    layers: str | None = None,
    text_column: str | None = None,
    id_column: str | None = None,
    tta: int | None = None,
    outliers: float | None = None,
    engine: str = "local",
    parts: str | Path | None = None,
    settings: ExtractionSettings | None = None,
    progress: Progress | None = None,
    warnings: list[ReportWarning] | None = None,
) -> Predictions:
    """Label image files and all images in folders, or the texts of tables.

    Parameters
    ----------
    head : path
        Folder of a saved head, ``DIR/heads/NAME``.
    inputs : path, sequence of path, or samples in memory
        Image files, folders and what else `extract` takes, one or several; for a head on texts, tables.
    backbone : str, optional
        The recorded name, or the path of that network today. Agrees to run the code of a ``python:`` or ``hub:``
        backbone, to open an ``hf:`` or ``file:`` one, and to download weights that are not on this machine.
    weights : path, optional
        The weights file that the features were made with, if it is not the provider's own.
    weights_key : str, optional
        Dotted name of the part of that file, where the head does not say which and several fit.
    layers : str, optional
        Needed only for a head with layers of somebody's own, ``python:MODULE:FACTORY``: agrees to run that code.
    text_column, id_column : str, optional
        Of tables, the columns that hold and that name the texts.
    tta : int, optional
        Predict the mean of the probabilities over this many seeded views of each input, made as those that the head
        was trained on, or as `ViewSpec` makes them by default; else with those of the plain input.
    outliers : float, optional
        Name inputs that are unlike all that the head was fitted on: those that a share of at most so many, such as
        0.05, of samples like these would be as unlike as; see `featurecache.heads.outliers`.
    engine : str
        Where to run: ``local``, ``processes`` or ``ray``. With another one than ``local`` the call returns when all is
        predicted.
    parts : path, optional
        Folder for what is finished, on a file system that all workers see: a run that is killed goes on when it is
        begun again. What was put there is removed after the last prediction. Engines of several workers need it.
    settings : ExtractionSettings, optional
        How to run.
    progress : Progress, optional
        Told how far the run is.
    warnings : list of ReportWarning, optional
        Warnings are added to it: of files in folders that are no images at once, and of images that the network sees as
        one colour after the last input.

    Yields
    ------
    Prediction
        In the order of the inputs.

    Raises
    ------
    BackboneMismatchError
        The backbone here would give other features than those the head was trained on.
    RequestError
        Outliers are asked of a head that cannot tell them, or as no share; several workers, and no folder for parts.
    """
    job = make_job(
        head,
        inputs,
        backbone=backbone,
        weights=weights,
        weights_key=weights_key,
        layers=layers,
        text_column=text_column,
        id_column=id_column,
        tta=tta,
        outliers=outliers,
        settings=settings or ExtractionSettings(),
        parts=None if parts is None else Path(parts),
    )
    progress, warnings = progress or Silent(), [] if warnings is None else warnings
    if parts is None:
        if engine != "local":
            raise RequestError(f"the workers of the engine {engine} need a folder for finished parts; name one: parts=")
        return predict_alone(job, progress, warnings)
    run = run_shared(job, engine, progress)
    assert isinstance(run, SharedRun)  # only of ranks there are others that join the parts
    return predict_shared(run, warnings, removes=True)


def make_job(head: str | Path, inputs: Any, **options: Any) -> PredictionJob:
    """Return what `predict` was asked for.

    Parameters
    ----------
    head, inputs
        As for `predict`.
    **options
        Of `PredictionJob`.
    """
    several = [inputs] if isinstance(inputs, str | Path) or not isinstance(inputs, Sequence) else inputs
    return PredictionJob(head=Path(head), inputs=tuple(several), **options)


def predict_alone(job: PredictionJob, progress: Progress, warnings: list[ReportWarning]) -> Predictions:
    """Predict in this process and in one piece, as predictions are asked for.

    Parameters
    ----------
    job : PredictionJob
    progress : Progress
    warnings : list of ReportWarning
        As for `predict`.
    """
    make_engine("local", progress, settings=job.settings)  # settings may be for several workers
    # Before the network is loaded: a name that is wrong is told at once.
    inputs, found = job.listed
    warnings += found
    predictions = _predict(job.predictor, inputs, progress, warnings)
    return Predictions(job.saved, with_outliers(predictions, job, warnings))


def predict_shared(run: SharedRun, warnings: list[ReportWarning], *, removes: bool) -> Predictions:
    """Read what several workers have predicted, as predictions are asked for.

    Parameters
    ----------
    run : SharedRun
        Closed with the predictions.
    warnings : list of ReportWarning
        As for `predict`.
    removes : bool
        After the last prediction, remove the finished parts.
    """

    def joined() -> Generator[Prediction, None, None]:
        with closing(run):
            yield from run.predictions(warnings)
            if removes:
                run.job.folder.remove()

    return Predictions(run.job.saved, with_outliers(joined(), run.job, warnings), run)


def _predict(
    predictor: Predictor, inputs: ListedInputs, progress: Progress, warnings: list[ReportWarning]
) -> Generator[Prediction, None, None]:
    remarks = RemarkCounter()
    with closing(predictor.open(len(inputs))) as opened, closing(opened.predict([(None, inputs)])) as batches:
        progress.start("predicting", len(inputs))
        for _, predictions, remarked in batches:
            for item, remark in zip(predictions, remarked, strict=True):
                remarks.add(item.path, remark)
            yield from predictions
            progress.advance(len(predictions), bad=sum(item.status != "ok" for item in predictions))
    warnings += remarks.warnings(predictor.network.preprocess)


def with_outliers(
    predictions: Generator[Prediction, None, None], job: PredictionJob, warnings: list[ReportWarning]
) -> Generator[Prediction, None, None]:
    """Say of each prediction whether its input is an outlier, and at the end how many are.

    Parameters
    ----------
    predictions : generator of Prediction
    job : PredictionJob
        Where it asks for no outliers, predictions stay as they are.
    warnings : list of ReportWarning
    """
    rate, number, count, names = job.outliers, 0, 0, list[str]()
    # A caller who stops early releases the network too.
    with closing(predictions):
        for item in predictions:
            number += 1
            if rate is not None and item.p_value is not None:
                item = replace(item, is_outlier=item.p_value <= rate)
            if item.is_outlier:
                count, names = count + 1, [*names, item.path][:MAX_EXAMPLES]
            yield item
    if count:
        text = (
            f"{counted(count, 'input', of=number, verb='is')} unlike all that the head was fitted on, first "
            f"{names[0]}: what is predicted of such means little (of inputs "
            f"like those, up to {rate:.0%} are named as well)"
        )
        warnings.append(ReportWarning(kind="outliers", count=count, text=text, examples=tuple(names)))
