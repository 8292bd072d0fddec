"""Layers that begin at the network's input are trained on the images themselves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RUNTIME, TINY, copied, write_cache
from PIL import Image

from featurecache.deployment.predict import predict
from featurecache.errors import RequestError
from featurecache.finetuning.images import TAP, ImageDataset, ImageSet, images_of
from featurecache.finetuning.settings import FineTuning
from featurecache.finetuning.training import LayerTraining
from featurecache.heads.gradient.datasets import Draw
from featurecache.store.gc import TRAINING
from featurecache.store.store import FeatureStore

pytestmark = pytest.mark.usefixtures("few_settings")

TRAIN = ["--task", "colours", "--quiet", "--learning-rate", 0.01, "--backbone", TINY]


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three colours, of which only the features for heads are cached."""
    return write_cache(tmp_path_factory.mktemp("images"), "default", task="colours")


@pytest.fixture
def cache(extracted: Path, tmp_path: Path) -> Path:
    """A copy to write to."""
    return copied(extracted, tmp_path)


@pytest.fixture
def source(cache: Path) -> Path:
    return cache.parent / "photos"


def add(source: Path, cache: Path, call: Callable, *options: object) -> None:
    assert call("extract", source, "--cache", cache, "--backbone", TINY, *RUNTIME, *options)[0] == 0


def images(cache: Path, *folders: Path) -> ImageSet:
    store = FeatureStore.open(cache)
    return images_of(store, store.task("colours"), store.find(tap="pre_logits"), folders)


def trained(cache: Path, feature_set: Any, **tuning: Any) -> Any:
    store = FeatureStore.open(cache)
    how = FineTuning(learning_rate=(0.01,), epochs=3, batch_size=8, **tuning)
    training = LayerTraining(store=store, task=store.task("colours"), tuning=how, backbone=TINY)
    return training.train([feature_set], ["tail"]).best.result


def test_they_give_the_head_that_the_cached_input_gives(source: Path, cache: Path, call: Callable) -> None:
    add(source, cache, call, "--tap", TAP, "--dtype", "float32")
    cached = trained(cache, FeatureStore.open(cache).find(tap=TAP, dtype="float32"))
    streamed = trained(cache, images(cache, source))
    assert streamed.estimator.losses_ == cached.estimator.losses_
    assert len(set(streamed.estimator.losses_)) > 10
    for array, expected in zip(streamed.estimator.arrays_, cached.estimator.arrays_, strict=True):
        np.testing.assert_array_equal(array, expected)
    np.testing.assert_array_equal(streamed.proba, cached.proba)
    assert streamed.selection_score == cached.selection_score


def test_a_view_is_the_one_that_extract_caches_under_its_number(source: Path, cache: Path, call: Callable) -> None:
    add(source, cache, call, "--tap", TAP, "--dtype", "float32", "--views", 4, "--view-seed", 7)
    cached = FeatureStore.open(cache).find(tap=TAP, views=4).open()
    found = images(cache, source)
    indices = np.array([5, 2, 40])
    expected = cached.read(found.rows[indices])
    for number in range(4):
        views = found.dataset.read(indices, Draw(7, number)).numpy()
        np.testing.assert_array_equal(views, expected[:, number])
    beyond = found.dataset.read(indices, Draw(7, 1000)).numpy()
    assert not any(np.array_equal(beyond, expected[:, number]) for number in range(4))
    assert not np.array_equal(found.dataset.read(indices, Draw(8, 0)).numpy(), expected[:, 0])


def test_each_epoch_sees_other_views_and_held_out_images_are_plain(source: Path, cache: Path) -> None:
    found = images(cache, source)
    seen: dict[Draw | None, list[int]] = {}

    class Watching(ImageDataset):
        def read(self, selected: Any, draw: Any = None) -> Any:
            seen.setdefault(draw, []).extend(self.indices[selected].tolist())
            return super().read(selected, draw)

    watching = Watching(found.dataset.files, found.dataset.preprocess)
    trained(cache, replace(found, dataset=watching), augment=("views",))
    assert {draw.number for draw in seen if draw is not None} == {0, 1, 2}
    assert {draw.seed for draw in seen if draw is not None} == {0}
    store = FeatureStore.open(cache)
    looked_at = store.task("colours").rows(found.open(), "test")[0]
    plain = found.rows[np.unique(seen[None])]
    assert set(looked_at) <= set(plain)
    augmented = {index for draw, indices in seen.items() if draw is not None for index in indices}
    assert not set(looked_at) & set(found.rows[sorted(augmented)])


def test_from_images_to_answers(source: Path, cache: Path, call: Callable) -> None:
    options = ["--head", "tail", "--from-images", source, "--epochs", 3, "--batch-size", 8, "--save", "kept"]
    assert call("train", cache, *TRAIN, *options)[0] == 0
    assert not {path.name for path in (cache / "features").glob("*/*")} & {"input=none"}

    store, found = FeatureStore.open(cache), images(cache, source)
    same = trained(cache, found)
    rows, _ = store.task("colours").rows(found.open(), same.reported)
    files = [source / uri for uri in store.samples.uris_of(rows)]
    answers = {answer.path: answer for answer in predict(cache / "heads" / "kept", files, backbone=TINY)}
    for file, expected in zip(files, same.proba, strict=True):
        np.testing.assert_allclose(list(answers[str(file)].probabilities.values()), expected, atol=1e-5)
    assert call("verify", cache)[0] == 0


def test_they_stand_in_one_table_with_other_heads(source: Path, cache: Path, call: Callable) -> None:
    options = ["--head", "tail", "--head", "logistic", "--from-images", source, "--epochs", 3, "--json"]
    status, out, err = call("train", cache, *TRAIN, *options)
    assert status == 0, err
    results = {result["head"]: result for result in json.loads(out)["results"]}
    assert (results["tail"]["tap"], results["logistic"]["tap"]) == (TAP, "pre_logits:none")
    assert [each["against_chosen"] is None for each in json.loads(out)["results"]] == [True, False]


def test_a_head_trained_on_images_is_refused_where_they_are_decoded_otherwise(
    source: Path, cache: Path, call: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of known images that a saved head carries is of the network's input."""
    options = ["--head", "tail", "--from-images", source, "--epochs", 1, "--save", "kept"]
    assert call("train", cache, *TRAIN, *options)[0] == 0
    assert call("predict", cache / "heads" / "kept", source, "--backbone", TINY)[0] == 0
    monkeypatch.setattr("featurecache.extraction.modality.resize_and_crop", flipped)
    status, _, err = call("predict", cache / "heads" / "kept", source, "--backbone", TINY)
    assert status != 0
    assert "the first stage that changed is: preprocessed pixels" in err
    assert call("train", cache, *TRAIN, *options)[0] == 0
    assert call("predict", cache / "heads" / "kept", source, "--backbone", TINY)[0] == 0, "as they are decoded here"


def flipped(image: Image.Image, spec: Any) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((spec.crop, spec.crop))


def test_the_ladder_ends_at_the_images(source: Path, cache: Path, call: Callable) -> None:
    add(source, cache, call, "--tap", "stem:none")
    options = ["--depths", "auto", "--from-images", source, "--augment", "views", "--epochs", 2, "--json"]
    status, out, err = call("train", cache, *TRAIN, *options)
    assert status == 0, err
    rungs = json.loads(out)["ladder"]
    assert [(rung["tap"], rung["num_bytes"]) for rung in rungs] == [
        ("pre_logits:none", 32),
        ("stem:none", 4096),
        (TAP, 0),
    ]
    assert all(rung["seconds"] > 0 for rung in rungs)


def test_with_and_without_views_stand_side_by_side(source: Path, cache: Path, call: Callable) -> None:
    augment = ["--augment", "none", "--augment", "views", "--augment", "mixup"]
    options = ["--head", "tail", "--from-images", source, "--epochs", 2, *augment, "--json"]
    status, out, err = call("train", cache, *TRAIN, *options)
    assert status == 0, err
    document = json.loads(out)
    assert {result["params"].get("augment") for result in document["results"]} == {None, "views", "mixup"}
    verdicts = [result["against_chosen"] for result in document["results"]]
    assert [verdict is None for verdict in verdicts] == [True, False, False]
    assert not (cache / TRAINING).exists()


def test_a_rung_is_the_best_of_its_augmentations(source: Path, cache: Path, call: Callable) -> None:
    add(source, cache, call, "--tap", "stem:none")
    augment = ["--augment", "none", "--augment", "views"]
    options = ["--depths", "auto", "--from-images", source, *augment, "--epochs", 2, "--json"]
    status, out, err = call("train", cache, *TRAIN, *options)
    assert status == 0, err
    document = json.loads(out)
    results = [result for result in document["results"] if result["head"] == "tail"]
    tails = {(result["tap"], result["params"].get("augment")) for result in results}
    assert tails == {(TAP, None), (TAP, "views"), ("stem:none", None)}
    assert len(results) == 3
    assert len(document["ladder"]) == 3
    assert not (cache / TRAINING).exists()


def test_images_are_those_of_the_set_that_has_most_of_them(source: Path, cache: Path, call: Callable) -> None:
    """Another tap of the network may be cached of a part of the images only."""
    part = source.parent / "part"
    shutil.copytree(source / "red", part / "red")
    add(part, cache, call, "--tap", "body:avg")
    options = ["--head", "tail", "--from-images", source, "--epochs", 1]
    status, _, err = call("train", cache, *TRAIN, *options)
    assert status == 0, err


def test_images_whose_features_did_not_fit_their_type_are_trained_on(
    source: Path, tmp_path: Path, call: Callable
) -> None:
    backbone = "python:tiny_backbones:overflowing"
    cache = tmp_path / "o"
    assert call("extract", source, "--cache", cache, "--backbone", backbone, "--dtype", "float16", *RUNTIME)[0] in (
        0,
        1,
    )
    assert call("task", "add", cache, "colours", "--from-folders")[0] == 0
    store = FeatureStore.open(cache)
    cached = store.find()
    assert {status for status, _ in cached.open().bad.values()} <= {"overflow", "non_finite"}
    assert len(cached.open().bad) > 0
    assert len(images_of(store, store.task("colours"), cached, [source]).rows) == 60


def test_finished_fits_are_taken_over_without_a_look_at_their_images(source: Path, cache: Path) -> None:
    found, store = images(cache, source), FeatureStore.open(cache)
    task, reads = store.task("colours"), list[int]()

    class Counting(ImageDataset):
        def read(self, selected: Any, draw: Any = None) -> Any:
            reads.extend(selected.tolist())
            return super().read(selected, draw)

    counted = replace(found, dataset=Counting(found.dataset.files, found.dataset.preprocess))
    tuning = FineTuning(learning_rate=(0.01,), epochs=2, start=("probe",))
    training = LayerTraining(store=store, task=task, tuning=tuning, backbone=TINY)
    first = training.train_head(counted, "tail")
    whole = len(reads)
    reads.clear()
    again = replace(training, tuning=replace(tuning, resume=True)).train_head(counted, "tail")
    evaluated = sum(len(task.rows(found.open(), split)[0]) for split in ("validation", "test"))
    assert len(reads) <= 3 * evaluated < whole
    np.testing.assert_array_equal(again.best.result.proba, first.best.result.proba)


def test_several_folders_and_files_that_moved(source: Path, cache: Path, call: Callable, tmp_path: Path) -> None:
    """Images are recognised by their content, wherever they lie."""
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.move(source / "red", moved / "rosso")
    both = images(cache, source, moved)
    assert len(both.rows) == 60
    with pytest.raises(RequestError, match=r"20 of 60 images of task 'colours' not found in .*photos \(first: red/"):
        images(cache, source)


def test_an_image_that_changes_ends_the_training_in_one_line(source: Path, cache: Path, call: Callable) -> None:
    found = images(cache, source)
    victim = source / "red" / "000.png"
    victim.write_bytes(victim.read_bytes() + b"x")
    with pytest.raises(RequestError, match=r"000\.png cannot be trained on any more: the file was edited"):
        found.dataset.read(np.arange(60))
    with pytest.raises(RequestError, match=r"is none of the images"):
        found.open().read(np.array([10**6]))
    victim.unlink()
    with pytest.raises(RequestError, match=r"000\.png cannot be trained on any more: the file was removed"):
        trained(cache, found)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_an_image_that_is_gone_is_not_called_the_heads_fault(source: Path, cache: Path, split: str) -> None:
    found, store = images(cache, source), FeatureStore.open(cache)
    rows, _ = store.task("colours").rows(found.open(), split)
    (source / store.samples.uris_of(rows[:1])[0]).unlink()
    with pytest.raises(RequestError, match=r"cannot be trained on any more: .*go on with --resume$"):
        trained(cache, found)


def test_bad_images_are_left_out(make_folder: Callable[..., Path], tmp_path: Path, call: Callable) -> None:
    source, cache = make_folder(per_class=12), tmp_path / "bad"
    (source / "red" / "000.png").write_bytes(b"no image")
    add(source, cache, call)
    assert call("task", "add", cache, "colours", "--from-folders")[0] == 0
    assert len(images(cache, source).rows) == 35
    options = ["--head", "tail", "--from-images", source, "--epochs", 1, "--json"]
    status, out, err = call("train", cache, *TRAIN, *options)
    assert status == 0, err
    assert [each["path"] for each in json.loads(out)["left_out"]] == ["red/000.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--head", "tail", "--from-images", "{}/nowhere"], "nowhere"),
        (["--head", "ridge", "--from-images", "{}/photos"], "--from-images is for layers that are trained"),
        (["--head", "tail", "--tap", "pre_logits", "--augment", "views"], "--augment views shows another part of each"),
        (["--depths", "auto", "--tap", "pre_logits", "--augment", "views"], "a ladder needs whole activations"),
        (["--head", "tail", "--from-images", "{}/photos", "--tta"], "holds no views to evaluate heads on"),
        (["--head", "tail", "--from-images", "{}/photos", "--views", "3"], "--views is of cached views"),
    ],
)
def test_requests_that_make_no_sense_say_so(cache: Path, call: Callable, options: list[str], message: str) -> None:
    status, _, err = call("train", cache, *TRAIN, *(option.format(cache.parent) for option in options))
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


def test_of_two_networks_one_must_be_named(source: Path, cache: Path, call: Callable) -> None:
    other = "python:tiny_backbones:other_seed"
    assert call("extract", source, "--cache", cache, "--backbone", other, *RUNTIME)[0] == 0
    options = ["--task", "colours", "--head", "tail", "--from-images", source, "--quiet"]
    status, _, err = call("train", cache, *options)
    assert (status, "are of two networks; say with --backbone or --fingerprint" in err) == (2, True)
