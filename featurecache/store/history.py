"""What earlier trainings on a task chose, and what the chosen head predicted for samples that it was not fitted on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from featurecache.errors import StoreError
from featurecache.specs import TaskKind, task_kind
from featurecache.store.commits import Commit
from featurecache.store.folders import ShardFolder
from featurecache.store.labels import SPLITS
from featurecache.store.result_schemas import HistoryBody
from featurecache.store.samples import Ids, SampleTable, find_ids
from featurecache.store.shards import MappedShard
from featurecache.store.tasks import Task

MAX_HISTORY = 100
"""Of a task; older ones are forgotten."""
_ATTEMPTS = 30


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PastTraining:
    """A training of an earlier day.

    Attributes
    ----------
    number : int
        Of the trainings of its task, from 1.
    about : HistoryBody
        What was chosen, and its figures.
    ids : ndarray of uint8 (n, 32)
        Samples that the chosen head was evaluated on.
    targets, predictions : ndarray of float64 (n, n_outputs)
        One column of class indices; probabilities of labels, or numbers.
    is_reported : ndarray of bool (n,)
        True of the split that is reported; False of the samples by which the head was chosen, whose predictions are
        of fits without them.
    """

    number: int
    about: HistoryBody
    ids: Ids
    targets: NDArray[np.float64]
    predictions: NDArray[np.float64]
    is_reported: NDArray[np.bool_]

    @property
    def kind(self) -> TaskKind:
        """Of the task."""
        return task_kind(self.about.kind)


@dataclass(frozen=True, slots=True, eq=False)
class History:
    """The trainings on one task, the oldest first."""

    folder: ShardFolder

    def abouts(self) -> list[HistoryBody]:
        """Return what each training chose, without predictions."""
        return [msgspec.convert(commit.body, HistoryBody) for commit in self.folder.commits()]

    def last(self) -> PastTraining | None:
        """Return the last training, if there is one."""
        return self.folder.newest(_read)

    def all(self) -> Iterator[PastTraining]:
        """Yield every training."""
        for commit in self.folder.commits():
            yield _read(commit, self.folder.open(commit))

    def add(
        self,
        about: HistoryBody,
        ids: Ids,
        targets: NDArray[np.float64],
        predictions: NDArray[np.float64],
        is_reported: NDArray[np.bool_],
    ) -> None:
        """Add a training; of two that end at once, both stay.

        Parameters
        ----------
        about, ids, targets, predictions, is_reported
            See `PastTraining`.

        Raises
        ------
        StoreError
            Others add trainings all the time.
        """
        arrays = {
            "id": ("uint8", ids),
            "target": ("float64", targets.astype("<f8")),
            "predicted": ("float64", predictions.astype("<f8")),
            "reported": ("uint8", is_reported.astype(np.uint8)),
        }
        body = msgspec.to_builtins(about)
        # Another training may take the number first; then the next one is tried.
        for _ in range(_ATTEMPTS):
            keys = self.folder.keys()
            key = f"{int(keys[-1]) + 1 if keys else 1:012d}"
            if self.folder.publish(key, arrays, body, kind="history"):
                # Only now that the new one stands: a kill in between leaves one too many, and never one too few.
                self.folder.discard(self.folder.commits()[:-MAX_HISTORY])
                return
        raise StoreError(f"{self.folder.path} is written faster than a training can be added; run the command again")


def _read(commit: Commit, shard: MappedShard) -> PastTraining:
    arrays = {name: shard.read(name) for name in ("id", "target", "predicted", "reported")}
    return PastTraining(
        number=int(commit.key),
        about=msgspec.convert(commit.body, HistoryBody),
        ids=arrays["id"],
        targets=arrays["target"],
        predictions=arrays["predicted"],
        is_reported=arrays["reported"] != 0,
    )


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
