"""Multilayer perceptrons as a scikit-learn estimator; many settings and folds are trained side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

from featurecache.heads.checks import (
    REAL_TYPES,
    checked_class_weight,
    checked_labels,
    checked_rows,
    checked_weight,
    is_small,
    with_weight,
)


class MlpProbe(ClassifierMixin, BaseEstimator):
    """Multilayer perceptron with rectifiers on standardised features, trained by AdamW with early stopping.

    Trained on cross-entropy in shared mini-batches, with a learning rate that falls to zero along half a cosine
    (Loshchilov & Hutter, "SGDR", ICLR 2017, equation 5, without restarts). Where there are enough rows, some of each
    class are held out, and the weights are kept that did best on them. Without hidden layers it is multinomial logistic
    regression by gradient steps, as DINOv2's linear evaluation trains dozens of heads at different learning rates side
    by side (Oquab et al., TMLR 2024, section 7.1).

    Parameters
    ----------
    hidden_layers : int
        0 trains a linear classifier.
    width : int
        Units of each hidden layer.
    learning_rate : float
    weight_decay : float
        Decoupled, as a rate: each step takes ``learning_rate * weight_decay`` of every weight away.
    batch_size : int
    epochs : int, optional
        At most; None: 20, but at least 300 steps.
    patience : int
        Rounds without improvement on the held-out rows after which training ends; a round is an epoch, or 25 steps
        where that is more.
    validation_fraction : float
        Of the rows of each class, held out to stop by. None are where there are fewer than 1,000 rows, or ten of a
        class; then training goes on for all its steps.
    class_weight : None, "balanced" or mapping of class to weight
    device : str
        Where to compute, e.g. ``cuda``.
    random_state : int
        Of first weights, held-out rows and batches.

    Attributes
    ----------
    classes_ : ndarray (n_classes,)
    coefs_ : list of ndarray (n_inputs, n_outputs)
        Of each layer; the first is for features as they come, not standardised.
    intercepts_ : list of ndarray (n_outputs,)
    n_iter_ : int
        Steps after which these were the weights.
    """

    side_by_side: ClassVar[frozenset[str]] = frozenset({"hidden_layers", "width", "learning_rate", "weight_decay"})
    """Parameters in which settings may differ that are trained side by side."""

    def __init__(
        self,
        hidden_layers: int = 1,
        *,
        width: int = 128,
        learning_rate: float = 1e-3,
        weight_decay: float = 1.0,
        batch_size: int = 256,
        epochs: int | None = None,
        patience: int = 5,
        validation_fraction: float = 0.1,
        class_weight: str | Mapping[Any, float] | None = None,
        device: str = "cpu",
        random_state: int = 0,
    ) -> None:
        self.hidden_layers = hidden_layers
        self.width = width
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.epochs = epochs
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.class_weight = class_weight
        self.device = device
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Train.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Float64 is computed in float64, all else in float32. A ``numpy.memmap`` is read by the batch.
        y : array-like of shape (n_samples,)
        sample_weight : array-like of shape (n_samples,), optional
            Of each row in the loss.

        Raises
        ------
        ValueError
            Data or parameters that scikit-learn's estimators refuse too, or training that diverges.
        """
        rows, labels = checked_rows(self, X, y)
        check_classification_targets(labels)
        weight = checked_weight(sample_weight, rows)
        weight, rows, labels = with_weight(weight, rows, labels)
        self.classes_, y_index = checked_labels(labels)
        ((trained,),) = self._train(rows, y_index, np.full(len(y_index), -1), weight, [{}])
        if not trained.num_steps:
            raise ValueError(f"training diverges at the learning rate {self.learning_rate:g}; use a smaller one")
        return self._fitted(trained, rows.dtype)

    def fit_folds(
        self, X: NDArray[Any], y: NDArray[Any], fold: NDArray[np.int64], settings: Sequence[Mapping[str, Any]]
    ) -> Iterator[tuple[Mapping[str, Any], list[MlpProbe]]]:
        """Train all settings and all folds side by side, on mini-batches that they share.

        Parameters
        ----------
        X, y
            As for `fit`; arrays.
        fold : ndarray of int (n_samples,)
            -1 for rows that are never held out. The rows outside each fold must be of all classes.
        settings : sequence of mapping
            Parameters among `side_by_side`, others stay as they are.

        Yields
        ------
        (setting, estimators)
            One fitted estimator for each fold, which was not fitted on it; a single one, fitted on all rows, where no
            row is held out. Where training diverged, it names all classes equally probable.
        """
        self.n_features_in_ = X.shape[1]
        self.classes_, y_index = checked_labels(y)
        for setting, trained in zip(settings, self._train(X, y_index, fold, None, settings), strict=True):
            yield setting, [self._sibling(setting)._fitted(each, X.dtype) for each in trained]

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return logits: (n_samples, n_classes), or the difference of two classes' (n_samples,)."""
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the probability of each class, (n_samples, n_classes)."""
        return np.asarray(softmax(self._logits(X), axis=1))

    def predict_log_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the logarithm of the probability of each class, (n_samples, n_classes)."""
        return np.asarray(log_softmax(self._logits(X), axis=1))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the most probable class, (n_samples,)."""
        logits = self._logits(X)
        return np.asarray(self.classes_[logits.argmax(axis=1)])

    def _logits(self, X: ArrayLike) -> NDArray[np.float64]:
        check_is_fitted(self)
        values = validate_data(self, X, reset=False, dtype=REAL_TYPES)
        for place, (coef, intercept) in enumerate(zip(self.coefs_, self.intercepts_, strict=True)):
            values = values if place == 0 else np.maximum(values, 0)
            values = values @ coef.astype(values.dtype) + intercept.astype(values.dtype)
        return values.astype(np.float64)

    def _train(
        self,
        X: Any,
        y: NDArray[np.int64],
        fold: NDArray[np.int64],
        weight: NDArray[np.float64] | None,
        settings: Sequence[Mapping[str, Any]],
    ) -> Any:
        # torch is loaded by those who fit, not by those who list heads.
        import torch

        from featurecache.heads.mlp.bank import Setting
        from featurecache.heads.mlp.training import Schedule, Weighting, train
        from featurecache.heads.rows import NO_FOLD, Rows

        own = {name: getattr(self, name) for name in self.side_by_side}
        merged = [Setting(**(own | dict(setting))) for setting in settings]
        for setting in merged:
            _check_setting(setting)
        self._check_schedule()
        of_class = checked_class_weight(self.class_weight, self.classes_)
        schedule = Schedule(
            batch_size=self.batch_size,
            epochs=self.epochs,
            patience=self.patience,
            validation_fraction=self.validation_fraction,
            seed=self.random_state or 0,
        )
        left_out = [int(each) for each in np.unique(fold) if each != NO_FOLD] or [NO_FOLD]
        dtype = torch.float64 if X.dtype == np.float64 else torch.float32
        rows = Rows(X, y, fold, weight, dtype=dtype, device=self.device)
        balanced = isinstance(of_class, str)
        weighting = Weighting(balanced=balanced, of_class=None if isinstance(of_class, str) else of_class)
        # Steps on few rows are so short that threads spend them waiting for each other.
        with threadpool_limits(1 if is_small(*X.shape) else None):
            return train(rows, merged, left_out, schedule, weighting)

    def _check_schedule(self) -> None:
        for name, least in (("batch_size", 1), ("patience", 1), ("epochs", 1)):
            value = getattr(self, name)
            if not (value is None and name == "epochs") and (not isinstance(value, int | np.integer) or value < least):
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be from 0 to below 1, got {self.validation_fraction!r}")

    def _sibling(self, setting: Mapping[str, Any]) -> Self:
        estimator = clone(self).set_params(**setting)
        estimator.n_features_in_, estimator.classes_ = self.n_features_in_, self.classes_
        return estimator

    def _fitted(self, trained: Any, dtype: np.dtype[Any]) -> Self:
        kept = np.float64 if dtype == np.float64 else np.float32
        self.coefs_ = [layer.cpu().numpy().astype(kept) for layer in trained.layers.weights]
        self.intercepts_ = [layer.cpu().numpy().astype(kept) for layer in trained.layers.intercepts]
        self.n_iter_ = trained.num_steps
        return self


def _check_setting(setting: Any) -> None:
    for name, least in (("hidden_layers", 0), ("width", 1)):
        value = getattr(setting, name)
        if not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    if not (np.isfinite(setting.learning_rate) and setting.learning_rate > 0):
        raise ValueError(f"learning_rate must be positive and finite, got {setting.learning_rate!r}")
    if not (np.isfinite(setting.weight_decay) and setting.weight_decay >= 0):
        raise ValueError(f"weight_decay must not be negative, got {setting.weight_decay!r}")
