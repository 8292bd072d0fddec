"""Settings and heads are chosen by log loss among those that are as often right, and their probabilities calibrated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import searching_few_settings
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.preprocessing import StandardScaler

from featurecache.evaluation.comparison import is_within_chance
from featurecache.evaluation.measures import measure_of
from featurecache.evaluation.search import evaluate_head, evaluate_heads
from featurecache.evaluation.selection import Selection
from featurecache.evaluation.split_data import SplitData
from featurecache.heads.head import NamedHead
from featurecache.heads.logistic import LogisticProbe
from featurecache.heads.probability import decision_values, fit_temperature, predict_proba
from featurecache.heads.registry import find_head, list_heads
from featurecache.heads.ridge import RidgeProbe

Data = tuple[np.ndarray, np.ndarray]


def clusters(n: int, d: int, *, apart: float, classes: int = 4, seed: int = 0) -> Data:
    """Return samples around class means."""
    centres = apart * np.random.default_rng(9).normal(size=(classes, d))
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % classes)
    return (centres[y] + rng.normal(size=(n, d))).astype(np.float32), y


class Oracle(ClassifierMixin, BaseEstimator):
    """Knows the classes, which are its first feature, and is wrong on a share of the rows.

    It has one confidence where it is right, and another where it is wrong: on the first rows, or on the last.
    """

    calibrated_by_grid = False
    regularization: str | None = None

    def __init__(
        self,
        wrong: float = 0.0,
        confidence: float = 0.9,
        mistaken: float = 0.9,
        on_last: bool = False,
        C: float = 1.0,
    ) -> None:
        self.wrong = wrong
        self.confidence = confidence
        self.mistaken = mistaken
        self.on_last = on_last
        self.C = C

    def fit(self, X: np.ndarray, y: np.ndarray) -> Oracle:
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        truth, place = X[:, 0].astype(int), 1 - X[:, 1] if self.on_last else X[:, 1]
        unlucky = place < self.wrong
        named = np.where(unlucky, 1 - truth, truth)
        confidence = np.where(unlucky, self.mistaken, self.confidence)[:, None]
        return np.where(named[:, None] == [0, 1], confidence, 1 - confidence)

    def predict(self, X: np.ndarray) -> np.ndarray:
        return self.classes_[self.predict_proba(X).argmax(axis=1)]


class Regularized(Oracle):
    """An oracle that says which of its parameters regularises it."""

    calibrated_by_grid = True
    regularization = "C"


def chosen(settings: list[dict[str, float]], n: int, kind: type[Oracle] = Oracle) -> dict[str, Any]:
    """Return which of the settings of an oracle is chosen on so many rows; a share of them is unlucky, as they come."""
    y = np.arange(n) % 2
    X = np.stack([y, (np.arange(n) + 0.5) / n], axis=1)
    whole = SplitData(y=y, fit_views=X[:, None], eval_views=X[:, None])
    head = NamedHead("oracle", kind(), lambda n_samples: settings)
    selection = Selection(head, whole, whole, measure_of("classification", 2), 0)
    for number, setting in enumerate(settings):
        selection.offer(0, number, setting, [kind(**setting).fit(X, y)])
    return selection.choose().params


SURE, FAIR = {"wrong": 0.04, "mistaken": 0.9}, {"wrong": 0.06, "mistaken": 0.55}


@pytest.mark.parametrize("order", [1, -1])
def test_log_loss_decides_where_accuracy_cannot(order: int) -> None:
    """One row of fifty is chance: that the other is as certain of its mistakes as of all else is not."""
    assert chosen([SURE, FAIR][::order], 50) == FAIR


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("confidence", [0.6, 1 - 1e-6])
def test_how_sure_a_setting_is_does_not_matter(confidence: float, order: int) -> None:
    """A temperature mends that."""
    better = {"wrong": 0.04, "confidence": confidence, "mistaken": confidence}
    assert chosen([better, {"wrong": 0.06, "confidence": 0.94, "mistaken": 0.94}][::order], 50) == better


@pytest.mark.parametrize("order", [1, -1])
def test_accuracy_decides_where_it_can(order: int) -> None:
    assert chosen([SURE, FAIR][::order], 5000) == SURE


def test_of_those_that_cannot_be_told_apart_the_one_that_is_regularised_least_is_taken() -> None:
    """Where a head says by what it is regularised: its folds may say nothing, and then the strongest costs accuracy."""
    strong, weak = {"wrong": 0.30, "C": 0.01}, {"wrong": 0.32, "C": 1.0, "on_last": True}
    assert chosen([strong, weak], 50, Regularized) == weak
    assert chosen([strong, weak], 50) == strong
    assert chosen([strong, weak], 5000, Regularized) == strong


def test_accuracies_within_two_standard_errors_leave_it_to_log_loss() -> None:
    """Three of fifty rows are 1.8 standard errors, six are 2.6."""
    right = {"wrong": 0.1}
    for more, is_right in ((0.06, False), (0.12, True)):
        fair = {"wrong": 0.1 + more, "confidence": 0.9999, "mistaken": 0.55}
        assert (chosen([right, fair], 50) == right) is is_right


def test_of_equal_settings_the_first_is_taken() -> None:
    settings = [{"wrong": 0.1, "confidence": 0.9}] * 3
    assert chosen([{**setting, "wrong": 0.1 + 1e-9 * k} for k, setting in enumerate(settings)], 40) == settings[0]


def test_samples_of_one_group_are_one_reason() -> None:
    """Ten rows that are better speak for a head, but not if they are ten pictures of one thing."""
    gain = np.repeat([1.0, 0.0], [10, 90])
    assert not is_within_chance(gain, None)
    assert is_within_chance(gain, np.repeat(np.arange(10), 10))
    assert is_within_chance(-gain, None)


def test_what_is_kept_is_the_surest_of_the_heads_that_are_as_often_right() -> None:
    train, test = clusters(40, 30, apart=0.5), clusters(400, 30, apart=0.5, seed=1)
    heads = ["knn", "logistic", "majority", "nearest_mean"]
    found = evaluate_heads(heads, {"train": train, "test": test}, 4)
    top = max(found, key=lambda result: result.selection_score)
    gain = top.selection_pred == top.selection_y
    able = [r for r in found if is_within_chance(gain * 1.0 - (r.selection_pred == r.selection_y), None)]
    assert found[0] is min(able, key=lambda result: result.selection_log_loss)
    assert found[-1].head == "majority"
    rest = [result.selection_score for result in found[1:]]
    assert rest == sorted(rest, reverse=True)


@pytest.mark.parametrize("num_labels", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_few_labels_give_probabilities_as_good_as_those_of_scikit_learn(num_labels: int) -> None:
    """By geometric mean over draws; settings chosen by accuracy alone are far above."""
    X_test, y_test = clusters(500, 200, apart=0.15, seed=99)
    ours, theirs, right = [], [], []
    for seed in range(4):
        X, y = clusters(4 * num_labels, 200, apart=0.15, seed=seed)
        result = evaluate_head("logistic", {"train": (X, y), "test": (X_test, y_test)}, 4)
        models = (
            LogisticRegression(max_iter=3000),
            LogisticRegressionCV(
                Cs=np.logspace(-3, 2, 6), cv=3, scoring="neg_log_loss", l1_ratios=(0.0,), use_legacy_attributes=False
            ),
        )
        others = [model.fit(X, y).predict_proba(X_test) for model in models]
        losses = [-np.log(p[np.arange(500), y_test]).mean() for p in (result.proba, *others)]
        ours.append(losses[0])
        theirs.append(losses[1:])
        right.append([np.mean(p.argmax(axis=1) == y_test) for p in (result.proba, *others)])
    ratios = np.exp(np.mean(np.log(np.array(ours)[:, None] / np.array(theirs)), axis=0))
    assert (ratios < 1.1).all()
    accuracy = np.mean(right, axis=0)
    assert (accuracy[0] > accuracy[1:] - 0.02).all()


def test_rows_that_are_all_right_make_nothing_certain() -> None:
    """Margins of heads without probabilities have no scale of their own: of ten rows the tenth of a promise is left."""
    y = np.arange(10) % 2
    for scale in (1e-2, 1.0, 1e2):
        margin = scale * np.where(y == 1, 1.0, -1.0) * np.linspace(0.5, 1.5, 10)
        decisions = np.stack([-margin / 2, margin / 2], axis=1)
        proba = np.exp(decisions / fit_temperature(decisions, y))
        confidence = (proba.max(axis=1) / proba.sum(axis=1)).mean()
        assert 0.9 < confidence < 0.99
    many = np.tile(decisions, (1000, 1))
    assert fit_temperature(many, np.tile(y, 1000)) < fit_temperature(decisions, y)


def test_few_rows_hardly_move_the_temperature_of_what_was_chosen_by_log_loss() -> None:
    rng = np.random.default_rng(0)
    for n, most in ((10, 0.3), (100_000, 1.2)):
        decisions = rng.normal(size=(n, 3))
        y = np.array([rng.choice(3, p=p) for p in np.exp(decisions / 3) / np.exp(decisions / 3).sum(1, keepdims=True)])
        found = np.log(fit_temperature(decisions, y, near_one=True))
        assert found < most
    assert found == pytest.approx(np.log(3), abs=0.05)


@pytest.mark.parametrize("name", list_heads())
def test_a_temperature_never_changes_what_is_predicted(name: str) -> None:
    train, test = clusters(60, 8, apart=1.0), clusters(80, 8, apart=1.0, seed=1)
    head = find_head(name).estimator.fit(*train)
    proba = [predict_proba(head, test[0], temperature, 5) for temperature in (0.3, 1.0, 4.0)]
    for found in proba:
        np.testing.assert_array_equal(found.argmax(axis=1), head.predict(test[0]))
        np.testing.assert_allclose(found.sum(axis=1), 1)
        assert (found[:, 4] == 0).all()
    assert proba[0].max() >= proba[2].max()
    assert decision_values(head, test[0], 5).shape == (80, 5)


@pytest.mark.parametrize("name", ["gda", "knn", "mlp"])
def test_every_head_is_calibrated_on_rows_it_was_not_fitted_on(name: str) -> None:
    train, test = clusters(120, 60, apart=0.25), clusters(1000, 60, apart=0.25, seed=1)
    with searching_few_settings():
        result = evaluate_head(name, {"train": train, "test": test}, 4)
    raw = predict_proba(result.estimator, test[0], None, 4)
    loss, raw_loss = (-np.log(np.maximum(p[np.arange(1000), test[1]], 1e-12)).mean() for p in (result.proba, raw))
    assert loss < raw_loss
    assert result.selection_log_loss == pytest.approx(loss, rel=0.3)


@pytest.mark.parametrize("head", [LogisticProbe(C=0.5), RidgeProbe(alpha=3.0)], ids=lambda head: type(head).__name__)
@pytest.mark.parametrize("shape", [(40, 100), (300, 20)], ids=["few rows", "many rows"])
def test_jointly_standardised_features_are_divided_by_one_number(head: Any, shape: tuple[int, int]) -> None:
    n, d = shape
    X, y = clusters(n, d, apart=0.3)
    X = X.astype(np.float64) * 10 ** np.linspace(-1, 1, d) + 5
    scale = np.sqrt(np.mean(StandardScaler().fit(X).var_))
    jointly = type(head)(**{**head.get_params(), "standardize": "jointly"}).fit(X, y)
    by_hand = type(head)(**{**head.get_params(), "standardize": False}).fit((X - X.mean(axis=0)) / scale, y)
    np.testing.assert_allclose(jointly.coef_ * scale, by_hand.coef_, rtol=1e-3, atol=1e-6)
    in_other_units = type(head)(**jointly.get_params()).fit(1e3 * X, y)
    np.testing.assert_allclose(in_other_units.coef_ * 1e3, jointly.coef_, rtol=1e-3, atol=1e-6)
    with pytest.raises(ValueError, match='standardize must be True, False or "jointly"'):
        type(head)(standardize="together").fit(X, y)


def test_one_label_of_each_class_leaves_the_setting_as_it_is_by_default() -> None:
    """Whatever is held out, its class is not known to what was fitted meanwhile."""
    train, test = clusters(4, 30, apart=1.0), clusters(200, 30, apart=1.0, seed=1)
    for name in ("logistic", "ridge", "knn"):
        head = find_head(name)
        result = evaluate_head(name, {"train": train, "test": test}, 4)
        assert result.params == {key: head.estimator.get_params()[key] for key in result.params}
        assert result.test is not None
        assert result.test.accuracy > 0.9
