"""What a folder holds now is told apart from what it held when it was extracted, and the cache is not touched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, write_image
from hypothesis import given
from hypothesis import strategies as st

from featurecache.cli import main
from featurecache.errors import SourceError
from featurecache.extraction.extract import make_request, run_extraction
from featurecache.extraction.inventory import Changes, Inventory, take_inventory
from featurecache.sources.folder import FolderSource
from featurecache.specs import ExtractionSettings
from featurecache.store.listings import Listing
from featurecache.store.store import FeatureStore
from featurecache.text import TextColumn

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
    assert inventory.changes.added == ["red/added twice.png", "red/added.png"]
    assert inventory.changes.edited == ["red/000.png"]
    assert inventory.changes.renamed == ["red/renamed.png"]
    assert inventory.changes.copied == ["blue/copied.png"]
    assert inventory.changes.removed == ["green/003.png"]
    assert list(inventory.now.problems) == ["green/lost.png"]
    assert inventory.num_new == 2
    assert inventory.to_json()["samples"] == 12 - 2 + 2
    described = inventory.describe(store)
    assert [each["samples"] for each in described["cached"]] == [10]
    assert described["orphaned_samples"] == 2
    assert files_of(store.path) == before


def test_an_unchanged_folder_and_a_strange_one(made: tuple, make_folder: Callable[..., Path]) -> None:
    source, store = made
    same = take_inventory(store, FolderSource(source))
    assert same.changes == Changes([], [], [], [], [])
    moved = source.rename(source.with_name("moved"))
    found = take_inventory(store, FolderSource(moved))
    assert (found.before, found.changes.added, len(found.changes.copied), found.num_new) == (None, [], 12, 0)
    strange = take_inventory(store, FolderSource(make_folder("other", per_class=2, seed=500)))
    assert (len(strange.changes.added), strange.num_new, strange.describe(store)["cached"][0]["samples"]) == (6, 6, 0)
    with pytest.raises(SourceError, match="there is no such folder"):
        take_inventory(store, FolderSource(source))


def test_info_says_what_the_source_holds_now(made: tuple, capsys: pytest.CaptureFixture) -> None:
    source, store = made
    change(source)
    assert main(["info", str(store.path)]) == 0
    assert " now: " not in capsys.readouterr().out
    assert main(["info", str(store.path), "--source", str(source)]) == 0
    said = capsys.readouterr().out
    assert "since it was extracted: 2 added, 1 edited, 1 renamed, 1 copied, 1 removed" in said
    assert f"{TINY} pre_logits:none float16: 10 of 12 samples cached" in said
    assert "no source holds 2 samples of the cache any more" in said
    assert main(["info", str(store.path), "--source", str(source), "--json"]) == 0
    now = json.loads(capsys.readouterr().out)["now"]
    assert (now["added"], now["removed"], now["cached"][0]["samples"], now["orphaned_samples"]) == (2, 1, 10, 2)
    run_extraction(source, store.path, make_request(TINY), settings=SETTINGS)
    assert main(["info", str(store.path), "--source", str(source)]) == 0
    assert "since it was extracted: unchanged" in capsys.readouterr().out


STATES = ("added", "edited", "renamed", "copied", "removed")
UNREADABLE = -2
NAMES = st.sampled_from([f"{folder}/{number}.png" for folder in "ab" for number in range(4)])
OPERATIONS = st.one_of(
    st.tuples(st.just("write"), NAMES, st.integers(-1, 6)),
    st.tuples(st.just("move"), NAMES, NAMES),
    st.tuples(st.just("copy"), NAMES, NAMES),
    st.tuples(st.just("swap"), NAMES, NAMES),
    st.tuples(st.just("remove"), NAMES, NAMES),
    st.tuples(st.just("break"), NAMES, NAMES),
)


def done(files: dict[str, int], operations: list[tuple[str, str, object]]) -> dict[str, int]:
    """Do to names and rows what people do to files; -1 is a file that the cache has never seen."""
    files = dict(files)
    for what, name, other in operations:
        if what == "write":
            files[name] = int(str(other))
        elif name in files and what == "remove":
            del files[name]
        elif name in files and what == "break":
            files[name] = UNREADABLE
        elif name in files and name != other:
            if what == "swap" and other in files:
                files[name], files[str(other)] = files[str(other)], files[name]
            elif what in ("move", "copy"):
                files[str(other)] = files[name]
                if what == "move":
                    del files[name]
    return files


def listing_of(files: dict[str, int]) -> Listing:
    names = sorted(files)
    rows = np.array([max(files[name], -1) for name in names], np.int64)
    problems = {name: "Permission denied" for name in names if files[name] == UNREADABLE}
    return Listing("/photos", TextColumn.pack(names), np.zeros((len(names), 4), np.int64), rows, problems)


def slow_changes(before: dict[str, int], now: dict[str, int]) -> dict[str, list[str]]:
    """The same comparison, one file after the other."""
    found: dict[str, list[str]] = {state: [] for state in STATES}
    gone = {name: row for name, row in before.items() if row >= 0 and now.get(name) != row}
    came = [
        name for name in sorted(now) if now[name] != UNREADABLE and (now[name] == -1 or before.get(name) != now[name])
    ]
    for name in list(came):
        partner = next((old for old in sorted(gone) if gone[old] == now[name]), None)
        if partner is not None:
            del gone[partner]
            came.remove(name)
            found["renamed"].append(name)
    for name in came:
        state = "edited" if name in gone else "added" if now[name] < 0 else "copied"
        found[state].append(name)
    found["removed"] = [name for name in sorted(gone) if name not in now or name in found["renamed"]]
    return found


@given(start=st.lists(OPERATIONS, max_size=8), operations=st.lists(OPERATIONS, max_size=8))
def test_each_change_counts_once_whatever_was_done(
    start: list[tuple[str, str, object]], operations: list[tuple[str, str, object]]
) -> None:
    before = {name: UNREADABLE if row < 0 else row for name, row in done({}, start).items()}
    now = done(before, operations)
    inventory = Inventory(listing_of(now), listing_of(before), 0)
    found = asdict(inventory.changes)
    assert found == slow_changes(before, now)
    named = [name for state in STATES[:-1] for name in found[state]]
    assert len(named) == len(set(named))
    counted = inventory.to_json()
    assert {state: counted[state] for state in STATES} == {state: len(found[state]) for state in STATES}
    if UNREADABLE not in {*before.values(), *now.values()}:
        assert len(now) == len(before) + counted["added"] + counted["copied"] - counted["removed"]


@pytest.mark.parametrize(
    ("before", "now", "wanted"),
    [
        ("a/1=0 a/2=1 a/3=2 a/4=3", "b/1=0 b/2=1 b/3=2 b/4=3", "renamed 4"),
        ("a/1=0 a/2=1", "a/1=1 a/2=0", "renamed 2"),
        ("1=0 2=1 3=2", "1=-1 2=0 3=1 4=2", "added 1, renamed 3"),
        ("1=0", "2=0 3=0", "renamed 1, copied 1"),
        ("1=0 2=0", "3=0", "renamed 1, removed 1"),
        ("1=0 2=1", "2=0", "renamed 1, removed 1"),
        ("1=0 2=1", "2=-1", "edited 1, removed 1"),
        ("1=0 2=1", "2=0 1=-1", "added 1, renamed 1, removed 1"),
        ("1=0", "1=0 2=0", "copied 1"),
        ("1=0", "1=-1 2=-1", "added 1, edited 1"),
        ("1=0 2=1", "1=0", "removed 1"),
        ("1=-2", "1=-1", "added 1"),
        ("1=0", "1=-2", ""),
    ],
)
def test_what_people_do_to_a_folder_has_its_name(before: str, now: str, wanted: str) -> None:
    files = [{name: int(row) for name, row in (each.split("=") for each in text.split())} for text in (before, now)]
    counted = Inventory(listing_of(files[1]), listing_of(files[0]), 0).to_json()
    assert ", ".join(f"{state} {counted[state]}" for state in STATES if counted[state]) == wanted
