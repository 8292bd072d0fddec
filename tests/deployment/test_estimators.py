"""Backbones and kept heads among scikit-learn's estimators, and networks that a program holds."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import COLOURS, TINY, write_folder
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.validation import check_is_fitted
from torch import nn

import featurecache as fc
from featurecache.errors import BackboneError, InputError, NotAgreedError, RequestError
from featurecache.extraction.job import ExtractionJob
from featurecache.sources.opening import source_spec
from featurecache.specs import BackboneRequest, ExtractionSettings
from featurecache.train import TrainingSettings

pytestmark = pytest.mark.usefixtures("few_settings")
SETTINGS = ExtractionSettings(runtime="torch", batch_size=4)


class Network(nn.Module):
    """Colours to two numbers by way of eight features."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 7, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(8, 2)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return self.fc(self.trunk(images_BCHW))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("estimators") / "photos", per_class=8)


@pytest.fixture(scope="module")
def done(photos: Path) -> fc.RunReport:
    training = TrainingSettings(heads=("logistic",))
    return fc.run(photos, cache=photos.parent / "c", backbone=TINY, settings=SETTINGS, training=training)


def test_a_backbone_takes_paths_arrays_pictures_and_frames_alike(photos: Path) -> None:
    pandas = pytest.importorskip("pandas")
    paths = sorted(photos.rglob("*.png"))[:6]
    pictures = [Image.open(path) for path in paths]
    arrays = [np.asarray(picture.convert("RGB")) for picture in pictures]
    backbone = fc.FrozenBackbone(TINY, runtime="torch")
    expected = backbone.fit_transform(paths)
    for X in (
        [str(path) for path in paths],
        pictures,
        arrays,
        np.stack(arrays),
        [path.read_bytes() for path in paths],
        pandas.DataFrame({"image": paths}, index=[f"row {k}" for k in range(6)]),
        np.array([[str(path)] for path in paths]),
    ):
        np.testing.assert_allclose(backbone.transform(X), expected, atol=1e-5)
    twice = backbone.transform([paths[0], paths[0]])  # as a bootstrap has them
    np.testing.assert_array_equal(twice[0], twice[1])
    with pytest.raises(RequestError, match="a data frame of images or texts has one column, and this has 2"):
        backbone.transform(pandas.DataFrame({"a": paths, "b": paths}))
    with pytest.raises(InputError):
        backbone.transform([photos / "gone.png"])


def test_a_backbone_is_one_of_scikit_learns_transformers(photos: Path) -> None:
    paths = sorted(photos.rglob("*.png"))
    backbone = fc.FrozenBackbone(TINY, runtime="torch")
    with pytest.raises(NotFittedError):
        backbone.transform(paths)
    with pytest.raises(NotFittedError):
        backbone.get_feature_names_out()
    again = clone(backbone).set_params(batch_size=2).set_output(transform="pandas")
    frame = again.fit_transform(paths[:4])
    check_is_fitted(again)
    assert list(frame.columns) == list(again.get_feature_names_out())
    assert frame.shape == (4, len(frame.columns))
    model = make_pipeline(fc.FrozenBackbone(TINY, runtime="torch"), LogisticRegression()).fit(
        paths, [path.parent.name for path in paths]
    )
    assert model.score(paths, [path.parent.name for path in paths]) > 0.9
    assert model[:-1].get_feature_names_out()[0].endswith("_0")


def test_a_loaded_head_predicts_on_features_and_on_images(done: fc.RunReport, photos: Path) -> None:
    assert done.saved is not None
    head = fc.load_head(done.saved, backbone=TINY, settings=SETTINGS)
    assert list(head.classes_) == sorted(COLOURS)
    store = done.extraction.store
    (listing,) = store.listings.all()
    X = store.features().read(listing.rows).astype(np.float32)
    on_features = head.predict_proba(X)
    on_images = head.predict_proba(photos)
    np.testing.assert_allclose(on_features, on_images, atol=2e-3)
    assert head.predict(X).tolist() == [path.split("/")[0] for path in listing.paths]
    assert head.predict(np.asarray(X[:2], np.float64)).shape == (2,)
    assert clone(head).predict(X[:1]).tolist() == head.predict(X[:1]).tolist()
    assert head.fit() is head
    with pytest.raises(RequestError, match=r"takes \d+ features of a sample, and these are 3"):
        head.predict(np.zeros((2, 3)))
    (photos.parent / "bad").mkdir(exist_ok=True)
    (photos.parent / "bad" / "x.png").write_bytes(b"no image")
    with pytest.raises(InputError):
        head.predict(photos.parent / "bad")
    with pytest.raises(NotAgreedError):
        fc.load_head(done.saved).predict(photos)


def test_a_network_in_memory_is_a_backbone(photos: Path, tmp_path: Path) -> None:
    network = Network()
    size = {"resize": 40, "crop": 40}
    store = fc.extract(photos, tmp_path / "c", backbone=network, preprocess=size, settings=SETTINGS)
    (feature_set,) = store.feature_sets()
    assert feature_set.identity.backbone == "module:Network"
    assert feature_set.activation_shape == (8,)
    again = fc.extract(photos, tmp_path / "c", backbone=network, preprocess=size, settings=SETTINGS)
    assert len(again.feature_sets()) == 1
    with torch.no_grad():
        network.trunk[0].weight += 0.1  # other weights are another network
    again = fc.extract(photos, tmp_path / "c", backbone=network, preprocess=size, settings=SETTINGS)
    assert len(again.feature_sets()) == 2
    values = fc.FrozenBackbone(network, preprocess=size, runtime="torch").fit_transform(
        sorted(photos.rglob("*.png"))[:2]
    )
    assert values.shape == (2, 8)
    assert network.fc.out_features == 2  # its own copy is changed
    spec = fc.load_backbone(BackboneRequest(name="torchvision:resnet18", init="random")).preprocess
    with_spec = fc.extract(photos, tmp_path / "spec", backbone=network, preprocess=spec, settings=SETTINGS)
    assert with_spec.feature_sets()[0].identity.preprocess == spec
    assert fc.name_module(network, "mine") == "module:mine"
    with pytest.raises(RequestError, match="'a b' cannot name a network"):
        fc.name_module(network, "a b")
    with pytest.raises(BackboneError, match="is a network in the memory of the program that made these features"):
        fc.load_backbone(BackboneRequest(name="module:unknown"))
    job = ExtractionJob(source=source_spec(photos), cache=tmp_path, backbone=BackboneRequest(name="module:mine"))
    with pytest.raises(RequestError, match="is in the memory of this process, where the engine local runs"):
        pickle.dumps(job)
