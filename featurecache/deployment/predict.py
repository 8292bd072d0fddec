"""New images to labels: the same preprocess, backbone, tap and head as in training, or a refusal."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.runtimes import Runtime, open_runtime
from featurecache.backbones.taps import Tap, resolve_taps
from featurecache.deployment.saved import SavedHead, open_head
from featurecache.errors import DriftError
from featurecache.extraction import drift
from featurecache.extraction.pipeline import FileInput, Outcome, run_pipeline, to_stored
from featurecache.extraction.progress import Progress, Silent
from featurecache.extraction.reproduction import reproduce_backbone
from featurecache.sources.folder import find_images
from featurecache.sources.images import pillow_defaults
from featurecache.specs import ExtractionSettings, PreprocessSpec, ViewSpec
from featurecache.store.dtypes import decode


@dataclass(frozen=True)
class Prediction:
    """What a head says of one input; a bad input has a status and a reason instead of a label."""

    path: str
    label: str | None
    probability: float | None
    probabilities: dict[str, float]
    status: str = "ok"
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def predict(
    head: str | Path,
    inputs: Sequence[str | Path],
    *,
    backbone: str | None = None,
    weights: str | Path | None = None,
    tta: int | None = None,
    settings: ExtractionSettings | None = None,
    progress: Progress | None = None,
) -> Iterator[Prediction]:
    """Label image files, and all images in folders.

    Parameters
    ----------
    head : path
        Folder of a saved head, ``DIR/heads/NAME``.
    inputs : sequence of path
        Image files and folders.
    backbone : str, optional
        Needed only for a head on a ``python:`` backbone: naming it here agrees to run that code.
    weights : path, optional
        The weights file that the features were made with, if it is not the provider's own.
    tta : int, optional
        Answer with the mean of the probabilities over this many seeded views of each input, made as those that the head
        was trained on, or as `ViewSpec` makes them by default; else with those of the plain input.
    settings : ExtractionSettings, optional
        How to run.
    progress : Progress, optional
        Told how far the run is.

    Yields
    ------
    Prediction
        In the order of the inputs.

    Raises
    ------
    BackboneMismatchError
        The backbone here would give other features than those the head was trained on.
    """
    saved = open_head(head)
    views = None if tta is None else replace(saved.identity.views or ViewSpec(), count=tta)
    paths = find_images([Path(item) for item in inputs])
    made_with = str(saved.meta.get("weights_source", "other weights"))
    network = reproduce_backbone(saved.identity, made_with, needed_by="this head", backbone=backbone, weights=weights)
    return _predict(saved, network, paths, views, settings or ExtractionSettings(), progress or Silent())


def _predict(
    saved: SavedHead,
    network: Backbone,
    paths: list[Path],
    views: ViewSpec | None,
    settings: ExtractionSettings,
    progress: Progress,
) -> Iterator[Prediction]:
    (tap,) = resolve_taps(network, [saved.tap])
    runtime = open_runtime(
        network, [tap], runtime=settings.runtime, device=settings.device, batch_size=settings.batch_size
    )
    try:
        with pillow_defaults():
            _guard(saved, tap, runtime, network.preprocess, settings)
    except DriftError:
        runtime.close()
        raise
    progress.start("predicting", len(paths))
    outcomes = run_pipeline(
        [FileInput(path) for path in paths],
        runtime,
        network.preprocess,
        views=views,
        batch_size=settings.batch_size,
        num_workers=settings.num_workers,
    )
    remaining = iter(paths)
    try:
        with pillow_defaults():
            for outcome in outcomes:
                problems = yield from _label_batch(saved, tap.name, views, outcome, remaining)
                progress.advance(len(outcome.problems), bad=problems)
    finally:
        runtime.close()


def _guard(
    saved: SavedHead, tap: Tap, runtime: Runtime, preprocess: PreprocessSpec, settings: ExtractionSettings
) -> None:
    """Refuse to label with features that this machine makes differently than the one where the head was trained."""
    recorded = saved.meta.get("probe")
    if recorded is None:
        return
    differing = drift.changes(recorded["provenance"], drift.provenance(runtime, settings))
    with drift.explained(differing, "extract and train here"):
        drift.check_probe(
            recorded, tap.name, runtime, preprocess, views=saved.identity.views, batch_size=settings.batch_size
        )


def _label_batch(
    saved: SavedHead, tap: str, views: ViewSpec | None, outcome: Outcome, remaining: Iterator[Path]
) -> Generator[Prediction, None, int]:
    # Rounded as the cache rounds, so that a new input and a cached one get equal answers. The steps of int8 depend on
    # the shard that a row lies in, and a new input lies in none.
    rounded = "float32" if saved.dtype == "int8" else saved.dtype
    stored, problems = to_stored(outcome.features[tap], outcome.problems, rounded)
    good = [place for place in range(len(stored)) if place not in problems]
    features = decode(stored[good], rounded).astype(np.float32)
    num_views = 1 if views is None else views.count
    answers = iter(saved.probabilities(features, num_views=num_views) if good else ())
    for place, path in enumerate(islice(remaining, len(stored))):
        if place in problems:
            yield Prediction(str(path), None, None, {}, problems[place].status, problems[place].reason)
        else:
            yield _prediction(str(path), next(answers), saved.classes)
    return len(problems)


def _prediction(path: str, probabilities: NDArray[np.float64], classes: list[str]) -> Prediction:
    best = int(probabilities.argmax())
    every = {label: round(float(p), 6) for label, p in zip(classes, probabilities, strict=True)}
    return Prediction(path, classes[best], round(float(probabilities[best]), 6), every)
