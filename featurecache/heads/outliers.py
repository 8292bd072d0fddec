"""Samples unlike anything that a head was fitted on, told by the distance to the nearest of these.

The score of a sample is one less the mean cosine of its features to their nearest neighbours (Sun et al.,
"Out-of-distribution detection with deep nearest neighbors", ICML 2022). Features are taken as they are: standardised
ones miss textures among photographs of animals, which these find. What is usual is told by the fitted samples
themselves, each scored by those of other folds, so that of new samples like them a share of about 0.05 has a p-value of
0.05 at most (Vovk, "Cross-conformal predictors", Annals of Mathematics and Artificial Intelligence 74, 2015).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from featurecache.errors import HeadError
from featurecache.heads.head import Arrays
from featurecache.heads.preparation import unit_rows

LEAST_ROWS: Final = 20
"""With fewer there is no share of one in twenty."""
# Kept with every head, so they must stay small beside it.
_MOST_ROWS, _MOST_BYTES = 1000, 2 << 20
_NEIGHBOURS, _FOLDS, _BLOCK = 5, 5, 1024


@dataclass(frozen=True, slots=True, eq=False)
class OutlierDetector:
    """What it takes to tell how unlike the fitted samples a new one is.

    Attributes
    ----------
    rows : ndarray of float16 (n, d)
        Features of fitted samples, of length one.
    usual : ndarray of float32 (n,)
        Scores of fitted samples by samples of other folds, sorted.
    """

    rows: NDArray[np.float16]
    usual: NDArray[np.float32]

    @classmethod
    def fit(
        cls, X: NDArray[np.floating], groups: NDArray[np.integer] | None = None, *, random_state: int = 0
    ) -> OutlierDetector | None:
        """Return a detector for samples like these; None where they are too few.

        Parameters
        ----------
        X : ndarray (n, d)
            Features of fitted samples, as many as `most_rows` at most.
        groups : ndarray of int (n,), optional
            Samples that are alike: they share a fold, and none is scored by its own.
        random_state : int
            Of folds.
        """
        usual = scores_by_others(X, groups, random_state=random_state)
        return None if usual is None else cls(unit_rows(X.astype(np.float32)).astype(np.float16), np.sort(usual))

    def p_values(self, X: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the share of samples like the fitted ones that are at least as unlike them as each row (n, d)."""
        reference, scores = self.rows.astype(np.float32), np.empty(len(X), np.float32)
        for start in range(0, len(X), _BLOCK):
            scores[start : start + _BLOCK] = _scores(unit_rows(X[start : start + _BLOCK].astype(np.float32)), reference)
        # Scores that are equal count as above: a p-value may be too large, not too small.
        above = len(self.usual) - np.searchsorted(self.usual, scores, side="left")
        # The sample itself is one of them; without it a p-value could be zero, which no number of samples supports.
        return np.asarray((above + 1.0) / (len(self.usual) + 1.0))

    def to_arrays(self) -> Arrays:
        """Return all that `from_arrays` needs."""
        return {"rows": self.rows, "usual": self.usual}

    @classmethod
    def from_arrays(cls, arrays: Arrays, n_features: int) -> OutlierDetector:
        """Read a detector, and refuse arrays that a stranger made up.

        Parameters
        ----------
        arrays : dict of str to ndarray
        n_features : int
            Of the head that it belongs to.

        Raises
        ------
        HeadError
            Arrays are missing, or do not belong together.
        """
        expected: dict[str, tuple[Any, tuple[int, ...]]] = {
            "rows": (np.float16, (-1, n_features)),
            "usual": (np.float32, (-1,)),
        }
        if arrays.keys() != expected.keys():
            raise HeadError(f"what tells its outliers has the arrays {sorted(arrays)}")
        for name, (dtype, shape) in expected.items():
            array = arrays[name]
            fits = array.ndim == len(shape) and all(w in (-1, h) for w, h in zip(shape, array.shape, strict=True))
            if array.dtype != dtype or not fits or not len(array) or not np.isfinite(array).all():
                raise HeadError(f"what tells its outliers does not fit: {name} is {array.dtype} {array.shape}")
        return cls(**{name: arrays[name] for name in expected})


def scores_by_others(
    X: NDArray[np.floating], groups: NDArray[np.integer] | None = None, *, random_state: int = 0
) -> NDArray[np.float32] | None:
    """Return how unlike the samples of other folds each sample is, 0 to 2; None where they are too few.

    Parameters
    ----------
    X : ndarray (n, d)
        Features.
    groups : ndarray of int (n,), optional
        Samples that are alike: they share a fold, and none is scored by its own.
    random_state : int
        Of folds.
    """
    if len(X) < LEAST_ROWS:
        return None
    group = np.arange(len(X)) if groups is None else np.unique(groups, return_inverse=True)[1]
    folds = (np.random.default_rng(random_state).permutation(group.max() + 1) % _FOLDS)[group]
    numbers = np.unique(folds)
    if len(numbers) < 2:
        return None
    X, scores = unit_rows(X.astype(np.float32)), np.zeros(len(X), np.float32)
    for number in numbers:
        scores[folds == number] = _scores(X[folds == number], X[folds != number])
    return scores


def most_rows(n_features: int) -> int:
    """Return how many rows a detector has room for: 1,000, or what fits in 2 MiB.

    Parameters
    ----------
    n_features : int
    """
    return max(min(_MOST_ROWS, _MOST_BYTES // (2 * max(n_features, 1))), LEAST_ROWS)


def _scores(rows: NDArray[np.float32], reference: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return one less the mean cosine of each row to its nearest neighbours."""
    count = min(_NEIGHBOURS, len(reference))
    # A partition, not a sort: of the nearest only the mean is needed.
    nearest = np.partition(rows @ reference.T, len(reference) - count, axis=1)[:, len(reference) - count :]
    return np.asarray(1.0 - nearest.mean(axis=1), np.float32)
