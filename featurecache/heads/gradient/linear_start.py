"""The linear head that a training of layers may start from."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurecache.heads.head import Groups
from featurecache.heads.logistic import LogisticProbe
from featurecache.heads.preparation import PRIOR_ROWS
from featurecache.heads.ridge import RidgeRegressor
from featurecache.specs import TaskKind

# Few rows of many features: all regularise more strongly than scikit-learn's default of 1.
_CS = [1e-4, 1e-3, 1e-2, 1e-1]
_PROBE_FOLDS = 5


def fit_linear_head(
    features: NDArray[np.float32], targets: NDArray[Any], weight: NDArray[np.float64], groups: Groups, kind: TaskKind
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fit a linear head, and return its weights (K, D) and intercepts (K,).

    Parameters
    ----------
    features : ndarray of float32 (n, D)
    targets : ndarray (n,) or (n, K)
        Class indices; labels, or numbers in their units.
    weight : ndarray (n,)
    groups : ndarray (n,) or None
        Rows of one group are in one fold.
    kind : str
        Of the task.
    """
    if kind == "regression":
        ridge = RidgeRegressor(alpha=1.0, prior_rows=PRIOR_ROWS).fit(features, targets, weight)
        coef, intercept = ridge.coef_.reshape(targets.shape[1], -1), np.reshape(ridge.intercept_, targets.shape[1])
        return np.asarray(coef, np.float64), np.asarray(intercept, np.float64)
    of_class = [targets == label for label in np.unique(targets)] if targets.ndim == 1 else list(targets.T == 1)
    rarest = min(int(rows.sum()) if groups is None else len(np.unique(groups[rows])) for rows in of_class)
    num_folds = min(_PROBE_FOLDS, rarest)
    # Of a class with a single row no fold can be held out; a prior on the variances then regularises enough.
    head = LogisticProbe(prior_rows=PRIOR_ROWS)
    if num_folds > 1:
        head.set_params(Cs=_CS, cv=num_folds)
    coef, intercept = head.fit(features, targets, weight, groups=groups).coef_, head.intercept_
    if kind == "multilabel" or len(coef) > 1:
        return coef, intercept
    # Two logits of one margin, half each way.
    return np.concatenate([-coef / 2, coef / 2]), np.concatenate([-intercept / 2, intercept / 2])
