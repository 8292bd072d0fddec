"""What every head does."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from operator import methodcaller
from typing import Any, ClassVar, NamedTuple, get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from featurecache.errors import HeadError
from featurecache.heads.head import Arrays, NamedHead, Setting
from featurecache.heads.probability import decision_values
from featurecache.specs import TaskKind

NUM_ROWS, NUM_FEATURES = 84, 12
METHODS = ("predict_proba", "decision_function", "predict")
"""What an exported head computes is the first of these that it has."""


class Case(NamedTuple):
    """One task of a kind."""

    kind: TaskKind
    num_outputs: int
    """Classes, labels or numbers."""

    def data(self) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Return ``X`` (n_samples, n_features) and ``y``: class indices (n_samples,), or (n_samples, n_outputs)."""
        rng = np.random.default_rng(0)
        X = rng.normal(1, 2, (NUM_ROWS, NUM_FEATURES)).astype(np.float32)
        values = X[:, : self.num_outputs] + 0.3 * rng.normal(size=(NUM_ROWS, self.num_outputs))
        if self.kind == "regression":
            return X, (30 * values + 7).squeeze()
        return X, values.argmax(axis=1) if self.kind == "classification" else (values > 1).astype(np.int64)


CASES = (
    Case("classification", 2),
    Case("classification", 4),
    Case("multilabel", 3),
    Case("regression", 1),
    Case("regression", 3),
)


class HeadContract:
    """Laws of `featurecache.heads.head.Head`; a subclass says how to make one.

    Attributes
    ----------
    path_tolerance : float
        How far, of their largest, scores of a head from `fit_path` may be from those of one fitted by itself. Larger
        where the rows that are held out to stop by, or the order of rows, are others.
    """

    path_tolerance: ClassVar[float] = 1e-3

    def make_head(self) -> Any:
        """Return the unfitted head, for 12 features; with parameters that make it quick."""
        # Not abstract: pytest would pass over a subclass that forgot it, without a word.
        raise NotImplementedError(f"{type(self).__name__} is to define make_head, which this contract asks")

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run a law for each kind of task that the head can learn."""
        if "case" in metafunc.fixturenames:
            cases = [case for case in CASES if case.kind in self.make_head().kinds]
            metafunc.parametrize("case", cases, ids=[f"{case.kind}-{case.num_outputs}" for case in cases])

    def test_it_states_what_it_can_learn(self) -> None:
        head = self.make_head()
        assert head.kinds
        assert head.kinds <= set(get_args(TaskKind))
        assert clone(head).get_params() == head.get_params()

    @pytest.mark.parametrize("n_samples", [1, 7, 1000])
    def test_every_setting_of_its_grid_can_be_set(self, n_samples: int) -> None:
        settings = NamedHead("it", self.make_head()).settings_for(n_samples)
        assert settings
        assert len({repr(setting) for setting in settings}) == len(settings)
        for setting in settings:
            params = self.make_head().set_params(**setting).get_params()
            assert {name: params[name] for name in setting} == setting

    def test_what_it_needs_grows_with_the_task(self) -> None:
        head = NamedHead("it", self.make_head())
        sizes = [(100, 100, 2), (100_000, 100, 2), (100_000, 1000, 2), (100_000, 1000, 50)]
        seconds = [head.seconds_needed(*size) for size in sizes]
        assert sorted(seconds) == seconds
        assert seconds[0] >= 0
        memory = [known for size in sizes if (known := head.memory_needed(*size)) is not None]
        assert len(memory) in (0, len(sizes))
        assert sorted(memory) == memory
        assert all(num_bytes > 0 for num_bytes in memory)

    def test_two_fits_are_equal(self, case: Case) -> None:
        X, _ = case.data()
        assert _predictions(self._fitted(case), X) == _predictions(self._fitted(case), X)

    def test_arrays_bring_it_back_bit_for_bit(self, case: Case) -> None:
        head, (X, _) = self._fitted(case), case.data()
        arrays = head.to_arrays()
        assert {array.dtype.kind for array in arrays.values()} <= set("biufU")  # numbers or text, no objects
        again = type(head).from_arrays({name: array.copy() for name, array in arrays.items()}, **head.get_params())
        assert _predictions(again, X) == _predictions(head, X)
        assert again.to_arrays().keys() == arrays.keys()
        for name, array in again.to_arrays().items():
            assert array.dtype == arrays[name].dtype, name
            assert np.array_equal(array, arrays[name]), name

    def test_it_has_no_arrays_before_it_is_fitted(self) -> None:
        with pytest.raises(HeadError):
            self.make_head().to_arrays()

    def test_arrays_that_do_not_belong_together_are_refused(self, case: Case) -> None:
        """What a stranger wrote must not be stretched to fit, nor read beyond its end."""
        head, (X, _) = self._fitted(case), case.data()
        arrays, expected = head.to_arrays(), _predictions(head, X)
        for what, garbled in _garblings(arrays, getattr(head, "optional_arrays", ())):
            try:
                found = _predictions(type(head).from_arrays(garbled, **head.get_params()), X)
            except HeadError:
                continue
            assert found == expected, f"{what}: is not refused, and predicts something else"

    def test_arrays_of_nan_are_refused_or_seen(self, case: Case) -> None:
        """A head that is read predicts two rows before it is used: what is not finite there is refused."""
        head, (X, y) = self._fitted(case), case.data()
        arrays, expected = head.to_arrays(), _predictions(head, X)
        for name, array in arrays.items():
            unknown = getattr(head, "takes_unknown", False) and array.shape == y.shape  # where NaN says so
            if array.dtype.kind != "f" or unknown:
                continue
            try:
                garbled = type(head).from_arrays({**arrays, name: np.full_like(array, np.nan)}, **head.get_params())
                unseen = bool(np.isfinite(_scores(garbled, X, case)).all())
            except ValueError:  # of which HeadError is one
                continue
            assert not unseen or _predictions(garbled, X) == expected, name

    def test_its_network_predicts_the_same(self, case: Case) -> None:
        import torch

        head, (X, _) = self._fitted(case), case.data()
        with torch.no_grad():
            found = head.to_module()(torch.from_numpy(X)).numpy()
        expected = _scores(head, X, case)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1.0, np.abs(expected).max()))

    def test_a_path_is_what_separate_fits_are(self, case: Case) -> None:
        head, (X, y) = self.make_head(), case.data()
        settings = self._path_settings(head)
        if not settings:
            assert not hasattr(head, "fit_path")
            return
        fold = np.arange(NUM_ROWS) % 4 - 1  # some rows are never held out
        found = list(head.fit_path(X, y, fold, settings))
        assert [setting for setting, _ in found] == settings
        for setting, heads in found:
            assert len(heads) == 3
            ((_, by_itself),) = clone(head).fit_path(X, y, fold, [setting])
            for number, (one, single) in enumerate(zip(heads, by_itself, strict=True)):
                params = one.get_params()
                assert {name: params[name] for name in setting} == setting
                # The law of a path: it is quicker than fits by themselves, and nothing else.
                separate = clone(head).set_params(**setting).fit(X[fold != number], y[fold != number])
                scores = _scores(separate, X, case)
                atol = self.path_tolerance * np.abs(scores).max()
                np.testing.assert_allclose(_scores(one, X, case), scores, rtol=0, atol=atol)
                np.testing.assert_allclose(_scores(one, X, case), _scores(single, X, case), rtol=1e-3, atol=1e-3)

    def _fitted(self, case: Case) -> Any:
        X, y = case.data()
        # A contract is about laws; whether a quick head converges is none.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return self.make_head().fit(X, y)

    def _path_settings(self, head: Any) -> list[Setting]:
        """Return the first, a middle and the last of the settings that `fit_path` fits together."""
        names: frozenset[str] = getattr(head, "path_params", frozenset())
        settings = [
            setting for setting in NamedHead("it", head).settings_for(NUM_ROWS) if setting and setting.keys() <= names
        ]
        return [settings[index] for index in sorted({0, len(settings) // 2, len(settings) - 1})] if settings else []


def _scores(head: Any, X: NDArray[Any], case: Case) -> NDArray[np.float64]:
    """Return what the network of a head computes, (n_samples, n_outputs)."""
    method = next(name for name in METHODS if hasattr(head, name))
    if method == "decision_function" and case.kind == "classification":
        return decision_values(head, X, case.num_outputs)
    return np.asarray(methodcaller(method, X)(head), np.float64).reshape(len(X), -1)


def _predictions(head: Any, X: NDArray[Any]) -> list[bytes]:
    return [np.asarray(methodcaller(method, X)(head)).tobytes() for method in METHODS if hasattr(head, method)]


def _garblings(arrays: Arrays, optional: Sequence[str]) -> Iterator[tuple[str, Arrays]]:
    """Yield arrays with one thing wrong, and what that is; those that may be absent are not left out."""
    yield "an array too many", {**arrays, "no_such_array_": np.zeros(1)}
    for name, array in arrays.items():
        if name not in optional:
            yield f"without {name}", {key: array for key, array in arrays.items() if key != name}
        if array.ndim:
            yield f"{name} twice", {**arrays, name: np.concatenate([array, array])}
            yield f"{name} cut", {**arrays, name: array[:-1]}
            yield f"{name} with an axis more", {**arrays, name: array[None]}
        if array.dtype.kind == "f":
            yield f"{name} as text", {**arrays, name: array.astype(str)}
