"""The HTML report of a run: what was cached, how the heads did, where the best one errs, how to do it again."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurecache.atomic import publish_bytes
from featurecache.errors import plain_text
from featurecache.evaluation.calibration import Calibration
from featurecache.evaluation.score_plot import intervals_of
from featurecache.evaluation.scores import OutputScores
from featurecache.reporting.pictures import draw_intervals, draw_map, draw_reliability, draw_scatter, thumbnail
from featurecache.sources.decoding.images import pillow_defaults
from featurecache.store.naming import distinct_names
from featurecache.versions import installed_versions
from featurecache.wording import human_bytes

_MAX_MISTAKES = 12
# More classes make entries that nobody can read; more mistakes make a page that nobody scrolls.
_MAX_MATRIX = 100
# In the matrix of a few classes one finds one's way by their names.
_MAX_UNSORTED = 12
_MAX_SCATTER = 4


@dataclass(frozen=True, kw_only=True)
class FinalEvaluation:
    """The chosen head on samples on which nothing was chosen.

    Attributes
    ----------
    split : str
        Of these samples: ``test``, or ``validation``.
    y_true, y_pred : ndarray
        Targets and predictions, as in `featurecache.evaluation.trained_head.HeadResult`.
    proba : ndarray (n_samples, n_outputs)
        Probabilities.
    names : sequence of str
        What a reader calls each sample.
    outputs : sequence of OutputScores
        Scores of each class, label or number; the first is its name.
    confusion : ndarray (n_classes, n_classes), or None
    calibration : Calibration or None
        Of classes, both.
    """

    split: str
    y_true: np.ndarray
    y_pred: np.ndarray
    proba: np.ndarray
    names: Sequence[str]
    outputs: Sequence[OutputScores]
    confusion: np.ndarray | None = None
    calibration: Calibration | None = None


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything that a report shows.

    Attributes
    ----------
    title, command, cache : str
    feature_sets : sequence of mapping
        As `featurecache.store.overview.describe_features` gives them.
    training : mapping
        As `TrainingReport.to_json` gives it.
    class_counts : mapping of str to int
        Samples of each class, or with each label.
    final : FinalEvaluation
    bad_inputs : mapping of str to (str, str)
        Status and reason of each.
    predict_command : str or None
    changes : sequence of str
        What changed since the training before, in sentences.
    advice : sequence of str
        What to do next, in sentences.
    kept : str or None
        What the kept head was fitted on.
    galleries : sequence of Gallery
        Near-copies, labels that are worth checking and mistakes, shown as pictures.
    map : SampleMap or None
        All samples in a plane.
    """

    title: str
    command: str
    cache: str
    feature_sets: Sequence[Mapping[str, Any]]
    training: Mapping[str, Any]
    class_counts: Mapping[str, int]
    final: FinalEvaluation
    bad_inputs: Mapping[str, tuple[str, str]]
    predict_command: str | None = None
    changes: Sequence[str] = ()
    advice: Sequence[str] = ()
    kept: str | None = None
    galleries: Sequence[Gallery] = ()
    map: SampleMap | None = None


@dataclass(frozen=True, slots=True, eq=False)
class SampleMap:
    """Samples in a plane.

    Attributes
    ----------
    title : str
        How they are laid out.
    points : ndarray (n_samples, 2)
    labels : sequence of str
        Class of each.
    wrong : ndarray of bool (n_samples,)
        The chosen head was wrong about them, and had not been fitted on them.
    """

    title: str
    points: NDArray[np.float64]
    labels: Sequence[str]
    wrong: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Gallery:
    """Samples that advice names, each with what it says of it.

    Attributes
    ----------
    title : str
    samples : sequence of (tuple of str, str)
        Names of one sample, or of two that are alike, and a caption.
    """

    title: str
    samples: Sequence[tuple[tuple[str, ...], str]]


@dataclass(frozen=True, slots=True)
class Mistake:
    """A sample that the head was wrong about."""

    name: str
    true: str
    predicted: str
    probability: float | None
    image: str | None
    """A thumbnail, as a data URI."""


def write_report(path: Path, data: ReportData, *, read: Callable[[str], bytes | None]) -> None:
    """Write one self-contained HTML file.

    Parameters
    ----------
    path : Path
        Where to; replaced all or nothing.
    data : ReportData
        What to show.
    read : callable
        Gives the bytes of a sample by its name, for thumbnails; None where they are not at hand.
    """
    import jinja2

    # Names of files and classes come from strangers: everything is escaped unless it is our own drawing.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("featurecache.reporting", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters["bytes"] = human_bytes
    wrong, final = _wrong(data), data.final
    # Thumbnails are of the same files, damaged ones among them.
    with pillow_defaults():
        mistakes = [_mistake(data, index, read) for index in wrong[:_MAX_MISTAKES].tolist()]
        galleries = [
            (
                gallery.title,
                [
                    (names, caption, [thumbnail(read(name)) for name in names])
                    for names, caption in gallery.samples[:_MAX_MISTAKES]
                ],
            )
            for gallery in data.galleries
        ]
    text = environment.get_template("report.html").render(
        data=data,
        final=final,
        reliability=draw_reliability(bins)
        if final.calibration is not None and (bins := final.calibration.bins)
        else None,
        scatter=_scatter(data),
        titles=data.training["figures"],
        primary=next(iter(data.training["figures"])),
        rows=data.training["results"],
        names=distinct_names(data.training["results"]),
        picture=_picture(data),
        matrix=_matrix(data),
        mistakes=mistakes,
        galleries=galleries,
        map=None if data.map is None else draw_map(data.map.points, data.map.labels, data.map.wrong),
        num_mistakes=len(wrong),
        versions={"python": platform.python_version(), **installed_versions()},
    )
    # Names of files may hold bytes that are no UTF-8.
    publish_bytes(path, text.encode(errors="replace"))


def _shown(value: Any) -> Any:
    """Write out control characters of texts; our own drawings stay as they are."""
    return plain_text(value) if type(value) is str else value


def _picture(data: ReportData) -> str:
    chosen_by = next(iter(data.training["figures"]))
    rows = intervals_of(data.training["results"], chosen_by)
    y_true, floor = data.final.y_true, None
    if chosen_by == "accuracy":
        floor = float(np.bincount(y_true).max() / len(y_true))
    protocol = data.training["results"][0]["protocol"]
    return draw_intervals(rows, floor=floor, label=f"{data.training['figures'][chosen_by]} by {protocol}")


def _scatter(data: ReportData) -> list[tuple[str, str]]:
    """Draw predictions against true numbers, for each of the first numbers."""
    if data.training["kind"] != "regression":
        return []
    drawn = []
    for k, name in enumerate(data.training["classes"][:_MAX_SCATTER]):
        true, predicted = data.final.y_true[:, k], data.final.y_pred[:, k]
        if (known := np.isfinite(true)).any():
            drawn.append((name, draw_scatter(true[known], predicted[known])))
    return drawn


@dataclass(frozen=True)
class _Matrix:
    """A confusion matrix as it is shown."""

    classes: list[str]
    counts: list[list[int]]
    shares: list[list[float]]
    """Each entry as a share of its row."""
    is_sorted: bool


def _matrix(data: ReportData) -> _Matrix | None:
    """Return the confusion matrix, of many classes sorted by confusion; none when it would not fit a page."""
    counts, classes = data.final.confusion, data.training["classes"]
    if counts is None or len(counts) > _MAX_MATRIX:
        return None
    is_sorted = len(counts) > _MAX_UNSORTED
    order = _by_confusion(counts) if is_sorted else np.arange(len(counts))
    shown = counts[np.ix_(order, order)]
    shares = shown / shown.sum(axis=1, keepdims=True).clip(min=1)
    return _Matrix([classes[k] for k in order], shown.tolist(), shares.tolist(), is_sorted)


def _by_confusion(counts: np.ndarray) -> np.ndarray:
    """Return an order of the classes in which those that are taken for each other are neighbours."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    # Symmetric: which of two classes is taken for the other does not matter to where they stand.
    distances = 1 - np.clip(shares + shares.T, 0, 1)
    np.fill_diagonal(distances, 0)
    return np.asarray(leaves_list(linkage(squareform(distances), "average", optimal_ordering=True)))


def _wrong(data: ReportData) -> np.ndarray:
    """Return the indices of the samples that the head was wrong about, the worst first."""
    final, kind = data.final, data.training["kind"]
    if kind == "classification":
        wrong = np.flatnonzero(final.y_true != final.y_pred)
        errors = final.proba[wrong, final.y_pred[wrong]]
    elif kind == "multilabel":
        known = final.y_true >= 0
        wrong = np.flatnonzero((((final.y_pred > 0.5) != final.y_true) & known).any(axis=1))
        errors = (np.abs(final.y_pred - final.y_true) * known)[wrong].max(axis=1)
    else:
        known = np.isfinite(final.y_true)
        wrong, off = np.flatnonzero(known.any(axis=1)), np.where(known, np.abs(final.y_pred - final.y_true), 0.0)
        # Numbers have different units: an error counts by the spread of its number.
        spread = np.array([c[k].std() if k.any() else 0.0 for c, k in zip(final.y_true.T, known.T, strict=True)])
        errors = (off / np.where(spread > 0, spread, 1.0))[wrong].max(axis=1)
    return wrong[np.argsort(-errors, kind="stable")]


def _mistake(data: ReportData, index: int, read: Callable[[str], bytes | None]) -> Mistake:
    final = data.final
    return Mistake(
        name=final.names[index],
        true=_in_words(data, final.y_true[index]),
        predicted=_in_words(data, final.y_pred[index]),
        # Labels and numbers have no single probability.
        probability=float(final.proba[index, final.y_pred[index]]) if final.y_true.ndim == 1 else None,
        image=thumbnail(read(final.names[index])),
    )


def _in_words(data: ReportData, values: Any) -> str:
    """Write a class, labels or numbers for people."""
    classes, kind = data.training["classes"], data.training["kind"]
    if kind == "classification":
        return str(classes[values])
    pairs = list(zip(classes, values, strict=True))
    if kind == "multilabel":
        names = [name for name, value in pairs if value > 0.5] + [f"{name}?" for name, value in pairs if value < 0]
        return "; ".join(names) or "nothing"
    return ", ".join(f"{name} {'?' if np.isnan(value) else f'{value:.4g}'}" for name, value in pairs)
