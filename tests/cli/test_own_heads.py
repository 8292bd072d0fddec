"""Heads that somebody brings along: by a name that is typed, or by an installed package."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, write_cache
from own_heads import Priors

from featurecache import plugins
from featurecache.cli import main
from featurecache.code_notice import notice_code_of_others
from featurecache.errors import FeatureCacheError, HeadError
from featurecache.heads import registry
from featurecache.heads.bundle import load_head, save_head
from featurecache.heads.registry import find_head, list_heads

pytestmark = pytest.mark.usefixtures("few_settings")

HERE = "python:own_heads:"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("heads"), per_class=12)


@pytest.fixture
def cached(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    capsys.readouterr()
    return Path(shutil.copytree(made, tmp_path / "c"))


def test_an_estimator_of_your_own_stands_in_the_table(cached: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = ["train", str(cached), "--task", "colour", "--quiet", "--json"]
    assert main([*train, "--head", f"{HERE}tree", "--head", "knn"]) == 0
    said = capsys.readouterr()
    results = {each["head"]: each for each in json.loads(said.out)["results"]}
    assert set(results) == {f"{HERE}tree", "knn"}
    assert results[f"{HERE}tree"]["params"]["max_depth"] in (1, 3)


def test_it_is_said_that_code_of_others_runs(
    cached: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    notice_code_of_others.cache_clear()
    with caplog.at_level("WARNING"):
        assert main(["train", str(cached), "--task", "colour", "--head", f"{HERE}tree", "--json"]) == 0
    assert f"{HERE}tree imports own_heads and runs its code" in caplog.text
    capsys.readouterr()


def test_it_is_kept_only_if_it_states_its_arrays(cached: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = ["train", str(cached), "--task", "colour", "--quiet"]
    assert main([*train, "--head", f"{HERE}tree", "--save", "best"]) == 1
    said = capsys.readouterr()
    assert "a DecisionTreeClassifier cannot be saved: it states no arrays" in said.err
    assert f"chosen by validation: {HERE}tree" in said.out or f"chosen by cross-validation: {HERE}tree" in said.out
    assert not (cached / "heads" / "best").exists()
    assert main([*train, "--head", f"{HERE}Priors", "--save", "best"]) == 0
    said = capsys.readouterr()
    assert f"--layers {HERE}Priors" in said.out


def test_a_kept_one_runs_only_where_it_is_named(cached: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(cached), "--task", "colour", "--quiet", "--head", f"{HERE}Priors", "--save", "best"]) == 0
    capsys.readouterr()
    predict = ["predict", str(cached / "heads" / "best"), str(made.with_name("photos")), "--quiet", "--backbone", TINY]
    assert main(predict) == 2
    assert f"if you trust it, pass --layers {HERE}Priors" in capsys.readouterr().err
    assert main([*predict, "--layers", f"{HERE}Priors"]) == 0
    assert main(["verify", str(cached)]) == 0


def test_a_sweep_keeps_none_of_its_results(cached: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def counts() -> tuple[int, int]:
        assert main(["sweep", str(cached), "--head", f"{HERE}tree", "--head", "knn", "--quiet", "--json"]) == 0
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        return document["kept"], document["computed"]

    assert counts() == (0, 2)
    assert counts() == (1, 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "returned a int; it must return an unfitted scikit-learn classifier or regressor"),
        ("failing", "failed: no such luck"),
        ("needs", "layers of a network are trained with --from-tap or --from-images"),
        ("regressor", "is for multilabel or regression, and the task is of kind classification"),
        ("absent", "cannot be imported"),
    ],
)
def test_what_is_no_head_is_said(cached: Path, name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(cached), "--task", "colour", "--quiet", "--head", HERE + name]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    entry = EntryPoint("priors", "own_heads:Priors", registry.ENTRY_POINTS)
    monkeypatch.setattr(
        plugins, "entry_points", lambda group, **names: EntryPoints([entry]).select(group=group, **names)
    )
    registry._classes.cache_clear()
    yield
    registry._classes.cache_clear()


@pytest.mark.usefixtures("installed")
def test_an_installed_package_adds_a_head_by_its_name() -> None:
    assert "priors" in list_heads()
    assert find_head("priors").settings_for(10) == [{"smoothing": 0.0}, {"smoothing": 1.0}]


@pytest.mark.usefixtures("installed")
def test_its_arrays_are_checked(tmp_path: Path) -> None:
    head = Priors().fit(np.zeros((4, 2)), [0, 1, 1, 1])
    save_head(tmp_path / "head", head, {})
    assert load_head(tmp_path / "head")[0].predict_proba(np.zeros((1, 2))).tolist() == [[0.25, 0.75]]
    with pytest.raises(HeadError, match="its Priors has no shares_"):
        Priors.from_arrays({"n_features_in_": np.asarray(2), "classes_": np.arange(2)})


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            EntryPoint("broken", "no_such_module:Head", registry.ENTRY_POINTS),
            "head 'broken' of .* cannot be used: Module",
        ),
        (
            EntryPoint("odd", "own_heads:tree", registry.ENTRY_POINTS),
            "head .odd. of .* cannot be used: it is no class that states",
        ),
        (EntryPoint("knn", "own_heads:Priors", registry.ENTRY_POINTS), "a head under a name that is taken, 'knn'"),
    ],
)
def test_a_package_whose_head_is_none_is_named(
    entry: EntryPoint, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        plugins, "entry_points", lambda group, **names: EntryPoints([entry]).select(group=group, **names)
    )
    registry._classes.cache_clear()
    try:
        with pytest.raises(FeatureCacheError, match=message):
            list_heads()
    finally:
        registry._classes.cache_clear()
