"""The heads that people can ask for by name, and the few hyper-parameters worth searching for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

from sklearn.base import BaseEstimator
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import SVC
from sklearn.utils.validation import has_fit_parameter

from featurecache.errors import UnknownNameError
from featurecache.heads.gaussian import GaussianDiscriminant, NearestMean
from featurecache.heads.gradient.attentive import AttentiveProbe
from featurecache.heads.gradient.mlp import MlpProbe, MlpRegressor
from featurecache.heads.linear.estimators import LinearSvmProbe, LogisticProbe
from featurecache.heads.linear.ridge import RidgeProbe, RidgeRegressor
from featurecache.heads.linear.tasks import FitsTasks
from featurecache.heads.nearest import CosineKnn, CosineKnnRegressor
from featurecache.specs import TaskKind

Factory = Callable[[], BaseEstimator]
Grid = Callable[[int], list[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class _Entry:
    factory: Factory
    grid: Grid


_HEADS: dict[tuple[TaskKind, str], _Entry] = {}

_PRIOR_ROWS = 10.0
"""With one label of each of ten classes this makes logistic regression right 0.88 of the time instead of 0.64."""


def list_heads(
    *,
    tokens: bool = False,
    kind: TaskKind = "classes",
    weighted: bool = False,
    streaming: bool = False,
    partial: bool = False,
) -> list[str]:
    """Return the names of all registered heads, the built-in ones first.

    Parameters
    ----------
    tokens : bool
        Also those that need features with tokens.
    kind : str
        Of the tasks that they are for.
    weighted, streaming, partial : bool
        Only those that can weigh samples; that read rows as they are needed; that are fitted where some labels or
        numbers of a sample are not known.
    """
    names = [name for each, name in _HEADS if each == kind and (tokens or not needs_tokens(name))]
    return [
        name
        for name in names
        if (not weighted or takes_weights(name, kind=kind))
        and (not streaming or streams(name, kind=kind))
        and (not partial or takes_unknown(name, kind=kind))
    ]


def kinds_of_head(name: str) -> list[TaskKind]:
    """Return the kinds of task that there is a head of this name for."""
    return [kind for kind, each in _HEADS if each == name]


def needs_tokens(name: str) -> bool:
    """Tell whether a head is for features that keep their tokens."""
    return name in TOKEN_HEADS


def takes_weights(name: str, *, kind: TaskKind = "classes") -> bool:
    """Tell whether samples may count differently in fitting a head."""
    last = last_step(make_head(name, kind=kind))
    folds = getattr(last, "fit_folds", None)
    return has_fit_parameter(last, "sample_weight") and (
        folds is None or "sample_weight" in signature(folds).parameters
    )


def streams(name: str, *, kind: TaskKind = "classes") -> bool:
    """Tell whether a head is fitted on rows that are read as they are needed (``numpy.memmap``)."""
    head = make_head(name, kind=kind)
    return getattr(head, "streams", isinstance(head, DummyClassifier | DummyRegressor))


def takes_unknown(name: str, *, kind: TaskKind) -> bool:
    """Tell whether a head is fitted where some of several labels or numbers of a sample are not known."""
    last = last_step(make_head(name, kind=kind))
    return bool(getattr(last, "takes_unknown", isinstance(last, DummyRegressor)))


def fits_tasks(name: str, *, kind: TaskKind = "classes") -> bool:
    """Tell whether a head is fitted for several tasks on the same rows side by side."""
    return isinstance(make_head(name, kind=kind), FitsTasks)


def register_head(name: str, factory: Factory, grid: Grid, *, kind: TaskKind = "classes") -> None:
    """Add a head under ``name``, for tasks of a kind.

    Parameters
    ----------
    factory : callable
        Returns a fresh, unfitted scikit-learn classifier or a `Pipeline` that ends in one. For labels it must take
        (n_samples, n_labels), 0 or 1, and for numbers (n_samples, n_targets).
    grid : callable
        Takes the number of training rows, returns the settings to try, the strongest regularisation first: of two
        settings with equal accuracy the earlier one is kept. ``[{}]`` when there is nothing to choose.

    Raises
    ------
    ValueError
        The name is taken.
    """
    if (kind, name) in _HEADS:
        raise ValueError(f"head {name!r} is already registered; choose another name")
    _HEADS[kind, name] = _Entry(factory, grid)


@contextmanager
def registered(name: str, factory: Factory, grid: Grid, *, kind: TaskKind = "classes") -> Iterator[None]:
    """Do what `register_head` does, for a while."""
    register_head(name, factory, grid, kind=kind)
    try:
        yield
    finally:
        del _HEADS[kind, name]


def make_head(name: str, *, kind: TaskKind = "classes", **params: Any) -> BaseEstimator:
    """Build an unfitted head.

    Parameters
    ----------
    name : str
        One of `list_heads()`.
    kind : str
        Of the tasks that it is for.
    **params
        Parameters of the classifier itself (the last step of the pipeline), such as ``C=0.1``.

    Raises
    ------
    UnknownNameError
        No such head, or the head has no such parameter.
    """
    estimator = _entry(name, kind).factory()
    last = last_step(estimator)
    known = last.get_params(deep=False)
    for param in params:
        if param not in known:
            raise UnknownNameError(f"parameter of head {name!r}", param, known)
    last.set_params(**params)
    return estimator


def head_grid(name: str, n_samples: int, *, kind: TaskKind = "classes") -> list[dict[str, Any]]:
    """Return the settings of head ``name`` to try on ``n_samples`` training rows, the simplest model first."""
    return _entry(name, kind).grid(n_samples)


def last_step(estimator: BaseEstimator) -> BaseEstimator:
    """Return the classifier at the end of a pipeline, or the estimator itself where there is no pipeline."""
    return estimator[-1] if isinstance(estimator, Pipeline) else estimator


def _entry(name: str, kind: TaskKind) -> _Entry:
    if (kind, name) not in _HEADS:
        noun = "head" if kind == "classes" else f"head for {kind}"
        raise UnknownNameError(noun, name, list_heads(tokens=True, kind=kind))
    return _HEADS[kind, name]


def _logistic() -> LogisticProbe:
    return LogisticProbe(C=0.01, prior_rows=_PRIOR_ROWS)


def _linear_svm() -> LinearSvmProbe:
    return LinearSvmProbe(C=0.001, prior_rows=_PRIOR_ROWS)


def _rbf_svm() -> Pipeline:
    # Without break_ties the predicted class may differ from the one with the highest probability.
    return make_pipeline(StandardScaler(), SVC(C=1.0, kernel="rbf", break_ties=True, cache_size=500, random_state=0))


def _mlp() -> MlpProbe:
    return MlpProbe()


def _knn() -> CosineKnn:
    return CosineKnn(n_neighbors=5)


def _ridge() -> RidgeProbe:
    return RidgeProbe(alpha=1000.0, prior_rows=_PRIOR_ROWS)


def _ridge_of_numbers() -> RidgeRegressor:
    return RidgeRegressor(prior_rows=_PRIOR_ROWS)


def _gda() -> Pipeline:
    return make_pipeline(StandardScaler(), GaussianDiscriminant())


def _nearest_mean() -> Pipeline:
    return make_pipeline(StandardScaler(with_std=False), Normalizer(), NearestMean())


def _majority() -> DummyClassifier:
    return DummyClassifier(strategy="prior", random_state=0)


def _mean() -> DummyRegressor:
    return DummyRegressor(strategy="mean")


def _attentive() -> AttentiveProbe:
    return AttentiveProbe()


def _powers_of_ten(param: str, first: int, last: int, per_decade: int = 1) -> Grid:
    # Not 10.0 ** e: that is 9.999999999999999e-05 for some exponents, and people read these numbers.
    step, steps = (1 if last >= first else -1), abs(last - first) * per_decade + 1
    values = [float(f"{10 ** (first + step * number / per_decade):.3g}") for number in range(steps)]
    return lambda n_samples: [{param: value} for value in values]


def _knn_grid(n_samples: int) -> list[dict[str, Any]]:
    return [{"n_neighbors": k} for k in (50, 20, 10, 5, 3, 1) if k <= max(n_samples, 1)]


def _mlp_grid(n_samples: int) -> list[dict[str, Any]]:
    shapes, rates = (1, 2), (1e-3, 3e-3)
    return [{"hidden_layers": layers, "learning_rate": rate} for layers in shapes for rate in rates]


# Standardised features have a scale of one each, so a thousand of them want far less than scikit-learn's default C.
register_head("logistic", _logistic, _powers_of_ten("C", -6, 1, per_decade=4))
register_head("linear_svm", _linear_svm, _powers_of_ten("C", -8, -1, per_decade=4))
register_head("rbf_svm", _rbf_svm, _powers_of_ten("C", -1, 1))
register_head("mlp", _mlp, _mlp_grid)
register_head("knn", _knn, _knn_grid)
register_head("ridge", _ridge, _powers_of_ten("alpha", 7, -2, per_decade=4))
register_head("gda", _gda, lambda n_samples: [{}])
register_head("nearest_mean", _nearest_mean, lambda n_samples: [{}])
register_head("majority", _majority, lambda n_samples: [{}])

_kind: TaskKind
for _kind in ("labels", "numbers"):
    register_head("ridge", _ridge_of_numbers, _powers_of_ten("alpha", 7, -2, per_decade=4), kind=_kind)
    register_head("knn", CosineKnnRegressor, _knn_grid, kind=_kind)
    register_head("mean", _mean, lambda n_samples: [{}], kind=_kind)
register_head("logistic", _logistic, _powers_of_ten("C", -6, 1, per_decade=4), kind="labels")
register_head("mlp", _mlp, _mlp_grid, kind="labels")
register_head("mlp", MlpRegressor, _mlp_grid, kind="numbers")

TOKEN_HEADS = ("attentive",)
"""Names of the built-in heads for features that keep their tokens."""

HEADS = tuple(list_heads())
"""Names of the built-in heads for features of any kind."""

OTHER_HEADS = tuple(dict.fromkeys(list_heads(kind="labels") + list_heads(kind="numbers")))
"""Names of the built-in heads for labels or numbers."""

register_head("attentive", _attentive, lambda n_samples: [{"weight_decay": decay} for decay in (1.0, 0.01)])
