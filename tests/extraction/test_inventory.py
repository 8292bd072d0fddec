"""What a folder holds now is told apart from what it held when it was extracted, and the cache is not touched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY, write_image

from featurecache.cli import main
from featurecache.errors import SourceError
from featurecache.extraction.extract import make_request, run_extraction
from featurecache.extraction.inventory import take_inventory
from featurecache.sources.folder import FolderSource
from featurecache.specs import ExtractionSettings
from featurecache.store.store import FeatureStore

SETTINGS = ExtractionSettings(runtime="torch", batch_size=4)


@pytest.fixture
def made(make_folder: Callable[..., Path], tmp_path: Path) -> tuple[Path, FeatureStore]:
    source = make_folder(per_class=4)
    return source, run_extraction(source, tmp_path / "c", make_request(TINY), settings=SETTINGS).store


def change(source: Path) -> None:
    """One of everything."""
    write_image(source / "red" / "added.png", (200, 0, 0), seed=70)
    shutil.copy(source / "red" / "added.png", source / "red" / "added twice.png")
    write_image(source / "red" / "000.png", (200, 0, 0), seed=71)  # edited
    (source / "red" / "001.png").rename(source / "red" / "renamed.png")
    shutil.copy(source / "red" / "002.png", source / "blue" / "copied.png")
    (source / "green" / "003.png").unlink()
    (source / "green" / "lost.png").symlink_to(source / "nowhere.png")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_kind_of_change_is_named(made: tuple) -> None:
    source, store = made
    before = files_of(store.path)
    change(source)
    inventory = take_inventory(FeatureStore.open(store.path), FolderSource(source))
    assert inventory.added == ["red/added twice.png", "red/added.png"]
    assert inventory.edited == ["red/000.png"]
    assert inventory.renamed == ["red/renamed.png"]
    assert inventory.copied == ["blue/copied.png"]
    assert inventory.removed == ["green/003.png", "red/001.png"]
    assert list(inventory.now.problems) == ["green/lost.png"]
    assert inventory.num_new == 2
    assert inventory.to_json()["samples"] == 12 - 2 + 2
    assert inventory.count_cached(store.features()) == 10
    assert inventory.count_orphans(store) == 2
    assert files_of(store.path) == before


def test_an_unchanged_folder_and_a_strange_one(made: tuple, make_folder: Callable[..., Path]) -> None:
    source, store = made
    same = take_inventory(store, FolderSource(source))
    states = ("added", "edited", "renamed", "copied", "removed")
    assert [getattr(same, state) for state in states] == [[]] * 5
    moved = source.rename(source.with_name("moved"))
    found = take_inventory(store, FolderSource(moved))
    assert (found.before, found.added, len(found.copied), found.num_new) == (None, [], 12, 0)
    strange = take_inventory(store, FolderSource(make_folder("other", per_class=2, seed=500)))
    assert (len(strange.added), strange.num_new, strange.count_cached(store.features())) == (6, 6, 0)
    with pytest.raises(SourceError, match="there is no such folder"):
        take_inventory(store, FolderSource(source))


def test_info_says_what_the_source_holds_now(made: tuple, capsys: pytest.CaptureFixture) -> None:
    source, store = made
    change(source)
    assert main(["info", str(store.path)]) == 0
    assert " now: " not in capsys.readouterr().out
    assert main(["info", str(store.path), "--source", str(source)]) == 0
    said = capsys.readouterr().out
    assert "since it was extracted: 2 added, 1 edited, 1 renamed, 1 copied, 2 removed" in said
    assert f"{TINY} pre_logits:none float16: 10 of 12 samples cached" in said
    assert "2 samples of the cache are in no source any more" in said
    assert main(["info", str(store.path), "--source", str(source), "--json"]) == 0
    now = json.loads(capsys.readouterr().out)["now"]
    assert (now["added"], now["removed"], now["cached"][0]["samples"], now["orphaned_samples"]) == (2, 2, 10, 2)
    run_extraction(source, store.path, make_request(TINY), settings=SETTINGS)
    assert main(["info", str(store.path), "--source", str(source)]) == 0
    assert "since it was extracted: unchanged" in capsys.readouterr().out
