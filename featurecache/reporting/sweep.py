"""Pictures of a sweep: scores by layer, by number of labels, and against the time that training takes."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

from featurecache.errors import plain_text
from featurecache.reporting.pictures import plain_names
from featurecache.store.naming import distinct_names

_INK, _MUTED, _GRID = "#1d2733", "#8a96a3", "#e3e8ed"
_COLOURS = ("#1b6ca8", "#d1602d", "#2f8f5b", "#8d4fb3", "#b3893a", "#c23b63", "#4aa3a2", "#5a6472", "#9c6b4f")


@plain_names
def draw_sweep(lines: Sequence[dict[str, Any]]) -> str:
    """Draw a sweep as SVG, one row of pictures for each task and figure.

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
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    called = zip(lines, distinct_names(lines), strict=True)
    drawn = [{**line, "name": name} for line, name in called if line["score"] is not None]
    panels = list(dict.fromkeys((line["task"], line["measure"]) for line in drawn))
    heads = list(dict.fromkeys(line["head"] for line in drawn))
    colours = {head: _COLOURS[number % len(_COLOURS)] for number, head in enumerate(heads)}
    figure = Figure(figsize=(15, 0.6 + 4.2 * max(len(panels), 1)), layout="constrained")
    FigureCanvasSVG(figure)
    for place, (task, measure) in enumerate(panels):
        mine = [line for line in drawn if (line["task"], line["measure"]) == (task, measure)]
        axes = [figure.add_subplot(len(panels), 3, 3 * place + number) for number in (1, 2, 3)]
        most = [line for line in mine if line["n_train"] == max(each["n_train"] for each in mine)]
        _by_layer(axes[0], most, colours)
        _by_labels(axes[1], mine, colours)
        _by_time(axes[2], most, colours)
        axes[0].set_title(f"{plain_text(task)}: by layer", color=_INK, loc="left")
        axes[1].set_title("by number of labels", color=_INK, loc="left")
        axes[2].set_title("by time of training", color=_INK, loc="left")
        for each in axes:
            _dress(each)
        axes[0].set_ylabel(f"{measure.replace('_', ' ')} (line: 95 % interval)", color=_INK)
    if heads:
        handles, names = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def natural(text: str) -> tuple[Any, ...]:
    """Return a key that puts ``blocks.9`` before ``blocks.10``, and ``pre_logits`` last."""
    words = [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]
    return text.startswith("pre_logits"), *words


def _by_layer(axes: Any, lines: list[dict[str, Any]], colours: dict[str, str]) -> None:
    layers = sorted({_layer(line) for line in lines}, key=lambda layer: (layer[0], natural(layer[1])))
    places = {layer: place for place, layer in enumerate(layers)}
    for number, (head, colour) in enumerate(colours.items()):
        mine = sorted((line for line in lines if line["head"] == head), key=lambda line: places[_layer(line)])
        # Side by side, so that intervals do not hide one another.
        x = [places[_layer(line)] + 0.5 * (number / max(len(colours) - 1, 1) - 0.5) for line in mine]
        _points(axes, x, mine, colour, head)
    names = ["\n".join(plain_text(part) for part in name.split(", ")) for _, name in layers]
    axes.set_xticks(range(len(layers)), names, rotation=45, ha="right", fontsize=8)


def _by_labels(axes: Any, lines: list[dict[str, Any]], colours: dict[str, str]) -> None:
    for head, colour in colours.items():
        mine = [line for line in lines if line["head"] == head]
        best: dict[float, dict[str, Any]] = {}
        for line in mine:
            if line["n_train"] not in best or best[line["n_train"]]["score"] < line["score"]:
                best[line["n_train"]] = line
        chosen = [best[labels] for labels in sorted(best)]
        _points(axes, [line["n_train"] for line in chosen], chosen, colour, head, joined=True)
    if len({line["n_train"] for line in lines}) > 1:
        axes.set_xscale("log")
    axes.set_xlabel("samples to fit on (best layer of each head)", color=_INK)


def _by_time(axes: Any, lines: list[dict[str, Any]], colours: dict[str, str]) -> None:
    for head, colour in colours.items():
        mine = [line for line in lines if line["head"] == head]
        _points(axes, [max(line["seconds"], 1e-3) for line in mine], mine, colour, head)
    axes.set_xscale("log")
    axes.set_xlabel("seconds to choose and fit", color=_INK)


def _points(
    axes: Any, x: list[float], lines: list[dict[str, Any]], colour: str, name: str, joined: bool = False
) -> None:
    y = [line["score"] for line in lines]
    below = [line["score"] - line["low"] for line in lines]
    above = [line["high"] - line["score"] for line in lines]
    style = "o-" if joined else "o"
    axes.errorbar(x, y, [below, above], fmt=style, color=colour, label=plain_text(name), markersize=4, linewidth=1.2)


def _layer(line: dict[str, Any]) -> tuple[str, str]:
    return line["backbone"], line["name"]


def _dress(axes: Any) -> None:
    axes.grid(color=_GRID)
    axes.set_axisbelow(True)
    axes.ticklabel_format(axis="y", useOffset=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=_MUTED, labelcolor=_INK)
