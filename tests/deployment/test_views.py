"""Heads trained on views: judged on plain features or test-time views, kept, and applied to new files."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import COLOURS, TINY, write_image

import featurecache as fc
from featurecache.cli import main
from featurecache.deployment.kept import keep_head
from featurecache.deployment.saved import open_head
from featurecache.errors import DriftError, RequestError
from featurecache.evaluation.trained_head import reported_rows
from featurecache.extraction import augmentation
from featurecache.heads.probability import predict_proba
from featurecache.specs import ExtractionSettings, ViewSpec

pytestmark = pytest.mark.usefixtures("few_settings")

SETTINGS = ExtractionSettings(runtime="torch", batch_size=4)
VIEWS = ViewSpec(count=3, seed=5)
HEADS = ["logistic", "linear_svm", "knn"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, fc.FeatureStore]:
    folder = tmp_path_factory.mktemp("made")
    for number, (label, colour) in enumerate(COLOURS.items()):
        for i in range(10):
            write_image(folder / "photos" / label / f"{i}.png", colour, seed=100 * number + i)
    (folder / "photos" / "red" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    store = fc.extract(folder / "photos", folder / "cache", backbone=TINY, views=VIEWS, settings=SETTINGS)
    store.add_task("colour", fc.labels_from_folders())
    return folder / "photos", store


@functools.cache
def train(store: fc.FeatureStore, *, tta: bool = False) -> fc.evaluation.training.TrainingReport:
    return fc.train_heads(store, store.task("colour"), [store.find(views=3)], HEADS, tta=tta, n_jobs=1)


def test_a_head_on_views_is_one_fitted_on_all_their_rows(made: tuple) -> None:
    _, store = made
    report, task = train(store), store.task("colour")
    head = next(h for h in report.heads if h.result.head == "logistic")
    views, plain = store.features(views=3), store.features()
    X, y = (
        np.concatenate(both)
        for both in zip(*(task.select_views(views, s) for s in ("train", "validation")), strict=True)
    )
    by_hand = fc.fit_head("logistic", X.reshape(-1, 16), np.repeat(y, 3), **head.result.params)
    X_test, y_test = task.select(plain, "test")
    expected = predict_proba(by_hand, X_test, head.result.temperature, 3)
    np.testing.assert_allclose(head.result.proba, expected, atol=1e-6)
    rows, y_reported = reported_rows(head)
    np.testing.assert_array_equal(y_reported, y_test)
    np.testing.assert_array_equal(rows, task.rows(views, "test")[0])
    assert len(report.left_out) == 1
    assert (head.to_json()["views"], head.to_json()["judged_on"]) == (3, "plain")


def test_time_views_average_probabilities(made: tuple) -> None:
    _, store = made
    task, views = store.task("colour"), store.features(views=3)
    for head in train(store, tta=True).heads:
        X, _ = task.select_views(views, "test")
        every = predict_proba(head.result.estimator, X.reshape(-1, 16), head.result.temperature, 3).reshape(-1, 3, 3)
        np.testing.assert_allclose(head.result.proba, every.mean(axis=1), atol=1e-12)
        assert head.evaluated_on == "views"


@pytest.mark.parametrize("head_name", HEADS)
def test_new_files_get_the_answers_of_cached_ones(made: tuple, head_name: str) -> None:
    source, store = made
    head = next(h for h in train(store).heads if h.result.head == head_name)
    folder = keep_head(store, head_name, head)
    saved = open_head(folder)
    assert saved.identity.views == VIEWS
    assert saved.meta["judged_on"] == "plain"
    listing = store.listings.load(source)
    good = [(path, row) for path, row in zip(listing.paths, listing.rows.tolist(), strict=True) if "bad" not in path]
    for tta, features in ((None, store.features()), (3, store.features(views=3))):
        answers = list(fc.predict(folder, [source], backbone=TINY, tta=tta, settings=SETTINGS))
        assert {a.path: a.status for a in answers if a.label is None} == {str(source / "red/bad.png"): "not_an_image"}
        rows = features.read(np.array([row for _, row in good])).astype(np.float32)
        expected = saved.probabilities(rows, num_views=tta or 1)
        found = [list(a.probabilities.values()) for a in answers if a.label is not None]
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_views_of_a_head_on_plain_features_are_the_default_ones(made: tuple, tmp_path: Path) -> None:
    source, store = made
    report = fc.train_heads(store, store.task("colour"), [store.find()], ["logistic"], n_jobs=1)
    folder = keep_head(store, "plain", report.best)
    file = source / "red" / "1.png"
    shutil.copy(file, tmp_path / "other name.png")
    one, two = (list(fc.predict(folder, [f], backbone=TINY, tta=4, settings=SETTINGS)) for f in (file, tmp_path))
    assert one[0].probabilities == two[0].probabilities  # the bytes decide, not the name
    (plain,) = fc.predict(folder, [file], backbone=TINY, settings=SETTINGS)
    assert one[0].probabilities != plain.probabilities
    with pytest.raises(RequestError, match="views count must be a whole number from 1 to 256, got 0"):
        fc.predict(folder, [file], backbone=TINY, tta=0)


def test_a_machine_with_other_transforms_is_refused(made: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    source, store = made
    folder = keep_head(store, "guarded", train(store).best)
    monkeypatch.setattr(augmentation, "seed_of_view", lambda views, sample, number: number)
    with pytest.raises(DriftError, match="preprocessed pixels"):
        list(fc.predict(folder, [source], backbone=TINY, settings=SETTINGS))


def test_what_is_missing_is_said(made: tuple, tmp_path: Path) -> None:
    _, store = made
    shutil.copytree(store.path, tmp_path / "c")
    plain = store.find()
    shutil.rmtree(tmp_path / "c" / "features" / plain.fingerprint)
    without = fc.FeatureStore.open(tmp_path / "c")
    with pytest.raises(
        RequestError,
        match="evaluated on its plain features, which are not in .* as float16; run `featurecache extract SOURCE "
        f"--cache .*c --backbone {TINY} --tap pre_logits:none --dtype float16`, or pass --tta",
    ):
        train(without)
    assert train(without, tta=True).heads
    judged = fc.train_heads(store, store.task("colour"), [plain], HEADS, tta=True).best
    assert (judged.feature_set.num_views, judged.eval_set.num_views) == (None, 3)
    shutil.copytree(store.path, tmp_path / "p")
    shutil.rmtree(tmp_path / "p" / "features" / store.find(views=3).fingerprint)
    alone = fc.FeatureStore.open(tmp_path / "p")
    with pytest.raises(RequestError, match="holds no views to evaluate heads on; leave --tta out"):
        fc.train_heads(alone, alone.task("colour"), [alone.find()], HEADS, tta=True)
    with pytest.raises(RequestError, match="has 3 views of each sample; take them with select_views"):
        store.task("colour").select(store.features(views=3), "train")


def said(capsys: pytest.CaptureFixture, *command: str) -> dict:
    assert main([*command, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_the_command_line(made: tuple, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source, _ = made
    photos, cache = tmp_path / "photos", str(tmp_path / "c")
    shutil.copytree(source, photos, ignore=shutil.ignore_patterns("bad.png"))
    extract = ["extract", str(photos), "--cache", cache, "--backbone", TINY, "--runtime", "torch"]
    report = said(capsys, *extract, "--views", "2", "--view-seed", "7")
    assert [s["views"] for s in report["features"]] == [None, 2]
    assert main([*extract, "--view-seed", "7"]) == 2
    assert "view seed 7 is for views only; add --views K" in capsys.readouterr().err
    said(capsys, "task", "add", cache, "colour", "--from-folders")
    options = ["train", cache, "--task", "colour", "--head", "logistic"]
    assert [r["views"] for r in said(capsys, *options)["results"]] == [None]
    assert [r["views"] for r in said(capsys, *options, "--tap", "pre_logits")["results"]] == [None]
    assert [r["views"] for r in said(capsys, *options, "--views", "2")["results"]] == [2]
    assert {r["views"] for r in said(capsys, *options, "--tap", "all")["results"]} == {None, 2}
    judged = said(capsys, *options, "--tta", "--save", "best")  # it only judges: heads train on the plain features
    assert (judged["chosen"]["views"], judged["chosen"]["judged_on"]) == (None, "views")
    assert judged["results"][0]["judged_views"] == 2
    both = said(capsys, *options, "--tta", "--views", "2")
    assert (both["chosen"]["views"], both["chosen"]["judged_on"]) == (2, "views")
    (swept,) = said(capsys, "sweep", cache, "--tap", "pre_logits", "--head", "logistic", "--tta")["rows"]
    assert (swept["views"], swept["judged_on"]) == (None, "views")
    predict = ["predict", f"{cache}/heads/best", str(photos), "--backbone", TINY]
    assert said(capsys, *predict, "--tta", "2") != said(capsys, *predict)
    (kept,) = {f["views"]["seed"] for f in said(capsys, "ls", cache)["features"] if f["views"]}
    assert kept == 7
    assert main(["ls", cache]) == 0
    assert "views" in capsys.readouterr().out
    assert main(["info", cache, "--source", str(photos)]) == 0
    out = capsys.readouterr().out
    assert "views: 2 of each sample (seed 7), area 0.35,1, width over height 0.75,1.333, flip 0.5" in out
    assert "2 views: 30 of 30 samples cached" in out
    assert main([*options, "--tta", "--save", "best"]) == 0
    out = capsys.readouterr().out
    assert f"NEW_IMAGES --backbone {TINY} --tta 2" in out
    assert "evaluated on the mean over its 2 views" in out
    said(capsys, "convert", cache, "--to", "int8", "--views", "2")
    said(capsys, *extract, "--views", "3")
    assert said(capsys, *options, "--tta")["results"][0]["judged_views"] == 3
    said(capsys, *extract, "--views", "3", "--view-seed", "8")
    assert main([*options, "--tta"]) == 2
    assert "name one with --views 3 --fingerprint" in capsys.readouterr().err


def test_test_time_views_need_views(made: tuple, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source, _ = made
    cache = str(tmp_path / "c")
    run = ["run", str(source), "--cache", cache, "--backbone", TINY, "--runtime", "torch", "--head", "logistic"]
    assert main([*run, "--tta"]) == 2
    assert "--tta evaluates heads on views of each image; add --views K" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
    report = said(capsys, *run, "--views", "2")
    assert {r["views"] for r in report["results"]} == {None, 2}
    assert "2 views" in (tmp_path / "c" / "report.html").read_text()
    fc.extract(source, tmp_path / "d", backbone=TINY, settings=SETTINGS).add_task("colour", fc.labels_from_folders())
    assert main(["train", str(tmp_path / "d"), "--task", "colour", "--tta"]) == 2
    assert "holds no views to evaluate heads on" in capsys.readouterr().err
    assert main([*run, "--views", "2", "--tta"]) == 0
    out = capsys.readouterr().out
    assert "evaluated on the mean over its 2 views" in out
    assert "--tta 2" in out
