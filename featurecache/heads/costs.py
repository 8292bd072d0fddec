"""What heads cost beyond the features that they are fitted on: memory of all, time of those that may take hours.

Seconds were measured on one core of a server (Intel Xeon of 2023), memory as the growth of the largest resident size.
Both are for choosing a setting by five folds, and the last fit; they are meant to be right within a factor of three.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from featurecache.heads.checks import is_small

MAX_SECONDS = 1800.0
"""Of a head that nobody asked for by name: half an hour, in which all others together are done on most tasks."""

_FOLDS = 5
_OF_ANY_FIT = 64 << 20
"""Blocks of rows, and what libraries take for themselves."""
_KNN_BLOCKS = 384 << 20
"""Similarities of a block, their places as int64, and what is sorted of both."""
_SVM_CACHE = 500 << 20
_MOST_ROTATED = 4096
"""Features; above, the linear heads look for no axes (see `Preconditioner`)."""
_MLP_WIDTH, _MLP_SETTINGS, _ROWS_LOOKED_AT = 128, 4, 4096


@dataclass(frozen=True, slots=True)
class Size:
    """Of what a head is fitted on."""

    samples: int
    """Rows, each view one."""
    features: int
    outputs: int
    """Classes, labels or numbers."""
    num_bytes: int = 4
    """Of a feature."""

    @property
    def of_rows(self) -> int:
        """Bytes of all features."""
        return self.samples * self.features * self.num_bytes

    @property
    def square(self) -> int:
        """Bytes of a matrix of features by features, float64."""
        return 8 * self.features**2


def memory_needed(name: str, n_samples: int, n_features: int, n_outputs: int) -> int | None:
    """Return how many bytes a head takes at most beside the features; None for a head that does not say so."""
    stated = _MEMORY.get(name)
    return None if stated is None else _OF_ANY_FIT + stated(Size(n_samples, n_features, n_outputs))


def seconds_needed(name: str, n_samples: int, n_features: int, n_outputs: int) -> float:
    """Return about how long a head takes on one core; 0 for one whose time grows with the rows and no faster."""
    stated = _SECONDS.get(name)
    return 0.0 if stated is None else stated(Size(n_samples, n_features, n_outputs))


def _linear(size: Size) -> int:
    rows = size.of_rows * (3 if is_small(size.samples, size.features) else 2)
    axes = 3 * size.square if size.features <= _MOST_ROTATED else 0
    # Vectors of the solver, of every fold and output, and at least eight pairs of them that it remembers.
    vectors = _FOLDS * size.outputs * size.features * 8
    few = is_small(size.samples, size.features) and 2 * size.samples <= size.features
    return (
        rows
        + (2 * _FOLDS * 8 * size.samples * size.features if few else axes)
        + 12 * vectors
        + min(16 * vectors, 128 << 20)
    )


def _ridge(size: Size) -> int:
    axes = 8 * size.samples * size.features if 2 * size.samples <= size.features else size.square
    return (_FOLDS + 4) * axes + 4 * size.of_rows


def _gda(size: Size) -> int:
    # scikit-learn's scaler takes a copy in float64, and the rows of a fold are one more.
    return 6 * size.of_rows + 3 * 8 * min(size.samples, size.features) ** 2


def _mlp(size: Size) -> int:
    models = _FOLDS * _MLP_SETTINGS
    # Value, gradient, two moments and what a step makes of them; the best weights so far in float64.
    weights = models * size.features * _MLP_WIDTH * (4 * 6 + 8)
    return weights + 3 * _FOLDS * min(size.samples, _ROWS_LOOKED_AT) * size.features * size.num_bytes + size.of_rows


def _svm(size: Size) -> int:
    # libsvm has rows of its own in float64, and so are the support vectors that it gives back.
    return 10 * size.of_rows + min(_SVM_CACHE, 4 * size.samples**2)


_MEMORY: dict[str, Callable[[Size], int]] = {
    "logistic": _linear,
    "linear_svm": _linear,
    "rbf_svm": _svm,
    "mlp": _mlp,
    "knn": lambda size: 4 * size.of_rows + _KNN_BLOCKS,
    "ridge": _ridge,
    "gda": _gda,
    "nearest_mean": lambda size: 5 * size.of_rows,
    "attentive": lambda size: (3 * _FOLDS * min(size.samples, _ROWS_LOOKED_AT) * size.features * 4) + size.of_rows,
    "majority": lambda size: size.of_rows,
    "mean": lambda size: size.of_rows,
}


def _svm_seconds(size: Size) -> float:
    # Of two classes 1e-9 s for each pair of rows and each feature; of more, a machine for each two of them.
    pairs = 1e-9 * size.samples**2 * size.features
    num_fits = 3 * _FOLDS * 0.64 + 1
    return pairs * (num_fits * 2 * (size.outputs - 1) / max(size.outputs, 1) + 3 * 0.8)


def _knn_seconds(size: Size) -> float:
    return 6 * 5e-11 * size.samples**2 * size.features


def _gda_seconds(size: Size) -> float:
    least, most = sorted((size.samples, size.features))
    return (_FOLDS * 0.8 + 1) * (5e-11 * most * least**2 + 1e-10 * least**3)


def _ridge_seconds(size: Size) -> float:
    least = min(2 * size.samples, size.features)
    return (_FOLDS + 1) * 5e-10 * least**3


_SECONDS: dict[str, Callable[[Size], float]] = {
    "rbf_svm": _svm_seconds,
    "knn": _knn_seconds,
    "gda": _gda_seconds,
    "ridge": _ridge_seconds,
}


def in_words(seconds: float) -> str:
    """Write how long something takes about."""
    for name, unit in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{max(seconds, 1):.0f} s"
