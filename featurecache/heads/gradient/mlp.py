"""Multilayer perceptrons; many settings and folds are trained side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from featurecache.heads.checks import check_whole_number
from featurecache.heads.gradient.probe import GradientEstimator, GradientProbe, GradientRegressor

if TYPE_CHECKING:
    from featurecache.heads.gradient.bank import Bank, Layers


class _Perceptron(GradientEstimator):
    """Layers with rectifiers between them."""

    side_by_side: ClassVar[frozenset[str]] = frozenset({"hidden_layers", "width", "learning_rate", "weight_decay"})
    _shape: ClassVar[tuple[str, ...]] = ("hidden_layers", "width")

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
        self.device = device
        self.random_state = random_state

    def _bank(self) -> type[Bank]:
        from featurecache.heads.gradient.perceptrons import PerceptronBank

        return PerceptronBank

    def _check(self, merged: Mapping[str, Any]) -> None:
        check_whole_number("hidden_layers", merged["hidden_layers"], 0)
        check_whole_number("width", merged["width"], 1)
        super()._check(merged)

    def _take(self, layers: Layers, dtype: type[np.floating[Any]]) -> None:
        self.coefs_ = [layer.cpu().numpy().astype(dtype) for layer in layers.weights]
        self.intercepts_ = [layer.cpu().numpy().astype(dtype) for layer in layers.intercepts]

    def _logits(self, rows: NDArray[Any]) -> NDArray[Any]:
        values = rows
        for place, (coef, intercept) in enumerate(zip(self.coefs_, self.intercepts_, strict=True)):
            values = values if place == 0 else np.maximum(values, 0)
            values = values @ coef.astype(values.dtype) + intercept.astype(values.dtype)
        return values


class MlpProbe(GradientProbe, _Perceptron):
    """Multilayer perceptron with rectifiers on standardised features, trained by AdamW with early stopping.

    Trained on cross-entropy (of several labels, on that of each by itself) in shared mini-batches, with a learning rate
    that falls to zero along half a cosine (Loshchilov & Hutter, "SGDR", ICLR 2017, equation 5, without restarts). Where
    there are enough rows, some of each class are held out, and the weights are kept that did best on them. Without
    hidden layers it is multinomial logistic regression by gradient steps, as DINOv2's linear evaluation trains dozens
    of heads at different learning rates side by side (Oquab et al., TMLR 2024, section 7.1).

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
        super().__init__(
            hidden_layers,
            width=width,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            batch_size=batch_size,
            epochs=epochs,
            patience=patience,
            validation_fraction=validation_fraction,
            device=device,
            random_state=random_state,
        )
        self.class_weight = class_weight


class MlpRegressor(GradientRegressor, _Perceptron):
    """Multilayer perceptron that says one number or several, trained on their squared errors.

    Numbers are trained in units of their standard deviation over the rows fitted on, from their mean. Parameters and
    attributes are those of `MlpProbe`, as far as they are not about classes; so is how training goes.
    """
