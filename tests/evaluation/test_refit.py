"""The kept head has seen every sample, with the setting that was chosen; the figures are of the fit that had not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import write_cache, write_image
from sklearn.base import clone

import featurecache as fc
from featurecache.cli import main
from featurecache.deployment.kept import keep_head
from featurecache.deployment.saved import open_head
from featurecache.evaluation.refit import fit_chosen, is_fitted
from featurecache.evaluation.trained_head import TrainedHead, reported_rows
from featurecache.evaluation.training import TrainingReport
from featurecache.heads.probability import predict_proba
from featurecache.store.labels import SPLITS
from featurecache.store.store import FeatureStore

HEADS = ("logistic", "ridge", "knn", "gda", "nearest_mean", "linear_svm")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureStore, TrainingReport]:
    store = FeatureStore.open(write_cache(tmp_path_factory.mktemp("refit"), per_class=15))
    return store, fc.train_heads(store, store.task("colour"), store.feature_sets(), HEADS, n_jobs=1)


def all_rows(head: TrainedHead) -> tuple[np.ndarray, np.ndarray]:
    """Every sample of a task, in the slow and obvious way."""
    parts = [head.task.select(head.feature_set.open(), split) for split in SPLITS if head.task.has(split)]
    return np.concatenate([X for X, _ in parts]), np.concatenate([y for _, y in parts])


@pytest.mark.parametrize("name", HEADS)
def test_a_kept_head_is_a_fit_on_every_sample(trained: tuple[FeatureStore, TrainingReport], name: str) -> None:
    store, report = trained
    head = next(head for head in report.heads if head.result.head == name)
    saved = open_head(keep_head(store, name, head))
    X, y = all_rows(head)
    expected = clone(head.result.estimator).fit(X, y)
    np.testing.assert_allclose(
        saved.probabilities(X), predict_proba(expected, X, head.result.temperature, 3), rtol=1e-4, atol=1e-6
    )
    assert saved.meta["fitted_on"] == {"fit": "refitted", "splits": ["train", "validation", "test"], "samples": len(y)}
    assert saved.meta["params"] == head.result.params
    assert head.num_fitted < len(y)


@pytest.mark.parametrize("name", ["logistic", "knn"])
def test_the_evaluated_fit_is_kept_where_it_is_asked_for(
    trained: tuple[FeatureStore, TrainingReport], name: str
) -> None:
    store, report = trained
    head = next(head for head in report.heads if head.result.head == name)
    saved = open_head(keep_head(store, f"{name}-evaluated", head, keep="evaluated"))
    rows, _ = reported_rows(head)
    X = head.feature_set.open().read(rows).astype(np.float32)
    np.testing.assert_array_equal(saved.probabilities(X), head.result.proba)
    fitted = {"fit": "evaluated", "splits": ["train", "validation"], "samples": head.num_fitted}
    assert saved.meta["fitted_on"] == fitted
    # Fitted once more on the same samples it is the same.
    again = fit_chosen(store, head, "evaluated")
    assert (again.splits, again.n_samples) == (("train", "validation"), head.num_fitted)
    np.testing.assert_allclose(again.estimator.predict_proba(X), head.result.estimator.predict_proba(X), atol=1e-7)


def test_memory_changes_nothing(trained: tuple[FeatureStore, TrainingReport]) -> None:
    store, report = trained
    head = next(head for head in report.heads if head.result.head == "ridge")
    X, _ = all_rows(head)
    small, large = (fit_chosen(store, head, memory=memory).estimator for memory in (1, None))
    np.testing.assert_allclose(small.decision_function(X), large.decision_function(X), rtol=1e-5, atol=1e-7)
    assert not is_fitted(clone(small))


def test_views_are_rows_of_the_last_fit_too(tmp_path: Path) -> None:
    write_cache(tmp_path, per_class=8)
    backbone = FeatureStore.open(tmp_path / "c").feature_sets()[0].identity.backbone
    settings = fc.ExtractionSettings(runtime="torch", batch_size=8)
    store = fc.extract(tmp_path / "photos", tmp_path / "c", backbone=backbone, views=3, settings=settings)
    report = fc.train_heads(store, store.task("colour"), [store.find(views=3)], ["knn"], n_jobs=1)
    assert report.best.num_fitted * 3 == report.best.result.n_train
    final = fit_chosen(store, report.best)
    assert final.n_samples == 24
    (rows,) = {array.shape[0] for array in final.estimator.to_arrays().values() if array.ndim == 2}
    assert rows == 72


def test_the_command_line_says_which_fit_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = write_cache(tmp_path, per_class=10)
    capsys.readouterr()
    train = ["train", str(cache), "--task", "colour", "--head", "ridge", "--save", "a"]
    assert main(train) == 0
    assert "fitted once more on every labelled sample; the figures are of a fit on" in capsys.readouterr().out
    assert main([*train, "--keep", "evaluated"]) == 0
    assert "samples that the figures are of" in capsys.readouterr().out
    record = json.loads((cache / "heads" / "a" / "head.json").read_text())
    assert record["meta"]["fitted_on"]["fit"] == "evaluated"
    write_image(tmp_path / "photos" / "red" / "new.png", (200, 30, 30), seed=77)
    assert open_head(cache / "heads" / "a").classes == ["blue", "green", "red"]
