"""Pictures of a report, as text that stands inside the HTML: SVG plots and small JPEG thumbnails."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec

import numpy as np
from numpy.typing import NDArray

from featurecache.errors import InputError, plain_text
from featurecache.evaluation.calibration import Bin
from featurecache.evaluation.score_plot import ACCENT, GRID, INK, MUTED, Interval, plot_intervals, plot_size
from featurecache.sources.decoding.images import decode
from featurecache.specs import PreprocessSpec

_THUMBNAIL = (160, 160)
_MAX_COLOURS = 10

Drawing = ParamSpec("Drawing")


def plain_names(draw: Callable[Drawing, str]) -> Callable[Drawing, str]:
    """Let matplotlib take names as they are: those of classes and taps are no formulas, whatever dollars they hold."""

    @wraps(draw)
    def drawn(*args: Drawing.args, **kwargs: Drawing.kwargs) -> str:
        import matplotlib as mpl

        with mpl.rc_context({"text.parse_math": False}):
            return draw(*args, **kwargs)

    return drawn


@plain_names
def draw_intervals(rows: Sequence[Interval], *, floor: float | None = None, label: str = "accuracy") -> str:
    """Draw scores with their intervals, one line each, the first on top.

    Parameters
    ----------
    rows : sequence of Interval
    floor : float, optional
        Share of the largest class: what a head gets that predicts nothing else.
    label : str
        Of the axis.
    """
    figure = svg_figure(plot_size(len(rows)))
    plot_intervals(figure.add_subplot(), rows, floor=floor, label=label)
    return _svg(figure)


@plain_names
def draw_reliability(bins: Sequence[Bin]) -> str:
    """Draw how often predictions were right against their probability, one point for each bin."""
    figure, axes = _small_plot("probability of the prediction", "share that was right")
    low = min([1.0, *(min(bin_.probability, bin_.right) for bin_ in bins)])
    axes.plot([low, 1], [low, 1], color=MUTED, linestyle="--", linewidth=1)
    axes.plot([b.probability for b in bins], [b.right for b in bins], "o-", color=ACCENT, markersize=4)
    return _svg(figure)


@plain_names
def draw_map(points: NDArray[np.float64], labels: Sequence[str], wrong: NDArray[np.bool_]) -> str:
    """Draw samples in a plane, a colour for each class, with crosses over mistakes.

    Parameters
    ----------
    points : ndarray (n_samples, 2)
    labels : sequence of str
        Class of each. Beyond the ten most frequent they are grey: more colours cannot be told apart.
    wrong : ndarray of bool (n_samples,)
    """
    from matplotlib import colormaps

    figure = svg_figure((7.2, 4.6))
    axes: Any = figure.add_subplot()
    names = np.asarray(labels)
    frequent = sorted(set(labels), key=lambda label: (-int((names == label).sum()), label))[:_MAX_COLOURS]
    many = len(points) > 2000  # thousands of points as vectors make a file that no browser scrolls
    for colour, label in enumerate(frequent):
        of_class = points[names == label]
        settings = {"color": colormaps["tab10"](colour), "label": plain_text(label), "rasterized": many}
        axes.scatter(*of_class.T, s=14, alpha=0.7, linewidths=0, **settings)
    if len(rest := points[~np.isin(names, frequent)]):
        axes.scatter(*rest.T, s=14, color=GRID, linewidths=0, rasterized=many, label="others")
    if wrong.any():
        axes.scatter(*points[wrong].T, s=26, marker="x", color=INK, linewidths=1, label="mistakes")
    axes.set_xticks([])
    axes.set_yticks([])
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_color(GRID)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
    return _svg(figure)


@plain_names
def draw_scatter(true: NDArray[np.float64], predicted: NDArray[np.float64]) -> str:
    """Draw predicted against true numbers (n_samples,), one point for each sample."""
    figure, axes = _small_plot("true", "predicted")
    ends = [float(min(true.min(), predicted.min())), float(max(true.max(), predicted.max()))]
    axes.plot(ends, ends, color=MUTED, linestyle="--", linewidth=1)
    # Thousands of points as vectors make a file that no browser scrolls.
    axes.scatter(true, predicted, s=9, color=ACCENT, alpha=0.6, linewidths=0, rasterized=len(true) > 2000)
    return _svg(figure)


def svg_figure(size: tuple[float, float]) -> Any:
    """Return an empty figure of so many inches that is drawn as SVG, whatever the process draws on otherwise."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    return FigureCanvasSVG(Figure(figsize=size, layout="constrained")).figure


def _small_plot(x_label: str, y_label: str) -> tuple[Any, Any]:
    """Return a figure about as wide as high, and its axes with their names."""
    figure = svg_figure((3.6, 3.2))
    axes = figure.add_subplot()
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _svg(figure: Any) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    # Without the XML declaration, which HTML does not take.
    text = out.getvalue()
    return text[text.index("<svg") :]


def thumbnail(data: bytes | None) -> str | None:
    """Return a small copy of an encoded image as a data URI; None of what cannot be decoded, or read any more."""
    if data is None:
        return None
    try:
        return "data:image/jpeg;base64," + base64.b64encode(small_jpeg(data)).decode()
    except InputError:
        return None


def small_jpeg(data: bytes) -> bytes:
    """Return a small copy of an encoded image.

    Raises
    ------
    InputError
        It cannot be decoded.
    """
    image = decode(data, PreprocessSpec(range="image")).image
    image.thumbnail(_THUMBNAIL)
    # JPEG: a page with a dozen photographs should open at once.
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return out.getvalue()
