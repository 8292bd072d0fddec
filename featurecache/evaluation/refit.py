"""The last fit of a chosen head: on every sample that has a target, those that it was evaluated on among them.

A head that goes to work should have seen all that is known; a head that is evaluated must not. So one setting is fitted
twice: the figures are of the first fit, and say so, and the second is kept for new inputs. No prediction of the second
for a sample of the task is evidence of anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from importlib import import_module
from typing import Literal

from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from featurecache.evaluation.measures import measure_of
from featurecache.evaluation.memory_budget import memory_budget
from featurecache.evaluation.split_data import SplitData, check_splits
from featurecache.evaluation.task_features import read_splits
from featurecache.evaluation.trained_head import TrainedHead
from featurecache.heads.fitting import fit_estimator
from featurecache.heads.threads import one_thread
from featurecache.store.labels import SPLITS
from featurecache.store.store import FeatureStore

FitSplits = Literal["all", "evaluated"]
_OF_ONE_TRAINING = ("checkpoints", "budget")
"""Parameters of trained layers that say where a killed training goes on, and until when it may take."""


@dataclass(frozen=True, slots=True, eq=False)
class FinalFit:
    """A fitted estimator, and what it was fitted on.

    Attributes
    ----------
    estimator : fitted estimator
    splits : tuple of str
        All of whose samples it was fitted on.
    n_samples : int
    converged : bool
    """

    estimator: BaseEstimator
    splits: tuple[str, ...]
    n_samples: int
    converged: bool


def is_fitted(estimator: BaseEstimator) -> bool:
    """Tell whether an estimator was fitted; that of a result that an earlier training kept was not."""
    try:
        check_is_fitted(estimator)
    except NotFittedError:
        return False
    return True


def evaluated_splits(head: TrainedHead) -> tuple[str, ...]:
    """Return the splits that the evaluated fit of a head has seen: all but the one that it is reported on."""
    return tuple(split for split in SPLITS if head.task.has(split) and split != head.result.reported)


def fit_chosen(
    store: FeatureStore, head: TrainedHead, splits: FitSplits = "all", *, memory: int | None = None
) -> FinalFit:
    """Fit a head once more with the setting that was chosen for it.

    Parameters
    ----------
    store : FeatureStore
        Holds its features.
    head : TrainedHead
    splits : str
        ``all`` samples of the task that have features, or those of the ``evaluated`` fit.
    memory : int, optional
        As for `train_heads`.

    Raises
    ------
    HeadError
        The head refuses the data.
    """
    task, features, eval_features = head.task, head.feature_set.open(), head.eval_set.open()
    fit_splits = evaluated_splits(head) if splits == "evaluated" else tuple(filter(task.has, SPLITS))
    measure = measure_of(task.kind, len(task.classes))
    estimator = clone(head.result.estimator)
    estimator.set_params(**dict.fromkeys(estimator.get_params(deep=False).keys() & set(_OF_ONE_TRAINING)))
    if hasattr(estimator, "fit_path"):
        import_module("torch")  # as in `search`: the limit on threads holds for what is there already
    with memory_budget(store.path, memory) as budget, one_thread():
        read = check_splits(read_splits(task, features, eval_features, fit_splits, budget), measure.check)
        # In the order in which they lie in memory, so that putting them together copies nothing.
        whole = reduce(SplitData.with_samples_of, (read[name].in_memory() for name in read if name in fit_splits))
        X, y, weight, groups = whole.fit_rows()
        converged = fit_estimator(estimator, X, y, weight, groups, name=head.result.head)
    return FinalFit(estimator, fit_splits, len(whole), converged)
