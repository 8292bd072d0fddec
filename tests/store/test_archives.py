"""Caches of every released format are read as they were when they were written."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from featurecache.errors import HeadError
from featurecache.extraction.extract import make_request, run_extraction
from featurecache.specs import ExtractionSettings
from featurecache.store.format_file import FORMAT_VERSION
from featurecache.store.gc import collect_garbage
from featurecache.store.store import FeatureStore
from featurecache.store.verify import verify

FOLDER = Path(__file__).resolve().parent / "archives"
ARCHIVES = sorted(FOLDER.glob("format-*"))
_spec = importlib.util.spec_from_file_location("make_archive", FOLDER / "make.py")
make = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make)


@pytest.fixture(params=ARCHIVES, ids=lambda path: path.name)
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy, so that nothing can change the original."""
    return Path(shutil.copytree(request.param, tmp_path / "archive"))


def test_the_current_format_has_an_archive() -> None:
    names = [path.name for path in ARCHIVES]
    assert "format-{}.{}".format(*FORMAT_VERSION) in names, "run: python tests/store/archives/make.py"


def test_everything_reads_as_it_was_written(archive: Path) -> None:
    expected, found = json.loads((archive / "expected.json").read_text()), make.contents(archive / "cache", heads=False)
    assert sorted(expected.pop("heads")) == FeatureStore.open(archive / "cache").head_names()
    found.pop("heads")
    assert found == expected


def test_heads_of_the_first_trees_predict_as_they_did_or_say_what_reads_them(archive: Path) -> None:
    """scikit-learn's own estimators, from before heads were fitted by this package; see `test_archived_heads`."""
    from featurecache.deployment.saved import open_head

    expected = json.loads((archive / "expected.json").read_text())["heads"]["logistic"]
    inputs = np.random.default_rng(0).random((6, 8), np.float32)
    found = open_head(archive / "cache" / "heads" / "logistic").probabilities(inputs)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    with pytest.raises(HeadError, match=r"which this release no longer has; predict with featurecache 0\.1"):
        open_head(archive / "cache" / "heads" / "knn")


def test_it_passes_every_level_of_verification(archive: Path) -> None:
    store = FeatureStore.open(archive / "cache")
    assert verify(store, level="hdf5").problems == ()
    assert len(collect_garbage(store, older_than_hours=0).leftovers) == 1


def test_any_program_reads_the_numbers(archive: Path) -> None:
    expected = json.loads((archive / "expected.json").read_text())["features"]
    for name, item in expected.items():
        fingerprint, tap, dtype = name.split("/")
        folder = archive / "cache" / "features" / fingerprint / tap.replace(":", "=") / dtype / "shards"
        by_id = {}
        for path in sorted(folder.glob("*.h5")):
            with h5py.File(path) as file:
                values = file["features"][...]
                if dtype == "int8":
                    values = values * file["scale"][...] + file["offset"][...]
                elif dtype == "bfloat16":
                    values = (values.astype("<u4") << 16).view("<f4")
                by_id |= {i.tobytes().hex(): v.tobytes().hex() for i, v in zip(file["id"][...], values, strict=True)}
        ids = json.loads((archive / "expected.json").read_text())["ids"]
        assert [by_id[ids[row]] for row in item["rows"]] == item["values"]


def test_it_can_be_extended(archive: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in (archive / "cache").rglob("*.h5")}
    make.write_photos(tmp_path / "photos")
    settings = ExtractionSettings(runtime="torch", batch_size=4)
    request = make_request(make.BACKBONE, preprocess={"jpeg_decoding": "full"})  # there was nothing else then
    report = run_extraction(tmp_path / "photos", archive / "cache", request, settings=settings)
    assert report.num_samples == 11
    assert verify(FeatureStore.open(archive / "cache")).problems == ()
    assert all(path.read_bytes() == data for path, data in before.items())
