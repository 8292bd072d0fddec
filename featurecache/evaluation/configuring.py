"""Heads made ready for the samples of a task: found by name, configured, or refused with the reason.

Which heads can be fitted here: those that need more memory or time than there is are left out, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping

from sklearn.base import BaseEstimator, clone

from featurecache.errors import HeadError
from featurecache.evaluation.measure import Measure
from featurecache.evaluation.memory_budget import memory_for_features
from featurecache.evaluation.split_data import SplitData
from featurecache.heads.checks import is_partial
from featurecache.heads.head import MAX_SECONDS, NamedHead, Setting
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


_LEAST_BUDGET = 1 << 30
"""Bytes that a head may take in any case: a budget says how many features are held, and may be nothing."""
_ROWS_OF_A_BLOCK = 4096


def reason_to_leave_out(
    head: NamedHead, splits: Mapping[str, SplitData], n_outputs: int, *, memory: int | None, named: bool
) -> str | None:
    """Return why a head is left out of a training, or None.

    Parameters
    ----------
    head : NamedHead
    splits : mapping
        As they are evaluated; all but the last are fitted on.
    n_outputs : int
        Classes, labels or numbers.
    memory : int or None
        Bytes that may be taken; half of what is free when left out.
    named : bool
        Somebody asked for it by name, and has the time.
    """
    fit_views = [data.fit_views for name, data in splits.items() if name != "test"]
    n_samples, n_features = sum(views.shape[0] * views.shape[1] for views in fit_views), fit_views[0].shape[2]
    # Only those are asked that read rows as they are needed.
    if any(data.on_disk for data in splits.values()):  # heads that stream hold a block of rows
        n_samples = min(n_samples, _ROWS_OF_A_BLOCK)
    budget = max(memory_for_features(memory), _LEAST_BUDGET)
    needed = head.memory_needed(n_samples, n_features, n_outputs)
    if needed is not None and needed > budget:
        return f"needs about {needed / 1e9:.1f} GB of memory, and {budget / 1e9:.1f} GB may be used (--memory)"
    seconds = head.seconds_needed(n_samples, n_features, n_outputs)
    # Nobody waits half a day for a table of all heads because of one of them.
    if seconds > MAX_SECONDS and not named:
        return f"would take about {in_words(seconds)}; name it with --head {head.name} to train it all the same"
    return None


def in_words(seconds: float) -> str:
    """Write how long something takes about."""
    for name, unit in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{max(seconds, 1):.0f} s"
