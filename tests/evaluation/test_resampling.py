"""Divisions: nothing is on two sides, fewer labels are a part of more, test stays untouched unless asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurecache.errors import RequestError, TaskError
from featurecache.evaluation.plan import Resampling, resample
from featurecache.evaluation.split_data import SplitData
from featurecache.store.splits import strata_of_numbers

pytestmark = pytest.mark.quick


def part(start: int, counts: list[int]) -> SplitData:
    """Samples whose only feature is their own number."""
    y = np.repeat(np.arange(len(counts)), counts)
    X = (start + np.arange(len(y), dtype=np.float32)).reshape(-1, 1, 1)
    return SplitData(y=y, fit_views=X, eval_views=X)


def part_of(kind: str, start: int, size: int, num_groups: int | None = None) -> SplitData:
    """Samples with two labels, or two numbers, whose only feature is their own number."""
    rng = np.random.default_rng(start)
    y = rng.integers(0, 2, (size, 2)) if kind == "multilabel" else rng.normal(size=(size, 2))
    X = (start + np.arange(size, dtype=np.float32)).reshape(-1, 1, 1)
    groups = None if num_groups is None else start + rng.permutation(np.arange(size) % num_groups)
    return SplitData(y=y, fit_views=X, eval_views=X, groups=groups)


def parts(*names: str, counts: tuple[int, ...] = (12, 8, 20)) -> dict[str, SplitData]:
    return {name: part(1000 * place, list(counts)) for place, name in enumerate(("train", *names))}


def numbers(which: SplitData) -> list[int]:
    return which.eval_views[:, 0, 0].astype(int).tolist()


@given(
    names=st.sampled_from([("validation",), ("test",), ("validation", "test")]),
    seed=st.integers(0, 5),
    folds=st.sampled_from([None, 2, 4]),
    shots=st.sampled_from([None, 1, 3, 100]),
)
def test_every_sample_is_on_one_side_and_test_is_never_looked_at(names, seed, folds, shots):
    given_parts = parts(*names)
    for fold in range(folds or 1):
        division = Resampling(seed=seed, fold=fold if folds else None, num_folds=folds, shots=shots)
        divided = resample(given_parts, division)
        assert set(divided) == {"train", "validation"}
        fitted, judged = (numbers(divided[name]) for name in ("train", "validation"))
        assert not set(fitted) & set(judged)
        assert len(set(fitted)) == len(fitted)
        if "test" in names:
            assert not {*fitted, *judged} & set(numbers(given_parts["test"]))
        all_train = numbers(given_parts["train"]) + (
            numbers(given_parts["validation"]) if "validation" in names else []
        )
        if shots is None and (folds or "validation" not in names):
            assert sorted(fitted + judged) == sorted(all_train)
        if shots is not None:
            available = np.bincount(
                resample(given_parts, Resampling(seed=seed, fold=division.fold, num_folds=folds))["train"].y
            )
            assert np.bincount(divided["train"].y).tolist() == np.minimum(available, shots).tolist()


def test_folds_judge_every_sample_once():
    given_parts = parts("validation", "test")
    divided = [resample(given_parts, Resampling(fold=k, num_folds=4)) for k in range(4)]
    judged = [number for each in divided for number in numbers(each["validation"])]
    everything = numbers(given_parts["train"]) + numbers(given_parts["validation"])
    assert sorted(judged) == sorted(everything)


@pytest.mark.parametrize("name", ["shots", "share"])
def test_fewer_labels_are_a_part_of_more(name):
    given_parts = parts("validation")
    amounts = [1, 2, 5, 11] if name == "shots" else [0.05, 0.3, 0.5, 1.0]
    seen: set[int] = set()
    for amount in amounts:
        fitted = set(numbers(resample(given_parts, Resampling(seed=3, **{name: amount}))["train"]))
        assert seen < fitted
        seen = fitted
    other = set(numbers(resample(given_parts, Resampling(seed=4, **{name: amounts[1]}))["train"]))
    assert other != set(numbers(resample(given_parts, Resampling(seed=3, **{name: amounts[1]}))["train"]))


def test_a_look_at_test_must_be_asked_for():
    given_parts = parts("validation", "test")
    whole = resample(given_parts, Resampling(on_test=True))
    assert {name: numbers(each) for name, each in whole.items()} == {
        name: numbers(each) for name, each in given_parts.items()
    }
    few = resample(given_parts, Resampling(on_test=True, shots=2))
    assert set(few) == {"train", "test"}
    assert len(few["train"]) == 6
    with pytest.raises(RequestError, match="no test split; leave --look-at-test out"):
        resample(parts("validation"), Resampling(on_test=True))


@pytest.mark.parametrize("names", [("validation", "test"), ("test",)])
@pytest.mark.parametrize("folds", [None, 3])
def test_groups_are_never_divided(names, folds):
    rng = np.random.default_rng(0)
    given_parts = {}
    for place, (name, each) in enumerate(parts(*names, counts=(40, 30, 50)).items()):
        given_parts[name] = replace(each, groups=100 * place + rng.integers(0, 15, len(each)))
    group_of = {n: g for each in given_parts.values() for n, g in zip(numbers(each), each.groups.tolist(), strict=True)}
    for fold in range(folds or 1):
        division = Resampling(seed=1, fold=fold if folds else None, num_folds=folds)
        divided = resample(given_parts, division)
        fitted, judged = ({group_of[n] for n in numbers(divided[name])} for name in ("train", "validation"))
        assert not fitted & judged
        for each in divided.values():
            assert each.groups.tolist() == [group_of[n] for n in numbers(each)]


def test_too_few_groups_for_folds():
    few = replace(part(0, [10, 10]), groups=np.arange(20) % 2)
    with pytest.raises(TaskError, match="the smallest class has 2 groups, too few for 3 folds"):
        resample({"train": few}, Resampling(fold=0, num_folds=3))


def test_classes_too_small_to_divide():
    with pytest.raises(TaskError, match="the smallest class has 2 samples, too few for 3 folds; ask for fewer folds"):
        resample(parts("test", counts=(2, 9)), Resampling(fold=0, num_folds=3))
    with pytest.raises(TaskError, match="no class has enough train samples to hold out a quarter"):
        resample(parts("test", counts=(1, 1)), Resampling())


@given(
    kind=st.sampled_from(["multilabel", "regression"]),
    names=st.sampled_from([("train", "test"), ("train", "validation", "test")]),
    folds=st.sampled_from([None, 2, 4]),
    share=st.sampled_from([None, 0.01, 0.3]),
    num_groups=st.sampled_from([None, 7]),
    size=st.sampled_from([8, 23, 60]),
    seed=st.integers(0, 3),
)
def test_labels_and_numbers_are_divided_by_the_same_laws(kind, names, folds, share, num_groups, size, seed):
    given_parts = {name: part_of(kind, 1000 * place, size, num_groups) for place, name in enumerate(names)}
    pool = [number for name in names[:-1] for number in numbers(given_parts[name])]
    judged_once: list[int] = []
    for fold in range(folds or 1):
        division = Resampling(seed=seed, fold=fold if folds else None, num_folds=folds)
        whole = resample(given_parts, division, kind=kind)
        fitted, judged = (numbers(whole[name]) for name in ("train", "validation"))
        assert sorted(fitted + judged) == sorted(pool)
        assert judged
        judged_once += judged
        if num_groups is not None:
            assert not set(whole["train"].groups) & set(whole["validation"].groups)
        if share is not None:
            fewer = resample(given_parts, replace(division, share=share), kind=kind)
            assert numbers(fewer["validation"]) == judged
            assert set(numbers(fewer["train"])) < set(fitted)
            assert share * len(fitted) <= len(fewer["train"]) <= share * len(fitted) + 5
    if folds:
        assert sorted(judged_once) == sorted(pool)


@pytest.mark.parametrize("division", [Resampling(), Resampling(fold=1, num_folds=4), Resampling(share=0.2)])
def test_numbers_are_divided_within_fifths(division):
    train = part_of("regression", 0, 100)
    fifths = dict(zip(numbers(train), strata_of_numbers(train.y).tolist(), strict=True))
    divided = resample({"train": train}, division, kind="regression")
    for each in divided.values():
        assert len(set(np.bincount([fifths[n] for n in numbers(each)], minlength=5))) == 1


@pytest.mark.parametrize("kind", ["multilabel", "regression"])
def test_labels_and_numbers_too_few_to_divide(kind):
    with pytest.raises(TaskError, match="the task has 3 samples, too few for 4 folds; ask for fewer folds"):
        resample({"train": part_of(kind, 0, 3)}, Resampling(fold=0, num_folds=4), kind=kind)
    with pytest.raises(TaskError, match="the task has 2 groups, too few for 4 folds; .* or add a validation split"):
        resample({"train": part_of(kind, 0, 30, num_groups=2)}, Resampling(), kind=kind)
    with pytest.raises(TaskError, match="2 train samples are too few to hold out a quarter; add a validation split"):
        resample({"train": part_of(kind, 0, 2)}, Resampling(), kind=kind)
