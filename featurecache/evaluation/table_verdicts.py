"""All heads of a table against the chosen one: verdicts whose error rate holds for the table as a whole.

The rows by which a head was chosen are the rows that made it win, and a table makes many comparisons on them. So the
greatest difference between any two heads of a table is what an observed difference is measured by: of heads that are
all equally good, at most 5 % of tables call any of them worse, whichever was chosen, and by whatever rule.

Where a score is a sum over rows (accuracy, balanced accuracy, log loss, R2 with the spread of these rows), or taken for
one by what each row adds to it (macro F1, areas under curves), the distribution of
that greatest difference comes from flipping signs: under the null, a row (or group) that speaks for one of two heads
might as well have spoken for the other. For any one pair this is McNemar's exact test; all pairs get the same flips, so
that heads which nearly always agree cost nothing. Other scores are drawn again by the bootstrap over rows or groups,
less what was observed. Heads that are found worse leave the table, and the others are compared again (Westfall & Young,
"Resampling-based multiple testing", 1993; Romano & Wolf, "Exact and approximate stepdown methods for multiple
hypothesis testing", JASA 100, 2005).

Measured by ``python scripts/trials verdicts``: nine equally good heads, 150 to 1,500 rows, accuracies of 0.8 to 0.97.
Uncorrected comparisons with the chosen head call one of them worse in 41 to 59 % of tables, exact McNemar tests with
Holm's correction in up to 12 %. The range without dividing by standard errors errs as rarely, but loses up to half of
the power where heads differ in how often they disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t

from featurecache.evaluation.bootstrap import num_units, weights_of_resamples
from featurecache.evaluation.comparison import EQUIVALENT_WITHIN, Comparison
from featurecache.evaluation.intervals import Z95, holding, wilson
from featurecache.evaluation.measure import Measure
from featurecache.evaluation.resampled_measure import ResampledMeasure

LEVEL = 0.045
"""Below the 5 % that are promised: flips and resamples are as good as exact only for many rows."""
_NUM_FLIPS = 2000
_ALLOWANCE = 1.5
"""Heads that are equally good differ a little on any rows: with an interval that much narrower than needed, four of
five such pairs are found equivalent (Phillips, Journal of Pharmacokinetics and Biopharmaceutics 18, 1990)."""
# 32 MB of signs at a time.
_SIGNS_AT_ONCE = 4_000_000


@dataclass(frozen=True, slots=True)
class _Draws:
    """Differences between heads, observed and as chance alone would have them.

    Attributes
    ----------
    observed : ndarray (n_heads,)
        Score of each head less that of the chosen one.
    errors : ndarray (n_heads,)
        Standard errors of these.
    chance : ndarray (n_draws, n_heads)
        Scores without any difference between heads, on a scale on which only differences count.
    scales : ndarray (n_heads, n_heads)
        By what the differences of ``chance`` are divided to be compared between pairs; 0 of heads that never differ.
    statistics : ndarray (n_heads,)
        Observed differences on that scale.
    num_units : int
        Rows or groups.
    """

    observed: np.ndarray
    errors: np.ndarray
    chance: np.ndarray
    scales: np.ndarray
    statistics: np.ndarray
    num_units: int


def compare_heads(
    measure: Measure, y: np.ndarray, predictions: Sequence[np.ndarray], chosen: int, groups: np.ndarray | None
) -> list[Comparison]:
    """Compare each head of a table with the chosen one.

    Parameters
    ----------
    measure : Measure
        Of the task.
    y : ndarray (n,) or (n, n_outputs)
        Targets.
    predictions : sequence of ndarray
        `Measure.outputs` of each head for the same rows, which it was not fitted on.
    chosen : int
        Index of the head with which the others are compared; it may have been chosen on these rows.
    groups : ndarray of int (n,), or None
        Rows with the same number are alike.

    Returns
    -------
    list of Comparison
        One for each head; p values are adjusted for the table, and intervals hold for all heads at once. That of the
        chosen one says nothing.
    """
    if measure.kind == "multilabel" and isinstance(measure, ResampledMeasure) and measure.is_plain:
        draws = _resampled(measure, y, predictions, chosen, groups)
    else:
        if measure.kind == "regression":
            rows = _explained(y, predictions)
        else:
            rows = np.stack([measure.row_scores(y, predicted) for predicted in predictions], axis=1) / len(y)
        draws = _flipped(rows, groups, chosen)
    p_values, critical = _step_down(draws, chosen)
    count = draws.num_units
    # The t value of a mean over so many units whose sum, divided by its uncentred spread, is the critical value. That
    # quotient is at most the square root of their number, which no difference between units leaves.
    student = critical * np.sqrt((count - 1) / (count - critical**2)) if count > critical**2 else np.inf
    halves = np.array([error * student if error > 0 else 0.0 for error in draws.errors.tolist()])
    # No two scores between 0 and 1 are further apart.
    most = np.inf if measure.kind == "regression" else measure.range_of(measure.primary)[1]
    found = []
    for difference, half, p_value, predicted in zip(
        draws.observed.tolist(), halves.tolist(), p_values.tolist(), predictions, strict=True
    ):
        low, high = holding(difference, max(difference - half, -most), min(difference + half, most))
        if np.array_equal(predicted, predictions[chosen]):
            # All resamples are alike, which is no certainty about other rows: a share of so many could be as far off.
            least = min(1 - float(wilson(count, count)[0]), most)
            found.append(Comparison(difference, min(low, -least), max(high, least), 1.0, "the same answers"))
        else:
            found.append(_comparison(difference, low, high, p_value, len(y)))
    return found


def _explained(y: np.ndarray, predictions: Sequence[np.ndarray]) -> np.ndarray:
    """Return what each row adds to the R2 of each head, but for a constant, (n, n_heads); see `OfNumbers.score`."""
    known = np.isfinite(y)
    spread = np.nansum((y - np.nanmean(np.where(known.any(axis=0), y, 0.0), axis=0)) ** 2, axis=0)
    varying = spread > 0
    scale = spread[varying] * np.count_nonzero(varying)
    errors = [np.where(known, y - predicted, 0.0)[:, varying] for predicted in predictions]
    return np.stack([-(error**2 / scale).sum(axis=1) for error in errors], axis=1)


def sums_of_groups(rows: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Return the sum of the rows of each group, (n_groups, n_heads); the rows themselves where there are none."""
    if groups is None:
        return rows
    _, indices = np.unique(groups, return_inverse=True)
    return np.stack([np.bincount(indices, weights=column) for column in rows.T], axis=1)


def _flipped(rows: np.ndarray, groups: np.ndarray | None, chosen: int) -> _Draws:
    """Return the differences between heads whose scores are sums over rows, (n, n_heads), and random signs of these."""
    units = sums_of_groups(rows, groups)
    num_units, rng = len(units), np.random.default_rng(0)
    against = units - units[:, [chosen]]
    observed = against.sum(axis=0)
    # Half a win and half a loss of the heaviest row: heads that never differed may differ on other rows.
    heaviest = np.maximum(np.abs(rows - rows[:, [chosen]]).max(axis=0), rows.max(initial=0.0))
    squares = ((against - observed / num_units) ** 2).sum(axis=0) + heaviest**2
    errors = np.sqrt(squares * num_units / max(num_units - 1, 1))
    # Rows on which all heads do the same speak for none, whatever their sign.
    differing = units[np.ptp(units, axis=1) > 0]
    differing = differing - differing.mean(axis=1, keepdims=True)
    at_once = max(1, _SIGNS_AT_ONCE // max(len(differing), 1))
    chance = np.concatenate(
        [
            (2.0 * rng.integers(0, 2, (min(at_once, _NUM_FLIPS - start), len(differing))) - 1) @ differing
            for start in range(0, _NUM_FLIPS, at_once)
        ]
    )
    scales = np.sqrt(_squared_distances(differing))
    return _Draws(observed, errors, chance, scales, _in_scales(observed, scales[chosen]), num_units)


def _resampled(
    measure: ResampledMeasure, y: np.ndarray, predictions: Sequence[np.ndarray], chosen: int, groups: np.ndarray | None
) -> _Draws:
    """Return the differences between heads, and those of bootstrap resamples less what was observed."""
    scores = [measure.weighted_score(y, predicted) for predicted in predictions]
    drawn = np.concatenate(
        [np.stack([score(weights) for score in scores], axis=1) for weights in weights_of_resamples(len(y), groups, 0)]
    )
    # A resample may hold one number only, whose R2 is not defined.
    drawn = drawn[np.isfinite(drawn).all(axis=1)]
    point = np.array([measure.score(y, predicted) for predicted in predictions])
    observed, count = point - point[chosen], num_units(len(y), groups)
    if len(drawn) < 2 or count < 2:  # what is compared varies in no resample; of one group there is but one
        nothing = np.zeros((1, len(point)))
        infinite = np.full(len(point), np.inf)
        return _Draws(observed, infinite, nothing, np.zeros((len(point),) * 2), np.zeros(len(point)), count)
    chance = drawn - drawn.mean(axis=0)
    scales = np.sqrt(_squared_distances(chance) / len(chance))
    # The bootstrap divides by n, where few units need n - 1 and Student's t instead of the normal distribution.
    few = float(student_t.ppf(0.975, count - 1)) / Z95
    errors = scales[chosen] * np.sqrt(count / (count - 1)) * few
    return _Draws(observed, errors, chance, scales, _in_scales(observed, errors), count)


def _squared_distances(columns: np.ndarray) -> np.ndarray:
    """Return the sum of squared differences of any two columns, 0 of equal ones."""
    products = columns.T @ columns
    squares = products.diagonal()
    found = squares[:, None] + squares - 2 * products
    # What rounding leaves of equal columns is no difference.
    return np.where(found > 1e-12 * squares.max(initial=0.0), found, 0.0)


def _in_scales(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return np.abs(values) / np.where(scales > 0, scales, np.inf)


def _step_down(draws: _Draws, chosen: int) -> tuple[np.ndarray, float]:
    """Return the p value of each head in the table, and what no difference of equally good heads exceeds by chance."""
    order = [head for head in np.argsort(-draws.statistics, kind="stable").tolist() if head != chosen]
    p_values = np.ones(len(draws.statistics))
    greatest = np.zeros(len(draws.chance))
    maxima = []
    # From the last step, at which only one head is left to compare, to the first: each adds the pairs of one head.
    for step in reversed(range(len(order))):
        head, others = order[step], [chosen, *order[step + 1 :]]
        pairs = _in_scales(draws.chance[:, [head]] - draws.chance[:, others], draws.scales[head, others])
        greatest = np.maximum(greatest, pairs.max(axis=1))
        maxima.append(greatest)
    least = 0.0
    for head, chance in zip(order, reversed(maxima), strict=True):
        statistic = draws.statistics[head]
        # Half of the draws that are equal: of few rows that differ, many are, and the test would hardly ever reject.
        above = np.count_nonzero(chance > statistic + 1e-9)
        equal = np.count_nonzero(np.abs(chance - statistic) <= 1e-9)
        least = max(least, (above + (equal + 1) / 2) / (len(chance) + 1)) if statistic > 0 else 1.0
        p_values[head] = least
    return p_values, float(np.quantile(greatest, 1 - LEVEL)) if greatest.any() else Z95


def _comparison(difference: float, low: float, high: float, p_value: float, n: int) -> Comparison:
    if p_value <= LEVEL:
        # The steps after the first are sharper than the interval, which then ends at no difference.
        if difference > 0:
            return Comparison(difference, max(low, 0.0), high, p_value, "better")
        return Comparison(difference, low, min(high, 0.0), p_value, "worse")
    low, high = min(low, 0.0), max(high, 0.0)
    if max(-low, high) <= EQUIVALENT_WITHIN:
        return Comparison(difference, low, high, p_value, "equivalent")
    return Comparison(difference, low, high, p_value, "cannot tell", _rows_needed(difference, low, high, n))


def _rows_needed(difference: float, low: float, high: float, n: int) -> int | None:
    """Return about how many rows would make an interval narrow enough; None where nothing is known of its width."""
    half = max(difference - low, high - difference)
    if not np.isfinite(half) or half >= 1:
        return None
    # One point to either side tells worse from equivalent; where that is reached, the difference lies between the two.
    needed = EQUIVALENT_WITHIN / _ALLOWANCE
    if half <= needed:
        needed = max(abs(difference), EQUIVALENT_WITHIN - abs(difference))
    rows = n * (half / needed) ** 2
    digits = 10.0 ** max(np.floor(np.log10(rows)) - 1, 0)
    return max(int(np.ceil(rows / digits) * digits), n + 1)
