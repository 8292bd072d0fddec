"""What makes a choice of heads meaningless, or its scores say little: classes that are missing where they count.

A table looks the same whether its scores mean something or not: of a rare class that validation never sees, all heads
are right. What is found here is printed after the summary, and stands in the report and in JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from featurecache.errors import ReportWarning
from featurecache.evaluation.task_features import rows_of_split
from featurecache.heads.thresholds import FEW_POSITIVES, Thresholds
from featurecache.specs import TASK_NOUN
from featurecache.wording import counted

if TYPE_CHECKING:
    from featurecache.evaluation.training import TrainingReport


def choice_warnings(report: TrainingReport) -> list[ReportWarning]:
    """Return what is doubtful about how the chosen head was chosen, and about its scores."""
    head, task = report.best, report.task
    result, features = head.result, (head.feature_set.open(), head.eval_set.open())
    train = rows_of_split(task, *features, "train")[1]
    rows, y = rows_of_split(task, *features, result.reported)
    found = []
    if task.kind != "regression":
        chosen_on = result.selection_y if result.protocol == "validation" else None
        found += _missing(task.classes, train, chosen_on, y, result.reported)
    if task.kind == "classification":
        found += _single(task.classes, train, result.protocol)
    if result.thresholds is not None:
        found += _unsure_thresholds(result.thresholds, task.classes)
    # A head that only names the largest class has a high accuracy where that class is most of the samples.
    baseline, words = _baseline(report, train, len(y))
    outputs = report.measure.outputs(result.y_pred, result.proba)
    compared = report.measure.compare(y, outputs, baseline, task.groups_of(rows))
    if compared.verdict != "better":
        text = (
            f"{result.head} is not shown to be better than {words}, on {counted(len(y), f'{result.reported} sample')}"
        )
        found.append(ReportWarning(kind="no_better_than_baseline", count=len(y), text=text))
    return found


def _counts(y: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the samples of each class, or with each label."""
    return np.bincount(y, minlength=num_classes) if y.ndim == 1 else (y == 1).sum(axis=0)


def _missing(
    names: Sequence[str], train: np.ndarray, chosen_on: np.ndarray | None, reported_y: np.ndarray, reported: str
) -> list[ReportWarning]:
    """Return which classes, or labels, can be learned and are missing where heads are chosen, or reported."""
    learned, noun = _counts(train, len(names)) > 0, TASK_NOUN["classification" if train.ndim == 1 else "multilabel"]
    found = []
    if chosen_on is not None and (missing := learned & (_counts(chosen_on, len(names)) == 0)).any():
        text = "no validation sample: heads and settings are chosen as if they were not there; give validation some"
        found.append(_about("class_not_in_validation", names, missing, noun, "has", f"{text} of each"))
    if (missing := learned & (_counts(reported_y, len(names)) == 0)).any():
        text = f"no {reported} sample: the scores say nothing of them; give {reported} some of each"
        found.append(_about("class_not_evaluated", names, missing, noun, "has", text))
    return found


def _single(names: Sequence[str], train: np.ndarray, protocol: str) -> list[ReportWarning]:
    """Return which classes have one sample to learn from."""
    counts = _counts(train, len(names))
    single = counts == 1
    if not single.any():
        return []
    unseen = "one train sample: a fold that is to predict it has never seen its class"
    if protocol == "validation":
        text = "one train sample: of what varies in them nothing is learned"
    elif counts.max() > 1:
        text = f"{unseen}, and is always wrong; add samples, or leave these classes out"
    else:
        text = f"{unseen}, so heads and settings are chosen by chance; add samples, or give the task a validation split"
    found = _about("one_sample_classes", names, single, "class", "has", text)
    return [found]


def _unsure_thresholds(thresholds: Thresholds, classes: Sequence[str]) -> list[ReportWarning]:
    """Return which thresholds do not reach their target, and which were chosen by few positive samples."""
    names = classes if thresholds.positive is None else [classes[thresholds.positive]]
    few = np.array(thresholds.num_positive) < FEW_POSITIVES
    # Without a positive sample no threshold reaches anything: that is told of as few samples alone.
    missed = ~np.array(thresholds.is_reached) & (np.array(thresholds.num_positive) > 0)
    found = []
    if missed.any():
        text = f"cannot reach {thresholds.rule} on the samples that they are chosen by; the one with the greatest "
        found.append(_about("threshold_not_reached", names, missed, "threshold", "", text + "precision is taken"))
    if few.any():
        text = f"chosen by fewer than {FEW_POSITIVES} positive samples: label more of them"
        found.append(_about("unsure_threshold", names, few, "threshold", "was", text))
    return found


def _baseline(report: TrainingReport, train: np.ndarray, num_samples: int) -> tuple[np.ndarray, str]:
    """Return what one would predict without features, and how to call that."""
    kind, names = report.task.kind, report.task.classes
    if report.measure.reads_proba:
        counts = _counts(train, len(names))
        return np.tile(counts / counts.sum(), (num_samples, 1)), "the share of each class in train, for all"
    if kind == "classification":
        largest = int(_counts(train, len(names)).argmax())
        return np.full(num_samples, largest), f"the largest {TASK_NOUN[kind]}, {names[largest]!r}, for all"
    # Labels that are not known are negative codes, and would lower the share of their label.
    known = np.where(train < 0, np.nan, train) if kind == "multilabel" else train
    words = "the share of each label" if kind == "multilabel" else "the mean of each number"
    return np.tile(np.nanmean(known, axis=0), (num_samples, 1)), f"{words} in train, for all"


def _about(kind: str, names: Sequence[str], which: np.ndarray, noun: str, verb: str, text: str) -> ReportWarning:
    examples = tuple(name for name, is_meant in zip(names, which.tolist(), strict=True) if is_meant)
    text = f"{counted(len(examples), noun, of=len(names), verb=verb)} {text}"
    return ReportWarning(kind=kind, count=len(examples), text=text, examples=examples)
