"""Heads fitted for several tasks at once, on the same rows of one kind of features or of several: each as if alone."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits

from featurecache.errors import HeadError
from featurecache.heads import checks, fitting
from featurecache.heads.fitting import TaskToFit, fit_estimator, fit_folds, fit_folds_of_tasks, fit_tasks
from featurecache.heads.linear.estimators import LinearSvmProbe, LogisticProbe
from featurecache.heads.linear.path import LinearFamily
from featurecache.heads.linear.ridge import RidgeProbe, RidgeRegressor
from featurecache.heads.nearest import CosineKnn

GRIDS: dict[type, list[dict[str, float]]] = {
    LogisticProbe: [{"C": C} for C in (1e-4, 1e-2, 1.0)],
    LinearSvmProbe: [{"C": C} for C in (1e-5, 1e-3)],
    RidgeProbe: [{"alpha": alpha} for alpha in (1e3, 1.0)],
    RidgeRegressor: [{"alpha": alpha} for alpha in (1e3, 1.0)],
}
HEADS = [
    LogisticProbe(C=0.01),
    LogisticProbe(C=0.01, class_weight="balanced", standardize=False),
    LinearSvmProbe(C=1e-3, prior_rows=10.0),
    RidgeProbe(alpha=1.0),
    RidgeRegressor(alpha=1.0),
]


def rows(num_rows: int = 600, *, wide: bool = False) -> tuple[np.ndarray, list[np.ndarray]]:
    """Digits, and what four tasks say of them: which it is, whether it is even, whether it has a hole, thirds."""
    X, digit = load_digits(return_X_y=True)
    X, digit = X[:num_rows] / 16, digit[:num_rows]
    if wide:  # so many features that the rows span less than their space
        X = np.hstack([X, np.random.default_rng(0).normal(size=(num_rows, 3 * num_rows))])
    return X, [digit, digit % 2, np.isin(digit, (0, 6, 8, 9)).astype(int), digit // 4]


def divided(ys: list[np.ndarray], how: str) -> list[np.ndarray]:
    """Return the folds of each task."""
    if how == "none":
        return [np.full(len(y), -1) for y in ys]
    same = np.arange(len(ys[0])) // 3 % 4
    if how == "alike":
        return [np.where(np.arange(len(same)) % 7, same, -1) for _ in ys]
    return [np.random.default_rng(number).permutation(same) for number in range(len(ys))]


def assert_alike(head: Any, together: Any, alone: Any, **tolerance: float) -> None:
    """Both know the same."""
    assert type(together) is type(alone)
    assert {key: together.get_params()[key] for key in GRIDS[type(head)][0]} == {
        key: alone.get_params()[key] for key in GRIDS[type(head)][0]
    }
    np.testing.assert_array_equal(getattr(together, "classes_", None), getattr(alone, "classes_", None))
    np.testing.assert_allclose(together.coef_, alone.coef_, **tolerance)
    np.testing.assert_allclose(together.intercept_, alone.intercept_, **tolerance)


@pytest.mark.parametrize("head", HEADS, ids=str)
@pytest.mark.parametrize("how", ["none", "alike", "each in its own way"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_all_settings_and_folds_are_those_of_a_task_by_itself(head: Any, how: str, weighted: bool) -> None:
    X, ys = rows()
    folds, grid = divided(ys, how), GRIDS[type(head)]
    weight = np.random.default_rng(1).uniform(0.5, 2.0, len(X)) if weighted else None
    tasks = [TaskToFit(head=head, grid=grid, X=X, y=y, fold=fold) for y, fold in zip(ys, folds, strict=True)]
    found: dict[int, list[Any]] = {place: [] for place in range(len(ys))}
    for place, setting, estimators in fit_folds_of_tasks(tasks, weight):
        found[place].append((setting, estimators))
    for place, (y, fold) in enumerate(zip(ys, folds, strict=True)):
        alone = list(fit_folds(head, grid, X, y, fold, weight))
        assert [setting for setting, _ in found[place]] == [setting for setting, _ in alone] == grid
        for (_, together), (_, apart) in zip(found[place], alone, strict=True):
            assert len(together) == len(apart) == max(len(np.unique(fold[fold >= 0])), 1)
            for ours, theirs in zip(together, apart, strict=True):
                # Not only within the tolerance: no task changes the way that another one takes, though a hundred
                # steps on features that are not standardised make more of the rounding.
                assert getattr(ours, "n_iter_", None) == getattr(theirs, "n_iter_", None)
                assert_alike(head, ours, theirs, rtol=1e-6, atol=1e-8 if head.standardize else 1e-4)


@pytest.mark.parametrize("head", HEADS[:4], ids=str)
@pytest.mark.parametrize("wide", [False, True], ids=["many rows", "few rows"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_folds_that_leave_out_whole_classes_are_what_each_is_alone(head: Any, wide: bool, weighted: bool) -> None:
    X, (y, *_) = rows(60 if wide else 200, wide=wide)
    y = y + 3  # not the places of the classes
    fold = np.where(np.isin(y, (10, 11)), 0, np.where(y == 12, 1, np.arange(len(y)) % 3))
    weight = np.random.default_rng(1).uniform(0.5, 2.0, len(X)) if weighted else None
    if not isinstance(head, RidgeProbe):
        head = clone(head).set_params(tol=1e-8)
    for setting, estimators in head.fit_folds(X, y, fold, GRIDS[type(head)], weight):
        assert [len(each.classes_) for each in estimators] == [8, 9, 10]
        for number, ours in enumerate(estimators):
            kept = fold != number
            alone = clone(head).set_params(**setting)
            alone.fit(X[kept], y[kept], None if weight is None else weight[kept])
            np.testing.assert_array_equal(ours.classes_, alone.classes_)
            # A path ends each fit within the tolerance.
            theirs = alone.decision_function(X)
            assert theirs.shape == (len(X), len(alone.classes_))
            np.testing.assert_allclose(ours.decision_function(X), theirs, atol=5e-3 * np.abs(theirs).max())
            np.testing.assert_allclose(ours.coef_, alone.coef_, atol=5e-3 * np.abs(alone.coef_).max())
            assert np.mean(ours.predict(X) == alone.predict(X)) > 0.99


@pytest.mark.parametrize(("head", "goes"), [(HEADS[0], True), (HEADS[3], True), (CosineKnn(), False)], ids=str)
def test_folds_go_side_by_side_while_three_classes_are_left(head: Any, goes: bool) -> None:
    X, _ = rows(40)
    grid = GRIDS.get(type(head), [{"n_neighbors": 1}])
    for num_classes, alone in ((2, 1), (3, 0), (4, 3), (9, 8)):
        y = np.arange(40) % num_classes
        fold = np.where(y == alone, 0, 1 + np.arange(40) // num_classes % 2)
        # Without fold 0 there is a class less; with two left, a head has one output in the place of three.
        assert fitting._goes_side_by_side(head, grid, y, fold) == (goes and num_classes > 3)
        for _, estimators in fit_folds(head, grid, X, y, fold):
            assert [len(each.classes_) for each in estimators] == [num_classes - 1, num_classes, num_classes]


@pytest.mark.parametrize("head", HEADS, ids=str)
@pytest.mark.parametrize("wide", [False, True], ids=["many rows", "few rows"])
def test_the_last_fits_of_tasks_have_strengths_of_their_own(head: Any, wide: bool) -> None:
    X, ys = rows(60 if wide else 600, wide=wide)
    grid = GRIDS[type(head)]
    heads = [clone(head).set_params(**grid[place % len(grid)]) for place in range(len(ys))]
    alone = [clone(each) for each in heads]
    assert fit_tasks(heads, [X] * len(ys), ys) == [fit_estimator(each, X, y) for each, y in zip(alone, ys, strict=True)]
    for ours, theirs in zip(heads, alone, strict=True):
        assert_alike(head, ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("head", [HEADS[0], HEADS[4]], ids=str)
@pytest.mark.parametrize("wide", [False, True], ids=["many rows", "few rows"])
def test_tasks_of_several_labels_or_numbers(head: Any, wide: bool) -> None:
    X, ys = rows(60 if wide else 600, wide=wide)
    several = [
        np.stack([ys[0] % 2, ys[0] % 3 > 0, ys[0] > 4], 1).astype(int),
        np.stack([ys[2], ys[3] > 0], 1).astype(int),
    ]
    grid, fold = GRIDS[type(head)], np.arange(len(X)) % 3
    tasks = [TaskToFit(head=head, grid=grid, X=X, y=y, fold=fold) for y in several]
    found = list(fit_folds_of_tasks(tasks))
    assert [place for place, _, _ in found] == [0, 1] * len(grid)
    for place, y in enumerate(several):
        together = [each for at, _, fitted in found if at == place for each in fitted]
        alone = [each for _, fitted in fit_folds(head, grid, X, y, fold) for each in fitted]
        for ours, theirs in zip(together, alone, strict=True):
            assert ours.coef_.shape == (y.shape[1], X.shape[1])
            assert_alike(head, ours, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("head", [HEADS[0], HEADS[3]], ids=str)
def test_few_rows_with_folds_of_each_task(head: Any) -> None:
    X, ys = rows(60, wide=True)
    ys, grid = ys[1:3], GRIDS[type(head)]
    for how in ("alike", "each in its own way"):
        folds = divided(ys, how)
        tasks = [TaskToFit(head=head, grid=grid, X=X, y=y, fold=fold) for y, fold in zip(ys, folds, strict=True)]
        found = [(place, each) for place, _, fitted in fit_folds_of_tasks(tasks) for each in fitted]
        for place, (y, fold) in enumerate(zip(ys, folds, strict=True)):
            alone = [each for _, fitted in fit_folds(head, grid, X, y, fold) for each in fitted]
            for ours, theirs in zip([each for at, each in found if at == place], alone, strict=True):
                assert_alike(head, ours, theirs, rtol=1e-6, atol=1e-8)


def test_rows_of_a_file_in_float32_give_the_same_within_the_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "SMALL_PROBLEM", 0)
    X, ys = rows()
    folds, grid = divided(ys, "each in its own way"), GRIDS[LogisticProbe][:2]
    with tempfile.TemporaryDirectory() as folder:
        mapped = np.memmap(Path(folder) / "X", np.float32, "w+", shape=X.shape)
        mapped[:] = X
        tasks = [
            TaskToFit(head=LogisticProbe(), grid=grid, X=mapped, y=y, fold=fold)
            for y, fold in zip(ys, folds, strict=True)
        ]
        for place, setting, estimators in fit_folds_of_tasks(tasks):
            for number, ours in enumerate(estimators):
                kept = folds[place] != number
                exact = LogisticProbe(**setting, tol=1e-9).fit(X[kept], ys[place][kept])
                np.testing.assert_allclose(ours.predict_proba(X), exact.predict_proba(X), atol=0.02)


def several_kinds(X: np.ndarray) -> list[np.ndarray]:
    """Return three kinds of features of the same rows, as three taps would."""
    rng = np.random.default_rng(0)
    return [X, np.sqrt(np.abs(X)) @ rng.normal(size=(X.shape[1], X.shape[1])) / 8, X + 0.3 * rng.normal(size=X.shape)]


@pytest.mark.parametrize("head", [*HEADS[:3], HEADS[3]], ids=str)
@pytest.mark.parametrize("how", ["none", "alike", "each in its own way"])
@pytest.mark.parametrize("wide", [False, True], ids=["many rows", "few rows"])
def test_taps_side_by_side_are_each_as_if_alone(
    head: Any, how: str, wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of tasks and taps are one batch, of two labellings for six heads; the last look has own strengths."""
    X, ys = rows(60 if wide else 600, wide=wide)
    ys = ys[1:3]
    weight, folds, grid = np.random.default_rng(1).uniform(0.5, 2.0, len(X)), divided(ys, how), GRIDS[type(head)]
    asked: list[tuple[int, int]] = []
    real = LinearFamily.solve

    def solve(family: Any, rows: Any, labellings: Any, *rest: Any, **more: Any) -> Any:
        asked.append((len(rows), len(labellings)))
        return real(family, rows, labellings, *rest, **more)

    monkeypatch.setattr(LinearFamily, "solve", solve)
    pairs = [(kind, place) for kind in several_kinds(X) for place in (0, 1)]
    tasks = [TaskToFit(head=head, grid=grid, X=kind, y=ys[place], fold=folds[place]) for kind, place in pairs]
    found: dict[int, list[Any]] = {number: [] for number in range(len(pairs))}
    for number, setting, estimators in fit_folds_of_tasks(tasks, weight):
        found[number].append((setting, estimators))
    last = [clone(head).set_params(**grid[number % len(grid)]) for number in range(len(pairs))]
    assert all(fit_tasks(last, [kind for kind, _ in pairs], [ys[place] for _, place in pairs], weight))
    assert asked == ([] if isinstance(head, RidgeProbe) else [(3, 2), (3, 2)])
    for number, (kind, place) in enumerate(pairs):
        alone = list(fit_folds(head, grid, kind, ys[place], folds[place], weight))
        assert [setting for setting, _ in found[number]] == [setting for setting, _ in alone]
        for (_, together), (_, apart) in zip(found[number], alone, strict=True):
            for ours, theirs in zip(together, apart, strict=True):
                assert getattr(ours, "n_iter_", None) == getattr(theirs, "n_iter_", None)
                assert_alike(head, ours, theirs, rtol=1e-6, atol=1e-8 if head.standardize else 1e-4)
        by_itself = clone(head).set_params(**grid[number % len(grid)])
        fit_estimator(by_itself, kind, ys[place], weight)
        assert_alike(head, last[number], by_itself, rtol=1e-5, atol=1e-7)


def test_taps_in_files_are_fitted_together_too(tmp_path: Path) -> None:
    X, ys = rows()
    fold, grid, kinds = np.arange(len(X)) % 3, GRIDS[LogisticProbe], several_kinds(X)
    mapped = [np.memmap(tmp_path / str(number), np.float64, "w+", shape=X.shape) for number in range(len(kinds))]
    for file, kind in zip(mapped, kinds, strict=True):
        file[:] = kind
    assert LogisticProbe.batches(mapped, [ys[0]] * 3, [fold] * 3) == [[0, 1, 2]]
    both = []
    for Xs in (kinds, mapped):
        tasks = [TaskToFit(head=LogisticProbe(), grid=grid, X=each, y=ys[0], fold=fold) for each in Xs]
        both.append([each for _, _, fitted in fit_folds_of_tasks(tasks) for each in fitted])
    for ours, theirs in zip(*both, strict=True):
        np.testing.assert_array_equal(ours.coef_, theirs.coef_)


def test_tasks_that_cannot_be_together_are_fitted_by_themselves() -> None:
    """A class that is in one fold alone, another grid, heads that fit one task at a time."""
    X, ys = rows()
    fold = np.arange(len(X)) % 2
    lonely = ((fold == 0) & (np.arange(len(X)) < 20)).astype(int)
    grid, other = GRIDS[LogisticProbe], GRIDS[LogisticProbe][:1]
    logistic = LogisticProbe()
    tasks = [
        TaskToFit(head=logistic, grid=grid, X=X, y=ys[0], fold=fold),
        TaskToFit(head=logistic, grid=grid, X=X, y=lonely, fold=fold),
        TaskToFit(head=logistic, grid=other, X=X, y=ys[1], fold=fold),
        TaskToFit(head=logistic, grid=grid, X=X, y=ys[2], fold=fold),
    ]
    assert [place for place, _, _ in fit_folds_of_tasks(tasks)] == [0, 3, 0, 3, 0, 3, 1, 1, 1, 2]
    knn = [TaskToFit(head=CosineKnn(), grid=[{"n_neighbors": 3}], X=X, y=y, fold=fold) for y in ys[1:3]]
    for place, _, (first, _) in fit_folds_of_tasks(knn):
        alone = CosineKnn(n_neighbors=3).fit(X[fold != 0], ys[1 + place][fold != 0])
        np.testing.assert_array_equal(first.predict(X), alone.predict(X))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (LogisticProbe(C=0.01), LogisticProbe(C=0.01, standardize=False)),
        (LogisticProbe(C=0.01, prior_rows=50.0), LogisticProbe(C=0.01)),
        (LogisticProbe(Cs=[1e-4, 1e-2]), LogisticProbe(Cs=[1e-4, 1e-2])),
        (RidgeProbe(alphas=[1.0, 1e3]), RidgeProbe(alphas=[1.0, 1e3])),
        (RidgeProbe(alpha=1.0), LogisticProbe(C=1.0)),
    ],
    ids=str,
)
def test_heads_that_differ_in_more_than_their_strength_are_fitted_by_themselves(first: Any, second: Any) -> None:
    X, ys = rows()
    X = X * np.geomspace(0.01, 100, X.shape[1])
    heads, alone = [clone(first), clone(second)], [clone(first), clone(second)]
    fit_tasks(heads, [X, X], ys[:2])
    for ours, theirs, y in zip(heads, alone, ys, strict=False):
        np.testing.assert_array_equal(ours.coef_, theirs.fit(X, y).coef_)


def test_batches_hold_what_the_solver_can_remember_and_outputs_of_alike_numbers() -> None:
    few, many, labels = np.arange(600) % 2, np.arange(600) % 100, np.ones((600, 3), int)
    fold, never = np.arange(600) % 5, np.full(600, -1)
    ys = [many, few, labels, few, many]
    X, wide = np.zeros((600, 64)), np.zeros((600, 2000))
    assert LogisticProbe.batches([X] * 5, ys, [fold] * 5) == [[1, 2, 3], [0, 4]]
    assert LogisticProbe.batches([wide] * 5, ys, [fold] * 5) == [[1, 2, 3], [0], [4]]
    many_rows = np.zeros((40_000, 64))
    other, large = X.copy(), many_rows.copy()
    assert LogisticProbe.batches([X, other, wide, X[:]], [few] * 4, [fold] * 4) == [[0, 1, 3], [2]]
    more = [np.repeat(few, 100)[:40_000]] * 3, [np.repeat(never, 100)[:40_000]] * 3
    assert LogisticProbe.batches([many_rows, large, large.copy()], *more) == [[0], [1], [2]]
    assert LogisticProbe.batches([many_rows, large, many_rows], *more) == [[0, 2], [1]]
    assert RidgeProbe.batches([X, other, X], [few] * 3, [fold] * 3) == [[0, 2], [1]]
    assert RidgeProbe.batches([X] * 5, ys, [fold, never, fold, never, fold[::-1].copy()]) == [[0, 2], [1, 3], [4]]


def test_ridge_lets_go_of_the_rows_of_every_fold() -> None:
    X, _ = rows()
    for fold in (np.full(len(X), -1), np.arange(len(X)) % 2):
        systems = RidgeProbe()._systems(X, np.ones((len(X), 1)), fold, None)
        solved = [system for each in systems for _, system in each.of_columns]
        assert len(solved) == max(len(np.unique(fold[fold >= 0])), 1)
        for system in solved:
            assert all(each.base is None and not each.size for each in (system._X, system._targets, system._gram))


def test_one_that_does_not_converge_is_given_more_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    X, ys = rows()
    heads = [LogisticProbe(C=1.0, max_iter=25), LogisticProbe(C=1e-6, max_iter=25)]
    asked = []
    real = fitting.fit_estimator
    monkeypatch.setattr(fitting, "fit_estimator", lambda head, *rest, **more: asked.append(head) or real(head, *rest))
    found = fit_tasks(heads, [X, X], ys[:2])
    assert asked == [heads[0]]
    assert [head.max_iter for head in heads] == [125, 25]
    assert found[1]
    asked.clear()
    kinds = several_kinds(X)[:2]
    heads = [LogisticProbe(C=C, max_iter=25) for C in (1e-6, 1.0)]  # of one labelling, on different features
    fit_tasks(heads, kinds, [ys[0], ys[0]])
    assert asked == [heads[1]]


def test_what_is_wrong_with_one_is_said() -> None:
    X, ys = rows()
    broken = X.copy()
    broken[3, 3] = np.inf
    fold = np.full(len(X), -1)
    tasks = [TaskToFit(head=LogisticProbe(), grid=GRIDS[LogisticProbe], X=broken, y=y, fold=fold) for y in ys[:2]]
    with pytest.raises(HeadError, match="head 'logistic' cannot be fitted on 600 rows of 64 features.*infinity"):
        list(fit_folds_of_tasks(tasks, name="logistic"))
    with pytest.raises(HeadError, match="head 'logistic' cannot be fitted on 600 rows of 64 features.*infinity"):
        fit_tasks([LogisticProbe(), LogisticProbe()], [broken, broken], ys[:2], name="logistic")
