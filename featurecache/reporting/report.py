"""The HTML report of a run: what was cached, how the heads did, where the best one errs, how to do it again."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.atomic import publish_bytes
from featurecache.errors import plain_text
from featurecache.reporting.pictures import draw_intervals, draw_reliability, draw_scatter, thumbnail
from featurecache.sources.decoding.images import pillow_defaults
from featurecache.store.naming import distinct_names
from featurecache.versions import installed_versions

_MAX_MISTAKES = 12
_MAX_MATRIX = 30
_MAX_SCATTER = 4


@dataclass(frozen=True, kw_only=True)
class LastLook:
    """The chosen head on the samples of its last look."""

    part: str
    y_true: np.ndarray
    y_pred: np.ndarray
    probabilities: np.ndarray
    names: Sequence[str]
    """Where each sample was seen, for people."""
    outputs: Sequence[dict[str, Any]]
    """Figures of each class, label or number; the first is its name."""
    confusion: Sequence[Sequence[int]] | None = None
    """Of classes."""
    calibration: dict[str, Any] | None = None
    """As `featurecache.evaluation.calibration.calibration` gives it, of classes."""


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything a report shows, as plain values."""

    title: str
    command: str
    cache: str
    feature_sets: Sequence[dict[str, Any]]
    training: dict[str, Any]
    """As `TrainingReport.to_json` gives it."""
    class_counts: dict[str, int]
    """Samples of each class, or with each label."""
    last_look: LastLook
    bad_inputs: Sequence[dict[str, Any]]
    predict_command: str | None = None


def write_report(path: Path, data: ReportData, *, find: Callable[[str], Path | None]) -> None:
    """Write one self-contained HTML file.

    Parameters
    ----------
    path : Path
        Where to; replaced all or nothing.
    data : ReportData
        What to show.
    find : callable
        Gives the file of a sample's name, for thumbnails; ``None`` where it is not at hand.
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
    wrong = _wrong(data)
    with pillow_defaults():
        mistakes = _mistakes(data, wrong[:_MAX_MISTAKES].tolist(), find)
    text = environment.get_template("report.html").render(
        data=data,
        look=data.last_look,
        reliability=draw_reliability(said["bins"]) if (said := data.last_look.calibration) else None,
        scatter=_scatter(data),
        figures=data.training["figures"],
        primary=next(iter(data.training["figures"])),
        rows=data.training["results"],
        names=distinct_names(data.training["results"]),
        picture=_picture(data),
        matrix=_matrix(data),
        mistakes=mistakes,
        num_mistakes=len(wrong),
        versions={"python": platform.python_version(), **installed_versions()},
    )
    publish_bytes(path, text.encode(errors="replace"))


def _shown(value: Any) -> Any:
    """Write out control characters of texts; our own drawings stay as they are."""
    return plain_text(value) if type(value) is str else value


def human_bytes(count: float) -> str:
    """Write a number of bytes as people do."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _picture(data: ReportData) -> str:
    rows, primary = [], next(iter(data.training["figures"]))
    called = distinct_names(data.training["results"])
    for row, of_set in zip(data.training["results"], called, strict=True):
        scores = row["test"] or row["validation"]
        name = f"{row['head']} · {of_set}" if len(set(called)) > 1 else row["head"]
        rows.append((name, scores[primary], scores[f"{primary}_low"], scores[f"{primary}_high"]))
    y_true, floor = data.last_look.y_true, None
    if data.training["kind"] == "classification":
        floor = float(np.bincount(y_true).max() / len(y_true))
    return draw_intervals(rows, floor=floor, label=f"{data.last_look.part} {data.training['figures'][primary]}")


def _scatter(data: ReportData) -> list[tuple[str, str]]:
    """Draw what was said against what is true, for each of the first numbers."""
    if data.training["kind"] != "regression":
        return []
    look, names = data.last_look, data.training["classes"][:_MAX_SCATTER]
    known = [np.isfinite(look.y_true[:, k]) for k in range(len(names))]
    return [
        (name, draw_scatter(look.y_true[known[k], k], look.y_pred[known[k], k]))
        for k, name in enumerate(names)
        if known[k].any()
    ]


def _matrix(data: ReportData) -> list[dict[str, Any]] | None:
    """Rows of the confusion matrix with the share of each cell in its row; none when it would not fit a page."""
    classes, look = data.training["classes"], data.last_look
    if look.confusion is None or len(classes) > _MAX_MATRIX:
        return None
    counts = np.array(look.confusion)
    totals = counts.sum(axis=1, keepdims=True).clip(min=1)
    return [
        {"label": label, "cells": list(zip(row.tolist(), share.tolist(), strict=True))}
        for label, row, share in zip(classes, counts, counts / totals, strict=True)
    ]


def _wrong(data: ReportData) -> np.ndarray:
    """Return the places of the samples that the head was wrong about, the worst first."""
    look, kind = data.last_look, data.training["kind"]
    if kind == "classification":
        wrong = np.flatnonzero(look.y_true != look.y_pred)
        worth = look.probabilities[wrong, look.y_pred[wrong]]
    elif kind == "multilabel":
        known = look.y_true >= 0
        wrong = np.flatnonzero((((look.y_pred > 0.5) != look.y_true) & known).any(axis=1))
        worth = (np.abs(look.y_pred - look.y_true) * known)[wrong].max(axis=1)
    else:
        known = np.isfinite(look.y_true)
        wrong, off = np.flatnonzero(known.any(axis=1)), np.where(known, np.abs(look.y_pred - look.y_true), 0.0)
        spread = np.array([c[k].std() if k.any() else 0.0 for c, k in zip(look.y_true.T, known.T, strict=True)])
        worth = (off / np.where(spread > 0, spread, 1.0))[wrong].max(axis=1)
    return wrong[np.argsort(-worth, kind="stable")]


def _mistakes(data: ReportData, places: Sequence[int], find: Callable[[str], Path | None]) -> list[dict[str, Any]]:
    look = data.last_look
    return [
        {
            "name": look.names[i],
            "true": _spelt(data, look.y_true[i]),
            "predicted": _spelt(data, look.y_pred[i]),
            "probability": float(look.probabilities[i, look.y_pred[i]]) if look.y_true.ndim == 1 else None,
            "image": thumbnail(path) if (path := find(look.names[i])) else None,
        }
        for i in places
    ]


def _spelt(data: ReportData, said: Any) -> str:
    """Write a class, labels or numbers for people."""
    classes, kind = data.training["classes"], data.training["kind"]
    if kind == "classification":
        return str(classes[said])
    if kind == "multilabel":
        names = [name for name, value in zip(classes, said, strict=True) if value > 0.5]
        names += [f"{name}?" for name, value in zip(classes, said, strict=True) if value < 0]
        return "; ".join(names) or "nothing"
    return ", ".join(
        f"{name} {'?' if np.isnan(value) else f'{value:.4g}'}" for name, value in zip(classes, said, strict=True)
    )
