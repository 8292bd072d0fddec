"""What a head is: a scikit-learn estimator that also states what it can learn, what is searched, and how it is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import signature
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, is_classifier
from sklearn.utils.validation import has_fit_parameter

from featurecache.errors import HeadError
from featurecache.specs import TaskKind

if TYPE_CHECKING:
    from torch import nn

Arrays = dict[str, NDArray[Any]]
Setting = dict[str, Any]
Settings = Sequence[Mapping[str, Any]]
Labels: TypeAlias = NDArray[Any]
"""Classes, (n_samples,); labels or numbers, (n_samples, n_outputs)."""
Fold: TypeAlias = NDArray[np.int64]
"""The fold of each sample, (n_samples,); -1 for samples that are never held out."""
Weights: TypeAlias = NDArray[np.float64] | None
"""Of samples, (n_samples,); None: all count alike."""
Groups: TypeAlias = NDArray[np.int64] | None
"""(n_samples,): samples with the same number are of one group; None: each is by itself."""

# By which settings are chosen; what memory and time are stated for.
NUM_FOLDS = 5
# Blocks of rows, and what libraries take for themselves.
ANY_FIT_BYTES = 64 << 20
# Of a head that nobody asked for by name: half an hour, in which all others together are done on most tasks.
MAX_SECONDS = 1800.0


class Head(Protocol):
    """What the package asks of a head; all but `kinds` and `grid` may be absent from a scikit-learn estimator.

    An installed package adds heads by entry points of the group ``featurecache.heads``, each a class like this.
    """

    kinds: ClassVar[frozenset[TaskKind]]
    """Kinds of task that it can learn."""
    grid: ClassVar[Mapping[str, Sequence[Any]]]
    """Values to search of each parameter, the simplest model first: of equally good settings the earlier one is kept
    unless its probabilities are worse."""

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit ``X`` (n_samples, n_features) and ``y`` (n_samples,), or (n_samples, n_outputs)."""

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return classes, labels or numbers."""

    def to_arrays(self) -> Arrays:
        """Return all that predictions need, besides parameters; numbers or text."""

    @classmethod
    def from_arrays(cls, arrays: Arrays, **params: Any) -> Self:
        """Return a fitted head of these parameters; raises `HeadError` for arrays that do not belong together."""

    def to_module(self) -> nn.Module:
        """Return a network from (B, n_features) to what `predict_proba` returns, or `decision_function`, or `predict`.

        The first of these that there is.
        """


# Below, every other value of C or alpha is searched: see `regularization`.
_FEW_ROWS = 200


class HeadMixin:
    """What most heads share; stands before their other bases."""

    kinds: ClassVar[frozenset[TaskKind]]
    grid: ClassVar[Mapping[str, Sequence[Any]]] = {}
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Parameters in which the head that people ask for by name differs from the class."""
    arrays: ClassVar[tuple[str, ...]] = ()
    """Fitted attributes that predictions need."""
    optional_arrays: ClassVar[tuple[str, ...]] = ()
    """Others that are kept where there are any."""
    earlier_names: ClassVar[tuple[str, ...]] = ()
    """Classes under which earlier releases saved it."""
    needs_tokens: ClassVar[bool] = False
    """Whether it is for features that keep their tokens."""
    streams: ClassVar[bool] = False
    """Whether it is fitted on rows that are read as they are needed (``numpy.memmap``)."""
    takes_unknown: ClassVar[bool] = False
    """Whether some of several labels or numbers of a row may be unknown."""
    path_params: ClassVar[frozenset[str]] = frozenset()
    """Parameters in which settings may differ that `fit_path` fits together."""
    interruptible: ClassVar[bool] = True
    """False for one that spends minutes in compiled code, which no signal reaches."""
    calibrated_by_grid: ClassVar[bool] = False
    """Whether the setting with the least log loss has calibrated probabilities, more or less."""
    relative_seconds: ClassVar[float] = 1.0
    """About how long it takes on a small task: the slowest begin first."""
    bytes_per_value: ClassVar[int | None] = None
    """Memory that it takes for each feature of each row; None where that is not known, or not all (`memory_needed`)."""
    fixed_bytes: ClassVar[int] = ANY_FIT_BYTES
    """Memory that it takes however many rows there are."""
    linear_probe_of: ClassVar[frozenset[TaskKind]] = frozenset()
    """Kinds of task of which it is the linear probe, with which adaptation and deeper training are compared."""
    regularization: ClassVar[str | None] = None
    """``C`` or ``alpha``: on few rows every other value is searched, as they cannot tell more of them apart."""

    @classmethod
    def settings(cls, n_samples: int) -> list[Setting]:
        """Return the settings to search on so many rows, the simplest model first."""
        grid = dict(cls.grid)
        if cls.regularization is not None and n_samples < _FEW_ROWS:
            grid[cls.regularization] = grid[cls.regularization][::2]
        return product_of(grid)

    @classmethod
    def memory_needed(cls, n_samples: int, n_features: int, n_outputs: int) -> int | None:
        """Return how many bytes it takes at most besides the features; None where that is not known.

        Parameters
        ----------
        n_samples, n_features, n_outputs : int
            Rows, each view one; features; classes, labels or numbers.
        """
        if cls.bytes_per_value is None:
            return None
        return cls.fixed_bytes + cls.bytes_per_value * n_samples * n_features

    @classmethod
    def seconds_needed(cls, n_samples: int, n_features: int, n_outputs: int) -> float:
        """Return about how long it takes on one core; 0 where time grows with the rows and no faster.

        Parameters
        ----------
        n_samples, n_features, n_outputs : int
            As for `memory_needed`.

        Notes
        -----
        Seconds of all heads were measured on one core of a server (Intel Xeon of 2023), memory as the growth of the
        largest resident size; both for a search on five folds and the last fit, and right within a factor of three.
        """
        return 0.0

    def to_arrays(self) -> Arrays:
        """Return what predictions need; see `Head`."""
        # Not `getattr`: defaults of the class, such as `multilabel_`, were not fitted.
        fitted = vars(self)
        if missing := [name for name in ("n_features_in_", *self.arrays) if name not in fitted]:
            raise HeadError(f"{type(self).__name__} has no {missing[0]}; fit the head before saving it")
        names = ("n_features_in_", *self.arrays, *self.optional_arrays)
        return {name: np.asarray(fitted[name]) for name in names if name in fitted}

    @classmethod
    def from_arrays(cls, arrays: Arrays, **params: Any) -> Self:
        """Return a fitted head; see `Head`."""
        head, name = cls(**params), cls.__name__
        required = ("n_features_in_", *cls.arrays)
        if unknown := arrays.keys() - {*required, *cls.optional_arrays}:
            raise HeadError(f"a {name} has no attribute {min(unknown)!r}")
        if missing := [name for name in required if name not in arrays]:
            raise HeadError(f"its {name} has no {missing[0]}")
        check_types(arrays, name)
        head.__dict__.update({key: array.item() if array.ndim == 0 else array for key, array in arrays.items()})
        head.check_arrays()
        return head

    @classmethod
    def from_earlier(cls, arrays: Arrays, params: Mapping[str, Any]) -> Self:
        """Return what an earlier release saved; attributes of steps before the last have the step's name in front."""
        return cls.from_arrays(arrays, **params)

    def check_arrays(self) -> None:
        """Raise `HeadError` for arrays that do not belong together.

        A stranger's may be anything: numpy would stretch some of it to fit without a word, and compiled code read
        beyond its end.
        """


def check_types(arrays: Arrays, name: str) -> None:
    """Raise `HeadError` for classes that are no list of different ones, and for other arrays that are not numbers.

    Parameters
    ----------
    arrays : dict of str to ndarray
    name : str
        Of the head's class, for the message.
    """
    for key, array in arrays.items():
        if key == "classes_" and (array.ndim != 1 or not array.size or len(set(array.tolist())) != array.size):
            raise HeadError(f"the classes of its {name} are not a list of different ones")
        if key != "classes_" and array.dtype.kind not in "biuf":
            raise HeadError(f"the {key} of its {name} are not numbers")


class FitsPath(Protocol):
    """A head that fits all settings and folds together for less than one by one."""

    path_params: ClassVar[frozenset[str]]

    def fit_path(
        self, X: NDArray[Any], y: NDArray[Any], fold: Fold, settings: Settings, sample_weight: Weights = None
    ) -> Iterator[tuple[Setting, list[Self]]]:
        """Fit every setting without each fold.

        Parameters
        ----------
        X : ndarray (n_samples, n_features)
        y : ndarray (n_samples,), or (n_samples, n_outputs)
        fold : ndarray of int (n_samples,)
            -1 for rows that are never held out.
        settings : sequence of mapping
            Parameters among `path_params`, others stay as they are.
        sample_weight : ndarray (n_samples,), optional
            Above 0.

        Yields
        ------
        (setting, heads)
            One fitted head for each fold, which was not fitted on it; a single one, fitted on all rows, where no row is
            held out.
        """


def product_of(grid: Mapping[str, Sequence[Any]]) -> list[Setting]:
    """Return all combinations of the values of a grid; those of the last parameter change fastest."""
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def powers_of_ten(first: int, last: int, per_decade: int = 1) -> list[float]:
    """Return the powers of ten between two exponents.

    Parameters
    ----------
    first, last : int
        Exponents.
    per_decade : int
        Values to a decade.

    Notes
    -----
    Not ``10.0 ** e``: that is 9.999999999999999e-05 for some exponents, and people read these numbers.
    """
    step, steps = (1 if last >= first else -1), abs(last - first) * per_decade + 1
    return [float(f"{10 ** (first + step * number / per_decade):.3g}") for number in range(steps)]


class NamedHead:
    """A head that is searched: what tables call it, the estimator, and what the estimator states of itself.

    Parameters
    ----------
    name : str
    estimator : BaseEstimator
        Unfitted. Any scikit-learn estimator; what it does not state of `Head` is taken as scikit-learn has it.
    settings : callable, optional
        Takes the number of rows to fit, and returns the settings to search; the estimator's own when left out.

    Attributes
    ----------
    kinds : frozenset of str
        Kinds of task that it can learn; those of scikit-learn's own by what they are.
    streams, takes_unknown, needs_tokens, interruptible, calibrated_by_grid : bool
        As for `HeadMixin`.
    relative_seconds : float
        About how long it takes on a small task; what does not say so is taken for slow.
    memory_needed, seconds_needed : callable
        As for `HeadMixin`.
    """

    def __init__(
        self, name: str, estimator: BaseEstimator, settings: Callable[[int], list[Setting]] | None = None
    ) -> None:
        self.name = name
        self.estimator = estimator
        self.settings = settings
        kinds: frozenset[TaskKind] | None = getattr(estimator, "kinds", None)
        if kinds is None:
            of_classifiers: frozenset[TaskKind] = frozenset({"classification", "multilabel"})
            of_regressors: frozenset[TaskKind] = frozenset({"multilabel", "regression"})
            kinds = of_classifiers if is_classifier(estimator) else of_regressors
        self.kinds = kinds
        self.streams: bool = getattr(estimator, "streams", HeadMixin.streams)
        self.takes_unknown: bool = getattr(estimator, "takes_unknown", HeadMixin.takes_unknown)
        self.needs_tokens: bool = getattr(estimator, "needs_tokens", HeadMixin.needs_tokens)
        self.interruptible: bool = getattr(estimator, "interruptible", HeadMixin.interruptible)
        self.calibrated_by_grid: bool = getattr(estimator, "calibrated_by_grid", HeadMixin.calibrated_by_grid)
        # Not the default of `HeadMixin`: the slowest searches begin first, and a stranger may be one.
        self.relative_seconds: float = getattr(estimator, "relative_seconds", 1000.0)
        self.memory_needed: Callable[[int, int, int], int | None] = getattr(
            estimator, "memory_needed", HeadMixin.memory_needed
        )
        self.seconds_needed: Callable[[int, int, int], float] = getattr(
            estimator, "seconds_needed", HeadMixin.seconds_needed
        )

    def settings_for(self, n_samples: int) -> list[Setting]:
        """Return the settings to search on so many rows."""
        own = self.settings or getattr(self.estimator, "settings", None)
        return own(n_samples) if own is not None else product_of(getattr(self.estimator, "grid", {}))

    @property
    def takes_weights(self) -> bool:
        """Whether samples may count differently in fitting."""
        path = getattr(self.estimator, "fit_path", None)
        # Settings may be fitted by `fit_path`, the last fit is one of `fit`: both must take them.
        return has_fit_parameter(self.estimator, "sample_weight") and (
            path is None or "sample_weight" in signature(path).parameters
        )
