"""Results of searches that an earlier training did: what has not changed is not fitted again.

A result is kept under the digest of all that it depends on: the features, ids and targets of the samples in each split,
the head with its grid, the measure, the seed, and the versions of what computes. The fitted estimator is not kept; the
one head that goes to work is fitted once more anyway (see `featurecache.evaluation.refit`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

from sklearn.base import clone

from featurecache.evaluation.configuring import configured
from featurecache.evaluation.head_result import HeadResult
from featurecache.evaluation.measure import Measure, ScoreValues
from featurecache.evaluation.result_keys import COMPUTES, digest_of_labels
from featurecache.evaluation.scores import Scores
from featurecache.evaluation.split_data import SplitData
from featurecache.evaluation.task_features import TaskFeatures
from featurecache.hashing import digest_json
from featurecache.heads.head import NamedHead
from featurecache.store.result_schemas import ArrayBody, SearchBody
from featurecache.store.store import FeatureStore
from featurecache.versions import installed_versions


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
            index, selection_pred, y_pred, proba = (
                values.read() for values in (found.selection_index, found.selection_pred, found.y_pred, found.proba)
            )
            selection_proba = None if found.selection_proba is None else found.selection_proba.read()
            selection_y = data.y[index]
            scores, test = (_scores(values, measure) for values in (found.validation, found.test))
        except (IndexError, TypeError, ValueError):  # no such result was kept by this program
            return None
        count = len(splits[found.reported])
        assert scores is not None
        if measure.reads_proba and (
            selection_proba is None or selection_proba.shape != (len(index), measure.n_outputs)
        ):
            return None
        if len(selection_pred) != len(index) or len(y_pred) != count or proba.shape != (count, measure.n_outputs):
            return None
        estimator = clone(configured(head, splits["train"], measure, self._random_state)).set_params(**found.params)
        return HeadResult(
            head=head.name,
            params=found.params,
            protocol=found.protocol,
            selection_accuracy=found.selection_accuracy,
            selection_score=found.selection_score,
            balanced=found.balanced,
            metric=measure.metric,
            positive=measure.positive,
            selection_y=selection_y,
            selection_pred=selection_pred,
            selection_proba=selection_proba,
            selection_groups=None if data.groups is None else data.groups[index],
            selection_index=index,
            selection_log_loss=found.selection_log_loss,
            validation=scores,
            test=test,
            reported=found.reported,
            y_pred=y_pred,
            proba=proba,
            estimator=estimator,
            temperature=found.temperature,
            converged=found.converged,
            n_train=found.n_train,
            seconds=found.seconds,
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
        arrays = (result.selection_index, result.selection_pred, result.y_pred, result.proba)
        index, selection_pred, y_pred, proba = map(ArrayBody.of, arrays)
        body = SearchBody(
            head=head.name,
            params=dict(result.params),
            protocol=result.protocol,
            selection_accuracy=result.selection_accuracy,
            selection_score=result.selection_score,
            selection_log_loss=result.selection_log_loss,
            balanced=result.balanced,
            validation=result.validation.to_json(),
            test=None if result.test is None else result.test.to_json(),
            reported=result.reported,
            temperature=float(result.temperature),
            converged=bool(result.converged),
            n_train=result.n_train,
            seconds=result.seconds,
            selection_index=index,
            selection_pred=selection_pred,
            selection_proba=None if result.selection_proba is None else ArrayBody.of(result.selection_proba),
            y_pred=y_pred,
            proba=proba,
        )
        with suppress(OSError):  # of a cache that may not be written, or a full disk
            self._store.remember(self._key(head), body)

    def _key(self, head: NamedHead) -> str:
        features = self._features
        fit_set, eval_set = (
            [feature_set.fingerprint, feature_set.tap, feature_set.dtype]
            for feature_set in (features.feature_set, features.eval_set)
        )
        document: dict[str, Any] = {
            "features": fit_set,
            "evaluated on": eval_set,
            "labels": self._labels,
            # Its settings on very many rows stand for the grid: that of few rows may be cut.
            "head": [head.name, repr(head.estimator), head.settings_for(1_000_000)],
            "chosen by": features.measure.primary,
            "balanced": features.measure.balanced,
            "random_state": self._random_state,
            "versions": installed_versions(COMPUTES),
        }
        if features.measure.positive != 1:
            document["positive"] = features.measure.positive
        return digest_json("search", 1, document)


def _scores(values: Mapping[str, float | None] | None, measure: Measure) -> Scores | ScoreValues | None:
    """Return scores from their plain values; raises `TypeError` where these are not those of the measure."""
    if values is None:
        return None
    if measure.kind != "classification" or measure.reads_proba:
        return ScoreValues(values)
    return Scores(**{**values, "n": int(values.get("n") or 0)})  # type: ignore[arg-type]
