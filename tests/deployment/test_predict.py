"""A saved head gives new files the answers that cached ones got, and refuses another backbone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import COLOURS, TINY, write_image

import featurecache as fc
from featurecache.deployment.kept import keep_head
from featurecache.deployment.saved import open_head
from featurecache.errors import BackboneMismatchError, HeadError, RequestError, SourceError
from featurecache.evaluation.training import TrainingReport
from featurecache.extraction.reproduction import reproduce_backbone
from featurecache.heads.registry import HEADS
from featurecache.specs import ExtractionSettings

pytestmark = pytest.mark.usefixtures("few_settings")

SETTINGS = ExtractionSettings(runtime="torch", batch_size=4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, fc.FeatureStore, TrainingReport]:
    folder = tmp_path_factory.mktemp("trained")
    for number, (label, colour) in enumerate(COLOURS.items()):
        for i in range(10):
            write_image(folder / "photos" / label / f"{i}.png", colour, seed=100 * number + i)
    store = fc.extract(folder / "photos", folder / "cache", backbone=TINY, settings=SETTINGS)
    task = store.add_task("colour", fc.labels_from_folders())
    return folder / "photos", store, fc.train_heads(store, task, store.feature_sets(), HEADS, n_jobs=1)


@pytest.mark.parametrize("name", HEADS)
def test_new_files_get_the_answers_of_cached_ones(trained: tuple, name: str) -> None:
    source, store, report = trained
    head = next(h for h in report.heads if h.result.head == name)
    folder = keep_head(store, name, head)
    listing = store.listings.load(source)
    answers = list(fc.predict(folder, [source], backbone=TINY, settings=SETTINGS))
    assert [a.path for a in answers] == [str(source / path) for path in listing.paths]
    features = store.features().read(listing.rows).astype(np.float32)
    expected = open_head(folder).probabilities(features)
    for answer, row in zip(answers, expected, strict=True):
        assert answer.label == report.task.classes[int(row.argmax())]
        assert answer.probability == pytest.approx(row.max(), abs=1e-6)
        assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-5)


def test_a_bad_file_has_a_reason_and_stops_nothing(trained: tuple, tmp_path: Path) -> None:
    _, store, report = trained
    folder = keep_head(store, "best", report.best)
    write_image(tmp_path / "in" / "a.png", COLOURS["red"], seed=1)
    (tmp_path / "in" / "b.jpg").write_bytes(b"")
    write_image(tmp_path / "in" / "c.png", COLOURS["blue"], seed=2)
    answers = list(fc.predict(folder, [tmp_path / "in"], backbone=TINY, settings=SETTINGS))
    assert [a.label for a in answers] == ["red", None, "blue"]
    assert (answers[1].status, answers[1].reason) == ("empty", "the file has no bytes")


def test_code_of_strangers_runs_only_when_named(trained: tuple) -> None:
    _, store, report = trained
    folder = keep_head(store, "best", report.best)
    with pytest.raises(
        BackboneMismatchError, match="which is code on this machine; if you trust it, pass --backbone python:"
    ):
        fc.predict(folder, [folder / "head.json"])
    with pytest.raises(BackboneMismatchError, match="pass --backbone"):
        fc.predict(folder, [folder / "head.json"], backbone="python:tiny_backbones:other_seed")


def test_other_weights_are_refused_and_named(trained: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    import tiny_backbones

    source, store, report = trained
    saved = open_head(keep_head(store, "best", report.best))
    again = reproduce_backbone(saved.identity, "python factory", needed_by="this head", backbone=TINY)
    assert again.identity == saved.identity
    monkeypatch.setattr(tiny_backbones, "tiny", tiny_backbones.other_seed)
    with pytest.raises(
        BackboneMismatchError,
        match=r"backbone of this head cannot be reproduced here: weights \w{12} -> \w{12}\. It was made with python",
    ):
        fc.predict(store.heads_path / "best", [source], backbone=TINY)


def test_nothing_to_predict_and_no_head_are_clear(trained: tuple, tmp_path: Path) -> None:
    _, store, report = trained
    folder = keep_head(store, "best", report.best)
    with pytest.raises(SourceError, match="no input at"):
        fc.predict(folder, [tmp_path / "none.jpg"], backbone=TINY)
    with pytest.raises(HeadError, match=str(tmp_path)):
        fc.predict(tmp_path, [folder / "head.json"])
    with pytest.raises(RequestError, match="cannot be the name of a head"):
        keep_head(store, "../escape", report.best)


def test_a_saved_head_says_what_it_is(trained: tuple) -> None:
    _, store, report = trained
    folder = keep_head(store, "best", report.best)
    assert sorted(path.name for path in folder.iterdir()) == ["head.json", "head.safetensors"]
    meta = json.loads((folder / "head.json").read_text())["meta"]
    assert meta["classes"] == ["blue", "green", "red"]
    assert meta["identity"]["backbone"] == TINY
    assert meta["test"]["accuracy_low"] <= meta["test"]["accuracy"]


def test_a_head_on_int8_features_answers_as_in_training(trained: tuple, tmp_path: Path) -> None:
    source, _, _ = trained
    settings = ExtractionSettings(runtime="torch", batch_size=4, dtype="int8")
    store = fc.extract(source, tmp_path / "c", backbone=TINY, settings=settings)
    task = store.add_task("colour", fc.labels_from_folders())
    folder = keep_head(store, "int8", fc.train_heads(store, task, store.feature_sets(), ["logistic"], n_jobs=1).best)
    answers = list(fc.predict(folder, [source], backbone=TINY, settings=SETTINGS))
    assert [answer.label for answer in answers] == [Path(answer.path).parent.name for answer in answers]
