"""Scores with their intervals as a plot: for the HTML report, and for notebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from featurecache.errors import plain_text
from featurecache.store.naming import distinct_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, ACCENT, GRID = "#1d2733", "#8a96a3", "#1b6ca8", "#e3e8ed"
Interval = tuple[str, float, float, float]
"""Name, value, lower and upper end."""


def intervals_of(results: Sequence[Mapping[str, Any]], metric: str) -> list[Interval]:
    """Return a row for each head of a training: the score that chose it, with its interval where there is one.

    Parameters
    ----------
    results : sequence of mapping
        As `featurecache.evaluation.training.TrainingReport.to_json` gives them.
    metric : str
        By which heads were chosen.
    """
    names, rows = distinct_names(results), list[Interval]()
    for row, name in zip(results, names, strict=True):
        # Heads are compared by what chose them: their scores on the reported split are for none to choose by.
        score = row["selection_score"]
        low, high = (row["validation"].get(f"{metric}_{end}") if row["test"] else None for end in ("low", "high"))
        # One name is enough where all heads are of one tap.
        shown = f"{row['head']} · {name}" if len(set(names)) > 1 else row["head"]
        rows.append((shown, score, score if low is None else low, score if high is None else high))
    return rows


def plot_results(results: Sequence[Mapping[str, Any]], metric: str, title: str, axes: Axes | None) -> Axes:
    """Draw the heads of a training, in a new figure where no axes are given; return the axes.

    Parameters
    ----------
    results, metric
        As for `intervals_of`.
    title : str
        What people call the metric.
    axes : matplotlib.axes.Axes or None
    """
    if axes is None:
        import matplotlib.pyplot as plt  # late: it looks for a screen

        _, axes = plt.subplots(figsize=plot_size(len(results)), layout="constrained")
    plot_intervals(axes, intervals_of(results, metric), label=f"{title} by {results[0]['protocol']}")
    return axes


def plot_size(num_rows: int) -> tuple[float, float]:
    """Return width and height of a figure, in inches."""
    return 7.2, 0.8 + 0.34 * num_rows


def plot_intervals(axes: Axes, rows: Sequence[Interval], *, floor: float | None = None, label: str) -> None:
    """Draw scores with their intervals, one line each, the first on top.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
    rows : sequence of Interval
    floor : float, optional
        Share of the largest class: what a head gets that predicts nothing else.
    label : str
        Of the axis.
    """
    heights = range(len(rows))[::-1]
    for height, (_, value, low, high) in zip(heights, rows, strict=True):
        axes.plot([low, high], [height, height], color=ACCENT, linewidth=2.2, solid_capstyle="round")
        axes.plot([value], [height], "o", color=ACCENT, markersize=6)
        axes.annotate(
            f"{value:.3f}", (high, height), (6, 0), textcoords="offset points", va="center", color=INK, fontsize=9
        )
    if floor is not None:
        axes.axvline(floor, color=MUTED, linestyle="--", linewidth=1)
        axes.annotate(
            "largest class", (floor, len(rows) - 0.5), (3, 0), textcoords="offset points", color=MUTED, fontsize=8
        )
    axes.set_yticks(list(heights), [plain_text(name) for name, *_ in rows], color=INK)
    # Names of classes and taps are no formulas, whatever dollars they hold.
    for text in axes.get_yticklabels():
        text.set_parse_math(False)
    axes.set_ylim(-0.6, len(rows) - 0.2)
    # The axis begins near the lowest interval: differences are small against 0 to 1.
    low = min([row[2] for row in rows] + ([floor] if floor is not None else []))
    left = max(low - 0.05, 0.0 if low >= 0 else -1.05)  # R2 below -1 is as good as any: it would hide the others
    axes.set_xlim(left, max(min(1.08, max(row[3] for row in rows) + 0.08), left + 0.1))
    axes.set_xlabel(f"{label} (line: 95 % interval)", color=INK)
    axes.grid(axis="x", color=GRID)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
