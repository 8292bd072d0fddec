"""What an earlier training predicted, sample by sample and in words."""

from __future__ import annotations

from typing import Any

import numpy as np

from featurecache.store.history import PastTraining
from featurecache.store.labels import SPLITS
from featurecache.store.samples import SampleTable, find_ids
from featurecache.store.tasks import Task


def predictions_of(training: PastTraining, task: Task, samples: SampleTable) -> list[dict[str, Any]]:
    """Return a row for each sample that the chosen head was evaluated on; see `FeatureStore.predictions`.

    Parameters
    ----------
    training : PastTraining
    task : Task
        As it is today, for the splits.
    samples : SampleTable
    """
    names = samples.uris_of(samples.rows_of(training.ids))
    # The task may have been made again: a sample that it has no longer has no split.
    index = find_ids(training.ids, task.ids)
    found = []
    for k, name in enumerate(names):
        label, prediction = (_words(values[k], training) for values in (training.targets, training.predictions))
        found.append(
            {
                "name": name,
                "label": label,
                "prediction": prediction,
                "right": label == prediction if training.kind == "classification" else None,
                "split": SPLITS[int(task.splits[index[k]])] if index[k] >= 0 else None,
                "judged": "reported" if training.is_reported[k] else "selection",
            }
        )
    return found


def _words(values: np.ndarray, training: PastTraining) -> Any:
    classes = training.about.classes
    if training.kind == "classification":
        return classes[int(values[0])]
    if training.kind == "multilabel":
        # Targets are 0 and 1, predictions probabilities; one half divides both.
        return ";".join(name for name, value in zip(classes, values, strict=True) if value > 0.5)
    return {name: float(value) for name, value in zip(classes, values, strict=True)}
