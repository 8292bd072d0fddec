"""Would more data help? A learning curve from the rows there are, and the prediction of one doubling.

Errors at eight sizes, each the mean over several draws, are fitted by power laws with and without a floor (Viering &
Loog, "The shape of learning curves: a review", PAMI 45, 2023: none of them is right everywhere). One doubling is
predicted, as the range over both laws and a bootstrap of draws; how far such a prediction is off here is told by
predicting the largest size from the others. More than one doubling is not predicted: on known curves that was wrong by
up to 2.4 times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from featurecache.advice.finding import Finding
from featurecache.advice.probe import Floats
from featurecache.heads.preparation import scaled

_NUM_SIZES = 8
_SMALLEST = 10
_RESAMPLES = 200
_EXPONENTS = np.linspace(0.0, 1.5, 31)


@dataclass(frozen=True, slots=True, eq=False)
class LearningCurve:
    """Errors of a probe at several sizes.

    Attributes
    ----------
    sizes : ndarray of int64 (n_sizes,)
        Rows that were fitted on.
    errors : ndarray (n_sizes, n_seeds)
        One less the score, of rows that were not.
    """

    sizes: NDArray[np.int64]
    errors: Floats


def learning_curve(
    X: NDArray[np.floating],
    Y: Floats,
    y: NDArray[np.int64] | NDArray[np.float64],
    gains_of: Callable[[NDArray[Any], Floats], Floats],
    folds: NDArray[np.int64],
    groups: NDArray[np.int64] | None = None,
    *,
    penalty: float,
    num_seeds: int = 10,
    random_state: int = 0,
) -> LearningCurve:
    """Return errors at eight sizes; each draw is judged on a fold of its own.

    Parameters
    ----------
    X : ndarray (n, d)
    Y : ndarray (n, n_outputs)
        What the probe is fitted to.
    y : ndarray (n,), or (n, n_outputs)
        Targets.
    gains_of : callable
        Takes targets and predictions, and returns what each row adds to the score.
    folds : ndarray of int (n,)
    groups : ndarray of int (n,), optional
        Drawn whole.
    penalty : float
        Of the sum of squared errors; the best one is about the same for any number of rows, as it is the ratio of the
        variances of noise and coefficients.
    num_seeds, random_state : int
    """
    rows = scaled(X)
    kernel = rows @ rows.T
    generator = np.random.default_rng(random_state)
    numbers = np.unique(folds)
    largest = min(int(np.sum(folds != number)) for number in numbers)
    # By a constant factor: a power law is a straight line on logarithmic axes.
    sizes = np.unique(np.geomspace(min(_SMALLEST, largest), largest, _NUM_SIZES).astype(np.int64))
    errors = np.empty((len(sizes), num_seeds))
    for seed in range(num_seeds):
        held_out = np.flatnonzero(folds == numbers[seed % len(numbers)])
        order = _drawn(np.flatnonzero(folds != numbers[seed % len(numbers)]), groups, generator)
        for index, size in enumerate(sizes.tolist()):
            chosen = order[:size]
            predicted = _ridge(kernel[np.ix_(chosen, chosen)], Y[chosen], kernel[np.ix_(held_out, chosen)], penalty)
            errors[index, seed] = 1.0 - float(np.mean(gains_of(y[held_out], predicted)))
    return LearningCurve(sizes, errors)


def _drawn(
    rows: NDArray[np.int64], groups: NDArray[np.int64] | None, generator: np.random.Generator
) -> NDArray[np.int64]:
    if groups is None:
        return generator.permutation(rows)
    order = generator.permutation(np.unique(groups[rows]))
    # Whole groups in random order: whatever the size, it cuts one group at most.
    rank = np.empty(int(groups.max()) + 1, np.int64)
    rank[order] = np.arange(len(order))
    return rows[np.argsort(rank[groups[rows]], kind="stable")]


def _ridge(kernel: Floats, Y: Floats, across: Floats, penalty: float) -> Floats:
    """Predict by ridge regression with an intercept that is not penalised."""
    column, mean = kernel.mean(axis=0), float(kernel.mean())
    centred = kernel - column - column[:, None] + mean
    centred[np.diag_indices_from(centred)] += penalty
    weights = linalg.solve(centred, Y - Y.mean(axis=0), assume_a="pos")
    weights -= weights.mean(axis=0)  # as if the kernel of other rows were centred by these
    return np.asarray(Y.mean(axis=0) + (across - column) @ weights)


def more_data_finding(curve: LearningCurve, *, score: str = "accuracy", n: int, random_state: int = 0) -> Finding:
    """Predict what twice the labels would bring.

    Parameters
    ----------
    curve : LearningCurve
    score : str
        What one less the error is called.
    n : int
        Rows that the curve is of.
    random_state : int
        Of the bootstrap.
    """
    sizes, errors = curve.sizes, curve.errors
    now, spread = float(errors[-1].mean()), float(errors[-1].std(ddof=1) / np.sqrt(errors.shape[1]))
    details = {"sizes": sizes.tolist(), "errors": errors.mean(axis=1).tolist()}
    basis = f"learning curve of a linear probe, {errors.shape[1]} draws"
    answer = partial(Finding, question="more_data", n=n, basis=basis, details=details)
    # A law with a floor has three parameters, and the back-test takes one size away.
    if len(sizes) < 5 or sizes[-1] < 5 * _SMALLEST:
        text = f"cannot tell whether more labels would help: needs about {5 * _SMALLEST} samples to fit on"
        return answer(verdict="cannot tell", text=text)
    generator, num_draws = np.random.default_rng(random_state), errors.shape[1]
    drawn = generator.integers(num_draws, size=(_RESAMPLES, num_draws))
    draws, laws = errors[:, drawn].mean(axis=2).T, (False, True)
    doubled = np.stack([_predict(sizes, draws, 2 * sizes[-1], floor=floor) for floor in laws])
    low, high = float(np.quantile(doubled, 0.025)), float(np.quantile(doubled, 0.975))
    back = [_predict(sizes[:-1], errors[:-1].mean(axis=1)[None], sizes[-1], floor=floor)[0] for floor in laws]
    off = max(abs(float(predicted) - now) for predicted in back)
    # As much wider as the last such prediction was off: a law that fits may still be the wrong one.
    low, high = max(low - off, 0.0), high + off
    middle = min(float(np.median(doubled)), now)  # no law says that more labels make a head worse
    details |= {"at": int(2 * sizes[-1]), "predicted": middle, "back_test_error": off, "error_now": now}
    gain = (now - high, now - middle, now - low)
    shown = f"from {1 - now:.3f} to {1 - middle:.3f} ({1 - high:.3f} to {1 - low:.3f})"
    if gain[0] > spread:
        verdict, text = "helps", f"twice the labels would raise {score} {shown}"
    elif gain[2] < 0.01:
        verdict, text = "hardly", f"twice the labels would hardly change {score}: {shown}"
    else:
        verdict, text = "cannot tell", f"cannot tell whether twice the labels would help: {score} {shown}"
    text += f"; such a prediction of the last size was off by {off:.3f}"
    return answer(verdict=verdict, text=text, figure=gain[1], low=gain[0], high=gain[2], details=details)


def _predict(sizes: NDArray[np.int64], errors: Floats, at: float, *, floor: bool) -> Floats:
    """Return the error at a size by ``a + b size^-c``, fitted by least squares; without a floor a is 0.

    Parameters
    ----------
    sizes : ndarray (n_sizes,)
    errors : ndarray (n_draws, n_sizes)
        Each draw is fitted by itself.
    at : float
    floor : bool
    """
    best, predicted = np.full(len(errors), np.inf), errors[:, -1].copy()
    weights = np.sqrt(sizes / sizes.max())  # errors of small sizes vary more, and say less of large ones
    for exponent in _EXPONENTS:
        basis = sizes.astype(np.float64) ** -exponent
        columns = np.stack([np.ones_like(basis), basis], axis=1) if floor else basis[:, None]
        new = np.array([1.0, at**-exponent]) if floor else np.array([at**-exponent])
        # With its exponent given, a law is linear: one matrix fits all draws at once.
        coefficients = np.linalg.pinv(columns * weights[:, None]) @ (errors * weights).T
        squared = np.sum((weights * (columns @ coefficients - errors.T).T) ** 2, axis=1)
        better = (squared < best) & (coefficients >= 0).all(axis=0)
        best[better], predicted[better] = squared[better], (new @ coefficients)[better]
    return predicted
