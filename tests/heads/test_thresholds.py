"""Thresholds are the best of all there are, by trying out each; nothing else than what is predicted depends on them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_score, recall_score

from featurecache.errors import RequestError, TaskError
from featurecache.evaluation.measures import measure_of
from featurecache.evaluation.search import search
from featurecache.evaluation.split_data import check_splits
from featurecache.heads.registry import find_head
from featurecache.heads.thresholds import Thresholds, choose_threshold, choose_thresholds, threshold_rule

RULES = ("f1", "recall=0.8", "recall=1", "precision=0.9", "cost=5:1", "cost=1:3")
samples = st.lists(
    st.tuples(st.booleans(), st.sampled_from([0.0, 1e-9, 0.1, 0.3, 0.5, 0.7, 0.99, 1.0])), min_size=1, max_size=12
)


@settings(max_examples=40)
@given(samples=samples, text=st.sampled_from(RULES))
def test_a_threshold_is_the_best_of_all(samples: list[tuple[bool, float]], text: str) -> None:
    holds, proba = (np.array(values) for values in zip(*samples, strict=True))
    rule = threshold_rule(text)
    threshold, is_reached = choose_threshold(rule, holds, proba)
    if not holds.any():
        assert (threshold, is_reached) == (0.5, False)
        return
    tried = [proba >= value for value in [*np.unique(proba), 2.0]]
    named = proba >= threshold
    scores = (f1_score, recall_score, precision_score)
    f1s, recalls, precisions = ([score(holds, each, zero_division=0.0) for each in tried] for score in scores)
    f1, recall, precision = (score(holds, named, zero_division=0.0) for score in scores)
    if rule.name == "f1":
        assert f1 == pytest.approx(max(f1s))
    elif rule.name == "recall":
        assert recall >= rule.target
        assert precision == pytest.approx(max(p for p, r in zip(precisions, recalls, strict=True) if r >= rule.target))
    elif rule.name == "precision":
        reaching = [r for p, r in zip(precisions, recalls, strict=True) if p >= rule.target and r > 0]
        assert is_reached == bool(reaching)
        assert (recall, precision >= rule.target) == (max(reaching), True) if reaching else precision == max(precisions)
    else:
        costs = [rule.of_missed * (holds & ~each).sum() + rule.of_false_alarm * (~holds & each).sum() for each in tried]
        assert rule.of_missed * (holds & ~named).sum() + rule.of_false_alarm * (~holds & named).sum() == min(costs)


def test_a_threshold_lies_between_what_it_divides() -> None:
    holds, proba = np.array([False, False, True, True]), np.array([0.1, 0.2, 0.6, 0.9])
    for text in RULES:
        assert choose_threshold(threshold_rule(text), holds, proba)[0] == pytest.approx(0.4)


def test_probabilities_of_labels_are_moved_in_their_order() -> None:
    rng = np.random.default_rng(0)
    proba = rng.random((200, 3))
    thresholds = Thresholds("f1", (0.1, 0.5, 0.93), None, (30, 30, 30), (True, True, True))
    moved = thresholds.decide(proba)
    np.testing.assert_array_equal(moved > 0.5, thresholds.predict(proba))
    np.testing.assert_array_equal(np.argsort(moved, axis=0), np.argsort(proba, axis=0))
    assert moved.min() >= 0
    assert moved.max() <= 1


def test_thresholds_are_read_back() -> None:
    for y, proba in (
        (np.array([0, 1, 1, 0]), np.array([[0.8, 0.2], [0.3, 0.7], [0.6, 0.4], [0.9, 0.1]])),
        (np.array([[0, 1], [1, -1], [1, 0]]), np.array([[0.2, 0.7], [0.7, 0.2], [0.4, 0.1]])),
    ):
        found = choose_thresholds(threshold_rule("cost=2:1"), y, proba, 0)
        document = json.loads(json.dumps(found.to_json()))
        assert Thresholds.from_json(document, 2) == found
        for damage in ({"values": [0.5] * 3}, {"values": [float("nan")] * len(found.values)}, {"positive": 7}):
            with pytest.raises(ValueError, match="its thresholds are not those of its classes"):
                Thresholds.from_json(document | damage, 2)


@pytest.mark.parametrize("text", ["recall", "recall=0", "recall=1.1", "cost=5", "cost=0:1", "f2", "cost=1:-1"])
def test_what_is_no_rule_is_told(text: str) -> None:
    with pytest.raises(RequestError, match=f"threshold '{text}' is none of default, f1, recall=R, precision=P or cost"):
        threshold_rule(text)


def test_a_rule_is_written_as_it_is_read() -> None:
    assert threshold_rule("default") is None
    for text in RULES:
        assert str(threshold_rule(text)) == text


def splits_of(kind: str, *names: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    found = {}
    for seed, name in enumerate(names):
        rng = np.random.default_rng(seed)
        y = (rng.random((150, 2)) < [0.2, 0.5]).astype(int)
        X = rng.normal(size=(150, 4)) + np.pad(1.2 * y, ((0, 0), (0, 2)))
        found[name] = X.astype(np.float32), y[:, 0] if kind == "classification" else y
    return found


@pytest.mark.parametrize("kind", ["classification", "multilabel"])
@pytest.mark.parametrize("names", [("train", "validation", "test"), ("train", "test")])
def test_thresholds_are_chosen_on_rows_that_are_not_reported(kind: str, names: tuple[str, ...]) -> None:
    splits, rule = splits_of(kind, *names), threshold_rule("recall=0.9")
    plain, measure = measure_of(kind, 2), measure_of(kind, 2, threshold=rule)
    head = find_head("logistic", kind=kind)
    before = search(head, check_splits(splits, plain.check), plain, 0)
    found = search(head, check_splits(splits, measure.check), measure, 0)
    assert found.params == before.params
    np.testing.assert_allclose(found.proba, before.proba, atol=1e-12)
    thresholds = found.thresholds
    assert thresholds == choose_thresholds(rule, found.selection_y, found.selection_proba, 1)
    decided = thresholds.predict(found.proba)
    np.testing.assert_array_equal(found.y_pred == 1 if kind == "classification" else found.y_pred > 0.5, decided)
    # On the rows by which thresholds are chosen, the target is reached by those of all rows.
    chosen_by = thresholds.predict(found.selection_proba)
    y, test = found.selection_y, splits["test"][1]
    assert np.min(recall_score(y, chosen_by, average=None)[-2 if kind == "multilabel" else -1 :]) >= 0.9
    macro_f1 = f1_score(test, decided, average="macro")
    assert found.test.to_json()["macro_f1"] == pytest.approx(macro_f1)
    figures = found.validation.to_json()
    of_others = found.selection_pred if kind == "classification" else found.selection_pred > 0.5
    assert figures["macro_f1"] == pytest.approx(f1_score(y, of_others, average="macro"))
    assert (of_others != chosen_by).any()  # each fold has the thresholds of the others


def test_the_positive_class_may_be_the_first() -> None:
    splits = splits_of("classification", "train", "test")
    measure = measure_of("classification", 2, threshold=threshold_rule("recall=0.99"), positive=0)
    found = search(find_head("ridge", kind="classification"), check_splits(splits, measure.check), measure, 0)
    y, predicted = found.selection_y, found.thresholds.predict(found.selection_proba)
    assert found.thresholds.positive == 0
    assert recall_score(y == 0, predicted == 0) >= 0.99


def test_thresholds_that_cannot_be_are_refused() -> None:
    for kind, n, what in (("regression", 2, "numbers"), ("classification", 3, "3 classes")):
        with pytest.raises(TaskError, match=f"thresholds are for two classes and for labels, and this task has {what}"):
            measure_of(kind, n, threshold=threshold_rule("f1"))
