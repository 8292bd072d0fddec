"""One way to say what is doubtful: kept with the features, printed after the summary, in JSON and in the report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from featurecache.cli import main
from featurecache.errors import MAX_EXAMPLES, CorruptError, ReportWarning
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.store import FeatureStore
from featurecache.store.verify import verify

pytestmark = pytest.mark.quick

ARCHIVE = Path(__file__).parent / "store" / "archives" / "format-1.0" / "cache"
WARNING = ReportWarning(kind="flat_images", count=7, text="7 images are flat; use --range", examples=("a.png", "b.png"))


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    shutil.copytree(ARCHIVE, tmp_path / "cache")
    return FeatureStore.open(tmp_path / "cache")


def pooled(store: FeatureStore) -> FeatureSet:
    return next(s for s in store.feature_sets() if s.dtype == "float16")


def test_a_kept_warning_reads_back_and_the_cache_stays_sound(store: FeatureStore) -> None:
    feature_set = pooled(store)
    assert feature_set.warnings() == []
    feature_set.keep_warning(WARNING)
    assert pooled(store).warnings() == [WARNING]
    assert verify(store).problems == ()


def test_a_later_warning_of_a_kind_replaces_the_earlier(store: FeatureStore) -> None:
    feature_set = pooled(store)
    feature_set.keep_warning(WARNING)
    later = ReportWarning(kind="flat_images", count=1, text="1 image is flat")
    feature_set.keep_warning(later)
    assert feature_set.warnings() == [later]


def test_no_more_examples_than_people_read() -> None:
    names = tuple(f"{number}.png" for number in range(100))
    assert ReportWarning(kind="flat_images", count=100, text="t", examples=names).examples == names[:MAX_EXAMPLES]


def test_a_strangers_warning_is_checked(store: FeatureStore) -> None:
    feature_set = pooled(store)
    feature_set.keep_warning(WARNING)
    path = feature_set.folder.path / "warnings" / "flat_images.json"
    path.rename(path.with_name("storage_error.json"))
    with pytest.raises(CorruptError, match="holds a warning of kind 'flat_images'"):
        feature_set.warnings()


def test_info_and_train_repeat_what_is_kept(store: FeatureStore, capsys: pytest.CaptureFixture[str]) -> None:
    feature_set = pooled(store)
    feature_set.keep_warning(WARNING)
    assert main(["info", str(store.path)]) == 0
    assert "warning: 7 images are flat; use --range (a.png, b.png, ...)" in capsys.readouterr().out
    assert main(["info", str(store.path), "--json"]) == 0
    kept = {(f["tap"], f["dtype"]): f["warnings"] for f in json.loads(capsys.readouterr().out)["features"]}
    assert WARNING.to_json() in kept[feature_set.tap, "float16"]
    train = ["train", str(store.path), "--task", "brightness", "--head", "ridge", "--tap", feature_set.tap, "--quiet"]
    assert main([*train, "--json"]) == 0
    assert WARNING.to_json() in json.loads(capsys.readouterr().out)["warnings"]
