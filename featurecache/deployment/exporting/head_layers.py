"""Fitted heads as layers of a network: the arithmetic of their ``predict_proba`` or ``predict``, in float32.

Axes: B rows, D features, K classes or other outputs, N kept rows, T tokens, Q queries, V features pooled by a query,
P pairs of classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import SVC
from torch import Tensor, nn

from featurecache.deployment.saved import SavedHead
from featurecache.errors import HeadError
from featurecache.heads.gaussian import GaussianDiscriminant, NearestMean
from featurecache.heads.gradient.attentive import AttentiveProbe
from featurecache.heads.gradient.finetuned import FineTunedClassifier, FineTunedRegressor
from featurecache.heads.gradient.mlp import MlpProbe, MlpRegressor
from featurecache.heads.gradient.tuner import FineTuned
from featurecache.heads.linear.classifier import LinearClassifier
from featurecache.heads.linear.estimators import LinearSvmProbe, LogisticProbe
from featurecache.heads.linear.ridge import RidgeProbe, RidgeRegressor
from featurecache.heads.nearest import CosineKnn, CosineKnnRegressor
from featurecache.heads.probability import needs_temperature
from featurecache.heads.registry import list_heads, make_head


class Layer(nn.Module):
    """A step whose arrays are buffers; ``formula`` says to readers of a file what is done with them."""

    formula: ClassVar[str]

    def __init__(self, **arrays: ArrayLike) -> None:
        super().__init__()
        for name, array in arrays.items():
            self.register_buffer(name, torch.from_numpy(np.array(array, np.float32, order="C")))


class Standardise(Layer):
    """Subtract a mean and divide by a scale."""

    formula = "(x - mean) / scale"
    mean: Tensor
    scale: Tensor

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return (B, D)."""
        return (x_BD - self.mean) / self.scale


class UnitLength(Layer):
    """Divide rows by their length; a row of zeros stays."""

    formula = "x / |x|, and 0 where |x| = 0"

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return (B, D)."""
        length_B1 = x_BD.square().sum(dim=1, keepdim=True).sqrt()
        return x_BD / torch.where(length_B1 == 0, 1.0, length_B1)


class Linear(Layer):
    """A linear map."""

    formula = "x @ weight + bias"
    weight: Tensor
    bias: Tensor

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return (B, K)."""
        return x_BD @ self.weight + self.bias


class Rectify(Layer):
    """A rectifier."""

    formula = "max(x, 0)"

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return (B, D)."""
        return x_BD.relu()


class Rescale(Layer):
    """Multiply by a scale and add a mean."""

    formula = "x * scale + mean"
    mean: Tensor
    scale: Tensor

    def forward(self, x_BK: Tensor) -> Tensor:
        """Return (B, K)."""
        return x_BK * self.scale + self.mean


class AttentionPool(Layer):
    """Each query looks at all tokens, and pools its slice of their features."""

    formula = "tokens = x as (T, Q, V); sum over T of softmax over T of (tokens @ queries) * tokens, flattened"
    queries: Tensor

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return (B, Q * V)."""
        width, num_queries = self.queries.shape
        tokens_BTD = x_BD.unflatten(1, (-1, width))
        looks_BTQ = (tokens_BTD @ self.queries).softmax(dim=1)
        return (looks_BTQ.unsqueeze(3) * tokens_BTD.unflatten(2, (num_queries, -1))).sum(dim=1).flatten(1)


class TrainedLayers(Layer):
    """The rest of a network, or other layers in its place, as they were trained."""

    formula = "the network's own layers after the tap, or those that are named, with these weights; x as (B, *shape)"

    def __init__(self, layers: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layers, self._shape = layers, shape

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return (B, K)."""
        outputs_BK: Tensor = self.layers(x_BD.unflatten(1, self._shape) if len(self._shape) > 1 else x_BD)
        return outputs_BK


class Neighbours(Layer):
    """The weighted mean of what the nearest rows say; of equally near ones, which of them count is not defined."""

    formula = (
        "the rows of `says` of the `count` greatest similarities x @ directions.T, averaged with the weights "
        "softmax(similarity / temperature)"
    )
    directions: Tensor
    says: Tensor
    temperature: Tensor
    count: Tensor

    def __init__(self, count: int, **arrays: ArrayLike) -> None:
        super().__init__(count=count, **arrays)
        self._count = count

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return (B, K)."""
        closest = (x_BD @ self.directions.T).topk(self._count, dim=1)
        weights_BN = (closest.values / self.temperature).softmax(dim=1)
        return (weights_BN.unsqueeze(2) * self.says[closest.indices]).sum(dim=1)


class SupportVectors(Layer):
    """Decision values of a support vector machine with a Gaussian kernel.

    Of more than two classes, those of pairs become votes for each class, and confidences that break ties, as in
    scikit-learn's ``_ovr_decision_function``.
    """

    formula = (
        "decisions = exp(-gamma * |x - vectors|^2) @ duals + bias, of pairs of classes; of two classes decision / 2, "
        "-decision / 2; of more, votes for the winner of each pair + s / (3 * (|s| + 1)) "
        "with s = decisions @ (first - second)"
    )
    vectors: Tensor
    gamma: Tensor
    duals: Tensor
    bias: Tensor
    first: Tensor
    second: Tensor

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return (B, K)."""
        square_BN = (
            x_BD.square().sum(dim=1, keepdim=True) - 2 * x_BD @ self.vectors.T + self.vectors.square().sum(dim=1)
        )
        decisions_BP = torch.exp(-self.gamma * square_BN) @ self.duals + self.bias
        if self.first.shape[1] == 2:
            return torch.cat([decisions_BP / 2, -decisions_BP / 2], dim=1)
        confidence_BK = decisions_BP @ (self.first - self.second)
        lost_BP = (decisions_BP < 0).float()
        votes_BK = (1 - lost_BP) @ self.first + lost_BP @ self.second
        return votes_BK + confidence_BK / (3 * (confidence_BK.abs() + 1))


class Constant(Layer):
    """The same for every row."""

    formula = "value"
    value: Tensor

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return (B, K)."""
        return self.value + torch.zeros_like(x_BD[:, :1])


class Softmax(Layer):
    """Decision values to probabilities of classes that exclude each other."""

    formula = "softmax(x / temperature)"
    temperature: Tensor

    def forward(self, x_BK: Tensor) -> Tensor:
        """Return (B, K)."""
        return (x_BK / self.temperature).softmax(dim=1)


class Sigmoid(Layer):
    """Decision values to the probability of each label by itself."""

    formula = "1 / (1 + exp(-x))"

    def forward(self, x_BK: Tensor) -> Tensor:
        """Return (B, K)."""
        return x_BK.sigmoid()


class Clip(Layer):
    """A regression may say more than one, or less than nothing."""

    formula = "min(max(x, 0), 1)"

    def forward(self, x_BK: Tensor) -> Tensor:
        """Return (B, K)."""
        return x_BK.clamp(0, 1)


class Place(Layer):
    """Give classes that the head was trained on their places; the others have probability zero."""

    formula = "x @ places"
    places: Tensor

    def forward(self, x_BK: Tensor) -> Tensor:
        """Return (B, n_classes)."""
        return x_BK @ self.places


def head_layers(saved: SavedHead) -> nn.Sequential:
    """Return layers that turn features ``(B, n_features)`` into what `predict` says of them.

    Returns
    -------
    layers
        To probabilities of classes, or of each label by itself, or to numbers: (B, K) float32.

    Raises
    ------
    HeadError
        A head, or a step before it, of a class that has no layers here.
    """
    steps = _steps_of(saved.estimator)
    if lacking := [step for step in steps if type(step) not in _LAYERS]:
        raise HeadError(_refusal(saved, lacking[0]))
    layers = [layer for step in steps for layer in _LAYERS[type(step)](step)]
    last = steps[-1]
    if isinstance(last, LinearClassifier | MlpProbe | AttentiveProbe | SVC | FineTunedClassifier):
        temperature = saved.temperature if needs_temperature(last) and saved.temperature is not None else 1.0
        layers.append(Sigmoid() if getattr(last, "multilabel_", False) else Softmax(temperature=temperature))
    if saved.kind == "labels":
        layers.append(Clip())
    if saved.kind == "classes" and len(last.classes_) < len(saved.classes):
        layers.append(Place(places=np.eye(len(saved.classes))[last.classes_]))
    return nn.Sequential(*layers)


def _refusal(saved: SavedHead, step: BaseEstimator) -> str:
    """Say what has no layers, by its name where it is a head of ours, and which heads have."""
    known, name = list_heads(tokens=True, kind=saved.kind), saved.meta.get("head")
    able = [each for each in known if _has_layers(make_head(each, kind=saved.kind))]
    what = f"head {name!r}" if name in {*known} - {*able} else f"a {type(step).__name__}"
    return (
        f"{what} cannot be exported; heads for {saved.kind} that can: {', '.join(able)}. Train one of those, or use "
        "`featurecache predict`"
    )


def _has_layers(head: BaseEstimator) -> bool:
    return all(type(step) in _LAYERS for step in _steps_of(head))


def _steps_of(head: BaseEstimator) -> list[BaseEstimator]:
    return [step for _, step in head.steps] if isinstance(head, Pipeline) else [head]


def _standardise(step: StandardScaler) -> list[Layer]:
    num_features = step.n_features_in_
    mean = step.mean_ if step.with_mean else np.zeros(num_features)
    return [Standardise(mean=mean, scale=step.scale_ if step.with_std else np.ones(num_features))]


def _unit_length(step: Normalizer) -> list[Layer]:
    if step.norm != "l2":
        raise HeadError(f"a Normalizer with the norm {step.norm!r} cannot be exported; train the head with norm 'l2'")
    return [UnitLength()]


def _linear(step: LinearClassifier) -> list[Layer]:
    weight, bias = step.coef_.T, step.intercept_
    if weight.shape[1] == 1 and not step.multilabel_:
        # Half each way, as in probability.decision_values.
        weight, bias = weight * [-0.5, 0.5], bias * [-0.5, 0.5]
    return [Linear(weight=weight, bias=bias)]


def _ridge(step: RidgeRegressor) -> list[Layer]:
    return [Linear(weight=np.atleast_2d(step.coef_).T, bias=np.atleast_1d(step.intercept_))]


def _perceptron(step: MlpProbe | MlpRegressor) -> list[Layer]:
    layers: list[Layer] = []
    for coef, intercept in zip(step.coefs_, step.intercepts_, strict=True):
        layers += [*([Rectify()] if layers else []), Linear(weight=coef, bias=intercept)]
    return layers


def _perceptron_of_numbers(step: MlpRegressor) -> list[Layer]:
    return [*_perceptron(step), Rescale(mean=step.target_mean_, scale=step.target_scale_)]


def _attentive(step: AttentiveProbe) -> list[Layer]:
    return [AttentionPool(queries=step.queries_), Linear(weight=step.coef_, bias=step.intercept_)]


def _trained(step: FineTuned) -> list[Layer]:
    return [TrainedLayers(copy.deepcopy(step.fitted_layers).cpu(), step.shape)]


def _trained_for_numbers(step: FineTunedRegressor) -> list[Layer]:
    return [*_trained(step), Rescale(mean=step.target_mean_, scale=step.target_scale_)]


def _neighbours(step: CosineKnn | CosineKnnRegressor, says: np.ndarray) -> list[Layer]:
    if np.isnan(says).any():
        raise HeadError(
            "nearest neighbours of which some labels or numbers are unknown cannot be exported; choose another head"
        )
    count = min(step.n_neighbors, len(step.directions_))
    kept = {"directions": step.directions_, "says": says, "temperature": step.temperature}
    return [UnitLength(), Neighbours(count, **kept)]


def _support_vectors(step: SVC) -> list[Layer]:
    if step.kernel != "rbf" or step.decision_function_shape != "ovr":
        raise HeadError(
            f"an SVC with the kernel {step.kernel!r} and the decisions {step.decision_function_shape!r} cannot be "
            "exported; with 'rbf' and 'ovr' it can"
        )
    pairs = list(combinations(range(len(step.classes_)), 2))
    ends = np.cumsum(step._n_support)
    duals = np.zeros((len(step.support_vectors_), len(pairs)))
    for place, (one, other) in enumerate(pairs):
        # libsvm keeps, for vectors of each class, one row of coefficients for each of the other classes.
        for own, row in ((one, other - 1), (other, one)):
            rows = slice(ends[own] - step._n_support[own], ends[own])
            duals[rows, place] = step._dual_coef_[row, rows]
    winners = np.eye(len(step.classes_))[np.array(pairs)]
    return [
        SupportVectors(
            vectors=step.support_vectors_,
            gamma=step._gamma,
            duals=duals,
            bias=step._intercept_,
            first=winners[:, 0],
            second=winners[:, 1],
        )
    ]


def _prior(step: DummyClassifier) -> list[Layer]:
    if step._strategy != "prior":
        raise HeadError(f"a DummyClassifier that answers by {step._strategy!r} cannot be exported; 'prior' can")
    return [Constant(value=step.class_prior_)]


_LAYERS: dict[type, Callable[[Any], list[Layer]]] = {
    StandardScaler: _standardise,
    Normalizer: _unit_length,
    LogisticProbe: _linear,
    LinearSvmProbe: _linear,
    RidgeProbe: _linear,
    GaussianDiscriminant: _linear,
    NearestMean: _linear,
    RidgeRegressor: _ridge,
    MlpProbe: _perceptron,
    MlpRegressor: _perceptron_of_numbers,
    AttentiveProbe: _attentive,
    FineTunedClassifier: _trained,
    FineTunedRegressor: _trained_for_numbers,
    CosineKnn: lambda step: _neighbours(step, np.eye(len(step.classes_))[step.labels_]),
    CosineKnnRegressor: lambda step: _neighbours(step, step.targets_.reshape(len(step.targets_), -1)),
    SVC: _support_vectors,
    DummyClassifier: _prior,
    DummyRegressor: lambda step: [Constant(value=step.constant_[0])],
}
