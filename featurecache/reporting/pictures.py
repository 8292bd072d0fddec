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
from featurecache.sources.decoding.images import decode
from featurecache.specs import PreprocessSpec

_THUMBNAIL = (160, 160)
_INK, _MUTED, _ACCENT, _GRID = "#1d2733", "#8a96a3", "#1b6ca8", "#e3e8ed"

Drawing = ParamSpec("Drawing")
Interval = tuple[str, float, float, float]
"""Name, value, lower and upper end."""


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
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 0.8 + 0.34 * len(rows)), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    heights = range(len(rows))[::-1]
    for height, (_, value, low, high) in zip(heights, rows, strict=True):
        axes.plot([low, high], [height, height], color=_ACCENT, linewidth=2.2, solid_capstyle="round")
        axes.plot([value], [height], "o", color=_ACCENT, markersize=6)
        axes.annotate(
            f"{value:.3f}", (high, height), (6, 0), textcoords="offset points", va="center", color=_INK, fontsize=9
        )
    if floor is not None:
        axes.axvline(floor, color=_MUTED, linestyle="--", linewidth=1)
        axes.annotate(
            "largest class", (floor, len(rows) - 0.5), (3, 0), textcoords="offset points", color=_MUTED, fontsize=8
        )
    axes.set_yticks(list(heights), [plain_text(name) for name, *_ in rows], color=_INK)
    axes.set_ylim(-0.6, len(rows) - 0.2)
    # The axis begins near the lowest interval: differences are small against 0 to 1.
    low = min([row[2] for row in rows] + ([floor] if floor is not None else []))
    left = max(low - 0.05, 0.0 if low >= 0 else -1.05)  # R2 below -1 is as good as any: it would hide the others
    axes.set_xlim(left, max(min(1.08, max(row[3] for row in rows) + 0.08), left + 0.1))
    axes.set_xlabel(f"{label} (line: 95 % interval)", color=_INK)
    axes.grid(axis="x", color=_GRID)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return _svg(figure)


@plain_names
def draw_reliability(bins: Sequence[Bin]) -> str:
    """Draw how often predictions were right against their probability, one point for each bin."""
    figure, axes = _small_plot("probability of the prediction", "share that was right")
    low = min([1.0, *(min(bin_.probability, bin_.right) for bin_ in bins)])
    axes.plot([low, 1], [low, 1], color=_MUTED, linestyle="--", linewidth=1)
    axes.plot([b.probability for b in bins], [b.right for b in bins], "o-", color=_ACCENT, markersize=4)
    return _svg(figure)


@plain_names
def draw_scatter(true: NDArray[np.float64], predicted: NDArray[np.float64]) -> str:
    """Draw predicted against true numbers (n_samples,), one point for each sample."""
    figure, axes = _small_plot("true", "predicted")
    ends = [float(min(true.min(), predicted.min())), float(max(true.max(), predicted.max()))]
    axes.plot(ends, ends, color=_MUTED, linestyle="--", linewidth=1)
    # Thousands of points as vectors make a file that no browser scrolls.
    axes.scatter(true, predicted, s=9, color=_ACCENT, alpha=0.6, linewidths=0, rasterized=len(true) > 2000)
    return _svg(figure)


def _small_plot(x_label: str, y_label: str) -> tuple[Any, Any]:
    """Return a figure about as wide as high, and its axes with their names."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6, 3.2), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.set_xlabel(x_label, color=_INK)
    axes.set_ylabel(y_label, color=_INK)
    axes.grid(color=_GRID)
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
