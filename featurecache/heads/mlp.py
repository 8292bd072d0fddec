"""``mlp``: multilayer perceptrons; many settings and folds are trained side by side."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from featurecache.errors import HeadError
from featurecache.heads.checks import check_whole_number
from featurecache.heads.gradient.estimators import StackedEstimator
from featurecache.heads.gradient.options import MAX_ROWS_EVALUATED
from featurecache.heads.gradient.outputs import ClassOutputs, NumberOutputs
from featurecache.heads.head import ANY_FIT_BYTES, NUM_FOLDS, Arrays
from featurecache.specs import TaskKind

if TYPE_CHECKING:
    from torch import nn

    from featurecache.heads.gradient.stacked import Layers, StackedModels

_WIDTH = 128


@dataclass(kw_only=True, eq=False, repr=False)
class Perceptron(StackedEstimator):
    """Multilayer perceptron with rectifiers on standardised features, trained by AdamW with early stopping.

    Mini-batches are shared by all settings and folds. Without hidden layers it is a linear model by gradient steps, as
    DINOv2's linear evaluation trains dozens of heads at different learning rates side by side (Oquab et al., TMLR 2024,
    section 7.1). Other parameters are those of `StackedOptions`.

    Parameters
    ----------
    hidden_layers : int
        0 trains a linear model.
    width : int
        Units of each hidden layer.

    Attributes
    ----------
    coefs_ : list of ndarray (n_inputs, n_outputs)
        Of each layer; the first is for features that are not standardised.
    intercepts_ : list of ndarray (n_outputs,)
    """

    # 3e-3 and 1e-2 instead were worse for rare classes, by balanced accuracy.
    grid: ClassVar[dict[str, list[Any]]] = {"hidden_layers": [1, 2], "learning_rate": [1e-3, 3e-3]}
    path_params: ClassVar[frozenset[str]] = frozenset({"hidden_layers", "width", "learning_rate", "weight_decay"})
    optional_arrays: ClassVar[tuple[str, ...]] = ("n_iter_",)
    relative_seconds: ClassVar[float] = 150.0

    hidden_layers: int = field(default=1, kw_only=False)
    width: int = _WIDTH
    batch_size: int = 256
    coefs_: list[NDArray[Any]] = field(init=False)
    intercepts_: list[NDArray[Any]] = field(init=False)

    @classmethod
    def memory_needed(cls, n_samples: int, n_features: int, n_outputs: int) -> int:
        """Return bytes for n_samples rows, n_features and n_outputs; see `HeadMixin.memory_needed`."""
        models = NUM_FOLDS * len(cls.settings(n_samples))
        # Value, gradient, two moments and two temporaries of a step; the best weights so far in float64.
        weights = models * n_features * _WIDTH * (4 * 6 + 8)
        # Each fold standardises a copy of the rows that are evaluated.
        rows = 3 * NUM_FOLDS * min(n_samples, MAX_ROWS_EVALUATED) * n_features * 4
        return ANY_FIT_BYTES + weights + rows + 4 * n_samples * n_features

    def to_arrays(self) -> Arrays:
        """See `Head`: layers by their number."""
        own = super().to_arrays()
        for name in ("coefs_", "intercepts_"):
            own |= {f"{name}.{index}": layer for index, layer in enumerate(vars(self)[name])}
        return own

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
        """Return a network from rows to the outputs of the last layer, (B, n_outputs)."""
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
        if any(array.dtype.kind != "f" for array in (*coefs, *intercepts)):
            raise HeadError(f"the layers of its {name} are not numbers")
        # numpy would stretch an axis of one without a word.
        widths = [self.n_features_in_, *(len(intercept) for intercept in intercepts if intercept.ndim == 1)]
        if [coef.shape for coef in coefs] != list(pairwise(widths)) or widths[-1] != self.num_outputs:
            raise HeadError(f"the layers of its {name} have shapes {[coef.shape for coef in coefs]}, which do not fit")

    def check_options(self) -> None:
        """Raise `ValueError` for parameters that make no sense."""
        check_whole_number("hidden_layers", self.hidden_layers, 0)
        check_whole_number("width", self.width, 1)
        super().check_options()

    def _stack(self) -> tuple[type[StackedModels], tuple[int, ...], int]:
        from featurecache.heads.gradient.stacked import StackedPerceptrons

        return StackedPerceptrons, (self.hidden_layers, self.width), 1

    def _keep(self, layers: Layers, dtype: type[np.floating[Any]]) -> None:
        self.coefs_ = [layer.cpu().numpy().astype(dtype) for layer in layers.weights]
        self.intercepts_ = [layer.cpu().numpy().astype(dtype) for layer in layers.intercepts]

    def _logits(self, rows: NDArray[Any]) -> NDArray[Any]:
        values = rows
        for index, (coef, intercept) in enumerate(zip(self.coefs_, self.intercepts_, strict=True)):
            values = values if index == 0 else np.maximum(values, 0)
            values = values @ coef.astype(values.dtype) + intercept.astype(values.dtype)
        return values


@dataclass(kw_only=True, eq=False, repr=False)
class MlpClassifier(ClassOutputs, Perceptron):
    """Perceptron for classes, trained on cross-entropy; for labels, on the cross-entropy of each by itself.

    Parameters and attributes are those of `Perceptron`, `StackedOptions` and `ClassOutputs`.
    """

    kinds: ClassVar[frozenset[TaskKind]] = frozenset({"classification", "multilabel"})
    arrays: ClassVar[tuple[str, ...]] = ("classes_",)
    optional_arrays: ClassVar[tuple[str, ...]] = ("n_iter_", "multilabel_")
    earlier_names: ClassVar[tuple[str, ...]] = ("MlpProbe",)


class MlpRegressor(NumberOutputs, Perceptron):
    """Perceptron for one number or several, trained on their squared errors.

    Parameters and attributes are those of `Perceptron`, `StackedOptions` and `NumberOutputs`.
    """

    kinds: ClassVar[frozenset[TaskKind]] = frozenset({"regression"})
    arrays: ClassVar[tuple[str, ...]] = ("flat_", "target_mean_", "target_scale_")
