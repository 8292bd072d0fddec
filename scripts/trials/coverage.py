"""How often 95 % intervals hold the truth, and how wide they are beside the narrowest others that do.

A cell is a number of rows, an accuracy, a mix of classes and how alike rows of a group are. In each, predictions are
drawn many times with known recalls, and the shipped intervals of accuracy, balanced accuracy and macro F1 are computed.
Recalls of the three unequal classes are the accuracy, 0.1 less and 0.2 less; errors are spread evenly over the other
classes. Labels are drawn, or there are as many of each class as its share says. Where groups are, the accuracy of each
follows a beta distribution, and labels are drawn and spread over groups at random.

With few groups, widths at an accuracy of 0.99 are told and not counted: of 100 rows in five groups with an accuracy of
0.9 and a correlation of 0.3, all are right in 0.057 and all but one in 0.063 of the draws, so that an interval which
holds the truth there reaches to 0.9 in one of the two; at 0.99 one of these is what is seen nearly always.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import beta
from scipy.stats import t as student_t

from featurecache.evaluation.intervals import (
    Cells,
    clopper_pearson,
    effective_sizes,
    group_intervals,
    intervals,
    mid_p,
    wilson,
)
from trials.common import Options, Tally

SHARES = {"2 equal": (0.5, 0.5), "10 equal": (0.1,) * 10, "80/15/5": (0.8, 0.15, 0.05)}
SIZES, ACCURACIES = (10, 20, 50, 200, 1000), (0.5, 0.8, 0.9, 0.95, 0.99)
GROUP, GROUPED_SIZES, CORRELATIONS = 20, (100, 200, 1000), (0.0, 0.2, 0.3)
SCORES = ("accuracy", "balanced accuracy", "macro F1")
LEAST_COVERAGE, MOST_WIDTH = 0.93, 1.3
# Rows that are drawn at once.
_AT_ONCE = 200_000
# Draws on which the others are computed: their widths are means, which so many tell to 1 %.
_OF_OTHERS = 2000

Bounds = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Setting:
    """A cell: what is drawn."""

    n: int
    accuracy: float
    classes: str
    correlation: float | None
    """Of rows in groups of 20; None without groups."""
    drawn: bool
    """Labels are drawn, instead of as many of each class as its share says."""

    @property
    def name(self) -> str:
        """As violations name it."""
        rows = "rows" if self.correlation is None else f"rows in groups of {GROUP}, correlation {self.correlation:g}"
        labels = "drawn" if self.drawn else "fixed"
        return f"{self.n} {rows}, accuracy {self.accuracy:g}, {self.classes} classes, labels {labels}"

    @property
    def recalls(self) -> np.ndarray:
        """The true recall of each class."""
        return self.accuracy - (np.array([0, 0.1, 0.2]) if self.classes == "80/15/5" else 0 * self.shares)

    @property
    def shares(self) -> np.ndarray:
        """The share of each class among the labels."""
        return np.array(SHARES[self.classes])

    @property
    def counts(self) -> np.ndarray:
        """How many rows each class has where labels are not drawn: whole numbers, by the greatest remainders."""
        wanted = self.shares * self.n
        counts = np.floor(wanted + 1e-9).astype(int)
        counts[np.argsort(counts - wanted, kind="stable")[: self.n - counts.sum()]] += 1
        return counts

    def truth(self, cells: Cells) -> np.ndarray:
        """Return the true accuracy, balanced accuracy and macro F1."""
        shares = self.shares if self.drawn else self.counts / self.n
        recalls, others = self.recalls, len(self.shares) - 1
        matrix = np.where(np.eye(len(shares)) > 0, recalls[:, None], (1 - recalls[:, None]) / others)
        counts = (1e9 * shares[:, None] * matrix)[cells.labels, cells.predictions]
        return effective_sizes(counts[None], cells).point[0]

    def draw(self, rng: np.random.Generator, times: int) -> np.ndarray:
        """Return the cell of each row, (times, n): label times number of classes, plus prediction."""
        n_classes, shape = len(self.shares), (times, self.n)
        if self.drawn:
            labels = rng.choice(n_classes, size=shape, p=self.shares)
        else:
            labels = rng.permuted(np.broadcast_to(np.repeat(np.arange(n_classes), self.counts), shape), axis=1)
        recall = self.recalls[labels]
        if self.correlation:
            precision = (1 - self.correlation) / self.correlation
            quantile = rng.random((times, self.n // GROUP, 1))
            of_group = beta.ppf(quantile, self.recalls * precision, (1 - self.recalls) * precision)
            recall = np.take_along_axis(np.repeat(of_group, GROUP, axis=1), labels[..., None], axis=2)[..., 0]
        wrong = rng.random(shape) >= recall
        predictions = (labels + wrong * rng.integers(1, n_classes, size=shape)) % n_classes
        return labels * n_classes + predictions


@dataclass
class Coverage:
    """How often intervals of one kind held the truth, and how wide they were, for each of the three scores."""

    held: np.ndarray
    width: np.ndarray
    given: np.ndarray
    num_draws: int = 0

    @classmethod
    def none(cls) -> Coverage:
        """Return the sums of no interval."""
        return cls(np.zeros(3), np.zeros(3), np.zeros(3))

    @property
    def share(self) -> np.ndarray:
        """How often the intervals that were given hold the truth, for each score."""
        return self.held / np.maximum(self.given, 1)

    @property
    def mean_width(self) -> np.ndarray:
        """The mean width of the intervals that were given."""
        return self.width / np.maximum(self.given, 1)

    def add(self, bounds: Bounds, truth: np.ndarray) -> None:
        """Count intervals, but not those that are refused."""
        low, high = bounds
        # A bound may be the truth itself, and differ in the last digit.
        self.held += ((low <= truth + 1e-9) & (truth - 1e-9 <= high)).sum(axis=0)
        self.width += np.nansum(high - low, axis=0)
        self.given += (~np.isnan(low)).sum(axis=0)
        self.num_draws += len(low)


def try_coverage(options: Options) -> list[Tally]:
    """Draw every cell, and count those that hold the truth too seldom, and those that are too wide."""
    times, rng = 400 if options.quick else 10_000, np.random.default_rng(0)
    # Of 400 attempts, an interval that covers 0.95 holds the truth in fewer than 0.905 once in 25,000 times.
    least = 0.905 if options.quick else LEAST_COVERAGE
    # And one that covers less than 0.93 holds it in more than 0.965.
    least_of_others = 0.965 if options.quick else LEAST_COVERAGE
    settings = list(_settings(quick=options.quick))
    tallies = []
    for is_grouped in (False, True):
        of_groups = [setting for setting in settings if (setting.correlation is not None) == is_grouped]
        found = {setting: measure(setting, rng, times) for setting in of_groups}
        what = "with groups" if is_grouped else "without groups"
        for index, score in enumerate(SCORES):
            tallies += _tallies(f"{score} {what}", index, found, least, least_of_others)
    return tallies


def _settings(*, quick: bool) -> Iterator[Setting]:
    for classes in SHARES:
        for accuracy in (0.5, 0.95) if quick else ACCURACIES:
            for n in (20, 200) if quick else SIZES:
                yield Setting(n, accuracy, classes, None, False)
                yield Setting(n, accuracy, classes, None, True)
            for n in (100, 200) if quick else GROUPED_SIZES:
                for correlation in (0.0, 0.3) if quick else CORRELATIONS:
                    yield Setting(n, accuracy, classes, correlation, True)


def measure(setting: Setting, rng: np.random.Generator, times: int) -> dict[str, Coverage]:
    """Return what the shipped intervals and those of others did in a cell.

    Parameters
    ----------
    setting : Setting
    rng : Generator
    times : int
        How often predictions are drawn.
    """
    n_classes = len(setting.shares)
    cells = Cells(np.repeat(np.arange(n_classes), n_classes), np.tile(np.arange(n_classes), n_classes), n_classes)
    truth, found = setting.truth(cells), {}
    at_once = max(1, _AT_ONCE // setting.n)
    for start in range(0, times, at_once):
        rows = setting.draw(rng, min(at_once, times - start))
        counts = np.stack([np.bincount(row, minlength=n_classes**2) for row in rows])
        starts = np.arange(0, setting.n, 1 if setting.correlation is None else GROUP)
        ours = intervals(counts, cells) if setting.correlation is None else group_intervals(rows, starts, cells)
        bounds = {"ours": ours, **(others(rows, counts, starts, cells) if start < _OF_OTHERS else {})}
        for name, ends in bounds.items():
            found.setdefault(name, Coverage.none()).add(ends, truth)
    return found


def others(rows: np.ndarray, counts: np.ndarray, starts: np.ndarray, cells: Cells) -> dict[str, Bounds]:
    """Return the bounds of other methods: of a proportion, of a t test and of a design effect without assumptions.

    Of balanced accuracy and macro F1 the variance is the delta method's, and the proportion has that variance.

    Parameters
    ----------
    rows : ndarray (n_matrices, n_rows)
        Cell of each row.
    counts : ndarray (n_matrices, n_cells)
    starts : ndarray (n_groups,)
    cells : Cells
    """
    sizes, n_groups = effective_sizes(counts, cells), len(starts)
    point, refused = sizes.point, np.isnan(sizes.size)
    within = (counts[:, None, :] * sizes.influence**2).sum(axis=2)
    moved = np.add.reduceat(np.take_along_axis(sizes.influence, rows[:, None, :], axis=2), starts, axis=2)
    variance = (moved**2).sum(axis=2) * n_groups / (n_groups - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        plain = np.where(within > 0, point * (1 - point) / within, rows.shape[1])
        effect = np.where(within > 0, np.maximum(variance / within, 1.0), 1.0)
    half = student_t.ppf(0.975, n_groups - 1) * np.sqrt(variance)
    found = {
        "Wilson": wilson(point * plain, plain),
        "mid-P": mid_p(point * plain, plain),
        "Clopper-Pearson": clopper_pearson(point * plain, plain),
        "cluster t": (np.maximum(point - half, 0), np.minimum(point + half, 1)),
        "design effect": wilson(point * plain / effect, plain / effect),
    }
    return {
        name: (np.where(refused, np.nan, low), np.where(refused, np.nan, high)) for name, (low, high) in found.items()
    }


def _tallies(
    what: str, index: int, found: dict[Setting, dict[str, Coverage]], least: float, least_of_others: float
) -> list[Tally]:
    held = Tally(f"cells in which the 95 % interval of {what} holds the truth in fewer than {least:g} of the draws")
    wide = Tally(f"cells in which it is over {MOST_WIDTH:g} times as wide as the narrowest other one that holds it")
    worst, widest, told = (1.0, ""), (0.0, ""), (0.0, "")
    for setting, methods in found.items():
        ours = methods["ours"]
        # Where nine of ten draws are refused, those that are left are too few to count, and refusing is right.
        if ours.given[index] < ours.num_draws / 10:
            held.add([], label=setting.name)
            continue
        coverage = float(ours.share[index])
        held.add([f"{coverage:.3f}"] if coverage < least else [], label=setting.name)
        worst = min(worst, (coverage, setting.name))
        ratio = _width_ratio(setting, found, index, least_of_others)
        if setting.correlation is not None and setting.accuracy == 0.99:
            told = max(told, (ratio, setting.name))
        elif ratio > 0:
            wide.add([f"{ratio:.2f}"] if ratio > MOST_WIDTH else [], label=setting.name)
            widest = max(widest, (ratio, setting.name))
    held.notes, wide.notes = [f"worst {worst[0]:.3f}: {worst[1]}"], [f"widest {widest[0]:.2f}: {widest[1]}"]
    wide.notes += [f"not counted, {told[0]:.2f}: {told[1]}"] if told[0] > MOST_WIDTH else []
    held.numbers, wide.numbers = {"worst": worst[0]}, {"widest": widest[0], "widest_not_counted": told[0]}
    return [held, wide]


def _width_ratio(setting: Setting, found: dict[Setting, dict[str, Coverage]], index: int, least: float) -> float:
    """Return the mean width against that of the narrowest other method; 0 where none holds the truth often enough.

    How alike the rows of a group are is not known to a method, so another one counts only where it holds the truth
    however alike they are.
    """
    alike = [methods for other, methods in found.items() if replace(other, correlation=setting.correlation) == setting]
    mine = found[setting]
    widths = [
        mine[name].mean_width[index]
        for name in mine
        if name != "ours" and all(methods[name].share[index] >= least for methods in alike)
    ]
    return float(mine["ours"].mean_width[index] / min(widths)) if widths else 0.0
