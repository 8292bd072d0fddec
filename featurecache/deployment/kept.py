"""A trained head kept with everything that its features depend on.

Apart from `saved`, as predictions need nothing of how heads are evaluated.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from featurecache.evaluation.adapting import AdaptationReport
from featurecache.evaluation.refit import evaluated_splits, fit_chosen, is_fitted
from featurecache.evaluation.trained_head import TrainedHead
from featurecache.heads.bundle import save_head
from featurecache.heads.gradient.finetuned import FineTuned
from featurecache.heads.outliers import OutlierDetector, most_rows
from featurecache.store.naming import check_name
from featurecache.store.samples import Rows, some_rows
from featurecache.store.store import FeatureStore
from featurecache.store.tasks import read_views
from featurecache.wording import counted

Keep = Literal["refitted", "evaluated"]


def keep_head(
    store: FeatureStore,
    name: str,
    head: TrainedHead,
    *,
    keep: Keep | None = None,
    memory: int | None = None,
    adaptation: AdaptationReport | None = None,
) -> Path:
    """Write a trained head to the cache's ``heads/<name>`` and return that folder.

    Parameters
    ----------
    store : FeatureStore
    name : str
    head : TrainedHead
    keep : str, optional
        ``refitted``: fitted once more with the chosen setting, on every sample of the task; ``evaluated``: the fit that
        the figures are of, which has not seen the samples it was evaluated on. Refitted when left out; of trained
        layers, whose training is long and may end otherwise, the evaluated fit.
    memory : int, optional
        As for `train_heads`.
    adaptation : AdaptationReport, optional
        How it was adapted, and to what: new inputs are to be like samples of that target.

    Raises
    ------
    HeadError
        The head cannot be written as plain data, or refuses the samples.
    """
    check_name("head", name)
    folder = store.heads_path / name
    result, estimator = head.to_json(), head.result.estimator
    kept = _kept_fit(head, keep)
    splits, num_samples = evaluated_splits(head), head.num_fitted
    # A result that an earlier training kept is of a fit that is gone: it is fitted again, as it was evaluated.
    if kept == "refitted" or not is_fitted(estimator):
        final = fit_chosen(store, head, "all" if kept == "refitted" else "evaluated", memory=memory)
        estimator = final.estimator
        splits, num_samples = final.splits, final.n_samples
    save_head(
        folder,
        estimator,
        {
            "identity": head.feature_set.identity.to_json(),
            "fingerprint": head.feature_set.fingerprint,
            "weights_source": head.feature_set.about.weights_source,
            "probe": head.feature_set.reference(),
            "tap": head.feature_set.tap,
            "dtype": head.feature_set.dtype,
            "task": head.task.name,
            "kind": head.task.kind,
            "judged_on": head.evaluated_on,
            "classes": head.task.classes,
            "temperature": head.result.temperature,
            "fitted_on": {"fit": kept, "splits": list(splits), "samples": num_samples},
            # Left out where there is none, as records of earlier releases have it.
            **({} if adaptation is None else {"adaptation": adaptation.about()}),
            **({} if result["threshold"] is None else {"threshold": result["threshold"]}),
            **{key: result[key] for key in ("head", "params", "protocol", "metric", "validation", "test")},
        },
        # Trained layers learn from activations, of which a detector tells nothing.
        None if isinstance(estimator, FineTuned) else _outlier_detector(head, _usual_rows(head, splits, adaptation)),
    )
    return folder


def _usual_rows(head: TrainedHead, splits: Sequence[str], adaptation: AdaptationReport | None) -> Rows:
    """Return the rows that new inputs are to be like: those of some splits, or of the target of an adaptation."""
    if adaptation is not None:
        return adaptation.target_rows
    features = head.eval_set.open()
    return np.concatenate([head.task.rows(features, split)[0] for split in splits])


def _outlier_detector(head: TrainedHead, rows: Rows) -> OutlierDetector | None:
    """Return what tells inputs that are unlike some rows; of activations there is nothing."""
    if not head.eval_set.is_pooled:
        return None
    features = head.eval_set.open()
    rows = some_rows(rows, most_rows(features.view_shape[0]))
    # Rows of a target may have no label, and so no group.
    groups = head.task.groups_of(rows) if (head.task.indices_of(rows) >= 0).all() else None
    return OutlierDetector.fit(read_views(features, rows)[:, 0], groups)


def describe_kept(head: TrainedHead, keep: Keep | None = None) -> str:
    """Say what a kept head was fitted on, and which fit its figures are of.

    Parameters
    ----------
    head : TrainedHead
    keep : str, optional
        As for `keep_head`.
    """
    if _kept_fit(head, keep) == "evaluated":
        return f"the fit on {counted(head.num_fitted, 'sample')} that the figures are of"
    return (
        f"fitted once more on every labelled sample; the figures are of a fit on {head.num_fitted} of them, which "
        "--keep evaluated keeps instead"
    )


def _kept_fit(head: TrainedHead, keep: Keep | None) -> Keep:
    return keep or ("evaluated" if isinstance(head.result.estimator, FineTuned) else "refitted")
