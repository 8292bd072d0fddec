"""New inputs to labels: the same preprocess, backbone, tap and head as in training, or a refusal."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.runtimes import Runtime, open_runtime
from featurecache.backbones.taps import Tap, resolve_taps
from featurecache.backbones.torch_runtime import checked_device
from featurecache.deployment.one_network import as_one_network, can_be_one_network
from featurecache.deployment.saved import SavedHead, open_head, with_layers
from featurecache.errors import MAX_EXAMPLES, ReportWarning, RequestError
from featurecache.extraction import drift
from featurecache.extraction.modality import Modality, modality_of
from featurecache.extraction.pipeline import Outcome, run_pipeline, to_stored
from featurecache.extraction.reproduction import reproduce_backbone
from featurecache.finetuning.factories import options_to_agree
from featurecache.heads.gradient.finetuned import FineTuned
from featurecache.heads.outliers import LEAST_ROWS
from featurecache.ignored import IgnoredFiles
from featurecache.progress import Progress, Silent
from featurecache.sources.inputs import Input, inputs_of
from featurecache.sources.opening import open_source, open_sources
from featurecache.sources.source import check_modality
from featurecache.specs import ExtractionSettings, ViewSpec, check_takes_views, num_views
from featurecache.store.dtypes import decode
from featurecache.store.image_warnings import RemarkCounter
from featurecache.store.schemas import ReferenceBody


@dataclass(frozen=True)
class Prediction:
    """The prediction for one input; a bad input has a status and a reason instead.

    Attributes
    ----------
    label : str or None
        The class; or the labels that hold, with ``;`` between them.
    probability : float or None
        Of the class.
    probabilities : dict
        Of each class, or of each label by itself.
    numbers : dict
        By name, where the head predicts numbers.
    p_value : float or None
        The share of samples like those that the head was fitted on that would be at least as unlike them; None where
        that was not asked for.
    is_outlier : bool or None
        That share is at most what was asked for.
    """

    path: str
    label: str | None
    probability: float | None
    probabilities: dict[str, float]
    status: str = "ok"
    reason: str = ""
    numbers: dict[str, float] = field(default_factory=dict)
    p_value: float | None = None
    is_outlier: bool | None = None

    def to_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        return asdict(self)


class Predictions(Iterator[Prediction]):
    """Predictions as they come; nothing of them is kept.

    Attributes
    ----------
    classes, numbers : list of str
        Names of the classes or labels, or of the numbers that the head predicts; the others are empty.
    """

    def __init__(self, saved: SavedHead, predictions: Generator[Prediction, None, None]) -> None:
        names, is_regression = list(saved.classes), saved.kind == "regression"
        self.classes, self.numbers = ([], names) if is_regression else (names, [])
        self._predictions = predictions

    def __next__(self) -> Prediction:
        return next(self._predictions)

    def close(self) -> None:
        """Release the network."""
        self._predictions.close()


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
        Outliers are asked of a head that cannot tell them, or as no share.
    """
    saved = open_head(head, agreed=layers)
    # Without being asked for, p-values cost a search of neighbours for each input.
    if outliers is None:
        saved = replace(saved, outliers=None)
    else:
        if tta is not None:
            raise RequestError("outliers are told of inputs as they are, not of views; leave --tta or --outliers out")
        _check_outliers(saved, head, outliers)
    views = None
    if tta is not None:
        check_takes_views(saved.identity.preprocess.modality, f"the head {head}", option="--tta")
        views = replace(saved.identity.views or ViewSpec(), count=tta)
    warnings = [] if warnings is None else warnings
    inputs = [inputs] if isinstance(inputs, str | Path) or not isinstance(inputs, Sequence) else inputs
    # Before the network is loaded: a name that is wrong is told at once.
    found = _inputs(saved, inputs, text_column, id_column, warnings)
    network = reproduce_backbone(
        saved.identity,
        str(saved.meta.get("weights_source", "other weights")),
        needed_by="this head",
        backbone=backbone,
        weights=weights,
        weights_key=weights_key,
        also=options_to_agree(str(saved.meta.get("head")), layers),
    )
    settings = settings or ExtractionSettings()
    with_layers(saved, network, layers)
    if isinstance(saved.estimator, FineTuned):
        # The device of the training may not be in this machine.
        saved.estimator.set_params(device=str(checked_device(settings.device)))
    predictions = _predict(saved, network, found, views, settings, progress or Silent(), warnings)
    return Predictions(saved, predictions if outliers is None else _with_outliers(predictions, outliers, warnings))


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
            f"the head {head} was fitted on {len(saved.outliers.usual)} samples, which tell no share below "
            f"{least:.3f}; ask for a share of {math.ceil(least * 100) / 100:g}"
        )


def _with_outliers(
    predictions: Generator[Prediction, None, None], rate: float, warnings: list[ReportWarning]
) -> Generator[Prediction, None, None]:
    """Say of each prediction whether its input is an outlier, and at the end how many are."""
    number, count, names = 0, 0, list[str]()
    # A caller who stops early releases the network too.
    with closing(predictions):
        for item in predictions:
            number += 1
            if item.p_value is not None:
                item = replace(item, is_outlier=item.p_value <= rate)
            if item.is_outlier:
                count, names = count + 1, [*names, item.path][:MAX_EXAMPLES]
            yield item
    if count:
        text = f"{count} of {number} inputs are unlike all that the head was fitted on, first {names[0]}: their"
        text += f" predictions mean little (of inputs like those, up to {rate:.0%} are named as well)"
        warnings.append(ReportWarning(kind="outliers", count=count, text=text, examples=tuple(names)))


def _inputs(
    saved: SavedHead,
    named: Sequence[Any],
    text_column: str | None,
    id_column: str | None,
    warnings: list[ReportWarning],
) -> Sequence[Input]:
    """Return every sample of the sources that were named; of folders, warn of pictures that are left out."""
    preprocess = saved.identity.preprocess
    if not any("://" in str(name) for name in named) and (preprocess.modality == "text") != (text_column is not None):
        raise RequestError(
            "this head labels texts: name tables, and the column that holds the texts with --text-column"
            if preprocess.modality == "text"
            else f"this head labels images; leave --text-column {text_column} out"
        )
    if text_column is not None:
        # With several tables a row is named with its own.
        tables = [
            (getattr(path, "url", path), open_source(path, text_column=text_column, id_column=id_column))
            for path in named
        ]
        return [
            item for path, table in tables for item in inputs_of(table, prefix=f"{path}: " if len(tables) > 1 else "")
        ]
    found: list[Input] = []
    for source in open_sources(named):
        check_modality(source, preprocess, "this head")
        found += inputs_of(source)
        name = (getattr(source, "prefix", "") or source.key).rstrip("/")
        # Classes without an image matter to nobody here.
        left_out = replace(getattr(source, "ignored", IgnoredFiles()), folders=(), num_folders=0).warnings()
        warnings += left_out if len(named) == 1 else [warning.about(name) for warning in left_out]
    return found


def _predict(
    saved: SavedHead,
    network: Backbone,
    inputs: Sequence[Input],
    views: ViewSpec | None,
    settings: ExtractionSettings,
    progress: Progress,
    warnings: list[ReportWarning],
) -> Generator[Prediction, None, None]:
    remarks = RemarkCounter()
    (tap,) = resolve_taps(network, [saved.tap])
    modality = modality_of(network.preprocess, network.tokenizer, views)
    opened = partial(open_runtime, device=settings.device, num_inputs=len(inputs) * num_views(views))
    if can_be_one_network(saved):
        if saved.meta.get("probe") is not None:
            # The record is of activations before the layers: they are compared once, apart from the whole network.
            _checked(opened(network, [tap], runtime="torch", batch_size=2), saved, tap, network, modality).close()
        saved, network, tap = as_one_network(saved, network, tap)
    runtime = opened(network, [tap], runtime=settings.runtime, batch_size=settings.batch_size)
    runtime = _checked(runtime, saved, tap, network, modality)
    progress.start("predicting", len(inputs))
    outcomes = run_pipeline(
        inputs,
        runtime,
        modality,
        num_workers=settings.num_workers,
    )
    remaining = iter(inputs)
    try:
        with modality.undisturbed():
            for outcome in outcomes:
                items = list(islice(remaining, len(outcome.problems)))
                for item, remark in zip(items, outcome.remarks, strict=True):
                    remarks.add(item.name, remark)
                problems = yield from _label_batch(saved, tap.name, views, outcome, items)
                progress.advance(len(outcome.problems), bad=problems)
        warnings += remarks.warnings(network.preprocess)
    finally:
        runtime.close()


def _checked(runtime: Runtime, saved: SavedHead, tap: Tap, network: Backbone, modality: Modality) -> Runtime:
    """Return a runtime that makes the features which the head was trained on; one that makes others is closed."""
    try:
        with modality.undisturbed():
            check_features(saved, tap, runtime, network)
    # Interrupts too: a runtime holds threads and memory of the device.
    except BaseException:
        runtime.close()
        raise
    return runtime


def check_features(saved: SavedHead, tap: Tap, runtime: Runtime, network: Backbone) -> None:
    """Refuse a machine that makes other features than the one where the head was trained.

    Parameters
    ----------
    saved : SavedHead
    tap : Tap
    runtime : Runtime
    network : Backbone

    Raises
    ------
    DriftError
        The reference inputs give other features here.
    """
    if (record := saved.meta.get("probe")) is None:
        return
    recorded = msgspec.convert(record, ReferenceBody)
    with drift.explained(recorded.provenance, runtime, "extract and train here"):
        modality = modality_of(network.preprocess, network.tokenizer, saved.identity.views)
        drift.check_reference(recorded, tap.name, runtime, modality)


def _label_batch(
    saved: SavedHead, tap: str, views: ViewSpec | None, outcome: Outcome, items: Sequence[Input]
) -> Generator[Prediction, None, int]:
    stored, problems = to_stored(outcome.features[tap], outcome.problems, saved.rounded_to)
    good = [index for index in range(len(stored)) if index not in problems]
    features = decode(stored[good], saved.rounded_to).astype(np.float32)
    # Heads predict the good inputs of a batch in one call.
    outputs = iter(saved.probabilities(features, num_views=num_views(views)) if good else ())
    p_values = iter(_p_values(saved, features) if good else ())
    for index, item in enumerate(items):
        if index in problems:
            yield Prediction(item.name, None, None, {}, problems[index].status, problems[index].reason)
        else:
            yield replace(_prediction(item.name, next(outputs), saved), p_value=next(p_values))
    return len(problems)


def _p_values(saved: SavedHead, features: NDArray[np.float32]) -> list[float] | Iterator[None]:
    """Return how usual each input is, of several views (n, num_views, d) by their mean."""
    if saved.outliers is None:
        return repeat(None)
    # The detector knows plain inputs, one row each.
    rows = features.reshape(len(features), -1, saved.outliers.rows.shape[1]).mean(axis=1)
    return [round(value, 6) for value in saved.outliers.p_values(rows).tolist()]


def _prediction(path: str, outputs: NDArray[np.float64], saved: SavedHead) -> Prediction:
    classes = saved.classes
    if saved.kind == "regression":
        return Prediction(path, None, None, {}, numbers=dict(zip(classes, outputs.tolist(), strict=True)))
    # Features are float32 at best: further digits mean nothing.
    every = {label: round(float(p), 6) for label, p in zip(classes, outputs, strict=True)}
    (names,) = saved.names_of(outputs[None])
    if saved.kind == "multilabel":
        return Prediction(path, ";".join(names), None, every)
    return Prediction(path, names[0], every[names[0]], every)
