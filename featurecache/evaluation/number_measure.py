"""What it means to be right about numbers: R2 over all of them, and errors of each in its own unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from featurecache.errors import TaskError
from featurecache.evaluation.resampled_measure import ResampledMeasure, check_known, where_known
from featurecache.evaluation.scores import OutputScores
from featurecache.heads.checks import is_partial

_ERRORS = {"mean_absolute_error": "mean error", "root_mean_squared_error": "RMSE"}
_ERROR_SCORES = (mean_absolute_error, root_mean_squared_error)
"""Of numbers, in their units; in this order."""


class OfNumbers(ResampledMeasure):
    """Coefficient of determination, the mean over the numbers, and the errors of each number by itself, in its unit.

    Only what has no unit is averaged: a mean of millimetres and grams says nothing, and would choose another head where
    the same lengths are given in metres.

    Parameters
    ----------
    n_outputs : int
    names : sequence of str
        Of the numbers.
    metric : str, optional
        There is one: ``r2``.
    """

    kind = "regression"
    score_titles: Mapping[str, str] = MappingProxyType({"r2": "R2", **_ERRORS})

    def __init__(self, n_outputs: int, names: Sequence[str] = (), *, metric: str | None = None) -> None:
        if n_outputs > 1:
            names = names or [f"number {k + 1}" for k in range(n_outputs)]
            # The name comes first: after it, "mass_low" would be taken for a bound of "mass".
            of_each = {f"{name} {key}": f"{name} {title}" for name in names for key, title in _ERRORS.items()}
            self.score_titles = {"r2": "mean R2", **of_each}
        super().__init__(n_outputs, metric)

    def check(self, name: str, y: np.ndarray) -> np.ndarray:
        """See `Measure`."""
        if y.ndim != 2 or y.shape[1] != self.n_outputs or y.dtype.kind not in "iuf" or np.isinf(y).any():
            raise TaskError(f"{name} labels are not {self.n_outputs} finite numbers for each row; correct them")
        if np.isnan(y).all():
            raise TaskError(f"{name} labels are not {self.n_outputs} finite numbers for each row: none is known")
        check_known(name, y)
        if len(y) < 2:
            raise TaskError(
                f"the {name} split has one row; numbers are evaluated by how they vary over rows: give it more"
            )
        for k in range(y.shape[1]):
            values = y[np.isfinite(y[:, k]), k]
            if len(values) and (values == values[0]).all() and (name == "train" or len(values) == len(y)):
                raise TaskError(
                    f"number {k + 1} of {y.shape[1]} is {values[0]:g} in all {len(values)} {name} rows, so "
                    "nothing is learned or evaluated by it; leave that number out, or divide the samples otherwise"
                )
        if not _varying_numbers(y):
            raise TaskError(
                f"no number varies over the {name} rows where it is known, so nothing can be evaluated by it"
            )
        return y.astype(np.float64)

    def score(self, y: np.ndarray, predictions: np.ndarray) -> float:
        """See `Measure`."""
        if not is_partial(y):
            return float(r2_score(y, predictions))
        return float(np.mean([r2_score(*where_known(y, predictions, k)) for k in _varying_numbers(y)]))

    def point(self, y: np.ndarray, predictions: np.ndarray) -> list[float]:
        """See `ResampledMeasure`."""
        found = [self.score(y, predictions)]
        for k in range(y.shape[1]):
            pair = where_known(y, predictions, k)
            found += [float(error(*pair)) if len(pair[0]) else np.nan for error in _ERROR_SCORES]
        return found

    def weighted(self, y: np.ndarray, predictions: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """See `ResampledMeasure`."""
        varying, known = _varying_numbers(y), np.isfinite(y)
        is_counted, count = known.astype(np.float64), np.maximum(known.sum(axis=0), 1)
        mean = np.where(known, y, 0.0).sum(axis=0) / count
        error, centred = (np.where(known, values, 0.0) for values in (y - predictions, y - mean))
        counted = np.concatenate([error**2, centred**2, centred, np.abs(error)], axis=1)
        # A resample may hold one number only: what rounding leaves of its spread is none.
        no_spread = 1e-9 * (centred**2).sum(axis=0) / count

        def scores(weights: np.ndarray) -> np.ndarray:
            total = np.tile(weights @ is_counted, 4)
            with np.errstate(divide="ignore", invalid="ignore"):  # a resample may hold no row where a number is known
                squares, spread, mean, absolute = np.split((weights @ counted) / total, 4, axis=1)
                spread = spread - mean**2
                r2 = np.where(spread > no_spread, 1 - squares / spread, np.nan)[:, varying]
            errors = np.stack([absolute, np.sqrt(squares)], axis=2).reshape(len(weights), -1)
            return np.concatenate([r2.mean(axis=1, keepdims=True), errors], axis=1)

        return scores

    def per_output(self, y: np.ndarray, predictions: np.ndarray, names: list[str]) -> list[OutputScores]:
        """Return scores of each number by itself, and its spread, on the samples for which it is known.

        A number has None for what so few samples do not have.

        Parameters
        ----------
        y, predictions, names
            As for `Measure.per_output`.
        """
        found: list[OutputScores] = []
        for k, name in enumerate(names):
            values, predicted = where_known(y, predictions, k)
            scores: OutputScores = dict.fromkeys(
                ("r2", "mean_absolute_error", "root_mean_squared_error", "mean", "standard_deviation")
            )
            if np.ptp(values, axis=0) > 0 if len(values) else False:
                scores["r2"] = float(r2_score(values, predicted))
            if len(values):
                scores["mean_absolute_error"] = float(mean_absolute_error(values, predicted))
                scores["root_mean_squared_error"] = float(root_mean_squared_error(values, predicted))
                scores |= {"mean": float(values.mean()), "standard_deviation": float(values.std())}
            found.append({"number": name, "n": len(values), **scores})
        return found


def _varying_numbers(y: np.ndarray) -> list[int]:
    """Return which numbers can be evaluated: those that are not all alike where they are known."""
    return [k for k in range(y.shape[1]) if len(np.unique(y[np.isfinite(y[:, k]), k])) > 1]
