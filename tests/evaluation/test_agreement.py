"""Which of several heads to take on samples without labels: neighbours that agree by more than chance."""

from __future__ import annotations

import numpy as np
import pytest

from featurecache.evaluation.agreement import agreement, choose_by_agreement

pytestmark = pytest.mark.quick


def blobs(counts: tuple[int, ...] = (80, 80, 80), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return samples around one mean for each class, of features that differ in scale, and their classes."""
    rng = np.random.default_rng(seed)
    means, y = 3 * rng.normal(size=(len(counts), 12)), np.repeat(np.arange(len(counts)), counts)
    return ((means[y] + rng.normal(size=(len(y), 12))) * np.linspace(0.5, 2, 12)).astype(np.float32), y


def test_agreement_equals_a_slow_reference_and_falls_where_answers_are_noise() -> None:
    target, y_t = blobs()
    found = agreement(target, y_t)
    variance = target.astype(np.float64).var(axis=0)
    scale = np.sqrt((len(target) * variance + 10 * variance.mean()) / (len(target) + 10))
    rows = (target - target.mean(axis=0, dtype=np.float64)) / scale
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    for index in range(0, len(rows), 37):
        alike = rows @ rows[index]
        alike[index] = -2
        nearest = np.argsort(-alike)[:5]
        # Classes are of one size: two samples are of the same in a third of all cases.
        assert found[index] == pytest.approx((np.mean(y_t[nearest] == y_t[index]) - 1 / 3) / (2 / 3))
    noise = np.random.default_rng(0).integers(0, 3, len(y_t))
    assert found.mean() > 0.9
    assert abs(agreement(target, noise).mean()) < 0.1
    assert agreement(target, np.zeros_like(y_t)).mean() == 0  # one class for all is no agreement


def with_errors(y: np.ndarray, share: float, seed: int = 1) -> np.ndarray:
    """Return classes of which a share is drawn anew."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(len(y)) < share, rng.integers(0, y.max() + 1, len(y)), y)


def test_the_head_whose_answers_neighbours_share_is_taken_and_no_other() -> None:
    X, y = blobs()
    worse, better = with_errors(y, 0.4), with_errors(y, 0.05, seed=2)
    assert choose_by_agreement(X, [worse, with_errors(y, 0.4, seed=3), better])[0] == 2
    assert choose_by_agreement(X, [better, worse])[0] == 0
    chosen, (first, same), _ = choose_by_agreement(X, [worse, worse.copy()])
    assert (chosen, first.difference, same.num_changed) == (0, 0.0, 0)
    assert same.difference_text == "the same answers"


def test_a_target_of_one_class_tells_nothing() -> None:
    """A head that splits its one class by a direction that neighbours share looks better than one that is right."""
    X, y = blobs((200,))
    split = (X[:, 0] > np.quantile(X[:, 0], 0.5)).astype(np.int64)
    right = y.copy()
    right[:10] = 1
    chosen, found, _ = choose_by_agreement(X, [right, split])
    assert found[1].low > 0
    assert chosen == 0


def test_too_few_samples_give_no_interval_and_no_choice() -> None:
    X, y = blobs((2, 2))
    chosen, found, _ = choose_by_agreement(X, [1 - y, with_errors(1 - y, 1.0, seed=4)])
    assert chosen == 0
    assert found[1].num_changed
    assert "(no interval)" in found[1].difference_text
