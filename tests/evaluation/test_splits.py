"""Several rows of a sample stay together, and one view of each sample is what there was before views."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin

from featurecache.errors import HeadError, TaskError
from featurecache.evaluation.class_measure import OfClasses
from featurecache.evaluation.search import evaluate_head, search
from featurecache.evaluation.split_data import SplitData, check_splits
from featurecache.heads.head import NamedHead
from featurecache.heads.probability import predict_proba

pytestmark = pytest.mark.usefixtures("few_settings")

HEADS = ["logistic", "linear_svm", "ridge", "knn", "majority"]


def part(n: int, seed: int, *, num_views: int = 4, tta: bool = False, n_classes: int = 3) -> SplitData:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    plain = rng.normal(size=(n, 1, 8)).astype(np.float32)
    plain[np.arange(n), 0, y] += 3
    views = plain + rng.normal(size=(n, num_views, 8)).astype(np.float32)
    return SplitData(y=y, fit_views=views, eval_views=views if tta else plain)


def parts(*names: str, tta: bool = False) -> dict[str, SplitData]:
    sizes = {"train": (60, 0), "validation": (30, 1), "test": (36, 2)}
    return {name: part(*sizes[name], tta=tta) for name in names}


@pytest.mark.parametrize("tta", [False, True], ids=["plain", "tta"])
@pytest.mark.parametrize("names", [("train", "validation", "test"), ("train", "test"), ("train", "validation")])
@pytest.mark.parametrize("head", HEADS)
def test_every_head_on_views_under_every_protocol(head: str, names: tuple[str, ...], tta: bool) -> None:
    given = parts(*names, tta=tta)
    result = evaluate_head(head, given, 3)
    last = given[names[-1]]
    assert result.n_train == 4 * (90 if len(names) == 3 else 60)
    every = predict_proba(result.estimator, last.eval_views.reshape(-1, 8), result.temperature, 3)
    by_hand = np.array(
        [every[i * len(every) // len(last) :][: len(every) // len(last)].mean(axis=0) for i in range(len(last))]
    )
    np.testing.assert_allclose(result.proba, by_hand, atol=1e-12)
    if tta:
        np.testing.assert_array_equal(result.y_pred, by_hand.argmax(axis=1))
    else:
        np.testing.assert_array_equal(result.y_pred, result.estimator.predict(last.eval_views[:, 0]))
    assert (result.test or result.validation).n == len(last)
    assert result.validation.n == (30 if "validation" in names else 60)  # samples, not views


@pytest.mark.parametrize("names", [("train", "validation", "test"), ("train", "test"), ("train", "validation")])
@pytest.mark.parametrize("head", HEADS)
def test_one_view_that_is_the_plain_one_changes_nothing(head: str, names: tuple[str, ...]) -> None:
    plain = {name: (p.eval_views[:, 0], p.y) for name, p in parts(*names).items()}
    once = {name: SplitData(y=y, fit_views=X[:, None].copy(), eval_views=X[:, None]) for name, (X, y) in plain.items()}
    before, after = evaluate_head(head, plain, 3), evaluate_head(head, once, 3)
    assert (before.params, before.temperature, before.validation) == (after.params, after.temperature, after.validation)
    np.testing.assert_array_equal(before.proba, after.proba)


class Recorder(ClassifierMixin, BaseEstimator):
    """Remembers which samples it was fitted on and which it was asked about; the first feature is the sample."""

    seen: list[tuple[set[float], set[float]]] = []  # noqa: RUF012

    def fit(self, X, y):
        self.classes_, self.fitted_ = np.unique(y), set(X[:, 0].tolist())
        return self

    def predict_proba(self, X):
        self.seen.append((self.fitted_, set(X[:, 0].tolist())))
        return np.full((len(X), len(self.classes_)), 1 / len(self.classes_))

    def predict(self, X):
        return self.predict_proba(X).argmax(axis=1)


@pytest.mark.parametrize("tta", [False, True], ids=["plain", "tta"])
def test_no_samples_views_straddle_folds(tta: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    train = part(30, 0, tta=tta)
    numbered = np.arange(30, dtype=np.float32)[:, None]
    train.fit_views[:, :, 0] = numbered
    train.eval_views[:, :, 0] = numbered
    validation = part(12, 1, tta=tta)
    validation.eval_views[:, :, 0] = 100
    monkeypatch.setattr(Recorder, "seen", [])
    recorder = NamedHead("recorder", Recorder(), lambda num_rows: [{}])
    search(recorder, {"train": train, "validation": validation}, OfClasses(3), 0)
    assert all(not fitted & asked for fitted, asked in Recorder.seen)
    assert set.union(*(asked for _, asked in Recorder.seen)) == {*range(30), 100}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"y": np.zeros(5, np.int64)}, TaskError, "train has 60 rows but labels of shape .5,."),
        ({"eval_views": np.full((60, 1, 8), np.nan, np.float32)}, HeadError, "train features are not finite"),
        ({"fit_views": np.full((60, 4, 8), np.inf, np.float32)}, HeadError, "train features are not finite"),
        ({"fit_views": np.zeros((60, 4, 9), np.float32)}, HeadError, "features per row differ between splits"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: dict, error: type, message: str) -> None:
    given = parts("train", "test")
    train = given["train"]
    fields = {"y": train.y, "fit_views": train.fit_views, "eval_views": train.eval_views} | change
    with pytest.raises(error, match=message):
        check_splits({**given, "train": SplitData(**fields)}, OfClasses(3).check)
