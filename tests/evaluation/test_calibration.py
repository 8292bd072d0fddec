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


def test_log_loss_is_scikit_learns_and_finite_for_certain_mistakes():
    rng = np.random.default_rng(0)
    proba, y = rng.dirichlet(np.ones(4), 200), rng.integers(0, 4, 200)
    assert calibration(y, proba).log_loss == pytest.approx(log_loss(y, proba))
    certain = calibration(np.array([1]), np.array([[1.0, 0.0]]))
    assert np.isfinite(certain.log_loss)
    assert certain.expected_calibration_error == 1.0
