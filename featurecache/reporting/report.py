"""The HTML report of a run: what was cached, how the heads did, where the best one errs, how to do it again."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.atomic import publish_bytes
from featurecache.reporting.pictures import draw_intervals, draw_reliability, thumbnail
from featurecache.sources.images import pillow_defaults
from featurecache.versions import installed_versions

_MAX_MISTAKES = 12
_MAX_MATRIX = 30


@dataclass(frozen=True, kw_only=True)
class LastLook:
    """The chosen head on the samples of its last look."""

    part: str
    y_true: np.ndarray
    y_pred: np.ndarray
    probabilities: np.ndarray
    names: Sequence[str]
    """Where each sample was seen, for people."""
    confusion: np.ndarray
    per_class: Sequence[dict[str, Any]]
    calibration: dict[str, Any]
    """As `featurecache.evaluation.calibration.calibration` gives it."""


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
    )
    environment.filters["bytes"] = human_bytes
    with pillow_defaults():
        mistakes = _mistakes(data, find)
    text = environment.get_template("report.html").render(
        data=data,
        look=data.last_look,
        reliability=draw_reliability(data.last_look.calibration["bins"]),
        rows=data.training["results"],
        picture=_picture(data),
        matrix=_matrix(data),
        mistakes=mistakes,
        num_mistakes=int((data.last_look.y_true != data.last_look.y_pred).sum()),
        versions={"python": platform.python_version(), **installed_versions()},
    )
    publish_bytes(path, text.encode(errors="replace"))


def human_bytes(count: float) -> str:
    """Write a number of bytes as people do."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _picture(data: ReportData) -> str:
    rows = []
    for row in data.training["results"]:
        scores = row["test"] or row["validation"]
        several = len(data.feature_sets) > 1
        views = f", {row['views']} views" if row["views"] else ""
        name = f"{row['head']} · {row['tap']}{views}" if several else row["head"]
        rows.append((name, scores["accuracy"], scores["accuracy_low"], scores["accuracy_high"]))
    y_true = data.last_look.y_true
    floor = np.bincount(y_true).max() / len(y_true)
    return draw_intervals(rows, floor=float(floor), label=f"{data.last_look.part} accuracy")


def _matrix(data: ReportData) -> list[dict[str, Any]] | None:
    """Rows of the confusion matrix with the share of each cell in its row; none when it would not fit a page."""
    classes, counts = data.training["classes"], data.last_look.confusion
    if len(classes) > _MAX_MATRIX:
        return None
    totals = counts.sum(axis=1, keepdims=True).clip(min=1)
    return [
        {"label": label, "cells": list(zip(row.tolist(), share.tolist(), strict=True))}
        for label, row, share in zip(classes, counts, counts / totals, strict=True)
    ]


def _mistakes(data: ReportData, find: Callable[[str], Path | None]) -> list[dict[str, Any]]:
    look, classes = data.last_look, data.training["classes"]
    wrong = np.flatnonzero(look.y_true != look.y_pred)
    confidence = look.probabilities[wrong, look.y_pred[wrong]]
    chosen = wrong[np.argsort(-confidence, kind="stable")][:_MAX_MISTAKES]
    return [
        {
            "name": look.names[i],
            "true": classes[look.y_true[i]],
            "predicted": classes[look.y_pred[i]],
            "probability": float(look.probabilities[i, look.y_pred[i]]),
            "image": thumbnail(path) if (path := find(look.names[i])) else None,
        }
        for i in chosen.tolist()
    ]
