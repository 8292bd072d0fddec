"""What comes before training: rows to stop by, numbers in units of their own, variances of few rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler, normalize

# Early stopping needs rows to stop by. With fewer, what is held out is noise, or a class would be lost.
_ENOUGH_ROWS, _ENOUGH_OF_A_CLASS = 1000, 10
_LARGEST_SHARE = 0.5


def unit_rows(X: NDArray[np.floating[Any]]) -> NDArray[Any]:
    """Return rows (n, d) scaled to length one, of the same number type; those of nothing but zeros stay as they are."""
    return np.asarray(X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1e-12))


def rows_to_stop_by(
    y: NDArray[Any],
    seen_Fn: NDArray[np.bool_],
    groups: NDArray[np.int64] | None = None,
    *,
    fraction: float,
    random_state: int,
) -> NDArray[np.int64]:
    """Draw rows, of each class where there are classes, the same for all folds; a fold uses those that it may see.

    Groups are drawn whole: rows that are like those fitted on would never stop it.

    Parameters
    ----------
    y : ndarray of int64 (n_samples,), or (n_samples, n_outputs)
        Class indices; or labels, or numbers.
    seen_Fn : ndarray of bool (n_folds, n_samples)
        Which rows each fold is fitted on.
    groups : ndarray of int (n_samples,), optional
        Rows with the same number are of one group.
    fraction : float
        Of the rows of each class; of all rows, as near as whole groups come to it, where there are groups.
    random_state : int

    Returns
    -------
    ndarray of int64
        Indices in increasing order; none where there are too few rows.
    """
    if not fraction or seen_Fn.sum(1).min() < _ENOUGH_ROWS:
        return np.zeros(0, np.int64)
    generator = np.random.default_rng(random_state)
    if groups is not None:
        return _whole_groups(y, seen_Fn, groups, fraction, generator)
    if y.ndim == 2:
        return np.sort(generator.permutation(len(y))[: math.ceil(len(y) * fraction)])
    counts = np.stack([np.bincount(y[seen_n], minlength=int(y.max()) + 1) for seen_n in seen_Fn])
    if counts.min() < _ENOUGH_OF_A_CLASS:
        return np.zeros(0, np.int64)
    drawn = []
    for column in range(counts.shape[1]):
        rows = generator.permutation(np.flatnonzero(y == column))
        drawn.append(rows[: math.ceil(len(rows) * fraction)])
    return np.sort(np.concatenate(drawn))


def _whole_groups(
    y: NDArray[Any],
    seen_Fn: NDArray[np.bool_],
    groups: NDArray[np.int64],
    fraction: float,
    generator: np.random.Generator,
) -> NDArray[np.int64]:
    numbers, of_row, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = generator.permutation(len(numbers))
    before = np.cumsum(sizes[order]) - sizes[order]
    drawn = np.isin(of_row, order[before < fraction * len(y)])
    fitted_Fn = seen_Fn & ~drawn
    if not drawn.any() or drawn.mean() > _LARGEST_SHARE:  # one group is most of all rows
        return np.zeros(0, np.int64)
    if y.ndim == 1 and any(
        (np.bincount(y[n], minlength=int(y.max()) + 1) < _ENOUGH_OF_A_CLASS).any() for n in fitted_Fn
    ):
        return np.zeros(0, np.int64)
    return np.flatnonzero(drawn)


def mean_and_scale(
    numbers: NDArray[np.float64], weight: NDArray[np.float64] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation of each number (n_samples, n_targets); the scale of one that is constant is 1.

    What is trained in these units may be coarse: numbers far from zero, such as years, keep their digits. Numbers that
    are not known (NaN) have no part in it; of a target of which none is known, the mean is 0.
    """
    known = np.isfinite(numbers)
    if not known.all():
        share = known if weight is None else known * (weight[:, None] if numbers.ndim == 2 else weight)
        total = np.maximum(share.sum(axis=0), np.finfo(np.float64).tiny)
        mean = (np.where(known, numbers, 0.0) * share).sum(axis=0) / total
        scale = np.sqrt((np.where(known, numbers - mean, 0.0) ** 2 * share).sum(axis=0) / total)
        return mean, np.where(scale > 0, scale, 1.0)
    mean = np.average(numbers, axis=0, weights=weight)
    scale = np.sqrt(np.average((numbers - mean) ** 2, axis=0, weights=weight))
    return mean, np.where(scale > 0, scale, 1.0)


def balanced_weights(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weight of a row of each class (n_classes,) with which all have the same total, given their totals."""
    return np.asarray(counts.sum() / (len(counts) * counts))


# With one label of each of ten classes this makes the linear probe right 0.88 of the time instead of 0.64, and with
# five labels of two classes a perceptron 0.90 instead of 0.79.
PRIOR_ROWS = 10.0


def shrunk_variance(variance: Any, varies: Any, weight: float, prior_rows: float) -> Any:
    """Return variances of features (D,) that are drawn to their mean as by so many more rows that have it.

    Parameters
    ----------
    variance : array or Tensor (D,)
    varies : array or Tensor of bool (D,)
        Features of which the mean is taken.
    weight : float
        Total weight of the rows.
    prior_rows : float

    Notes
    -----
    With a handful of rows a feature's own variance is mostly chance, and dividing by its root makes most of those
    features that happened to vary least. Under a common inverse-gamma prior this is one over what is expected of one
    over the variance (Smyth, "Linear models and empirical Bayes methods", Stat. Appl. Genet. Mol. Biol. 3, 2004).
    """
    if not prior_rows or not varies.any():
        return variance
    if prior_rows == math.inf:
        return variance * 0 + variance[varies].mean()
    return (weight * variance + prior_rows * variance[varies].mean()) / (weight + prior_rows)


def scaled(X: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return features centred and scaled to variance 1, the variances of few rows drawn to their mean.

    Parameters
    ----------
    X : ndarray (n, d)
    """
    centred = X.astype(np.float64)
    centred -= centred.mean(axis=0)
    variance = np.mean(centred**2, axis=0)
    varies = variance > 1e-12 * max(float(variance.max(initial=0.0)), 1e-300)
    if not varies.any():
        return np.zeros_like(centred)
    scale = np.sqrt(np.asarray(shrunk_variance(variance, varies, float(len(X)), PRIOR_ROWS)))
    return np.asarray(centred / np.where(varies, scale, 1.0))


def shrunk_scaler(
    rows: NDArray[Any], weight: NDArray[np.float64] | None = None, *, prior_rows: float
) -> StandardScaler:
    """Return scikit-learn's scaler of these rows, with the roots of `shrunk_variance` as scales.

    Parameters
    ----------
    rows : ndarray (n_samples, n_features)
    weight : ndarray (n_samples,), optional
    prior_rows : float
    """
    scaler = StandardScaler().fit(rows, sample_weight=weight)
    varies = np.isclose(scaler.scale_**2, scaler.var_)  # the scale of a constant feature is one
    total = float(len(rows) if weight is None else weight.sum())
    variance = shrunk_variance(scaler.var_, varies, total, prior_rows)
    scaler.scale_ = np.where(varies, np.sqrt(variance), scaler.scale_)
    return scaler


def own_units(rows: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean of each feature (D,), and one over its standard deviation (D,).

    The latter is 0 for a feature that is the same in all rows: it has no unit, and what new rows have there would count
    as much as it happens to be scaled. There is no prior of the variances: it would tie the features to one unit.
    """
    scaler = StandardScaler().fit(rows)
    # The scale of a constant feature is one; that of what float32 cannot divide by is as good as none.
    varies = np.isclose(scaler.scale_**2, scaler.var_) & (scaler.scale_ > np.finfo(np.float32).tiny)
    return scaler.mean_, np.where(varies, 1 / scaler.scale_, 0.0)


def directions(
    rows: NDArray[Any], mean: NDArray[np.float64] | None = None, factor: NDArray[np.float64] | None = None
) -> NDArray[Any]:
    """Return rows less their mean, times a factor, as far as these are given, and normalised, in their type.

    Parameters
    ----------
    rows : ndarray (n_samples, n_features)
    mean, factor : ndarray (n_features,), optional
        As `own_units` returns them; a factor only with a mean.
    """
    if mean is None:
        return np.asarray(normalize(rows))
    centred = rows - mean.astype(rows.dtype)
    if factor is not None:
        centred *= factor.astype(rows.dtype)
    return np.asarray(normalize(centred, copy=False))
