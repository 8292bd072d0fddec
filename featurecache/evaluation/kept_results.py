"""Results of searches that an earlier training did: what has not changed is not fitted again.

A result is kept under the digest of all that it depends on: the features, ids and targets of the samples in each split,
the head with its grid, the measure, the seed, and the versions of what computes. The fitted estimator is not kept; the
one head that goes to work is fitted once more anyway (see `featurecache.evaluation.refit`).

What a kept result is named by: its samples with their targets, and the versions of what computes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from sklearn.base import clone

from featurecache.evaluation.configuring import configured
from featurecache.evaluation.measure import Measure, ScoreValues
from featurecache.evaluation.scores import Scores
from featurecache.evaluation.split_data import SplitData
from featurecache.evaluation.task_features import TaskFeatures, rows_of_split
from featurecache.evaluation.trained_head import HeadResult
from featurecache.hashing import digest_bytes, digest_json
from featurecache.heads.head import NamedHead
from featurecache.store.labels import SPLITS
from featurecache.store.result_schemas import ArrayBody, SearchBody
from featurecache.store.store import FeatureStore
from featurecache.versions import installed_versions

COMPUTES = ("featurecache", "joblib", "numpy", "scikit-learn", "scipy", "torch")
"""Packages whose versions a result depends on."""


def key_parts(head: NamedHead, features: TaskFeatures, labels: str, *, evaluated: str) -> dict[str, Any]:
    """Return what every result of a head depends on; ``evaluated`` names what it is evaluated on."""
    fit_set, eval_set = (
        [feature_set.fingerprint, feature_set.tap, feature_set.dtype]
        for feature_set in (features.feature_set, features.eval_set)
    )
    return {
        "features": fit_set,
        evaluated: eval_set,
        "labels": labels,
        # Its settings on very many rows stand for the grid: that of few rows may be cut.
        "head": [head.name, repr(head.estimator), head.settings_for(1_000_000)],
        "balanced": features.measure.balanced,
        "versions": installed_versions(COMPUTES),
    }


def digest_of_labels(features: TaskFeatures) -> str:
    """Digest which samples are in each split, and their targets."""
    task = features.task
    assert task.samples is not None
    document: dict[str, object] = {"kind": task.kind, "classes": task.classes}
    # The little-endian bytes of one type, so that the digest is the same on every machine.
    exact = "<f8" if task.kind == "regression" else "<i8"
    for split in SPLITS:
        if task.has(split):
            rows, y = rows_of_split(task, features.features, features.eval_features, split)
            groups, weights = task.groups_of(rows), task.weights_of(rows)
            content = task.samples.ids[rows].tobytes() + y.astype(exact).tobytes()
            content += b"" if groups is None else groups.astype("<i4").tobytes()
            content += b"" if weights is None else weights.astype("<f8").tobytes()
            document[split] = digest_bytes(content)
    return digest_json("labels", 2, document)


_PLAIN = (
    *("head", "params", "protocol", "selection_accuracy", "selection_score", "selection_log_loss", "balanced"),
    *("reported", "temperature", "converged", "n_train", "seconds"),
)
_ARRAYS = ("selection_index", "selection_pred", "selection_proba", "y_pred", "proba")
"""Fields of a result that its record has by the same names."""


class KeptResults:
    """The results of one task on one feature set.

    Parameters
    ----------
    store : FeatureStore
    features : TaskFeatures
    random_state : int
        Of the searches.
    but_not : collection of str
        Names of heads whose results are neither kept nor taken up.
    """

    def __init__(
        self, store: FeatureStore, features: TaskFeatures, random_state: int, but_not: Collection[str] = ()
    ) -> None:
        self._store, self._features, self._random_state, self._but_not = store, features, random_state, but_not
        self._labels = digest_of_labels(features)

    def recall(self, head: NamedHead, splits: Mapping[str, SplitData]) -> HeadResult | None:
        """Return the result of a head, with an estimator that is not fitted; None where none is kept.

        Parameters
        ----------
        head : NamedHead
        splits : mapping
            As `check_splits` returns them.
        """
        if head.name in self._but_not:
            return None
        found = self._store.recall(SearchBody, self._key(head))
        if found is None or found.head != head.name or found.reported not in splits:
            return None
        measure = self._features.measure
        data = splits.get("validation" if found.protocol == "validation" else "train", splits["train"])
        try:
            kept = {name: getattr(found, name) for name in _ARRAYS}
            arrays: dict[str, Any] = {name: body and body.read() for name, body in kept.items()}
            index = arrays["selection_index"]
            selection_y = data.y[index]
            scores, test = (_scores(values, measure) for values in (found.validation, found.test))
        except (IndexError, TypeError, ValueError):  # no such result was kept by this program
            return None
        assert scores is not None
        count = len(splits[found.reported])
        if measure.reads_proba and np.shape(arrays["selection_proba"]) != (len(index), measure.n_outputs):
            return None
        if len(arrays["selection_pred"]) != len(index) or len(arrays["y_pred"]) != count:
            return None
        if arrays["proba"].shape != (count, measure.n_outputs):
            return None
        estimator = clone(configured(head, splits["train"], measure, self._random_state)).set_params(**found.params)
        return HeadResult(
            **{name: getattr(found, name) for name in _PLAIN},
            **arrays,
            metric=measure.metric,
            positive=measure.positive,
            selection_y=selection_y,
            selection_groups=None if data.groups is None else data.groups[index],
            validation=scores,
            test=test,
            estimator=estimator,
            is_kept=True,
        )

    def remember(self, head: NamedHead, result: HeadResult) -> None:
        """Keep a result.

        Parameters
        ----------
        head : NamedHead
        result : HeadResult
        """
        if head.name in self._but_not:
            return
        found = {name: getattr(result, name) for name in _ARRAYS}
        arrays: dict[str, Any] = {name: None if array is None else ArrayBody.of(array) for name, array in found.items()}
        plain = {name: getattr(result, name) for name in _PLAIN}
        plain |= {"temperature": float(result.temperature), "converged": bool(result.converged)}
        body = SearchBody(
            **plain,
            **arrays,
            validation=result.validation.to_json(),
            test=None if result.test is None else result.test.to_json(),
        )
        with suppress(OSError):  # of a cache that may not be written, or a full disk
            self._store.remember(self._key(head), body)

    def _key(self, head: NamedHead) -> str:
        measure = self._features.measure
        document = key_parts(head, self._features, self._labels, evaluated="evaluated on")
        document |= {"chosen by": measure.primary, "random_state": self._random_state}
        if measure.positive != 1:
            document["positive"] = measure.positive
        return digest_json("search", 1, document)


def _scores(values: Mapping[str, float | None] | None, measure: Measure) -> Scores | ScoreValues | None:
    """Return scores from their plain values; raises `TypeError` where these are not those of the measure."""
    if values is None:
        return None
    if measure.kind != "classification" or measure.reads_proba:
        return ScoreValues(values)
    return Scores(**{**values, "n": int(values.get("n") or 0)})  # type: ignore[arg-type]
