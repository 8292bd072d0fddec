"""A frozen backbone as a scikit-learn transformer: image paths in, features out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin

from featurecache.backbones.registry import load_backbone
from featurecache.backbones.runtimes import open_runtime
from featurecache.backbones.taps import resolve_taps
from featurecache.errors import InputError
from featurecache.extraction.pipeline import FileInput, run_pipeline, to_stored
from featurecache.sources.images import pillow_defaults
from featurecache.specs import BackboneRequest


class FrozenBackbone(TransformerMixin, BaseEstimator):
    """Turn image files into features, for pipelines: ``make_pipeline(FrozenBackbone("..."), LogisticRegression())``.

    It keeps no cache: for more than one experiment on the same images, `featurecache.extract` is much faster.

    Parameters
    ----------
    backbone : str
        Name of the network.
    weights : path, optional
        A weights file; the provider's own when left out.
    tap : str
        Layer to read, ``node:pooling``.
    batch_size : int
        Images in a forward pass.
    runtime, device : str
        What executes the network, and where.
    """

    def __init__(
        self,
        backbone: str = "efficientnet_lite0",
        *,
        weights: str | Path | None = None,
        tap: str = "default",
        batch_size: int = 32,
        runtime: str = "auto",
        device: str = "cpu",
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.tap = tap
        self.batch_size = batch_size
        self.runtime = runtime
        self.device = device

    def fit(self, X: Sequence[str | Path], y: Any = None) -> Self:
        """Load the backbone; nothing is learned from ``X``."""
        weights = None if self.weights is None else Path(self.weights)
        self.network_ = load_backbone(BackboneRequest(name=self.backbone, weights=weights))
        (self.tap_,) = resolve_taps(self.network_, [self.tap])
        return self

    def transform(self, X: Sequence[str | Path]) -> NDArray[np.float32]:
        """Return features ``(n_samples, n_features)`` float32 of the image files ``X``.

        Raises
        ------
        InputError
            A file that cannot be read or decoded; its name is in the error's notes.
        """
        runtime = open_runtime(
            self.network_, [self.tap_], runtime=self.runtime, device=self.device, batch_size=self.batch_size
        )
        rows = [np.zeros((0, *self.tap_.shape), np.float32)]
        try:
            with pillow_defaults():
                for outcome in run_pipeline(
                    [FileInput(Path(path)) for path in X],
                    runtime,
                    self.network_.preprocess,
                    batch_size=self.batch_size,
                ):
                    _, problems = to_stored(outcome.features[self.tap_.name], outcome.problems, "float32")
                    _refuse_problems(X, sum(map(len, rows)), problems)
                    rows.append(outcome.features[self.tap_.name])
        finally:
            runtime.close()
        return np.concatenate(rows).reshape(len(X), -1)


def _refuse_problems(X: Sequence[str | Path], start: int, problems: Mapping[int, InputError]) -> None:
    for place, problem in sorted(problems.items()):
        problem.add_note(f"in {X[start + place]}; leave this file out")
        raise problem
