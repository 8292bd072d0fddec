"""New images to labels: the same preprocess, backbone, tap and head as in training, or a refusal."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.random_weights import seed_of
from featurecache.backbones.registry import load_backbone
from featurecache.backbones.runtimes import Runtime, open_runtime
from featurecache.backbones.taps import Tap, resolve_taps
from featurecache.deployment.saved import SavedHead, open_head
from featurecache.errors import DriftError, HeadMismatchError
from featurecache.extraction import drift
from featurecache.extraction.pipeline import FileInput, Outcome, run_pipeline, to_stored
from featurecache.extraction.progress import Progress, Silent
from featurecache.sources.folder import find_images
from featurecache.sources.images import pillow_defaults
from featurecache.specs import BackboneRequest, ExtractionSettings, InitName, PreprocessSpec
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
    HeadMismatchError
        The backbone here would give other features than those the head was trained on.
    """
    saved = open_head(head)
    paths = find_images([Path(item) for item in inputs])
    network = reproduce_backbone(saved, backbone=backbone, weights=weights)
    return _predict(saved, network, paths, settings or ExtractionSettings(), progress or Silent())


def reproduce_backbone(saved: SavedHead, *, backbone: str | None = None, weights: str | Path | None = None) -> Backbone:
    """Load the very backbone that a head was trained on, or say what differs."""
    name = saved.identity.backbone
    if name.startswith("python:") and backbone != name:
        raise HeadMismatchError(
            f"this head needs the backbone {name!r}, which is code on this machine; "
            f"if you trust it, pass --backbone {name}"
        )
    if name.startswith("hub:") and backbone is None:
        raise HeadMismatchError(
            f"this head needs the backbone {name!r}, a checkout with code; if you trust it, pass --backbone "
            "hub:FOLDER:entrypoint"
        )
    if backbone is not None and backbone != name and not _same_files(name, backbone):
        raise HeadMismatchError(f"this head was trained on backbone {name!r}, not {backbone!r}; leave --backbone out")
    made_with = str(saved.meta.get("weights_source", "other weights"))
    if weights is None and made_with.startswith("file "):
        raise HeadMismatchError(
            f"this head was trained with weights from the {made_with}; pass that file with --weights"
        )
    preprocess = tuple(sorted(asdict(saved.identity.preprocess).items()))
    path = None if weights is None else Path(weights)
    seed = seed_of(made_with) if path is None else None
    init: InitName = "pretrained" if seed is None else "random"
    request = BackboneRequest(name=backbone or name, weights=path, preprocess=preprocess, init=init, seed=seed or 0)
    network = load_backbone(request)
    if differences := saved.identity.differences(network.identity):
        raise HeadMismatchError(
            f"the backbone of this head cannot be reproduced here: {'; '.join(differences)}. It was trained with "
            f"{made_with}; pass that file with --weights"
        )
    return network


def _same_files(name: str, backbone: str) -> bool:
    """Tell whether two names may mean one folder of files: then the identity decides, not the place."""
    prefixes = ("hub:", "hf:")
    return any(name.startswith(prefix) and backbone.startswith(prefix) for prefix in prefixes)


def _predict(
    saved: SavedHead, network: Backbone, paths: list[Path], settings: ExtractionSettings, progress: Progress
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
        batch_size=settings.batch_size,
        num_workers=settings.num_workers,
    )
    remaining = iter(paths)
    try:
        with pillow_defaults():
            for outcome in outcomes:
                problems = yield from _label_batch(saved, tap.name, outcome, remaining)
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
        drift.check_probe(recorded, tap.name, runtime, preprocess, batch_size=settings.batch_size)


def _label_batch(
    saved: SavedHead, tap: str, outcome: Outcome, remaining: Iterator[Path]
) -> Generator[Prediction, None, int]:
    # Rounded as the cache rounds, so that a new input and a cached one get equal answers.
    stored, problems = to_stored(outcome.features[tap], outcome.problems, saved.dtype)
    good = [place for place in range(len(stored)) if place not in problems]
    features = decode(stored[good], saved.dtype).astype(np.float32)
    answers = iter(saved.probabilities(features) if good else np.zeros((0, len(saved.classes))))
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
