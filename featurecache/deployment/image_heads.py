"""A saved head as a scikit-learn estimator: on features, and with its backbone on what these are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from featurecache.deployment.predict import predict
from featurecache.deployment.prediction import Prediction
from featurecache.deployment.saved import SavedHead, open_head
from featurecache.errors import InputError, RequestError
from featurecache.specs import ExtractionSettings
from featurecache.wording import counted


class LoadedHead(BaseEstimator):
    """A head that was kept, with all that it needs to predict.

    Parameters
    ----------
    folder : path
        ``DIR/heads/NAME``.
    backbone, weights, layers : str, path and str, optional
        What a record cannot decide for images; see `featurecache.predict`.
    settings : ExtractionSettings, optional
        How the backbone runs.

    Attributes
    ----------
    classes_ : ndarray of str
        Classes or labels; of a regression the names of the numbers.
    n_features_in_ : int
        Of one sample.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        backbone: str | None = None,
        weights: str | Path | None = None,
        layers: str | None = None,
        settings: ExtractionSettings | None = None,
    ) -> None:
        self.folder = folder
        self.backbone = backbone
        self.weights = weights
        self.layers = layers
        self.settings = settings

    def fit(self, X: Any = None, y: Any = None) -> Self:
        """Do nothing: the head is fitted."""
        return self

    def __sklearn_is_fitted__(self) -> bool:
        """Tell that it is."""
        return True

    @property
    def classes_(self) -> NDArray[np.str_]:
        """Names by column of `predict_proba`."""
        return np.array(self._head.classes)

    @property
    def n_features_in_(self) -> int:
        """Number of features of one sample."""
        return int(self._head.estimator.n_features_in_)

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the class of each sample, (n,) str; which labels hold, (n, n_labels) bool; or numbers, (n, n_numbers).

        Parameters
        ----------
        X : ndarray of float (n, n_features), or samples
            Features as the cache gives them; or what `featurecache.predict` takes: paths, pictures, texts.

        Raises
        ------
        InputError
            A sample that cannot be read or decoded.
        RequestError
            Features of another width.
        """
        if self._head.kind == "regression":
            return self._outputs(X)
        outputs = self._outputs(X)
        names = self._head.names_of(outputs)
        if self._head.kind == "classification":
            return np.array([name for (name,) in names])
        return np.array([[label in held for label in self._head.classes] for held in names])

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the probability of each class, or of each label by itself, (n, n_classes).

        Parameters
        ----------
        X
            As for `predict`.

        Raises
        ------
        RequestError
            The head predicts numbers.
        """
        if self._head.kind == "regression":
            raise RequestError(f"the head {self.folder} predicts numbers, which have no probabilities; call predict")
        return self._outputs(X)

    @property
    def _head(self) -> SavedHead:
        # Opened when it is first used: scikit-learn makes estimators of their parameters alone, and copies them.
        if "_opened" not in vars(self):
            self._opened = open_head(self.folder, agreed=self.layers)
        return self._opened

    def _outputs(self, X: Any) -> NDArray[np.float64]:
        # Pictures are arrays too, but of whole numbers or of more axes.
        if isinstance(X, np.ndarray) and X.ndim == 2 and X.dtype.kind == "f":
            if X.shape[1] != self.n_features_in_:
                raise RequestError(
                    f"the head {self.folder} takes {counted(self.n_features_in_, 'feature')} of a sample, and "
                    "these are "
                    f"{X.shape[1]}"
                )
            return self._head.probabilities(X.astype(np.float32))
        items = predict(
            self.folder, X, backbone=self.backbone, weights=self.weights, layers=self.layers, settings=self.settings
        )
        return np.array([self._row(item) for item in items])

    def _row(self, item: Prediction) -> list[float]:
        # An array has a row for every sample, so that a bad one is an error here.
        if item.status != "ok":
            error = InputError(item.status, item.reason)
            error.add_note(f"in {item.path}; leave it out")
            raise error
        values = item.numbers or item.probabilities
        return [values[name] for name in self._head.classes]


def load_head(
    folder: str | Path,
    *,
    backbone: str | None = None,
    weights: str | Path | None = None,
    layers: str | None = None,
    settings: ExtractionSettings | None = None,
) -> LoadedHead:
    """Return a kept head as a scikit-learn estimator.

    Parameters
    ----------
    folder, backbone, weights, layers, settings
        As for `LoadedHead`.

    Raises
    ------
    HeadError
        There is none, or it is damaged.
    """
    head = LoadedHead(folder, backbone=backbone, weights=weights, layers=layers, settings=settings)
    # Opened now, so that a missing or damaged head is told here and not at the first prediction.
    _ = head.classes_
    return head
