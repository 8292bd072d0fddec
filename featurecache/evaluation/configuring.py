"""Heads made ready for the samples of a task: found by name, configured, or refused with the reason."""

from __future__ import annotations

from sklearn.base import BaseEstimator, clone

from featurecache.errors import HeadError
from featurecache.evaluation.measure import Measure
from featurecache.evaluation.split_data import SplitData
from featurecache.heads.checks import is_partial
from featurecache.heads.head import NamedHead, Setting
from featurecache.heads.probability import has_decisions
from featurecache.heads.registry import find_head, list_heads
from featurecache.specs import TaskKind, task_kind

NEEDS_ALL_KNOWN = "needs all labels or numbers of a sample"
HOLDS_ALL_ROWS = "holds all rows in memory"
"""Why a head is left out where memory does not hold them."""
HeadLike = str | NamedHead
"""The name of a head, or a head with the name that it gets in tables."""


def resolve(head: HeadLike, kind: TaskKind) -> NamedHead:
    """Return the head of a name, or what is a head already.

    Raises
    ------
    HeadError, UnknownNameError
        It is for other kinds of task, or there is none.
    """
    kind = task_kind(kind)
    found = find_head(head, kind=kind) if isinstance(head, str) else head
    if kind not in found.kinds:
        raise HeadError(
            f"head {found.name!r} is for {' or '.join(sorted(found.kinds))}, and the task is of kind {kind}"
        )
    return found


def configured(head: NamedHead, train: SplitData, measure: Measure, random_state: int) -> BaseEstimator:
    """Return an unfitted estimator with this random state, and balanced classes, where it has such parameters.

    Parameters
    ----------
    head : NamedHead
    train : SplitData
    measure : Measure
    random_state : int

    Raises
    ------
    HeadError
        A head that needs tokens, and features without; that cannot weigh samples, and samples with weights; that holds
        all rows in memory, and features that do not fit there; or that has no probabilities, and a metric of these.
    """
    if measure.keeps_proba and not has_decisions(head.estimator):
        needs, option = (measure.metric, "--metric") if measure.reads_proba else ("a threshold", "--threshold")
        raise HeadError(
            f"head {head.name!r} has neither probabilities nor decision values, which {needs} needs; choose another "
            f"head, or another {option}"
        )
    if train.weight is not None and not head.takes_weights:
        able = ", ".join(list_heads(kind=measure.kind, weighted=True))
        raise HeadError(f"head {head.name!r} cannot weigh samples, and these have weights; choose among {able}")
    if is_partial(train.y) and not head.takes_unknown:
        raise HeadError(f"head {head.name!r} {NEEDS_ALL_KNOWN}, and some of these are not; choose another head")
    check_streams(head, train, kind=measure.kind)
    if head.needs_tokens and train.num_tokens == 1:
        raise HeadError(
            f"head {head.name!r} needs tokens, and these features have none; extract a tap that keeps them, such as "
            "blocks.11:none"
        )
    estimator = clone(head.estimator)
    known = estimator.get_params(deep=False)
    # Heads differ in what they can be told; what a head does not know is not asked of it.
    values: Setting = {"random_state": random_state, "num_tokens": train.num_tokens}
    values |= {"class_weight": "balanced"} if measure.balanced else {}
    return estimator.set_params(**{name: value for name, value in values.items() if name in known})


def check_streams(head: NamedHead, train: SplitData, *, kind: TaskKind) -> None:
    """Raise `HeadError` for a head that holds all rows in memory, and features that do not fit there.

    Parameters
    ----------
    head : NamedHead
    train : SplitData
    kind : str
        Of the task.
    """
    if train.on_disk and not head.streams:
        able = ", ".join(list_heads(kind=kind, streaming=True))
        raise HeadError(
            f"head {head.name!r} {HOLDS_ALL_ROWS}, and these features are too large for it; allow more with "
            f"--memory, or choose among {able}"
        )
