"""Pictures of a sweep: scores by layer, by number of labels, and against the time that training takes."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from featurecache.errors import plain_text
from featurecache.evaluation.score_plot import GRID, INK, MUTED
from featurecache.evaluation.summary import SweepLine
from featurecache.reporting.pictures import plain_names, svg_figure
from featurecache.store.naming import distinct_names

_COLOURS = ("#1b6ca8", "#d1602d", "#2f8f5b", "#8d4fb3", "#b3893a", "#c23b63", "#4aa3a2", "#5a6472", "#9c6b4f")

Colours = Mapping[str, str]
"""Of each head, the same in all pictures."""


@plain_names
def draw_sweep(lines: Sequence[SweepLine]) -> str:
    """Draw a sweep as SVG, one row of pictures for each task and score.

    Parameters
    ----------
    lines
        From `featurecache.evaluation.summary.summarise`.

    Returns
    -------
    svg : str
        Scores by layer at the most labels, in the natural order of the layers' names; scores by number of labels
        where there are several; scores against seconds of training. Lines are 95 % intervals.
    """
    drawn = [line for line in lines if line.score is not None]
    layers = _layers(drawn)
    panels = list(dict.fromkeys((line.task, line.measure) for line in drawn))
    heads = list(dict.fromkeys(line.head for line in drawn))
    colours = {head: _COLOURS[number % len(_COLOURS)] for number, head in enumerate(heads)}
    figure = svg_figure((15, 0.6 + 4.2 * max(len(panels), 1)))
    for row, (task, measure) in enumerate(panels):
        mine = [line for line in drawn if (line.task, line.measure) == (task, measure)]
        axes = [figure.add_subplot(len(panels), 3, 3 * row + number) for number in (1, 2, 3)]
        # Layers, and times, are compared where they had the same labels to learn from.
        num_labels = max(line.n_train or 0 for line in mine)
        most = [line for line in mine if line.n_train == num_labels]
        _by_layer(axes[0], most, colours, layers)
        _by_labels(axes[1], mine, colours)
        _by_time(axes[2], most, colours)
        titles = (f"{plain_text(task)}: by layer", "by number of labels", "by time of training")
        for axis, title in zip(axes, titles, strict=True):
            axis.set_title(title, color=INK, loc="left")
            axis.grid(color=GRID)
            axis.set_axisbelow(True)
            axis.ticklabel_format(axis="y", useOffset=False)
            for side in ("top", "right"):
                axis.spines[side].set_visible(False)
            axis.tick_params(colors=MUTED, labelcolor=INK)
        axes[0].set_ylabel(f"{measure.replace('_', ' ')} (line: 95 % interval)", color=INK)
    if heads:
        handles, names = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _layers(lines: Sequence[SweepLine]) -> dict[tuple[str, str, str, int | None], str]:
    """Return the name of each feature set by what it is, in the order of the layers."""
    found, order = {}, {}
    for line, name in zip(lines, distinct_names([line.to_json() for line in lines]), strict=True):
        # By numbers where there are numbers, so that blocks.9 comes before blocks.10; the default tap comes last.
        words = [(0, int(word), "") if word.isdigit() else (1, 0, word) for word in re.split(r"(\d+)", name) if word]
        found[_set_of(line)], order[_set_of(line)] = name, (line.backbone, name.startswith("pre_logits"), words)
    return {key: found[key] for key in sorted(found, key=order.__getitem__)}


def _set_of(line: SweepLine) -> tuple[str, str, str, int | None]:
    return line.fingerprint, line.tap, line.dtype, line.views


def _by_layer(
    axes: Any, lines: list[SweepLine], colours: Colours, layers: dict[tuple[str, str, str, int | None], str]
) -> None:
    shown = [key for key in layers if key in {_set_of(line) for line in lines}]
    index = {key: number for number, key in enumerate(shown)}
    for number, head in enumerate(colours):
        mine = sorted((line for line in lines if line.head == head), key=lambda line: index[_set_of(line)])
        # Side by side, so that intervals do not hide one another.
        shift = 0.5 * (number / max(len(colours) - 1, 1) - 0.5)
        _points(axes, [index[_set_of(line)] + shift for line in mine], mine, colours[head], head)
    names = ["\n".join(map(plain_text, layers[key].split(", "))) for key in shown]
    axes.set_xticks(range(len(shown)), names, rotation=45, ha="right", fontsize=8)


def _by_labels(axes: Any, lines: list[SweepLine], colours: Colours) -> None:
    for head, colour in colours.items():
        best: dict[float, SweepLine] = {}
        for line in sorted((line for line in lines if line.head == head), key=lambda line: line.score or 0.0):
            best[line.n_train or 0] = line
        chosen = [best[count] for count in sorted(best)]
        _points(axes, sorted(best), chosen, colour, head, joined=True)
    if len({line.n_train for line in lines}) > 1:
        axes.set_xscale("log")
    axes.set_xlabel("samples to fit on (best layer of each head)", color=INK)


def _by_time(axes: Any, lines: list[SweepLine], colours: Colours) -> None:
    for head, colour in colours.items():
        mine = [line for line in lines if line.head == head]
        # A logarithmic axis has no 0, and a fit of less than a millisecond is one to anybody.
        _points(axes, [max(line.seconds or 0.0, 1e-3) for line in mine], mine, colour, head)
    axes.set_xscale("log")
    axes.set_xlabel("seconds to choose and fit", color=INK)


def _points(
    axes: Any, x: Sequence[float], lines: list[SweepLine], colour: str, name: str, joined: bool = False
) -> None:
    y, low, high = np.array([(line.score, line.low, line.high) for line in lines], float).reshape(-1, 3).T
    low, high = np.where(np.isnan(low), y, low), np.where(np.isnan(high), y, high)  # scores without an interval
    style = {"fmt": "o-" if joined else "o", "markersize": 4, "linewidth": 1.2}
    axes.errorbar(x, y, [y - low, high - y], color=colour, label=plain_text(name), **style)
