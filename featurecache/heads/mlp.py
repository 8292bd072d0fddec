"""``mlp``: multilayer perceptrons; many settings and folds are trained side by side."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from featurecache.errors import HeadError
from featurecache.heads.checks import check_whole_number
from featurecache.heads.gradient.probe import GradientClassifier, GradientEstimator, GradientRegressor
from featurecache.heads.head import ANY_FIT_BYTES, NUM_FOLDS, Arrays
from featurecache.specs import TaskKind

if TYPE_CHECKING:
    from torch import nn

    from featurecache.heads.gradient.bank import Bank, Layers

_WIDTH = 128
MOST_ROWS_EVALUATED = 4096
"""At a time, in training."""


class _Perceptron(GradientEstimator):
    """Layers with rectifiers between them."""

    grid: ClassVar[dict[str, list[Any]]] = {"hidden_layers": [1, 2], "learning_rate": [1e-3, 3e-3]}
    path_params: ClassVar[frozenset[str]] = frozenset({"hidden_layers", "width", "learning_rate", "weight_decay"})
    optional_arrays: ClassVar[tuple[str, ...]] = ("n_iter_",)
    relative_seconds: ClassVar[float] = 150.0
    _shape: ClassVar[tuple[str, ...]] = ("hidden_layers", "width")
    coefs_: list[NDArray[Any]]
    intercepts_: list[NDArray[Any]]

    def __init__(
        self,
        hidden_layers: int = 1,
        *,
        width: int = _WIDTH,
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

    @classmethod
    def memory_needed(cls, n_samples: int, n_features: int, n_outputs: int) -> int:
        """Return bytes for n_samples rows, n_features and n_outputs; see `HeadMixin.memory_needed`."""
        models = NUM_FOLDS * len(cls.settings(n_samples))
        # Value, gradient, two moments and what a step makes of them; the best weights so far in float64.
        weights = models * n_features * _WIDTH * (4 * 6 + 8)
        rows = 3 * NUM_FOLDS * min(n_samples, MOST_ROWS_EVALUATED) * n_features * 4
        return ANY_FIT_BYTES + weights + rows + 4 * n_samples * n_features

    def to_arrays(self) -> Arrays:
        """See `Head`: layers by their number."""
        own = super().to_arrays()
        layers = {
            f"{name}.{index}": layer
            for name, kept in (("coefs_", self.coefs_), ("intercepts_", self.intercepts_))
            for index, layer in enumerate(kept)
        }
        return own | layers

    @classmethod
    def from_arrays(cls, arrays: Arrays, **params: Any) -> Self:
        """See `Head`."""
        layers = {
            name: [arrays[f"{name}.{index}"] for index in range(len(arrays)) if f"{name}.{index}" in arrays]
            for name in ("coefs_", "intercepts_")
        }
        own = {name: array for name, array in arrays.items() if "." not in name}
        if len(own) + sum(map(len, layers.values())) != len(arrays):
            raise HeadError(f"the layers of its {cls.__name__} do not belong together")
        head = super().from_arrays(own, **params)
        head.__dict__.update(layers)
        head._check_layers()
        return head

    def to_module(self) -> nn.Module:
        """Return what the last layer gives, (B, n_outputs)."""
        from torch import nn

        from featurecache.heads.modules import Linear, Rectify

        layers: list[nn.Module] = []
        for coef, intercept in zip(self.coefs_, self.intercepts_, strict=True):
            layers += [*([Rectify()] if layers else []), Linear(weight=coef, bias=intercept)]
        return nn.Sequential(*layers)

    def _check_layers(self) -> None:
        """Refuse layers that do not follow one another: some would be stretched to fit without a word."""
        name, coefs, intercepts = type(self).__name__, self.coefs_, self.intercepts_
        if not 0 < len(coefs) == len(intercepts):
            raise HeadError(f"the layers of its {name} do not belong together")
        if any(each.dtype.kind != "f" for each in (*coefs, *intercepts)):
            raise HeadError(f"the layers of its {name} are not numbers")
        widths = [self.n_features_in_, *(len(intercept) for intercept in intercepts if intercept.ndim == 1)]
        if [coef.shape for coef in coefs] != list(pairwise(widths)) or widths[-1] != self._num_outputs():
            raise HeadError(f"the layers of its {name} have shapes {[coef.shape for coef in coefs]}, which do not fit")

    @abstractmethod
    def _num_outputs(self) -> int:
        """Return how many outputs the last layer must have."""

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
        for index, (coef, intercept) in enumerate(zip(self.coefs_, self.intercepts_, strict=True)):
            values = values if index == 0 else np.maximum(values, 0)
            values = values @ coef.astype(values.dtype) + intercept.astype(values.dtype)
        return values


class MlpClassifier(GradientClassifier, _Perceptron):
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

    kinds: ClassVar[frozenset[TaskKind]] = frozenset({"classification", "multilabel"})
    arrays: ClassVar[tuple[str, ...]] = ("classes_",)
    optional_arrays: ClassVar[tuple[str, ...]] = ("n_iter_", "multilabel_")
    earlier_names: ClassVar[tuple[str, ...]] = ("MlpProbe",)

    def __init__(
        self,
        hidden_layers: int = 1,
        *,
        width: int = _WIDTH,
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

    def to_module(self) -> nn.Module:
        """Return probabilities, (B, n_classes)."""
        return self._with_probabilities(super().to_module())

    def _num_outputs(self) -> int:
        return len(self.classes_)


class MlpRegressor(GradientRegressor, _Perceptron):
    """Multilayer perceptron that says one number or several, trained on their squared errors.

    Numbers are trained in units of their standard deviation over the rows fitted on, from their mean. Parameters and
    attributes are those of `MlpClassifier`, as far as they are not about classes; so is how training goes.
    """

    kinds: ClassVar[frozenset[TaskKind]] = frozenset({"regression"})
    arrays: ClassVar[tuple[str, ...]] = ("flat_", "target_mean_", "target_scale_")

    def to_module(self) -> nn.Module:
        """Return the numbers, (B, n_targets)."""
        from torch import nn

        from featurecache.heads.modules import Rescale

        return nn.Sequential(super().to_module(), Rescale(mean=self.target_mean_, scale=self.target_scale_))

    def _num_outputs(self) -> int:
        units = (self.target_mean_, self.target_scale_)
        if {np.shape(each) for each in units} != {(np.size(units[0]),)} or not np.isfinite(units).all():
            raise HeadError("the units of its MlpRegressor are not finite numbers, one for each output")
        if self.flat_ and np.size(units[0]) != 1:
            raise HeadError("its MlpRegressor has several outputs, and says that it has one")
        return np.size(units[0])
