"""A frozen backbone as a scikit-learn transformer: image paths or texts in, features out."""

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
from featurecache.extraction.extract import make_request
from featurecache.extraction.modality import modality_of
from featurecache.extraction.pipeline import run_pipeline, to_stored
from featurecache.sources.files import NamedFiles
from featurecache.sources.in_memory import InMemory
from featurecache.sources.inputs import Input, inputs_of
from featurecache.specs import InitName, PrecisionName


class FrozenBackbone(TransformerMixin, BaseEstimator):
    """Turn image files or texts into features: ``make_pipeline(FrozenBackbone("..."), LogisticRegression())``.

    It keeps no cache: for more than one experiment on the same inputs, `featurecache.extract` is much faster.

    Parameters
    ----------
    backbone : str
        Name of the network.
    weights : path, optional
        A weights file; the provider's own when left out.
    weights_key : str, optional
        Dotted name of the part of the file to load, where several fit the network.
    tap : str
        Layer to read, ``node:pooling``.
    init, seed : str, int
        ``random`` is the same network before any training, drawn with that seed: the honest baseline.
    preprocess : mapping, optional
        Changes to the preprocess that comes with the weights: ``{"resize": 160, "crop": 160}``.
    precision : str
        Arithmetic of the forward pass: ``float32``, or on GPUs ``bfloat16`` and ``float16``.
    batch_size : int, optional
        Inputs in a forward pass; chosen for the device when left out.
    runtime, device : str
        What executes the network, and where.
    """

    def __init__(
        self,
        backbone: str = "efficientnet_lite0",
        *,
        weights: str | Path | None = None,
        weights_key: str | None = None,
        tap: str = "default",
        init: InitName = "pretrained",
        seed: int = 0,
        preprocess: Mapping[str, Any] | None = None,
        precision: PrecisionName = "float32",
        batch_size: int | None = None,
        runtime: str = "auto",
        device: str = "auto",
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.weights_key = weights_key
        self.tap = tap
        self.init = init
        self.seed = seed
        self.preprocess = preprocess
        self.precision = precision
        self.batch_size = batch_size
        self.runtime = runtime
        self.device = device

    def fit(self, X: Sequence[str | Path], y: Any = None) -> Self:
        """Load the backbone; nothing is learned from ``X``.

        Raises
        ------
        RequestError, BackboneError, WeightsError
            As for `featurecache extract` with the same options.
        """
        request = make_request(
            self.backbone,
            weights=self.weights,
            weights_key=self.weights_key,
            init=self.init,
            seed=self.seed,
            precision=self.precision,
            preprocess=self.preprocess,
        )
        self.network_ = load_backbone(request)
        (self.tap_,) = resolve_taps(self.network_, [self.tap])
        return self

    def transform(self, X: Sequence[str | Path]) -> NDArray[np.float32]:
        """Return features ``(n_samples, n_features)`` float32 of the image files or texts ``X``.

        Raises
        ------
        InputError
            An input that cannot be read or decoded; its name is in the error's notes.
        """
        runtime = open_runtime(
            self.network_,
            [self.tap_],
            runtime=self.runtime,
            device=self.device,
            batch_size=self.batch_size,
            num_inputs=len(X),
        )
        modality = modality_of(self.network_.preprocess, self.network_.tokenizer)
        rows = [np.zeros((0, *self.tap_.shape), np.float32)]
        try:
            with modality.undisturbed():
                for outcome in run_pipeline(self._inputs(X), runtime, modality):
                    _, problems = to_stored(outcome.features[self.tap_.name], outcome.problems, "float32")
                    for index, problem in sorted(problems.items()):
                        problem.add_note(f"in {self._inputs(X)[sum(map(len, rows)) + index].name}; leave it out")
                        raise problem
                    rows.append(outcome.features[self.tap_.name])
        finally:
            runtime.close()
        return np.concatenate(rows).reshape(len(X), -1)

    def _inputs(self, X: Sequence[str | Path]) -> Sequence[Input]:
        if self.network_.preprocess.modality == "text":
            texts = {f"text {index}": str(text).encode(errors="surrogatepass") for index, text in enumerate(X)}
            return list(inputs_of(InMemory(texts, "text")))
        return list(inputs_of(NamedFiles([Path(path) for path in X])))
