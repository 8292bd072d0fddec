"""Second derivatives are those of the objective, and Newton's method ends where its gradient does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits

from featurecache.heads import checks
from featurecache.heads.fold_blocks import FoldBlocks, Moments
from featurecache.heads.linear_svm import LinearSvmProbe
from featurecache.heads.logistic import LogisticProbe
from featurecache.heads.solver.newton import NewtonMinimiser
from featurecache.heads.solver.objective import (
    GroupMoments,
    LinearProblem,
    Loss,
    Objective,
    Sigmoids,
    Softmax,
    SquaredHinge,
)

LOSSES = [(Softmax(), 2), (Softmax(), 4), (SquaredHinge(), 2), (SquaredHinge(), 4), (Sigmoids(), 4)]


def problem(loss: Loss, num_classes: int, *, balanced: bool = False, lacking: bool = False) -> Objective:
    """Weighted rows on features of different scales."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(50, 6)) * np.arange(1, 7) + 3.0
    y = rng.integers(0, num_classes - lacking, 50)
    if isinstance(loss, Sigmoids):
        y = rng.integers(-1, 2, (50, num_classes))
    data = FoldBlocks(
        X, y, np.full(50, -1), rng.uniform(0.5, 2, 50), dtype=torch.float64, device="cpu", num_classes=num_classes
    )
    weight, mean, scale, counts = Moments.of(data).without(-1)
    moments = GroupMoments(weight[None], mean[None], scale[None], counts[None], mean, scale)
    return Objective(data, LinearProblem(loss, [-1], "balanced" if balanced else None), moments, data)


@pytest.mark.parametrize("lacking", [False, True])
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize(("loss", "num_classes"), LOSSES)
def test_second_derivatives_are_differences_of_gradients(
    loss: Loss, num_classes: int, *, balanced: bool, lacking: bool
) -> None:
    objective = problem(loss, num_classes, balanced=balanced, lacking=lacking)
    penalty, group = torch.tensor([0.03], dtype=torch.float64), torch.tensor([0])
    generator = torch.Generator().manual_seed(0)
    shape = (1, objective.num_outputs, objective.num_features + 1)
    theta, direction = (torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(2))
    hessian = objective.hessian(theta, penalty, group)
    near, far = (objective(theta + step * direction, penalty, group)[1] for step in (-1e-6, 1e-6))
    torch.testing.assert_close(hessian(direction), (far - near) / 2e-6, rtol=1e-5, atol=1e-6)
    weights_KDD, intercept_K = hessian.blocks()
    for k in range(objective.num_outputs):
        for d in range(objective.num_features + 1):
            unit = torch.zeros(shape, dtype=torch.float64)
            unit[0, k, d] = 1.0
            column = hessian(unit)[0, k]
            if d < objective.num_features:
                torch.testing.assert_close(column[:-1], weights_KDD[k, d])
            else:
                torch.testing.assert_close(column[-1], intercept_K[k])


@pytest.mark.parametrize("is_cheap", [True, False], ids=["by its blocks", "by those of ridge regression"])
@pytest.mark.parametrize("strength", [10.0, 1e-2, 1e-6])
@pytest.mark.parametrize(("loss", "num_classes"), LOSSES)
def test_it_ends_where_the_gradient_does(
    loss: Loss, num_classes: int, strength: float, *, is_cheap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featurecache.heads.solver.newton._is_cheap", lambda objective: is_cheap)
    objective, penalty = problem(loss, num_classes), torch.tensor([strength], dtype=torch.float64)
    theta, passes, converged = NewtonMinimiser(objective, 2000, 0.0).solve(penalty)
    assert converged.all()
    assert passes[0] < 2000
    _, gradient = objective(theta, penalty, torch.tensor([0]))
    assert gradient.abs().max() < 1e-9
    if isinstance(loss, Softmax) and num_classes > 2:
        assert abs(float(theta[0, :, -1].sum())) < 1e-9
    again, few, _ = NewtonMinimiser(objective, 2000, 0.0).solve(penalty, start=theta)
    torch.testing.assert_close(again, theta)
    assert few[0] < passes[0]


@pytest.mark.parametrize("probe", [LogisticProbe(C=10.0), LinearSvmProbe(C=0.1)], ids=str)
def test_it_takes_few_passes_where_regularisation_is_weak(
    probe: LogisticProbe | LinearSvmProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quasi-Newton path takes more, and ends further away."""
    X, y = load_digits(return_X_y=True)
    X, y = X[:80] + 0.01 * np.random.default_rng(0).normal(size=(80, 64)), y[:80]
    newton = clone(probe).fit(X, y)
    assert newton.n_iter_ < 200
    monkeypatch.setattr(checks, "SMALL_PROBLEM", 0)
    slow = clone(probe).set_params(tol=1e-9, max_iter=3000).fit(X, y)
    assert slow.n_iter_ > newton.n_iter_
    np.testing.assert_allclose(newton.decision_function(X), slow.decision_function(X), atol=0.02)


@pytest.mark.filterwarnings("ignore:.*did not converge")
@pytest.mark.parametrize("C", [1e-12, 1e6, 1e12])
@pytest.mark.parametrize("head", [LogisticProbe, LinearSvmProbe])
def test_extreme_strengths_stay_finite(head: type[LogisticProbe], C: float) -> None:
    X, y = load_digits(return_X_y=True)
    fitted = head(C=C, max_iter=3000).fit(X[:60], y[:60])
    assert np.isfinite(fitted.coef_).all()
    assert np.isfinite(fitted.intercept_).all()
