"""Families of linear heads equal the slow way: one problem at a time, by scikit-learn or by a general minimiser."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.base import clone
from sklearn.datasets import load_digits, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GroupKFold, LeaveOneOut, StratifiedKFold, cross_val_predict
from sklearn.preprocessing import StandardScaler

from featurecache.heads import checks
from featurecache.heads.fitting import fit_folds
from featurecache.heads.fold_blocks import FoldBlocks, Moments
from featurecache.heads.knn import CosineKnn
from featurecache.heads.linear_svm import LinearSvmProbe
from featurecache.heads.logistic import LogisticProbe
from featurecache.heads.ridge import RidgeProbe
from featurecache.heads.solver import path
from featurecache.heads.solver.classifier import class_of_margins
from featurecache.heads.solver.curvature import History
from featurecache.heads.solver.normal_equations import System
from featurecache.heads.solver.objective import GroupMoments, LinearProblem, Objective, Softmax, SquaredHinge
from featurecache.heads.solver.path import LinearPath, LineSearch, Minimiser, Tolerance
from featurecache.heads.solver.path_search import search_path

VALUES = [1e-4, 1e-2, 1.0]


def rows(n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    X, y = load_wine(return_X_y=True)
    return X[y < n_classes], y[y < n_classes]


def objective(X: np.ndarray, y: np.ndarray, C: float, W: np.ndarray, b: np.ndarray, weight: np.ndarray) -> float:
    """scikit-learn's objective of logistic regression: the loss of all rows times C, and the penalty."""
    margins = X @ W.T + b
    if margins.shape[1] == 1:
        loss = np.logaddexp(0, -margins[:, 0] * (2 * y - 1))
    else:
        loss = np.logaddexp.reduce(margins, axis=1) - margins[np.arange(len(y)), y]
    return C * float(weight @ loss) + 0.5 * float((W**2).sum())


def standardised(probe: LogisticProbe, scaler: StandardScaler) -> tuple[np.ndarray, np.ndarray]:
    W = probe.coef_ * scaler.scale_
    return W, probe.intercept_ + probe.coef_ @ scaler.mean_


@pytest.mark.parametrize("C", VALUES)
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("class_weight", [None, "balanced", {0: 3.0, 1: 0.5}], ids=str)
def test_logistic_has_the_optimum_of_scikit_learn(n_classes: int, C: float, class_weight: object) -> None:
    X, y = rows(n_classes)
    probe = LogisticProbe(C=C, class_weight=class_weight).fit(X, y)
    scaler = StandardScaler().fit(X)
    Z = scaler.transform(X)
    reference = LogisticRegression(C=C, class_weight=class_weight, tol=1e-12, max_iter=20_000).fit(Z, y)
    W, b = standardised(probe, scaler)
    assert np.allclose(W, reference.coef_, rtol=1e-4, atol=1e-6)
    if n_classes > 2:  # the same number added to all intercepts changes nothing
        b, reference.intercept_ = b - b.mean(), reference.intercept_ - reference.intercept_.mean()
    assert np.allclose(b, reference.intercept_, atol=1e-4)
    assert np.allclose(probe.predict_proba(X), reference.predict_proba(Z), atol=1e-5)


@pytest.mark.parametrize(
    "probe", [LogisticProbe(C=0.3), LogisticProbe(C=5.0, class_weight="balanced"), LinearSvmProbe(C=0.01)], ids=str
)
@pytest.mark.parametrize(("standardize", "n_classes"), [(True, 3), (False, 2)])
def test_few_rows_are_solved_where_they_vary(
    probe: LogisticProbe, standardize: bool, n_classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All settings, folds and weights give what the space of all features gives."""
    rng = np.random.default_rng(0)
    y = np.arange(24) % n_classes
    X = rng.normal(size=(24, 60)) + rng.normal(size=(n_classes, 60))[y]
    X[:, 5] = 3.0
    weight, grid, fold = rng.integers(1, 4, 24), [{"C": c} for c in (1e-3, 1e-1, 1.0)], np.arange(24) // 2 % 3
    probe = clone(probe).set_params(standardize=standardize)

    def solve() -> list[LogisticProbe]:
        found = [each for _, fitted in fit_folds(probe, grid, X, y, fold) for each in fitted]
        return [*found, clone(probe).fit(X, y, weight), clone(probe).set_params(Cs=VALUES, cv=3).fit(X, y)]

    few = solve()
    repeated = np.repeat(X, weight, axis=0), np.repeat(y, weight)
    monkeypatch.setattr(path, "has_few_rows", lambda num_rows, num_features: False)
    many = solve()
    for ours, theirs in zip(few[:-2], many[:-2], strict=True):  # as near as the tolerance of a search is
        np.testing.assert_allclose(ours.decision_function(X), theirs.decision_function(X), atol=0.05)
    for ours, theirs in zip(few[-2:], many[-2:], strict=True):
        np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-6)
        np.testing.assert_allclose(ours.intercept_, theirs.intercept_, atol=1e-5)
    np.testing.assert_allclose(few[-2].coef_, clone(probe).fit(*repeated).coef_, atol=1e-6)


def test_large_problems_end_within_their_tolerance_of_the_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = load_digits(return_X_y=True)
    X = X.astype(np.float32)
    Z = StandardScaler().fit_transform(X.astype(np.float64))
    ones = np.ones(len(y))
    for small in (10**9, 0):  # to the last digits; in float32, until a step promises little
        monkeypatch.setattr(checks, "SMALL_PROBLEM", small)
        for C in (1e-3, 1e-1):
            W, b = standardised(LogisticProbe(C=C).fit(X, y), StandardScaler().fit(X.astype(np.float64)))
            reference = LogisticRegression(C=C, tol=1e-10, max_iter=10_000).fit(Z, y)
            best = objective(Z, y, C, reference.coef_, reference.intercept_, ones)
            assert objective(Z, y, C, W, b, ones) <= best * (1 + (1e-8 if small else 1e-4))


def test_weak_regularisation_ends_near_the_optimum_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of steps that promise little each may be a long way; float32 may not do for the last of them."""
    X, y = load_digits(return_X_y=True)
    X, ones = X[:600].astype(np.float32), np.ones(600)
    Z = StandardScaler().fit_transform(X.astype(np.float64))
    values = []
    for small in (10**9, 0):
        monkeypatch.setattr(checks, "SMALL_PROBLEM", small)
        probe = LogisticProbe(C=100.0).fit(X, y[:600])
        W, b = standardised(probe, StandardScaler().fit(X.astype(np.float64)))
        values.append(objective(Z, y[:600], 100.0, W, b, ones))
    assert values[1] <= values[0] * (1 + 1e-4)


def test_all_its_looks_are_no_failure_where_next_to_nothing_is_left() -> None:
    X, y = load_digits(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    near = LogisticProbe(C=0.1, standardize=False, max_iter=60).fit(X, y)  # would warn
    exact = LogisticProbe(C=0.1, standardize=False).fit(X, y)
    assert 58 < near.n_iter_ <= 60 < exact.n_iter_
    np.testing.assert_allclose(near.coef_, exact.coef_, atol=1e-3)
    with pytest.warns(ConvergenceWarning):
        LogisticProbe(C=0.1, standardize=False, max_iter=20).fit(X, y)


def test_float32_that_cannot_go_on_is_finished_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "SMALL_PROBLEM", 0)
    X, y = rows(3)
    X = X.astype(np.float32)
    probe = LogisticProbe(C=1.0, tol=1e-12).fit(X, y)
    exact = LogisticProbe(C=1.0, tol=1e-12).fit(X.astype(np.float64), y)
    assert np.allclose(probe.coef_, exact.coef_, rtol=2e-5, atol=5e-6)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_svm_has_the_optimum_of_a_general_minimiser(n_classes: int) -> None:
    X, y = rows(n_classes)
    Z = StandardScaler().fit_transform(X)
    probe = LinearSvmProbe(C=0.01).fit(X, y)
    W, b = standardised(probe, StandardScaler().fit(X))  # type: ignore[arg-type]
    for place in range(1 if n_classes == 2 else 3):
        sign = np.where(y == (1 if n_classes == 2 else place), 1.0, -1.0)

        def primal(theta: np.ndarray, sign: np.ndarray = sign) -> float:
            lack = np.maximum(0, 1 - sign * (Z @ theta[:-1] + theta[-1]))
            return 0.01 * float((lack**2).sum()) + 0.5 * float((theta[:-1] ** 2).sum())

        found = minimize(primal, np.zeros(Z.shape[1] + 1), method="BFGS", options={"gtol": 1e-9})
        assert primal(np.append(W[place], b[place])) <= found.fun * (1 + 1e-9)


def test_a_search_chooses_by_rows_that_were_held_out() -> None:
    X, y = rows(3)
    cv = StratifiedKFold(4, shuffle=True, random_state=1)
    probe = LogisticProbe(Cs=VALUES, cv=cv).fit(X, y)
    by_hand = [np.mean(cross_val_predict(LogisticProbe(C=C), X, y, cv=cv) == y) for C in VALUES]
    assert np.allclose(probe.scores_, by_hand, atol=1.5 / len(y))
    assert VALUES[int(probe.scores_.argmax())] == probe.C_
    assert np.allclose(probe.coef_, LogisticProbe(C=probe.C_).fit(X, y).coef_, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("head", [LogisticProbe(Cs=[1e-1]), RidgeProbe(alphas=[1.0], cv=5)], ids=str)
def test_accuracy_on_held_out_rows_counts_them_by_their_weight(head: LogisticProbe) -> None:
    X, y = rows(3)
    y = np.where(np.arange(len(y)) % 3 == 0, (y + 1) % 3, y)  # a third is labelled wrong
    weight = np.where(np.arange(len(y)) % 3 == 0, 1e-3, 1.0)
    scores = [clone(head).fit(X, y, sample_weight=each).scores_[0] for each in (weight, None)]
    assert scores[0] > 0.9
    assert scores[1] < 0.8


def test_rows_of_one_group_are_held_out_together() -> None:
    """Each row has a twin with the same features; labels are noise, so only twins could give them away."""
    rng = np.random.default_rng(0)
    X, y, group = (
        np.repeat(rng.normal(size=(60, 200)), 2, axis=0),
        np.repeat(rng.integers(0, 2, 60), 2),
        np.arange(120) // 2,
    )
    apart = RidgeProbe(alphas=[1.0], cv=5).fit(X, y)
    together = RidgeProbe(alphas=[1.0], cv=5).fit(X, y, groups=group)
    assert apart.scores_[0] > 0.8
    assert together.scores_[0] < 0.7
    assert LogisticProbe(Cs=[1.0], cv=5).fit(X, y, groups=group).scores_[0] < 0.7


def test_a_file_larger_than_memory_gives_the_same_head(tmp_path: Path) -> None:
    X, y = load_digits(return_X_y=True)
    memory = X.astype(np.float32)
    mapped = np.memmap(tmp_path / "x.bin", np.float32, "w+", shape=memory.shape)
    mapped[:] = memory
    for Cs in (None, VALUES):
        a, b = (LogisticProbe(C=0.01, Cs=Cs).fit(each, y) for each in (memory, mapped))
        assert np.allclose(a.coef_, b.coef_, rtol=1e-3, atol=1e-6)
        assert a.C_ == b.C_


@pytest.mark.parametrize(("n", "d"), [(40, 7), (30, 50)])
@pytest.mark.parametrize("weighted", [False, True])
def test_leaving_rows_out_in_closed_form_equals_fitting_again(n: int, d: int, weighted: bool) -> None:
    rng = np.random.default_rng(n + d)
    X, targets = rng.normal(size=(n, d)) + 3, rng.normal(size=(n, 2))
    weight = rng.uniform(0.5, 2, n) if weighted else None
    system = System(X, targets, weight, standardize=False)
    alphas, fold = [100.0, 1.0, 0.1], np.arange(n) % 4 - 1

    def again(alpha: float, out: np.ndarray) -> np.ndarray:
        kept = None if weight is None else weight[~out]
        return Ridge(alpha=alpha).fit(X[~out], targets[~out], kept).predict(X[out])

    for alpha, found in zip(alphas, system.left_out(alphas), strict=True):
        expected = np.concatenate([again(alpha, np.arange(n) == row) for row in range(n)])
        assert np.abs(found - expected).max() < 1e-8
    for alpha, found in zip(alphas, system.held_out(alphas, fold), strict=True):
        assert np.isnan(found[fold < 0]).all()
        for number in range(3):
            assert np.abs(found[fold == number] - again(alpha, fold == number)).max() < 1e-8


def test_ridge_chooses_by_leave_one_out() -> None:
    X, y = rows(3)
    Z = StandardScaler().fit_transform(X)
    alphas = [100.0, 1.0, 1e-2]
    probe = RidgeProbe(alphas=alphas).fit(X, y)
    for alpha, score in zip(alphas, probe.scores_, strict=True):
        one_by_one = cross_val_predict(RidgeProbe(alpha=alpha, standardize=False), Z, y, cv=LeaveOneOut())
        assert np.mean(one_by_one == y) == pytest.approx(score)


def test_a_path_takes_far_fewer_passes_than_its_values_of_C_one_by_one() -> None:
    """Each starts at the last solution, goes on in its direction, and remembers the curvature."""
    X, y = load_digits(return_X_y=True)

    def passes(Cs: list[float]) -> int:
        found = LogisticProbe().fit_path(X.astype(np.float32), y, np.arange(len(y)) % 5, [{"C": C} for C in Cs])
        return sum(max(estimator.n_iter_ for estimator in fitted) for _, fitted in found)

    Cs = np.logspace(-4, 0, 17).tolist()
    assert passes(Cs) < 0.27 * sum(passes([C]) for C in Cs)


def test_what_is_remembered_of_the_curvature_stays_exact_when_the_strength_changes() -> None:
    X, y = rows(3)
    never = np.full(len(y), -1)
    data = FoldBlocks(X, y, never, dtype=torch.float64)
    weight, mean, scale, counts = Moments.of(data).without(-1)
    moments = GroupMoments(weight[None], mean[None], scale[None], counts[None], mean, scale)
    objective = Objective(data, LinearProblem(Softmax(), [-1]), moments, data)
    minimiser = Minimiser(objective, Tolerance(decrease=1e-6, gradient=1e-6, max_iter=5), torch.float64)
    before, after = torch.tensor([0.1]), torch.tensor([0.003])
    theta, group = minimiser.solve(before)[0], torch.tensor([0])
    history, shape = minimiser._history, theta.shape
    count = int(history.count[0])
    old = history._changed[0, :count].clone()
    history.change_penalty(after)
    assert count
    for place in range(count):
        moved = history._moved[0, place].view(shape)
        slopes = [
            objective(theta + step, strength, group)[1] for strength in (before, after) for step in (0 * moved, moved)
        ]
        change = (slopes[3] - slopes[2]) - (slopes[1] - slopes[0])
        assert torch.allclose((history._changed[0, place] - old[place]).view(shape), change, atol=1e-12)
    products = history._moved[0, :count] @ history._changed[0, :count].T
    assert torch.allclose(history._product[0, :count, :count], products)


def test_what_is_remembered_gives_the_directions_of_two_loops() -> None:
    """The systems of products equal the textbook's loops, also when places are used again and groups have own pairs."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    num_groups, size = 3, (7, 2)
    root = drawn(num_groups, 14, 14)
    hessian = root @ root.mT + torch.eye(14, dtype=torch.float64)
    history = History(torch.zeros(num_groups, *size, dtype=torch.float64))
    history._most = 5
    pairs: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in range(num_groups)]
    for number in range(9):
        moved = drawn(num_groups, *size)
        changed = (hessian @ moved.flatten(1)[:, :, None])[:, :, 0].view_as(moved)
        if number == 3:
            changed[1] = -changed[1]  # says nothing of a convex function
        groups = torch.tensor([0, 1, 2] if number % 3 else [0, 2])
        history.remember(moved, changed, groups)
        for group in groups.tolist():
            pairs[group] = [*pairs[group], (moved[group].flatten(), changed[group].flatten())][-5:]
        gradient = drawn(num_groups, *size)
        found = history.direction(gradient, lambda vector: 0.1 * vector)
        for group in range(num_groups):
            usable = [(s, y) for s, y in pairs[group] if s @ y > 0]
            q, shares = gradient[group].flatten(), []
            for s, y in reversed(usable):
                shares.append(s @ q / (s @ y))
                q = q - shares[-1] * y
            r = 0.1 * q
            for (s, y), share in zip(usable, reversed(shares), strict=True):
                r = r + (share - y @ r / (s @ y)) * s
            assert torch.allclose(found[group].flatten(), r, rtol=1e-8, atol=1e-8)


def test_a_feature_that_varies_in_one_fold_alone_is_none_for_the_others() -> None:
    rng = np.random.default_rng(0)
    X, fold = rng.normal(size=(400, 10)), np.arange(400) % 4
    y = (X[:, 0] + 0.3 * rng.normal(size=400) > 0).astype(int)
    X[:, 7] = np.where(fold == 0, rng.normal(size=400), 0.0)
    for head, settings in ((LogisticProbe(), [{"C": 1e-2}, {"C": 1.0}]), (RidgeProbe(), [{"alpha": 10.0}])):
        for _, (first, *_rest) in head.fit_path(X, y, fold, settings):
            assert abs(first.coef_[0, 7]) < 0.01
            assert first.score(X[fold == 0], y[fold == 0]) > 0.8


@pytest.mark.parametrize("head", [LogisticProbe(Cs=VALUES), RidgeProbe(alphas=VALUES, cv=5)], ids=str)
def test_rows_without_weight_are_as_if_they_were_not_there(head: LogisticProbe) -> None:
    X, y = rows(3)
    weight, groups = np.where(np.arange(len(y)) % 5 == 0, 0.0, 1.0), np.arange(len(y)) // 2
    weight[y == 2] = 0.0  # so there are two classes only
    pairs = list(GroupKFold(3).split(X, y, groups))
    for cv in (3, pairs):
        found = clone(head).set_params(cv=cv).fit(X, y, sample_weight=weight, groups=groups)
        assert found.classes_.tolist() == [0, 1]
        assert found.coef_.shape == (1, X.shape[1])
    fold = np.zeros(len(y), int)
    for number, (_, out) in enumerate(pairs):
        fold[out] = number
    kept = weight > 0
    same = [(fold[kept] != number, fold[kept] == number) for number in range(3)]
    expected = clone(head).set_params(cv=[(a.nonzero()[0], b.nonzero()[0]) for a, b in same]).fit(X[kept], y[kept])
    assert np.allclose(found.coef_, expected.coef_, rtol=1e-6, atol=1e-9)


def test_a_class_that_is_in_one_fold_alone_is_not_named_without_it() -> None:
    X, y = rows(3)
    fold = np.where(y == 2, 0, 1 + np.arange(len(y)) % 2)
    for loss in (Softmax(), SquaredHinge()):
        found = search_path(LinearPath(), FoldBlocks(X, y, fold), LinearProblem(loss, [0, 1, 2]), VALUES)
        assert not (class_of_margins(found.margins[fold == 0]) == 2).any()
        assert (class_of_margins(found.margins[fold != 0]) == y[fold != 0]).mean() > 0.9


def test_the_scale_of_features_does_not_end_a_fit_early() -> None:
    """Equal classes, so that at zero only the slopes of the weights say that it is not the end."""
    X, y = rows(3)
    kept = np.concatenate([np.flatnonzero(y == each)[:45] for each in range(3)])
    X, y = StandardScaler().fit_transform(X[kept]), y[kept]
    plain, small = (
        LogisticProbe(standardize=False, Cs=[C / scale**2 for C in VALUES]).fit(X * scale, y) for scale in (1, 1e-9)
    )
    assert np.allclose(plain.scores_, small.scores_, atol=0.02)


def test_a_file_with_a_number_that_is_none_is_refused(tmp_path: Path) -> None:
    X, y = rows(3)
    X[5, 3] = np.nan
    mapped = np.memmap(tmp_path / "x.bin", np.float64, "w+", shape=X.shape)
    mapped[:] = X
    with pytest.raises(ValueError, match="X contains NaN or infinity"):
        LogisticProbe().fit(mapped, y)


def test_neighbours_at_a_low_temperature_are_the_nearest_one() -> None:
    X, y = rows(3)
    X = StandardScaler().fit_transform(X)
    cold, nearest = CosineKnn(10, temperature=1e-6).fit(X[::2], y[::2]), CosineKnn(1).fit(X[::2], y[::2])
    assert np.array_equal(cold.predict(X[1::2]), nearest.predict(X[1::2]))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (LogisticProbe(C=0.0), "C must be positive and finite, got 0.0"),
        (LogisticProbe(Cs=[1.0, np.nan]), "C must be positive and finite"),
        (RidgeProbe(alpha=-1.0), "alpha must be positive and finite"),
        (LogisticProbe(class_weight="heavy"), "class_weight must be None, 'balanced' or a mapping, got 'heavy'"),
        (LogisticProbe(Cs=[1.0], cv=[([0], [1, 2]), ([0], [2])]), "cv must hold out each row once"),
    ],
    ids=str,
)
def test_what_cannot_be_fitted_is_said(head: LogisticProbe, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        head.fit(*rows(2))


def test_the_order_of_values_does_not_matter() -> None:
    X, y = rows(3)
    groups = np.arange(len(y)) // 3
    mixed, sorted_ = (
        LogisticProbe(Cs=Cs, cv=GroupKFold(3)).fit(X, y, groups=groups)
        for Cs in ([1.0, 1e-4, 1e-2, 1.0], [1e-4, 1e-2, 1.0])
    )
    assert mixed.scores_.tolist() == sorted_.scores_.tolist()
    assert np.array_equal(mixed.coef_, sorted_.coef_)


@pytest.mark.parametrize("weighted", [False, True])
def test_ridge_on_fewer_rows_than_features_is_scikit_learns(weighted: bool) -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(3, 2, (12, 40)), rng.normal(size=(12, 2))
    weight = rng.uniform(0.5, 2, 12) if weighted else np.ones(12)
    mean = np.average(X, axis=0, weights=weight)
    scale = np.sqrt(np.average((X - mean) ** 2, axis=0, weights=weight))
    Z, alphas = (X - mean) / scale, [100.0, 1.0, 0.01]
    system = System(X, y, weight if weighted else None, standardize=True)
    folds = np.arange(12) // 4
    for alpha, left_out, held_out in zip(alphas, system.left_out(alphas), system.held_out(alphas, folds), strict=True):
        reference = Ridge(alpha=alpha).fit(Z, y, weight)
        np.testing.assert_allclose(system.solution(alpha)[0] * scale[:, None], reference.coef_.T, atol=1e-9)
        for rows, found in [([k], left_out) for k in range(12)] + [
            (np.flatnonzero(folds == k), held_out) for k in range(3)
        ]:
            others = np.delete(np.arange(12), rows)
            expected = Ridge(alpha=alpha).fit(Z[others], y[others], weight[others]).predict(Z[rows])
            np.testing.assert_allclose(found[rows], expected, atol=1e-8)


@pytest.mark.parametrize(("dtype", "depth"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=str)
@pytest.mark.parametrize("is_over", [False, True])
def test_a_step_past_the_least_point_is_shortened_where_it_promised_more_than_noise(
    dtype: torch.dtype, depth: float, is_over: bool
) -> None:
    # A parabola, and a step that is twice the way to its least point: it ends at the value with which it began.
    theta, step = torch.zeros(1, 1, 1, dtype=dtype), torch.full((1, 1, 1), 2.0, dtype=dtype)
    depth = 1e-3 * depth if is_over else depth
    value, slope = torch.tensor([2.0], dtype=torch.float64), torch.tensor([-4 * depth], dtype=torch.float64)
    search = LineSearch(theta, value, torch.ones_like(theta), step, slope, torch.tensor([0]))
    for _ in range(2):
        if len(search.waiting):
            points = search.points()
            search.take(points, 2 + depth * ((points.double().flatten() - 1) ** 2 - 1), torch.ones_like(points))
    assert search.stuck.tolist() == [is_over]
    assert search.theta.item() == (2.0 if is_over else 1.0)
