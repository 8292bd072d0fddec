"""A frozen backbone as a scikit-learn transformer: image paths or texts in, features out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import nn

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.registry import load_backbone
from featurecache.backbones.runtimes import open_runtime
from featurecache.backbones.taps import Tap, resolve_taps
from featurecache.errors import RequestError
from featurecache.extraction.extract import make_request
from featurecache.extraction.modality import modality_of
from featurecache.extraction.pipeline import run_pipeline, to_stored
from featurecache.sources.in_memory import IndexedImages, InMemory
from featurecache.sources.inputs import Input, inputs_of
from featurecache.specs import InitName, PrecisionName


class FrozenBackbone(TransformerMixin, BaseEstimator):
    """Turn image files or texts into features: ``make_pipeline(FrozenBackbone("..."), LogisticRegression())``.

    It keeps no cache: for more than one experiment on the same inputs, `featurecache.extract` is much faster.

    Parameters
    ----------
    backbone : str or nn.Module
        Name of the network, or a network in memory.
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
        Arithmetic of the forward pass: ``float32``, or on GPUs ``tf32``, ``bfloat16`` and ``float16``.
    batch_size : int, optional
        Inputs in a forward pass; chosen for the device when left out.
    runtime, device : str
        What executes the network, and where.
    """

    def __init__(
        self,
        backbone: str | nn.Module = "efficientnet_lite0",
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

    def fit(self, X: Any = None, y: Any = None) -> Self:
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
        # Here and not in `transform`: an unknown tap is told before any input is read.
        (self.tap_,) = resolve_taps(self.network_, [self.tap])
        return self

    def __sklearn_is_fitted__(self) -> bool:
        """Tell whether the backbone is loaded."""
        return hasattr(self, "network_")

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Return the tap with the number of each feature.

        Parameters
        ----------
        input_features : ignored

        Raises
        ------
        NotFittedError
            The backbone is not loaded.
        """
        check_is_fitted(self)
        count = int(np.prod(self.tap_.shape))
        return np.array([f"{self.tap_.name}_{index}" for index in range(count)], dtype=object)

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Return features ``(n_samples, n_features)`` float32.

        Parameters
        ----------
        X : sequence
            Paths of image files, arrays, PIL images or encoded bytes; texts, for a backbone of texts; an array of
            pictures; or a data frame with one column of these.

        Raises
        ------
        NotFittedError
            The backbone is not loaded.
        InputError
            An input that cannot be read or decoded; its name is in the error's notes.
        """
        check_is_fitted(self)
        X = _items_of(X)
        how = {"runtime": self.runtime, "device": self.device, "batch_size": self.batch_size}
        return features_of(self._inputs(X), self.network_, self.tap_, **how).reshape(len(X), -1)

    def _inputs(self, X: Sequence[Any]) -> Sequence[Input]:
        if self.network_.preprocess.modality == "text":
            texts = {f"text {index}": str(text).encode(errors="surrogatepass") for index, text in enumerate(X)}
            return list(inputs_of(InMemory(texts, "text")))
        # Resamples may have an image twice: each has a name of its own.
        names = [f"{index}: {item}" if isinstance(item, str | Path) else str(index) for index, item in enumerate(X)]
        return list(inputs_of(IndexedImages(X.__getitem__, names)))


def features_of(inputs: Sequence[Input], network: Backbone, tap: Tap, **how: Any) -> NDArray[np.float32]:
    """Return the features of inputs, one row each; the first bad input is an error.

    Parameters
    ----------
    inputs : sequence of Input
    network : Backbone
    tap : Tap
    **how
        Options of `open_runtime`.
    """
    modality = modality_of(network.preprocess, network.tokenizer)
    # So that no samples give an array of no rows.
    rows = [np.zeros((0, *tap.shape), np.float32)]
    runtime = open_runtime(network, [tap], num_inputs=len(inputs), **how)
    with closing(runtime), modality.undisturbed():
        for outcome in run_pipeline(inputs, runtime, modality):
            values, problems = to_stored(outcome.features[tap.name], outcome.problems, "float32")
            for index, problem in sorted(problems.items()):
                problem.add_note(f"in {inputs[sum(map(len, rows)) + index].name}; leave it out")
                raise problem
            rows.append(values)
    return np.concatenate(rows)


def _items_of(X: Any) -> Sequence[Any]:
    """Return the samples of what scikit-learn hands on: sequences, arrays of objects, data frames of one column."""
    if hasattr(X, "columns"):
        if len(X.columns) != 1:
            raise RequestError(f"a data frame of images or texts has one column, and this has {len(X.columns)}")
        X = X[X.columns[0]]
    if hasattr(X, "to_list"):  # a column of a data frame, whose index may be anything
        return X.to_list()  # type: ignore[no-any-return]
    if isinstance(X, np.ndarray) and X.ndim == 2 and X.shape[1] == 1 and X.dtype.kind in "OUS":
        return X[:, 0].tolist()  # type: ignore[no-any-return]
    return X if hasattr(X, "__getitem__") and not isinstance(X, str) else list(X)
