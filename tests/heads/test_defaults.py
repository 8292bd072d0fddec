"""What heads and evaluation do unless told otherwise is worth it: each default is missed when it is made worse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import log_loss

from featurecache.evaluation.bootstrap import weights_of_resamples
from featurecache.evaluation.comparison import compare
from featurecache.evaluation.memory_budget import MemoryBudget
from featurecache.evaluation.plan import Resampling, resample
from featurecache.evaluation.search import evaluate_head
from featurecache.evaluation.selection import fold_numbers
from featurecache.evaluation.split_data import SplitData
from featurecache.heads.fitting import fit_head
from featurecache.heads.gradient import estimators
from featurecache.heads.head import powers_of_ten
from featurecache.heads.registry import find_head, make_head
from featurecache.machine import free_memory

Data = tuple[np.ndarray, np.ndarray]
LINEAR = ("logistic", "linear_svm", "ridge")


def clusters(n: int, d: int, *, apart: float, classes: int = 10, seed: int = 0, spread: float = 1.0) -> Data:
    """Return samples around class means; features differ in scale by ``spread`` powers of ten."""
    scale = 10 ** np.linspace(-spread / 2, spread / 2, d)
    centres = apart * np.random.default_rng(9).normal(size=(classes, d))
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % classes)
    return ((centres[y] + rng.normal(size=(n, d))) * scale).astype(np.float32), y


def parts(train: Data, test: Data) -> dict[str, Data]:
    return {"train": train, "test": test}


@pytest.mark.parametrize("name", [*LINEAR, "gda", "rbf_svm"])
def test_one_label_of_each_class_is_enough_because_scales_have_a_prior(name: str) -> None:
    """Of ten rows a feature's own variance is mostly chance; of many rows it is what counts."""
    found = {}
    for prior in (None, 0.0, 1e6):
        given = {} if prior is None else {"prior_rows": prior}
        few, many = [], []
        for seed in range(4):
            X, y = clusters(10, 300, apart=0.35, seed=seed, spread=0.0)
            few.append(fit_head(name, X, y, **given).score(*clusters(500, 300, apart=0.35, seed=99, spread=0.0)))
        X, y = clusters(400, 40, apart=0.3, seed=1, spread=4.0)
        many.append(fit_head(name, X, y, **given).score(*clusters(500, 40, apart=0.3, seed=99, spread=4.0)))
        found[prior] = np.mean(few), np.mean(many)
    # Gaussians have a covariance besides, which mends too common a scale.
    assert found[None][0] > found[0.0][0] + 0.03
    assert found[None][1] > found[1e6][1] + (0.1 if name != "gda" else -0.02)


@pytest.mark.parametrize("name", LINEAR)
def test_few_rows_search_fewer_strengths_over_the_same_range(name: str) -> None:
    """Every other one, and the ends: they cannot tell more apart, and nothing else is left out."""
    few, many = find_head(name).settings_for(199), find_head(name).settings_for(200)
    assert len(few) < 0.6 * len(many)
    assert few[0] == many[0]
    assert few[-1] == many[-1]
    assert all(setting in many for setting in few)


def test_few_labels_are_enough_for_a_perceptron_because_scales_have_a_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    right = {}
    for prior in (estimators.PRIOR_ROWS, 0.0):
        monkeypatch.setattr(estimators, "PRIOR_ROWS", prior)
        draws = (clusters(10, 300, apart=0.35, seed=seed, spread=0.0) for seed in range(3))
        test = clusters(500, 300, apart=0.35, seed=99, spread=0.0)
        right[prior] = np.mean([fit_head("mlp", X, y).score(*test) for X, y in draws])
    assert right[10.0] > right[0.0] + 0.03


def test_neighbours_are_many_where_labels_are_noisy() -> None:
    rng = np.random.default_rng(0)
    X, y = clusters(600, 10, apart=1.0, classes=2, seed=3, spread=0.0)
    y = np.where(rng.random(600) < 0.45, 1 - y, y)
    result = evaluate_head("knn", parts((X[:450], y[:450]), (X[450:], y[450:])), 2)
    assert result.params["n_neighbors"] >= 10


def test_near_neighbours_weigh_more() -> None:
    """The temperature: of five neighbours two that are the same outvote three that are only alike."""
    X = np.array([[1, 0.0], [1, 0.001], [1, 0.6], [1, -0.6], [1, 0.62]], np.float32)
    head = make_head("knn", n_neighbors=5).fit(X, [0, 0, 1, 1, 1])
    assert head.predict(np.array([[1, 0.0]], np.float32)).tolist() == [0]
    assert 0.5 < head.predict_proba(np.array([[1, 0.0]], np.float32))[0, 0] < 0.95


def test_half_of_the_free_memory_is_for_features(tmp_path: Path) -> None:
    share = MemoryBudget(tmp_path).left / free_memory()
    assert 0.35 < share < 0.65  # heads need as much again for their own copies


def test_folds_leave_most_rows_to_fit_on_and_are_few() -> None:
    for y in (np.arange(60) % 3, np.repeat([0, 1], [57, 3])):
        assert np.bincount(fold_numbers(y, random_state=0)).tolist() == [12] * 5


def test_a_quarter_is_held_out_where_there_is_no_validation_part() -> None:
    y = np.arange(200) % 2
    X = np.zeros((200, 1, 1), np.float32)
    divided = resample({"train": SplitData(y=y, fit_views=X, eval_views=X)}, Resampling(seed=0))
    assert len(divided["validation"]) == 50
    assert np.bincount(divided["validation"].y).tolist() == [25, 25]


def test_resamples_are_as_many_as_ends_of_intervals_need() -> None:
    """Fifty of them lie beyond each end: two runs then differ by a tenth of a standard deviation."""
    assert sum(len(weights) for weights in weights_of_resamples(10, None, 0)) >= 2000


def test_heads_are_equivalent_within_a_point_and_not_within_two() -> None:
    y = np.ones(40_000, np.int64)
    for lost, verdict in ((200, "equivalent"), (700, "worse")):
        second = y.copy()
        first = np.where(np.arange(len(y)) < lost, 0, 1)
        assert compare(y, first, second).verdict in (verdict, "worse")
    first, second = y.copy(), y.copy()
    first[:2000], second[2000:4000] = 0, 0
    assert compare(y, first, second).verdict == "equivalent"
    assert compare(y[::40], first[::40], second[::40]).verdict == "cannot tell"


def xor(n: int, seed: int, noise: float = 0.0, *, terms: int = 1) -> Data:
    """Return classes that no single feature says anything of."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 8)).astype(np.float32)
    y = (sum(X[:, 2 * k] * X[:, 2 * k + 1] for k in range(terms)) > 0).astype(int)
    return X, np.where(rng.random(n) < noise, 1 - y, y)


@pytest.mark.parametrize("name", ["linear_svm", "ridge"])
@pytest.mark.parametrize(("n", "d", "apart"), [(40, 300, 0.2), (400, 6, 3.0), (150, 30, 0.5)], ids=str)
def test_the_best_regularisation_is_never_at_the_end_of_a_grid(name: str, n: int, d: int, apart: float) -> None:
    """From many weak features of few samples to few strong features of many."""
    train, test = (clusters(k, d, apart=apart, classes=3, seed=k) for k in (n, 201))
    result = evaluate_head(name, parts(train, test), 3)
    parameter = "alpha" if name == "ridge" else "C"
    values = sorted({setting[parameter] for setting in find_head(name).settings_for(n)})
    assert result.params[parameter] not in (values[0], values[-1])
    finest = 0.6 if n >= 200 else 1.05  # few rows tell fewer apart
    assert max(np.diff(np.log10(values))) < finest


def test_the_strongest_logistic_regression_learns_next_to_nothing_from_noise() -> None:
    """Features of a network repeat each other, so a C of 1e-4 is weak: here 500 of them say the same."""

    def noise(n: int, seed: int) -> Data:
        X = np.repeat(np.random.default_rng(seed).normal(size=(n, 20)), 500, axis=1)
        return X.astype(np.float32), np.arange(n) % 2

    X, y = noise(200, 1)
    head = fit_head("logistic", *noise(100, 0), **find_head("logistic").settings_for(100)[0])
    assert log_loss(y, head.predict_proba(X)) < np.log(2) + 0.001


def spirals(n: int, seed: int) -> Data:
    """Return two classes, one spiral each."""
    rng = np.random.default_rng(seed)
    y, angle = np.arange(n) % 2, rng.uniform(0.5, 3, n) * np.pi
    X = np.stack([angle * np.cos(angle + np.pi * y), angle * np.sin(angle + np.pi * y)], axis=1)
    return (X + 0.3 * rng.normal(size=X.shape)).astype(np.float32), y


def test_kernel_machines_bend_where_classes_are_clean_and_not_where_they_overlap() -> None:
    """A spiral wants the largest C; classes that hardly differ want the smallest, which a tenfold C would overfit."""
    clean = parts(spirals(300, 0), spirals(1000, 1))
    overlapping = parts(*(clusters(n, 20, apart=0.15, classes=2, seed=n, spread=0.0) for n in (400, 2000)))
    for data, least, chosen in ((clean, 0.99, {"C": 10.0}), (overlapping, 0.6, {"C": 0.1})):
        result = evaluate_head("rbf_svm", data, 2)
        assert result.test is not None
        assert result.test.accuracy > least
        assert result.params == chosen


@pytest.mark.parametrize(("name", "most_difference"), [("logistic", 0.06), ("linear_svm", 0.009)])
def test_paths_end_where_decisions_change_little_and_passes_are_few(name: str, most_difference: float) -> None:
    """Of the tolerance: one digit fewer doubles the differences, one more takes a third more passes."""
    X, y = clusters(3000, 40, apart=0.3, classes=5, seed=1, spread=2.0)
    fold, exponents = np.full(len(y), -1), {"logistic": (-6, 1), "linear_svm": (-8, -1)}[name]
    settings = [{"C": C} for C in powers_of_ten(*exponents, per_decade=4)]
    usual, precise = (
        [head for _, (head,) in make_head(name, **tol).fit_path(X, y, fold, settings)] for tol in ({}, {"tol": 1e-9})
    )
    for head, other in zip(usual, precise, strict=True):
        expected = other.decision_function(X)
        assert np.abs(head.decision_function(X) - expected).max() < most_difference * np.abs(expected).max()
    assert sum(head.n_iter_ for head in usual) < 0.35 * sum(head.n_iter_ for head in precise)


def test_perceptrons_are_trained_for_long_enough_at_rates_that_get_there() -> None:
    """Few rows want many epochs, or none of the settings has moved far from where it began."""
    result = evaluate_head("mlp", parts(xor(300, 0), xor(1000, 1)), 2)
    assert result.test is not None
    assert result.test.accuracy > 0.88
    grid = find_head("mlp").settings_for(300)
    assert {setting["hidden_layers"] for setting in grid} == {1, 2}
    assert max(setting["learning_rate"] for setting in grid) >= 3 * min(setting["learning_rate"] for setting in grid)


def test_training_waits_for_long_enough_before_it_stops_early() -> None:
    """Held-out losses go up and down: one round without progress says little, and five as much as all that are left."""
    X, y = xor(1000, 9, 0.25)
    loss = {
        rounds: np.mean(
            [
                log_loss(y, fit_head("mlp", *xor(4000, seed, 0.25), learning_rate=3e-3, **given).predict_proba(X))
                for seed in range(2)
            ]
        )
        for rounds, given in ((1, {"patience": 1}), ("default", {}), ("all", {"patience": 1000}))
    }
    assert loss["default"] < loss[1] - 0.003
    assert loss["default"] < loss["all"] + 0.001


def test_each_weight_decay_of_an_attentive_head_is_the_best_for_some_tokens() -> None:
    """Where labels are few and wrong the strong one is; where they are many and right the weak one."""

    def tokens(n: int, seed: int, noise: float, apart: float) -> Data:
        rng = np.random.default_rng(seed)
        X, y, which = rng.normal(size=(n, 8, 16)), np.arange(n) % 2, rng.integers(0, 8, n)
        X[np.arange(n), which, 0] += apart
        X[np.arange(n), which, 1] += 0.7 * apart * (2 * y - 1)
        return X.reshape(n, -1).astype(np.float32), np.where(rng.random(n) < noise, 1 - y, y)

    strong, weak = find_head("attentive").settings_for(60)
    for n, noise, apart, better, worse in ((60, 0.3, 2.0, strong, weak), (1000, 0.0, 4.0, weak, strong)):
        X, y = tokens(1000, 1, noise, apart)
        loss = [
            log_loss(y, fit_head("attentive", *tokens(n, 0, noise, apart), num_tokens=8, **setting).predict_proba(X))
            for setting in (better, worse)
        ]
        assert loss[0] < loss[1] - 0.03
