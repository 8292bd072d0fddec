"""Calibration: what it says of probabilities that are right, too bold, or certain."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import log_loss

from featurecache.evaluation.calibration import NUM_BINS, Calibration, calibration

pytestmark = pytest.mark.quick


def said(certainty: np.ndarray, right: np.ndarray) -> Calibration:
    """Answers of the first class with a certainty, which are right or not."""
    proba = np.stack([certainty, (1 - certainty) / 2, (1 - certainty) / 2], axis=1)
    return calibration(np.where(right, 0, 1), proba)


def test_true_probabilities_have_next_to_no_error():
    rng = np.random.default_rng(0)
    certainty = rng.uniform(0.4, 1, 50_000)
    found = said(certainty, rng.random(50_000) < certainty)
    assert found.expected_calibration_error < 0.01
    assert len(found.bins) == NUM_BINS
    assert [b.n for b in found.bins] == [5000] * NUM_BINS
    probabilities = [b.probability for b in found.bins]
    assert probabilities == sorted(probabilities)


def test_too_bold_by_a_tenth():
    rng = np.random.default_rng(0)
    certainty = rng.uniform(0.6, 1, 50_000)
    found = said(certainty, rng.random(50_000) < certainty - 0.1)
    assert found.expected_calibration_error == pytest.approx(0.1, abs=0.01)


def test_log_loss_and_brier_score_are_those_of_the_books_and_finite_for_certain_mistakes():
    rng = np.random.default_rng(0)
    proba, y = rng.dirichlet(np.ones(4), 200), rng.integers(0, 4, 200)
    found = calibration(y, proba)
    assert found.log_loss == pytest.approx(log_loss(y, proba))
    assert found.brier_score == pytest.approx(((proba - np.eye(4)[y]) ** 2).sum(axis=1).mean())
    certain = calibration(np.arange(200) % 2, np.tile([1.0, 0.0], (200, 1)))
    assert np.isfinite(certain.log_loss)
    assert certain.expected_calibration_error == 0.5


def test_few_samples_say_nothing_of_calibration():
    rng = np.random.default_rng(0)
    certainty = rng.uniform(0.4, 1, 200)
    few, enough = (said(certainty[:n], rng.random(n) < certainty[:n]) for n in (199, 200))
    assert (few.expected_calibration_error, few.error_by_chance, few.bins) == (None, None, [])
    assert enough.expected_calibration_error is not None
    assert few.log_loss_low < few.log_loss < few.log_loss_high
    assert said(certainty[:4], np.arange(4) < 3).log_loss_low is None


@pytest.mark.parametrize("n", [200, 1000])
def test_chance_makes_as_much_error_as_is_said(n):
    rng, found = np.random.default_rng(0), []
    for _ in range(60):
        certainty = rng.uniform(0.4, 1, n)
        measured = said(certainty, rng.random(n) < certainty)
        found.append((measured.expected_calibration_error, measured.error_by_chance))
    observed, by_chance = np.mean(found, axis=0)
    assert by_chance == pytest.approx(observed, rel=0.1)


@pytest.mark.parametrize("size", [1, 10])
def test_intervals_of_log_loss_and_brier_score_cover(size):
    """Also of samples that come in groups, all of one answer."""
    rng, held, count = np.random.default_rng(0), [], 300 // size
    groups = None if size == 1 else np.repeat(np.arange(count), size)
    truth = np.mean([-p * np.log(p) - (1 - p) * np.log((1 - p) / 2) for p in np.linspace(0.5, 0.95, 10_001)])
    brier = np.mean(
        [
            p * (1 - p) ** 2 * 1.5 + (1 - p) * (p**2 + (1 - (1 - p) / 2) ** 2 + (1 - p) ** 2 / 4)
            for p in np.linspace(0.5, 0.95, 10_001)
        ]
    )
    for _ in range(400):
        certainty = rng.uniform(0.5, 0.95, count)
        right = np.repeat(rng.random(count) < certainty, size)
        certainty = np.repeat(certainty, size)
        proba = np.stack([certainty, (1 - certainty) / 2, (1 - certainty) / 2], axis=1)
        found = calibration(np.where(right, 0, 1), proba, groups)
        held.append(
            (found.log_loss_low < truth < found.log_loss_high, found.brier_score_low < brier < found.brier_score_high)
        )
    assert (np.mean(held, axis=0) > 0.91).all()
