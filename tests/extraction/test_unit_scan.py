"""A source in units is scanned unit by unit: what is as it was is neither listed nor read nor written again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY, TINY, image_bytes, tar_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

import featurecache as fc
from featurecache.errors import CorruptError, FormatVersionError, InputError, SourceError
from featurecache.extraction import unit_scan
from featurecache.extraction.inventory import take_inventory
from featurecache.extraction.scan import scan_into
from featurecache.ignored import IgnoredFiles
from featurecache.progress import Silent
from featurecache.sources.entries import Entries
from featurecache.sources.source import Entry, Stamp, Unit
from featurecache.sources.tars import Tars
from featurecache.store.folders import ShardFolder
from featurecache.store.gc import collect_garbage
from featurecache.store.listings import Listing, UnitListing
from featurecache.store.repair import repair
from featurecache.store.store import FeatureStore
from featurecache.store.unit_listings import ListedUnit
from featurecache.store.verify import verify
from featurecache.text import TextColumn

SETTINGS = fc.ExtractionSettings(runtime="torch", batch_size=4, shard_rows=4)


@dataclass
class Made:
    """A source of units that are made up, and what was asked of it."""

    units_: dict[str, dict[str, bytes]]
    stamps: dict[str, int] = field(default_factory=dict)
    listed: list[str] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    key: str = "/made/*.tar"
    modality: str = "image"

    def units(self) -> Iterator[Unit]:
        return map(Unit, self.units_)

    def unit_stamp(self, unit: Unit) -> tuple[str, Stamp]:
        return f"{unit.name}/", (0, self.stamps.get(unit.name, 1), 1, 1)

    def ignored_of(self, unit: Unit) -> IgnoredFiles:
        return IgnoredFiles(others={".txt": 1}) if unit.name.startswith("b") else IgnoredFiles()

    def list(self, unit: Unit) -> Iterator[Entry]:
        self.listed.append(unit.name)
        for name, data in self.units_[unit.name].items():
            yield Entry(f"{unit.name}/{name}", (len(data), *self.unit_stamp(unit)[1][1:]))

    def read(self, unit: Unit) -> Iterator[tuple[str, bytes]]:
        return ((f"{unit.name}/{name}", data) for name, data in self.units_[unit.name].items())

    def open(self, name: str, *, stamp: Stamp | None) -> bytes:
        self.opened.append(name)
        if name in self.broken:
            raise InputError("unreadable", "a bad sector")
        unit, _, rest = name.partition("/")
        return self.units_[unit][rest]


def made(*names: str, count: int = 3) -> Made:
    return Made({name: {f"{k}.jpg": f"{name} {k}".encode() for k in range(count)} for name in names})


def scan(store: FeatureStore, source: Made) -> Listing:
    source.listed, source.opened = [], []
    return scan_into(store, source, Silent())[0]


def files_of(store: FeatureStore) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in (store.path / "sources").rglob("parts/*/*") if path.is_file()}


def check_same(listing: Listing, source: Made, store: FeatureStore) -> None:
    """Compare with what the source gives, entry by entry."""
    entries, ids = Entries.of(source), np.asarray(store.samples.ids)
    assert list(listing.paths) == list(entries.names)
    assert len(listing) == len(entries.names)
    assert np.array_equal(listing.stamps, entries.stamps)
    for name, row in zip(listing.paths, listing.rows.tolist(), strict=True):
        if name in source.broken:
            assert row == -1
        else:
            unit, _, rest = name.partition("/")
            assert ids[row].tobytes() == sha256(source.units_[unit][rest]).digest()
    assert set(listing.problems) == source.broken
    assert listing.held.rows().tolist() == sorted({row for row in listing.rows.tolist() if row >= 0})


@st.composite
def listed_units(draw: st.DrawFn) -> list[ListedUnit]:
    """Units as a scan writes them, with rows in any order, copies, and what cannot be read."""
    units = []
    several = st.sets(st.sampled_from([b"a/", b"b.tar/", b"b/", b"\xff/", b"c/d/"]), min_size=1)
    for prefix in sorted(draw(several | st.just({b""}))):
        names = sorted(draw(st.sets(st.binary(min_size=1, max_size=4), min_size=1, max_size=6)))
        size = st.integers(0, draw(st.sampled_from([9, 1 << 40])))
        units.append(
            ListedUnit(
                prefix=prefix,
                stamp=np.array([0, *draw(st.tuples(*[st.integers(0, 1 << 60)] * 3))], np.int64),
                names=TextColumn.pack(names),
                sizes=np.array(draw(st.lists(size, min_size=len(names), max_size=len(names))), np.int64),
                rows=np.array(draw(st.lists(st.integers(-1, 8), min_size=len(names), max_size=len(names))), np.int64),
                problems={os.fsdecode(names[0]): "why"} if draw(st.booleans()) else {},
                ignored=IgnoredFiles(others={".txt": draw(st.integers(0, 2))}),
            )
        )
    return units


@settings(max_examples=60)
@given(units=listed_units(), cut=st.integers(0, 5))
def test_a_listing_by_units_reads_back_like_one_of_columns(
    units: list[ListedUnit], cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = FeatureStore.create(tmp_path_factory.mktemp("cache") / "c")
    writer = store.listings.writer("/tars")
    # In two parts, of which the first comes last.
    later = writer.add(units[cut:]) if units[cut:] else None
    earlier = writer.add(units[:cut]) if units[:cut] else None
    places = [(earlier, number) for number in range(len(units[:cut]))]
    places += [(later, number) for number in range(len(units[cut:]))]
    writer.finish([(part, number) for part, number in places if part is not None], 7)
    found = store.listings.load("/tars")
    names = [unit.prefix + name for unit in units for name in unit.names.encoded()]
    stamps = np.concatenate([np.tile(unit.stamp, (len(unit.rows), 1)) for unit in units])
    stamps[:, 0] = np.concatenate([unit.sizes for unit in units])
    rows = np.concatenate([unit.rows for unit in units])
    problems = {os.fsdecode(unit.prefix) + name: why for unit in units for name, why in unit.problems.items()}
    ignored = IgnoredFiles.joined(unit.ignored for unit in units)
    plain = Listing("/tars", TextColumn.pack(names), stamps, rows, problems, 7, ignored)
    assert isinstance(found, UnitListing)
    assert found.same_as(plain)
    assert plain.same_as(found)
    assert (found.root, found.order, len(found)) == (plain.root, plain.order, len(plain))
    assert (found.num_readable, found.row_of) == (plain.num_readable, plain.row_of)
    held = plain.unique_rows
    assert found.unique_rows.tolist() == held.tolist()
    assert found.indices_of(held).tolist() == plain.indices_of(held).tolist()
    assert found.paths_of(held[::-1]) == plain.paths_of(held[::-1])
    indices = np.arange(len(rows))[::-2]
    assert found.stamps_of(indices).tolist() == plain.stamps_of(indices).tolist()
    assert [each.tolist() for each in found.find_rows([3, 5, 99])] == [
        each.tolist() for each in plain.find_rows([3, 5, 99])
    ]
    for missing in ([9], [int(held[0]), 12] if len(held) else [12]):
        with pytest.raises(fc.FeatureCacheError, match="does not hold all of the rows"):
            found.indices_of(missing)


def test_what_is_as_it_was_is_neither_listed_nor_read_nor_written(tmp_path: Path) -> None:
    store, source = FeatureStore.create(tmp_path / "c"), made("a", "b", "c")
    first = scan(store, source)
    check_same(first, source, store)
    assert first.ignored.others == {".txt": 1}
    written = files_of(store)
    again = scan(store, source)
    assert (source.listed, source.opened, again.order) == ([], [], first.order)
    source.units_["bb"] = {"0.jpg": b"new", "1.jpg": b"a 0"}  # a copy of what is known
    one_more = scan(store, source)
    assert source.listed == ["bb"]
    assert sorted(source.opened) == ["bb/0.jpg", "bb/1.jpg"]
    assert one_more.order > first.order
    # Only a file more: those that were there are as they were.
    assert written.items() < files_of(store).items()
    check_same(one_more, source, store)
    assert len(store.samples) == 10


def test_a_listing_that_is_finished_meanwhile_takes_no_reader_and_no_writer_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore.create(tmp_path / "c")
    late, first = store.listings.writer("/tars"), store.listings.writer("/tars")
    named, loose = first.add([one_unit(b"a/")]), late.add([one_unit(b"b/")])
    real, places = ShardFolder.find, [(named, 0)]

    def find(folder: ShardFolder, key: str, read: Any) -> Any:
        if places and key != named.key:
            # Removes what it does not name, just before that is read.
            first.finish([places.pop()], 1)
            assert not folder.record(key).exists()
        return real(folder, key, read)

    monkeypatch.setattr(ShardFolder, "find", find)
    assert {part.key for part in store.listings.loose()} <= {named.key}
    assert not places
    places.append((named, 0))
    first = store.listings.writer("/tars")
    late.finish([(loose, 0)], 2)  # too late: it changes nothing
    late = replace(late, generation=first.generation)
    assert late.add([one_unit(b"b/")]).prefixes[0] == "b/"
    assert not places
    assert [*store.listings.load("/tars").paths] == ["a/0.jpg"]
    late.finish([(late.add([one_unit(b"b/")]), 0)], 3)
    assert verify(store).problems == ()


def test_a_record_without_a_number_is_named(tmp_path: Path) -> None:
    store, source = FeatureStore.create(tmp_path / "c"), made("a", "b")
    scan(store, source)
    (record,) = store.path.glob("sources/*/parts/commits/*.json")
    shutil.copy(record, record.with_name("x.json"))
    for look in (store.listings.loose, store.listings.held, lambda: scan(store, source)):
        with pytest.raises(CorruptError, match=r"x\.json has not the name of a commit record; remove it"):
            look()
    assert [problem.where for problem in verify(store).problems] == [
        str(record.with_name("x.json").relative_to(store.path))
    ]
    assert repair(store)
    check_same(scan(store, source), source, store)


def one_unit(prefix: bytes) -> ListedUnit:
    """Return a unit of one sample that could not be read."""
    names, none = TextColumn.pack([b"0.jpg"]), np.array([-1])
    return ListedUnit(prefix, np.array([0, 1, 1, 1]), names, np.array([3]), none, {"0.jpg": "why"})


def test_changed_and_removed_units(tmp_path: Path) -> None:
    store, source = FeatureStore.create(tmp_path / "c"), made("a", "b", "c")
    scan(store, source)
    source.units_["b"], source.stamps["b"] = {"0.jpg": b"b 0", "x.jpg": b"other"}, 2
    listing = scan(store, source)
    assert source.listed == ["b"]
    check_same(listing, source, store)
    del source.units_["a"]
    listing = scan(store, source)
    assert source.listed == source.opened == []
    check_same(listing, source, store)
    source.units_ = {}
    with pytest.raises(SourceError, match="holds no images"):
        scan(store, source)
    assert verify(store).problems == ()


def test_parts_that_nothing_names_go(tmp_path: Path) -> None:
    store, source = FeatureStore.create(tmp_path / "c"), made("a")
    sizes = []
    for number in range(6):
        source.units_["a"], source.stamps["a"] = {"0.jpg": str(number).encode()}, number
        check_same(scan(store, source), source, store)
        sizes.append(len(files_of(store)))
    # A reader may be at the listing before the last.
    assert sizes == [2, 4, 4, 4, 4, 4]


def test_what_could_not_be_read_is_tried_again_and_not_written_again(tmp_path: Path) -> None:
    store, source = FeatureStore.create(tmp_path / "c"), made("a", "b")
    source.broken = {"a/1.jpg"}
    check_same(scan(store, source), source, store)
    written = files_of(store)
    listing = scan(store, source)
    assert (source.listed, source.opened, files_of(store)) == ([], ["a/1.jpg"], written)
    check_same(listing, source, store)
    source.broken = set()
    check_same(scan(store, source), source, store)
    assert source.opened == ["a/1.jpg"]


def test_many_small_parts_become_one(tmp_path: Path) -> None:
    store, source = FeatureStore.create(tmp_path / "c"), made("00")
    most = 0
    for number in range(40):
        source.units_[f"{number:02d}"] = {"0.jpg": str(number).encode()}
        check_same(scan(store, source), source, store)
        listing = store.listings.load(source.key)
        assert isinstance(listing, UnitListing)
        most = max(most, len(listing.index.parts))
    assert most == unit_scan._MOST_SMALL_PARTS
    assert verify(store).problems == ()


def test_names_that_do_not_tell_units_apart_are_listed_as_a_whole(tmp_path: Path) -> None:
    store, source = FeatureStore.create(tmp_path / "c"), made("a", "b")
    source.units_["a/b"] = {"0.jpg": b"below"}
    source.open = lambda name, *, stamp: name.encode()  # type: ignore[method-assign]
    listing = scan(store, source)
    assert not isinstance(listing, UnitListing)
    assert len(listing.paths) == 7
    source = made("a")
    source.unit_stamp = lambda unit: ("elsewhere/", (0, 1, 1, 1))  # type: ignore[method-assign]
    with pytest.raises(SourceError, match=r"of the unit a, an entry does not begin with 'elsewhere/'"):
        scan(store, source)


def test_an_inventory_tells_what_a_scan_would_find_and_changes_nothing(tmp_path: Path) -> None:
    store, source = FeatureStore.create(tmp_path / "c"), made("a", "b", "c")
    scan(store, source)
    source.units_["b"], source.stamps["b"] = {"0.jpg": b"b 0", "1.jpg": b"edited", "x.jpg": b"c 1"}, 2
    source.units_["d"] = {"0.jpg": b"new", "1.jpg": b"new"}
    del source.units_["c"]
    before = files_of(store)
    found = take_inventory(store, source)
    assert (found.changes.added, found.changes.edited) == (["d/0.jpg", "d/1.jpg"], ["b/1.jpg"])
    assert (found.changes.renamed, found.num_new) == (["b/x.jpg"], 2)
    assert found.changes.removed == ["b/2.jpg", "c/0.jpg", "c/2.jpg"]
    assert files_of(store) == before
    listing = scan(store, source)
    assert list(listing.paths) == list(found.now.paths)
    assert listing.rows[found.now.rows >= 0].tolist() == found.now.rows[found.now.rows >= 0].tolist()


def tars(folder: Path, *, first: int = 0) -> str:
    folder.mkdir(exist_ok=True)
    for number in range(3):
        images = {f"x/{k}.png": image_bytes(first + 4 * number + k) for k in range(4)}
        (folder / f"p-{number}.tar").write_bytes(tar_bytes(images))
        os.utime(folder / f"p-{number}.tar", ns=(0, 10**18))  # long ago: the stamp is settled
    return str(folder / "p-*.tar")


def features_by_id(store: FeatureStore) -> dict[bytes, bytes]:
    features = store.features()
    ids = np.asarray(store.samples.ids)[features.rows]
    return {i.tobytes(): f.tobytes() for i, f in zip(ids, features.read(features.rows), strict=True)}


def extract(source: str | Path, cache: Path) -> FeatureStore:
    return fc.extract(source, cache, backbone=TINY, settings=SETTINGS)


def test_features_of_tars_are_those_of_their_files(tmp_path: Path) -> None:
    pattern, folder = tars(tmp_path / "tars"), tmp_path / "files"
    for number in range(12):
        (folder / f"{number // 4}").mkdir(parents=True, exist_ok=True)
        (folder / f"{number // 4}" / f"{number % 4}.png").write_bytes(image_bytes(number))
    of_tars, of_files = extract(pattern, tmp_path / "a"), extract(folder, tmp_path / "b")
    assert features_by_id(of_tars) == features_by_id(of_files)
    assert np.array_equal(np.asarray(of_tars.samples.ids), np.asarray(of_files.samples.ids))  # rows too


def test_where_samples_lie_is_remembered_of_some_tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featurecache.sources.tars._MOST_MEMBERS", 5)
    monkeypatch.setattr("featurecache.sources.tars._FEWEST_TARS", 1)
    source = Tars(tars(tmp_path / "tars"))
    names = list(Entries.of(source).names)
    assert len(source._members) == 1
    for name in [*names, *names[::-3]]:
        number = 4 * int(name[2]) + int(name[-5])
        assert source.open(name, stamp=None) == image_bytes(number)
        assert len(source._members) == 1


def test_a_listing_of_an_earlier_release_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = tars(tmp_path / "tars")
    monkeypatch.setattr(Tars, "_stamp", lambda self, unit: (1, 2, 3, 4))
    store = extract(pattern, tmp_path / "c")
    (listing,) = store.listings.all()
    # As an earlier release left it: one listing of all, and nothing that a reader has to know.
    shutil.rmtree(tmp_path / "c" / "sources")
    format_file = tmp_path / "c" / "FORMAT.json"
    format_file.write_text(format_file.read_text().replace('"units"', ""))
    store.listings.save(Listing(listing.root, listing.paths, listing.stamps, listing.rows, {}))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("c/features/*/*/*/*/*")}
    monkeypatch.setattr(Tars, "open", None)
    monkeypatch.setattr(Tars, "list", None)
    again = extract(pattern, tmp_path / "c")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("c/features/*/*/*/*/*")} == before
    (converted,) = again.listings.all()
    assert isinstance(converted, UnitListing)
    assert converted.same_as(listing)
    assert verify(again).problems == ()


def test_releases_that_do_not_know_units_refuse_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from featurecache.store import format_file

    store = FeatureStore.create(tmp_path / "c")
    scan(store, made("a"))
    assert json.loads((tmp_path / "c" / "FORMAT.json").read_text())["required"] == ["units"]
    FeatureStore.open(tmp_path / "c")
    monkeypatch.setattr(format_file, "_KNOWN", ())
    with pytest.raises(FormatVersionError, match="requiring .*units"):
        FeatureStore.open(tmp_path / "c")


def test_a_damaged_part_is_said_and_listed_again(tmp_path: Path) -> None:
    store, source = FeatureStore.create(tmp_path / "c"), made("a", "b")
    scan(store, source)
    source.units_["c"] = {"0.jpg": b"c"}
    scan(store, source)
    part = sorted((tmp_path / "c" / "sources").rglob("parts/shards/*.h5"))[0]
    data = bytearray(part.read_bytes())
    data[-4096:] = bytes(4096)
    part.write_bytes(data)
    where = part.relative_to(tmp_path / "c").as_posix()
    assert where in {problem.where for problem in verify(store).problems}
    done = repair(store)
    assert {"set aside", "extract the source again"} <= {
        each.action.partition(";")[0].partition(", or")[0] for each in done
    }
    with pytest.raises(CorruptError, match=r"a part of the listing is missing; extract the source again"):
        store.listings.all()
    listing = scan(store, source)
    check_same(listing, source, store)
    assert len(store.samples) == 7
    assert verify(store).problems == ()


def test_rows_that_a_restored_table_lacks_are_read_again(tmp_path: Path) -> None:
    store, source = FeatureStore.create(tmp_path / "c"), made("a")
    scan(store, source)
    source.units_["b"] = {"0.jpg": b"b"}
    scan(store, source)
    last = sorted((tmp_path / "c" / "samples" / "commits").iterdir())[-1]
    last.unlink()
    store = FeatureStore.open(tmp_path / "c")
    check_same(scan(store, source), source, store)
    assert source.opened == ["b/0.jpg"]


KILLED = """
import os, signal, sys
from pathlib import Path
import test_unit_scan as tests
from featurecache.extraction import unit_scan
unit_scan._MOST_UNITS = 1
source, store = tests.made(*"abcd"), tests.FeatureStore.create(sys.argv[1])
class Killed(tests.Made):
    def open(self, name, *, stamp):
        if name == sys.argv[2]:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().open(name, stamp=stamp)
tests.scan_into(store, Killed(source.units_), tests.Silent())
"""


@pytest.mark.parametrize("member", ["a/1.jpg", "c/0.jpg", "d/2.jpg"])
def test_a_scan_that_is_killed_is_gone_on_with(member: str, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests' / 'extraction'}:{REPOSITORY / 'tests'}",
    }
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "c"), member], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    store, source = FeatureStore.open(tmp_path / "c"), made(*"abcd")
    assert store.listings.load(source.key) is None  # half a listing is none
    assert verify(store).problems == ()
    listing = scan(store, source)
    # Units before that one are known.
    assert source.listed == [name for name in "abcd" if name >= member[0]]
    check_same(listing, source, store)
    assert len(store.samples) == 12
    assert verify(store).problems == ()
    scan(store, source)
    assert source.listed == []


def test_garbage_collection_keeps_what_units_hold(tmp_path: Path) -> None:
    pattern = tars(tmp_path / "tars")
    store = extract(pattern, tmp_path / "c")
    (tmp_path / "tars" / "p-1.tar").unlink()
    extract(pattern, tmp_path / "c")
    collected = collect_garbage(store, remove=True, unused=True, older_than_hours=0)
    assert collected.unused_rows == 4
    assert verify(store).problems == ()
    assert store.features().rows.tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    assert len(extract(pattern, tmp_path / "c").features()) == 8


def test_two_workers_at_once_make_the_cache_of_one(tmp_path: Path) -> None:
    pattern = tars(tmp_path / "tars")
    alone = extract(pattern, tmp_path / "alone")
    options = ["--runtime", "torch", "--batch-size", "4", "--shard-rows", "4", "--quiet"]
    command = [sys.executable, "-m", "featurecache", "extract", pattern, "--cache", str(tmp_path / "both")]
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"}
    both = [subprocess.Popen([*command, "--backbone", TINY, *options], env=environment) for _ in range(2)]
    assert [process.wait(300) for process in both] == [0, 0]
    store = FeatureStore.open(tmp_path / "both")
    assert features_by_id(store) == features_by_id(alone)
    assert _shards(store) == _shards(alone)
    assert verify(store).problems == ()


def _shards(store: FeatureStore) -> Sequence[str]:
    """Names of all shards, which carry their digests."""
    return sorted(
        path.relative_to(store.path).as_posix()
        for path in store.path.rglob("shards/*.h5")
        if "sources" not in path.parts
    )
