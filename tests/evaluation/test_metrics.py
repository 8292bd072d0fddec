"""Choosing by a metric: each is scikit-learn's, a row's share of it is the jackknife's, and verdicts hold for all."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    log_loss,
    roc_auc_score,
)
from sklearn.preprocessing import label_binarize

from featurecache.errors import HeadError, TaskError, UnknownNameError
from featurecache.evaluation import table_verdicts
from featurecache.evaluation.chosen_score import chosen_score
from featurecache.evaluation.measure import Measure
from featurecache.evaluation.measures import measure_of
from featurecache.evaluation.metrics import SCORES_OF_METRICS, average_precision, f1_rows, metric_named, roc_auc
from featurecache.evaluation.search import evaluate_head, evaluate_heads
from featurecache.evaluation.table_verdicts import compare_heads
from featurecache.heads.head import NamedHead

OF_CLASSES = list(SCORES_OF_METRICS["classification"])


class NoProba(ClassifierMixin, BaseEstimator):
    def fit(self, X: np.ndarray, y: np.ndarray) -> NoProba:
        self.classes_ = np.unique(y)
        return self


def binary_rows(rng: np.random.Generator, n: int, share: float, num_heads: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Targets of two classes, and probabilities of heads that are equally good and err on much the same rows."""
    y = (rng.random(n) < share).astype(int)
    y[:2] = 0, 1
    hard, own = rng.standard_normal((n, 1)), rng.standard_normal((n, num_heads))
    logits = 2 * (np.sqrt(0.8) * hard + np.sqrt(0.2) * own + (2 * y[:, None] - 1)) + np.log(share / (1 - share))
    return y, [np.stack([1 - p, p], axis=1) for p in expit(logits).T]


def several_classes(seed: int, *, n: int = 90, n_classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    X = rng.normal(size=(n, 6)).astype(np.float32) * 2
    X[np.arange(n), y] += 2
    return X, y


@pytest.mark.parametrize("component", [(roc_auc, roc_auc_score), (average_precision, average_precision_score)])
def test_areas_and_those_without_each_row_are_those_of_scikit_learn(component) -> None:
    ours, theirs = component
    rng = np.random.default_rng(0)
    for _ in range(10):
        holds = np.append([True, False, True, False], rng.random(rng.integers(1, 30)) < 0.3)
        scores = np.round(rng.random(len(holds)) + 0.3 * holds, 1)  # many are equal
        value, left_out = ours(holds, scores)
        assert value == pytest.approx(theirs(holds, scores))
        expected = [theirs(np.delete(holds, row), np.delete(scores, row)) for row in range(len(holds))]
        np.testing.assert_allclose(left_out, expected)


def test_what_rows_add_to_macro_f1_is_the_jackknife() -> None:
    def macro_f1(y: np.ndarray, predictions: np.ndarray) -> float:
        return f1_score(y, predictions, average="macro", zero_division=0.0)

    rng = np.random.default_rng(0)
    for _ in range(10):
        y = rng.integers(0, 4, rng.integers(4, 30))
        predictions = np.where(rng.random(len(y)) < 0.6, y, rng.integers(0, 5, len(y)))
        rows = f1_rows(y, predictions, 6)
        without = np.array([macro_f1(np.delete(y, row), np.delete(predictions, row)) for row in range(len(y))])
        assert rows.mean() == pytest.approx(macro_f1(y, predictions))
        np.testing.assert_allclose(rows - rows.mean(), (len(y) - 1) * (without.mean() - without), atol=1e-9)


def expected_score(metric: str, y: np.ndarray, predictions: np.ndarray, proba: np.ndarray, n_classes: int) -> float:
    each = label_binarize(y, classes=range(n_classes))
    if n_classes == 2:
        each, proba_of = each[:, 0], proba[:, 1]
    else:
        proba_of = proba
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "accuracy": lambda: accuracy_score(y, predictions),
            "balanced_accuracy": lambda: balanced_accuracy_score(y, predictions),
            "f1_macro": lambda: f1_score(y, predictions, average="macro", zero_division=0.0),
            "roc_auc": lambda: roc_auc_score(each, proba_of, average="macro"),
            "average_precision": lambda: average_precision_score(each, proba_of, average="macro"),
            "log_loss": lambda: log_loss(y, proba, labels=range(n_classes)),
        }[metric]()


@pytest.mark.parametrize(("metric", "n_classes"), [*((name, 3) for name in OF_CLASSES), ("roc_auc", 2)])
def test_heads_are_chosen_by_the_metric_and_its_scores_are_those_of_scikit_learn(metric: str, n_classes: int) -> None:
    splits = {
        name: several_classes(seed, n_classes=n_classes) for seed, name in enumerate(("train", "validation", "test"))
    }
    measure = measure_of("classification", n_classes, metric=metric)
    heads = ("ridge", "knn", "majority")
    found = evaluate_heads(heads, splits, n_classes, metric=metric)
    for result in found:
        assert result.metric == metric
        y = splits["test"][1]
        scores, name = result.test.to_json(), measure.primary
        assert scores[name] == pytest.approx(expected_score(metric, y, result.y_pred, result.proba, n_classes))
        assert scores[f"{name}_low"] <= scores[name] <= scores[f"{name}_high"]
        assert {"accuracy", "balanced_accuracy", "macro_f1"} < set(scores)
        outputs = measure.outputs(result.selection_pred, result.selection_proba)
        assert result.selection_score == pytest.approx(measure.score(result.selection_y, outputs))
        rows = measure.row_scores(result.selection_y, outputs)
        assert measure.sign * rows.mean() == pytest.approx(result.selection_score)
        if measure.reads_proba:
            np.testing.assert_array_equal(result.selection_proba.argmax(axis=1), result.selection_pred)
    gains = [measure.sign * result.selection_score for result in found]
    assert gains[1:] == sorted(gains[1:], reverse=True)
    assert found[-1].head == "majority"
    if metric == "log_loss":
        assert gains == sorted(gains, reverse=True)


@pytest.mark.parametrize("metric", ["accuracy", "f1_macro", "roc_auc", "average_precision", "log_loss"])
def test_several_labels_have_the_metrics_of_scikit_learn(metric: str) -> None:
    rng, parts = np.random.default_rng(0), {}
    for name in ("train", "validation", "test"):
        y = (rng.random((60, 3)) < [0.5, 0.3, 0.2]).astype(int)
        parts[name] = rng.normal(size=(60, 5)).astype(np.float32) + np.pad(1.5 * y, ((0, 0), (0, 2))), y
    measure = measure_of("multilabel", 3, metric=metric)
    result = evaluate_head("logistic", parts, 3, kind="multilabel", metric=metric)
    y, predicted = parts["test"][1], result.y_pred
    expected = {
        "accuracy": lambda: accuracy_score(y, predicted > 0.5),
        "f1_macro": lambda: f1_score(y, predicted > 0.5, average="macro"),
        "roc_auc": lambda: roc_auc_score(y, predicted),
        "average_precision": lambda: average_precision_score(y, predicted),
        "log_loss": lambda: np.mean([log_loss(y[:, k], predicted[:, k]) for k in range(3)]),
    }[metric]()
    scores = result.test.to_json()
    assert scores[measure.primary] == pytest.approx(expected)
    assert scores[f"{measure.primary}_low"] < expected < scores[f"{measure.primary}_high"]
    worse = np.full_like(predicted, 0.6)
    found = compare_heads(measure, y, [predicted, worse], 0, None)[1]
    assert (found.verdict, found.difference < 0) == ("worse", True)
    assert measure.compare(y, worse, predicted, None).verdict == "worse"
    assert chosen_score(measure, y, [predicted, worse], None).corrected == pytest.approx(expected, abs=0.05)
    # What is not known is in no score.
    partial = np.where(rng.random(y.shape) < 0.3, -1, y)
    other = np.where(partial < 0, 1 - predicted, predicted)
    assert measure.score(partial, predicted) == pytest.approx(measure.score(partial, other))


@pytest.mark.parametrize("metric", ["f1_macro", "roc_auc", "average_precision", "log_loss"])
def test_equal_heads_are_rarely_called_worse(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the choice of the winner inside; of 200 rows 30 are of one class."""
    monkeypatch.setattr(table_verdicts, "_NUM_FLIPS", 200)
    rng, measure, wrong = np.random.default_rng(0), measure_of("classification", 2, metric=metric), 0
    for _ in range(100):
        y, probas = binary_rows(rng, 200, 0.15, 9)
        outputs = [measure.outputs(proba.argmax(axis=1), proba) for proba in probas]
        chosen = int(np.argmax([measure.sign * measure.score(y, output) for output in outputs]))
        found = compare_heads(measure, y, outputs, chosen, None)
        wrong += any(comparison.verdict == "worse" for comparison in found)
    assert wrong <= 10


@pytest.mark.parametrize("metric", ["f1_macro", "roc_auc", "average_precision", "log_loss"])
def test_a_head_that_is_worse_is_found(metric: str) -> None:
    y, (proba, _) = binary_rows(np.random.default_rng(0), 300, 0.3, 2)
    flat = 0.9 * proba.mean(axis=0) + 0.1 * np.random.default_rng(1).permutation(proba)
    measure = measure_of("classification", 2, metric=metric)
    outputs = [measure.outputs(each.argmax(axis=1), each) for each in (proba, flat)]
    found = compare_heads(measure, y, outputs, 0, None)
    assert [comparison.verdict for comparison in found] == ["the same answers", "worse"]
    assert found[1].difference == pytest.approx(
        measure.sign * (measure.score(y, outputs[1]) - measure.score(y, outputs[0]))
    )
    for first, second, verdict in ((0, 1, "better"), (1, 0, "worse"), (0, 0, "the same answers")):
        assert measure.compare(y, outputs[first], outputs[second], None).verdict == verdict
    # Rows of one group are alike, and count once.
    few = measure.compare(y, *outputs, groups=np.arange(len(y)) % 4)
    assert few.verdict == "cannot tell"


@pytest.mark.parametrize(("metric", "share"), [("roc_auc", 0.5), ("roc_auc", 0.1), ("average_precision", 0.3)])
def test_intervals_cover(metric: str, share: float) -> None:
    measure, rng, held = measure_of("classification", 2, metric=metric), np.random.default_rng(0), 0
    y, (proba,) = binary_rows(rng, 60_000, share, 1)
    truth = measure.score(y, proba)
    for _ in range(200):
        y, (proba,) = binary_rows(rng, 150, share, 1)
        scores = measure.primary_score(y, proba, None, np.bincount(y).min(keepdims=True))
        held += scores[f"{measure.primary}_low"] <= truth <= scores[f"{measure.primary}_high"]
    assert held >= 183  # of 200: 93 % is 186, and 183 two standard errors of 95 % below


def test_a_perfect_area_is_no_certainty() -> None:
    y, measure = np.repeat([0, 1], [40, 20]), measure_of("classification", 2, metric="roc_auc")
    proba = np.stack([1 - y, y], axis=1).astype(float)
    scores = measure.scores(y, y, None, proba=proba, random_state=0).to_json()
    assert scores["roc_auc"] == scores["roc_auc_high"] == 1
    assert 0.7 < scores["roc_auc_low"] < 0.95
    few = np.repeat([0, 1], [40, 4])
    scores = measure.scores(few, few, None, proba=np.eye(2)[few], random_state=0).to_json()
    assert scores["roc_auc_low"] is None


def test_the_default_is_the_metric_that_it_was() -> None:
    for kind, metric in (("classification", "accuracy"), ("multilabel", "average_precision"), ("regression", "r2")):
        plain, named = measure_of(kind, 3), measure_of(kind, 3, metric=metric)
        assert (plain.metric, plain.titles) == (named.metric, named.titles)
        assert next(iter(plain.titles)) == plain.primary
    assert measure_of("classification", 3, balanced=True).metric == "balanced_accuracy"
    assert measure_of("classification", 3, balanced=True, metric="roc_auc").balanced


def test_a_metric_has_plain_spellings() -> None:
    for spelling, name in {"roc-auc": "roc_auc", "AUROC": "roc_auc", "macro-F1": "f1_macro"}.items():
        assert metric_named(spelling) == name
    with pytest.raises(UnknownNameError, match="unknown metric 'roc_acu'; did you mean 'roc_auc'?"):
        metric_named("roc_acu")


def test_metrics_that_are_not_defined_are_refused() -> None:
    with pytest.raises(TaskError, match="a task of kind multilabel has no metric balanced_accuracy; leave it out, or"):
        measure_of("multilabel", 3, metric="balanced_accuracy")
    with pytest.raises(TaskError, match="a task of kind regression has no metric roc_auc; leave it out, or .* r2"):
        measure_of("regression", 3, metric="roc_auc")
    train, (X, y) = several_classes(0, n_classes=2), several_classes(1, n_classes=2)
    one = X[y == 1], y[y == 1]
    with pytest.raises(TaskError, match="all 45 test rows are of one class, where roc_auc is not defined; choose"):
        evaluate_head("ridge", {"train": train, "test": one}, 2, metric="roc_auc")
    rare = train[0][[0, 2, 4, 6, 8, 1]], train[1][[0, 2, 4, 6, 8, 1]]
    with pytest.raises(TaskError, match="all 5 train rows that folds hold out are of one class, where roc_auc is not"):
        evaluate_head("ridge", {"train": rare, "test": (X, y)}, 2, metric="roc_auc")
    no_proba = NamedHead("own", NoProba())
    with pytest.raises(HeadError, match="head 'own' has neither probabilities nor decision values, which log_loss"):
        evaluate_head(no_proba, {"train": train, "test": (X, y)}, 2, metric="log_loss")


def test_settings_are_chosen_by_the_metric() -> None:
    """Of two settings, one names the large class alone and the other both: accuracy and its balanced form differ."""
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], [450, 50])
    X = rng.normal(size=(500, 1)) + y[:, None]
    head = NamedHead("own", LogisticRegression(), lambda _: [{"class_weight": None}, {"class_weight": "balanced"}])
    splits = {"train": (X, y), "validation": (X + 0.01, y), "test": (X, y)}
    metrics = ("accuracy", "balanced_accuracy")
    chosen = {metric: evaluate_head(head, splits, 2, metric=metric).params for metric in metrics}
    assert chosen == {"accuracy": {"class_weight": None}, "balanced_accuracy": {"class_weight": "balanced"}}


def test_every_measure_reads_what_it_says() -> None:
    for kind in SCORES_OF_METRICS:
        for metric in SCORES_OF_METRICS[kind]:
            measure: Measure = measure_of(kind, 3, metric=metric)
            assert measure.reads_proba == (kind == "classification" and metric in OF_CLASSES[3:])
