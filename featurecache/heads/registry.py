"""The heads that people can ask for by name: those of the package, of installed packages, and of this program."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

from sklearn.base import BaseEstimator, clone

from featurecache.errors import HeadError, UnknownNameError
from featurecache.heads.attentive import AttentiveClassifier
from featurecache.heads.baseline import MajorityClassifier, MeanRegressor
from featurecache.heads.gda import GaussianDiscriminant
from featurecache.heads.gradient.finetuned import FineTunedClassifier, FineTunedRegressor
from featurecache.heads.head import HeadMixin, NamedHead, Setting
from featurecache.heads.knn import CosineKnn, CosineKnnRegressor
from featurecache.heads.linear_svm import LinearSvmProbe
from featurecache.heads.logistic import LogisticProbe
from featurecache.heads.mlp import MlpClassifier, MlpRegressor
from featurecache.heads.nearest_mean import NearestMean
from featurecache.heads.rbf_svm import RbfSvm
from featurecache.heads.ridge import RidgeProbe, RidgeRegressor
from featurecache.plugins import load_plugin, plugin_names
from featurecache.specs import TaskKind, task_kind

# Group under which an installed package names heads, each a class as `featurecache.heads.head.Head` says.
ENTRY_POINTS = "featurecache.heads"

# In the order of tables; of equally good heads the first is chosen.
_BUILT_IN: dict[str, tuple[type[HeadMixin], ...]] = {
    "logistic": (LogisticProbe,),
    "linear_svm": (LinearSvmProbe,),
    "rbf_svm": (RbfSvm,),
    "mlp": (MlpClassifier, MlpRegressor),
    "knn": (CosineKnn, CosineKnnRegressor),
    "ridge": (RidgeProbe, RidgeRegressor),
    "gda": (GaussianDiscriminant,),
    "nearest_mean": (NearestMean,),
    "majority": (MajorityClassifier,),
    "mean": (MeanRegressor,),
    "attentive": (AttentiveClassifier,),
}
# Names of the built-in heads for classes, on features of any kind.
HEADS = tuple(
    n for n, classes in _BUILT_IN.items() if "classification" in classes[0].kinds and not classes[0].needs_tokens
)
# Names of the built-in heads for features that keep their tokens.
TOKEN_HEADS = tuple(name for name, classes in _BUILT_IN.items() if classes[0].needs_tokens)
# The name of the linear probe for each kind of task.
LINEAR_PROBES: dict[TaskKind, str] = {
    kind: name for name, classes in _BUILT_IN.items() for cls in classes for kind in cls.linear_probe_of
}

# Heads of this program.
_REGISTERED: dict[tuple[TaskKind, str], NamedHead] = {}


def list_heads(
    *,
    tokens: bool = False,
    kind: TaskKind = "classification",
    weighted: bool = False,
    streaming: bool = False,
    partial: bool = False,
) -> list[str]:
    """Return the names of all heads, the built-in ones first.

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
    heads = [find_head(name, kind=kind) for name in _names(kind)]
    return [
        head.name
        for head in heads
        if (tokens or not head.needs_tokens)
        and (not weighted or head.takes_weights)
        and (not streaming or head.streams)
        and (not partial or head.takes_unknown)
    ]


def needs_tokens(name: str) -> bool:
    """Tell whether a head is for features that keep their tokens; false for one that there is not."""
    return any(getattr(cls, "needs_tokens", False) for cls in _classes().get(name, ()))


def find_head(name: str, *, kind: TaskKind = "classification") -> NamedHead:
    """Return the unfitted head of a name, for tasks of a kind.

    Raises
    ------
    UnknownNameError
        No such head.
    """
    kind = task_kind(kind)
    if (head := _REGISTERED.get((kind, name))) is not None:
        return head
    for cls in _classes().get(name, ()):
        if kind in cls.kinds:
            return NamedHead(name, cls(**getattr(cls, "defaults", {})))
    noun = "head" if kind == "classification" else f"head for {kind}"
    raise UnknownNameError(noun, name, list_heads(tokens=True, kind=kind))


def make_head(name: str, *, kind: TaskKind = "classification", **params: Any) -> BaseEstimator:
    """Build an unfitted head.

    Parameters
    ----------
    name : str
        One of `list_heads()`.
    kind : str
        Of the tasks that it is for.
    **params
        Parameters of the head, such as ``C=0.1``.

    Raises
    ------
    UnknownNameError
        No such head, or the head has no such parameter.
    """
    estimator = clone(find_head(name, kind=kind).estimator)
    known = estimator.get_params(deep=False)
    for param in params:
        if param not in known:
            raise UnknownNameError(f"parameter of head {name!r}", param, known)
    return estimator.set_params(**params)


def register_head(
    name: str,
    factory: Callable[[], BaseEstimator],
    settings: Callable[[int], list[Setting]] | None = None,
    *,
    kind: TaskKind = "classification",
) -> None:
    """Add a head under ``name``, for tasks of a kind, for as long as this program runs.

    Parameters
    ----------
    name : str
    factory : callable
        Returns a fresh, unfitted scikit-learn estimator. For labels it must take (n_samples, n_labels), 0 or 1, and for
        numbers (n_samples, n_targets).
    settings : callable, optional
        Takes the number of training rows, returns the settings to search, the strongest regularisation first: of two
        settings with equal scores the earlier one is kept. Those of the estimator's ``grid`` when left out.
    kind : str

    Raises
    ------
    ValueError
        The name is taken.
    """
    kind = task_kind(kind)
    if name in _names(kind):
        raise ValueError(f"head {name!r} is already registered; choose another name")
    _REGISTERED[kind, name] = NamedHead(name, factory(), settings)


def saved_class(type_name: str) -> type[HeadMixin] | None:
    """Return the class that a saved head is of, by the name that this release or an earlier one wrote."""
    trained_layers = (FineTunedClassifier, FineTunedRegressor)  # named by their layers, not by a head
    for cls in (cls for classes in (*_classes().values(), trained_layers) for cls in classes):
        if type_name in (cls.__name__, *getattr(cls, "earlier_names", ())):
            return cls
    registered = {type(head.estimator).__name__: type(head.estimator) for head in _REGISTERED.values()}
    return cast("type[HeadMixin] | None", registered.get(type_name))


def _names(kind: TaskKind) -> list[str]:
    kind = task_kind(kind)
    named = [name for name, classes in _classes().items() if any(kind in cls.kinds for cls in classes)]
    return named + [name for registered_kind, name in _REGISTERED if registered_kind == kind and name not in named]


@functools.cache
def _classes() -> dict[str, tuple[type[HeadMixin], ...]]:
    """Return all heads that a fresh process would know, by name.

    Raises
    ------
    RequestError, HeadError
        An installed package offers a head that cannot be used, or under a name of ours.
    """

    def check(loaded: Any) -> Any:
        if not isinstance(loaded, type) or not isinstance(getattr(loaded, "kinds", None), frozenset):
            raise TypeError("it is no class that states its kinds; see featurecache.heads.head.Head")
        return loaded

    found = dict(_BUILT_IN)
    for name in plugin_names(ENTRY_POINTS):
        if name in found:
            raise HeadError(f"an installed package offers a head under a name that is taken, {name!r}; uninstall it")
        found[name] = (cast("type[HeadMixin]", load_plugin("head", name, group=ENTRY_POINTS, check=check)),)
    return found
