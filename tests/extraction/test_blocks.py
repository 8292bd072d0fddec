"""Of a large source in units each block is read and computed in one pass: the features are those of a scan before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY, TINY, image_bytes, tar_bytes
from object_store import Store

import featurecache as fc
from featurecache.errors import FeatureCacheError, RequestError, SourceError
from featurecache.extraction import blocks, worker
from featurecache.extraction.extract import make_request, run_extraction
from featurecache.extraction.job import ExtractionJob
from featurecache.extraction.open_shards import OpenShard
from featurecache.extraction.report import ExtractionReport
from featurecache.extraction.scan import scan
from featurecache.extraction.work import work
from featurecache.extraction.worker import Worker
from featurecache.hashing import digest_bytes
from featurecache.progress import Silent
from featurecache.sources.opening import source_spec
from featurecache.sources.parquet_files import _Reader
from featurecache.sources.parquet_images import ParquetImages
from featurecache.sources.tars import Tars
from featurecache.spill import Spill
from featurecache.store.gc import collect_garbage
from featurecache.store.listings import UnitListing
from featurecache.store.store import FeatureStore
from featurecache.store.unit_listings import UnitWriter
from featurecache.store.verify import verify
from featurecache.store.watch import Watch

SETTINGS = fc.ExtractionSettings(runtime="torch", batch_size=4, shard_rows=3, dtype="float16")
NUM_TARS, PER_TAR = 5, 4
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])}


def write_tar(path: Path, images: dict[str, bytes]) -> None:
    path.write_bytes(tar_bytes({f"x/{name}": data for name, data in images.items()}))
    os.truncate(path, blocks._BLOCK_BYTES)  # a block of its own, and nothing on the disk: what follows the end is empty
    os.utime(path, ns=(0, 10**18))


def write_tars(folder: Path) -> str:
    folder.mkdir()
    for number in range(NUM_TARS):
        images = {f"{k}.png": image_bytes(PER_TAR * number + k) for k in range(PER_TAR)}
        images["copy.png"] = image_bytes(max(PER_TAR * number - 2, 0))
        write_tar(folder / f"p-{number}.tar", images)
    return str(folder / "p-*.tar")


@pytest.fixture
def pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Tars with a copy of a sample in another block, and one within a block."""
    # A ctime cannot be set: all tars are settled.
    monkeypatch.setattr("featurecache.sources.file_units.UNSETTLED_NS", -(10**18))
    return write_tars(tmp_path / "tars")


def write_parquets(folder: Path) -> str:
    """Write the images of the tars into Parquet files, some rows in a group, with a row that has none."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder.mkdir()
    for number in range(NUM_TARS):
        copy = image_bytes(max(PER_TAR * number - 2, 0))
        images = [*(image_bytes(PER_TAR * number + k) for k in range(PER_TAR)), None, copy]
        parquet.write_table(arrow.table({"image": images}), folder / f"p-{number}.parquet", row_group_size=4)
    return str(folder / "p-*.parquet")


def extract(source: Any, cache: Path, **options: Any) -> ExtractionReport:
    options = {"settings": SETTINGS, **options}
    return run_extraction(source, cache, make_request(TINY), **options)


def scanned_before(source: Any, cache: Path, **options: Any) -> ExtractionReport:
    """Extract as it is done where the source was scanned."""
    fc.scan(source, cache)
    return extract(source, cache, **options)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> ExtractionReport:
    """What is made of the tars where they were scanned before."""
    folder = tmp_path_factory.mktemp("expected")
    return scanned_before(write_tars(folder / "tars"), folder / "c")


def features_by_name(store: FeatureStore, tap: str | None = None) -> dict[str, bytes | None]:
    """Features of every sample of every source; None of what is bad."""
    features, found = store.features(tap), dict[str, bytes | None]()
    for listing in store.listings.all():
        for name, row in listing.row_of.items():
            is_bad = row in features.bad
            found[name] = None if is_bad else np.asarray(features.read(np.array([row]))).tobytes()
    return found


def check_same(report: ExtractionReport, expected: ExtractionReport) -> None:
    assert features_by_name(report.store) == features_by_name(expected.store)
    (listing,), (other,) = report.store.listings.all(), expected.store.listings.all()
    assert isinstance(listing, UnitListing)
    assert list(listing.paths) == list(other.paths)
    assert listing.problems == other.problems
    assert (report.num_files, report.num_samples) == (expected.num_files, expected.num_samples)
    assert report.num_extracted + report.num_cached == expected.num_extracted + expected.num_cached
    assert {path: status for path, (status, _) in report.bad.items()} == {
        path: status for path, (status, _) in expected.bad.items()
    }
    assert verify(report.store).problems == ()
    assert not Watch(report.store).update().workers


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each tar was read from its beginning."""
    counter, real = Counter[str](), Tars._list

    def counted(self: Tars, unit: Any, members: Any) -> Any:
        counter[Path(unit.name).name] += 1
        return real(self, unit, members)

    monkeypatch.setattr(Tars, "_list", counted)
    return counter


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Samples that were opened, in order."""
    names, real = list[str](), Tars.open

    def noted(self: Tars, name: str, *, stamp: Any) -> bytes:
        names.append(name)
        return real(self, name, stamp=stamp)

    monkeypatch.setattr(Tars, "open", noted)
    return names


def test_features_are_those_of_a_scan_before(
    pattern: str, tmp_path: Path, expected: ExtractionReport, listed: Counter[str], opened: list[str]
) -> None:
    report = extract(pattern, tmp_path / "c")
    # The first also to see that there is something at all.
    assert listed == {"p-0.tar": 2, **{f"p-{number}.tar": 1 for number in range(1, NUM_TARS)}}
    # Each to be hashed and, of copies the first, to be decoded; the first block again to choose nothing: its type is
    # asked for.
    assert max(Counter(opened).values()) == 2
    # No block waits for a later one.
    last_of_first = max(index for index, name in enumerate(opened) if name.startswith("p-0"))
    assert last_of_first < opened.index(f"p-{NUM_TARS - 1}.tar/0.png")
    check_same(report, expected)
    assert report.num_extracted == NUM_TARS * PER_TAR
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "c").rglob("*.h5")}
    again = extract(pattern, tmp_path / "c")
    assert again.num_extracted == 0
    assert max(listed.values()) <= 2
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "c").rglob("*.h5")} == before


def test_number_types_are_chosen_by_the_first_block(pattern: str, tmp_path: Path) -> None:
    settings = replace(SETTINGS, dtype="auto")
    expected = scanned_before(pattern, tmp_path / "before", settings=settings, taps=("default", "stem:avg"))
    report = extract(pattern, tmp_path / "c", settings=settings, taps=("default", "stem:avg"))
    assert [s.dtype for s in report.sets] == [s.dtype for s in expected.sets]
    for tap in ("fc:in", "stem:avg"):
        assert features_by_name(report.store, report.sets[tap != "fc:in"].tap) == features_by_name(
            expected.store, expected.sets[tap != "fc:in"].tap
        )


def test_bad_members_and_empty_tars(pattern: str, tmp_path: Path, listed: Counter[str]) -> None:
    folder = tmp_path / "tars"
    write_tar(folder / "p-0.tar", {"0.png": b"no image", "1.png": b"none either"})
    write_tar(folder / "p-2.tar", {})
    write_tar(folder / "p-3.tar", {"0.png": image_bytes(7), "1.png": b"no image", "2.png": b"x" * 3000})
    source = replace(source_spec(pattern), options={"max_bytes": 2500})
    expected = scanned_before(source, tmp_path / "before")
    report = extract(source, tmp_path / "c", settings=replace(SETTINGS, dtype="auto"))
    check_same(report, expected)
    assert len(report.bad) == 4
    assert {s for s, _ in report.bad.values()} == {"not_an_image", "unreadable"}


def test_a_tar_is_added_and_one_is_changed(pattern: str, tmp_path: Path, listed: Counter[str]) -> None:
    extract(pattern, tmp_path / "c")
    for number in (1, 8, 9):
        write_tar(tmp_path / "tars" / f"p-{number}.tar", {"0.png": image_bytes(100 + number), "1.png": image_bytes(3)})
    (tmp_path / "tars" / "p-4.tar").unlink()
    listed.clear()
    report = extract(pattern, tmp_path / "c")
    assert listed == {"p-1.tar": 1, "p-8.tar": 1, "p-9.tar": 1}
    check_same(report, scanned_before(pattern, tmp_path / "before"))
    assert report.num_extracted == 3
    # One block alone is scanned as ever.
    write_tar(tmp_path / "tars" / "p-7.tar", {"0.png": image_bytes(200)})
    job = ExtractionJob(source=source_spec(pattern), cache=tmp_path / "c", backbone=make_request(TINY))
    assert scan(job) is not None


def test_a_tar_that_is_no_whole_one_ends_the_run_as_in_a_scan(pattern: str, tmp_path: Path) -> None:
    (tmp_path / "tars" / "p-3.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(SourceError, match=r"p-3\.tar is no whole tar"):
        extract(pattern, tmp_path / "c")
    assert [*(tmp_path / "c").rglob("*.lease")] == []
    write_tar(tmp_path / "tars" / "p-3.tar", {"0.png": image_bytes(12)})
    check_same(extract(pattern, tmp_path / "c"), scanned_before(pattern, tmp_path / "before"))


def test_a_wrong_request_leaves_nothing(pattern: str, tmp_path: Path, listed: Counter[str]) -> None:
    with pytest.raises(FeatureCacheError, match="nowhere"):
        run_extraction(pattern, tmp_path / "c", make_request(TINY), taps=("nowhere:avg",), settings=SETTINGS)
    assert not (tmp_path / "c").exists()
    assert sum(listed.values()) == 1


def test_tars_that_change_meanwhile_are_for_the_next_run(pattern: str, tmp_path: Path) -> None:
    class Meddling(Silent):
        has_meddled = False

        def advance(self, count: int, *, bad: int = 0) -> None:
            if not self.has_meddled:
                self.has_meddled = True
                for number in (0, 1, NUM_TARS - 1):
                    images = {f"{k}.png": image_bytes(100 + 10 * number + k) for k in range(3)}
                    write_tar(tmp_path / "tars" / f"p-{number}.tar", images)

    first = extract(pattern, tmp_path / "c", progress=Meddling())
    assert first.num_cached >= 0
    assert set(first.postponed) <= set(first.store.listings.all()[0].paths)
    report = extract(pattern, tmp_path / "c")
    check_same(report, scanned_before(pattern, tmp_path / "before"))
    assert not report.postponed


def test_of_tars_that_are_far_away_each_byte_comes_once(
    pattern: str, tmp_path: Path, expected: ExtractionReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = dict[str, bytes]()
    for path in (tmp_path / "tars").iterdir():
        with path.open("rb") as file:
            objects[f"b/{path.name}"] = file.read(20 << 10)
    Store.serve(objects)
    monkeypatch.setattr(blocks, "_BLOCK_BYTES", 1)
    closed = list[bool]()
    monkeypatch.setattr(Spill, "close", lambda self, real=Spill.close: (closed.append(True), real(self))[1])
    report = extract("store://b/p-{0..4}.tar", tmp_path / "c")
    assert features_by_name(report.store) == features_by_name(expected.store)
    assert Store.served == {name: len(data) for name, data in objects.items()}
    assert len(closed) == NUM_TARS + 1  # the room of a block is given back with it; and that of a scan, which is empty
    Store.served.clear()
    assert extract("store://b/p-{0..4}.tar", tmp_path / "c").num_extracted == 0
    assert Store.served.total() == 0


def test_views_are_computed_after_a_scan(pattern: str, tmp_path: Path) -> None:
    job = ExtractionJob(source=source_spec(pattern), cache=tmp_path / "c", backbone=make_request(TINY))
    assert scan(job) is None
    assert scan(replace(job, cache=tmp_path / "v", views=fc.ViewSpec(count=2))) is not None


def breaking(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, at: int, error: BaseException) -> None:
    """Have the call of a method fail that comes after so many others."""
    real, calls = getattr(owner, name), iter(range(10**6))

    def broken(*args: Any, **options: Any) -> Any:
        if next(calls) == at:
            raise error
        return real(*args, **options)

    monkeypatch.setattr(owner, name, broken)


@pytest.mark.parametrize(
    ("owner", "name", "at"),
    [
        (Tars, "open", 7),
        (UnitWriter, "add", 2),  # ids have their rows, and nothing says where
        (Worker, "extend", 1),  # listed, and not computed
        (Worker, "_publish", 3),
        (UnitWriter, "finish", 0),
    ],
)
def test_a_run_that_ends_early_is_gone_on_with(
    pattern: str,
    tmp_path: Path,
    expected: ExtractionReport,
    monkeypatch: pytest.MonkeyPatch,
    opened: list[str],
    owner: Any,
    name: str,
    at: int,
) -> None:
    with monkeypatch.context() as patch:
        breaking(patch, owner, name, at=at, error=RuntimeError("ended"))
        with pytest.raises(RuntimeError, match="ended"):
            extract(pattern, tmp_path / "c")
    store = FeatureStore.open(tmp_path / "c")
    assert store.listings.all() == []
    assert [*store.path.rglob("*.lease")] == []
    held = store.listings.held()
    # What is on its way is no garbage, and a watch waits for the rest.
    if features := [s.open() for s in store.feature_sets()]:
        assert len(features[0].held.difference(held)) == 0
        assert collect_garbage(store, remove=True, unused=True, older_than_hours=0).unused_rows == 0
        progress = Watch(store).update()
        assert not progress.is_done
        assert [s.num_listed for s in progress.sets] == [len(held)]
        assert [s.num_rows for s in progress.sets] == [len(features[0].held)]
    # What is listed is read to be decoded, and not to be identified.
    listed = {os.fsdecode(name) for part in store.listings.loose() for name in part.prefixes.encoded()}
    cached = sum(len(s.open()) for s in store.feature_sets())
    opened.clear()
    report = extract(pattern, tmp_path / "c")
    times = Counter(opened)
    assert all(times[name] <= 1 for name in times if f"{name.partition('/')[0]}/" in listed)
    assert (report.num_extracted, report.num_cached) == (NUM_TARS * PER_TAR - cached, cached)
    check_same(report, expected)


@pytest.fixture
def parquets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Parquet files of which each is a block."""
    monkeypatch.setattr("featurecache.sources.file_units.UNSETTLED_NS", -(10**18))
    monkeypatch.setattr(blocks, "_BLOCK_BYTES", 1)
    return write_parquets(tmp_path / "files")


@pytest.fixture(scope="module")
def expected_of_parquets(tmp_path_factory: pytest.TempPathFactory) -> ExtractionReport:
    """What is made of them where they were scanned before."""
    folder = tmp_path_factory.mktemp("parquets")
    return scanned_before(write_parquets(folder / "files"), folder / "c")


def test_parquet_files_are_blocks_too(
    parquets: str,
    tmp_path: Path,
    expected: ExtractionReport,
    expected_of_parquets: ExtractionReport,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read, real = Counter[str](), ParquetImages.read

    def counted(self: ParquetImages, unit: Any) -> Any:
        read[Path(unit.name).name] += 1
        return real(self, unit)

    monkeypatch.setattr(ParquetImages, "read", counted)
    report = extract(parquets, tmp_path / "c")
    check_same(report, expected_of_parquets)
    assert read == {f"p-{number}.parquet": 1 for number in range(NUM_TARS)}
    # The same images as those in the tars, by other names.
    found, of_tars = features_by_name(report.store), features_by_name(expected.store)
    assert {data for data in found.values() if data} == {data for data in of_tars.values() if data}
    assert set(report.store.listings.all()[0].problems.values()) == {"the row holds no bytes"}
    monkeypatch.setattr(_Reader, "batches", lambda self, group: pytest.fail("images were read again"))
    # What has none is asked for again at each scan, as a member of a tar is that could not be read.
    monkeypatch.setattr(_Reader, "row", lambda self, number: None)
    assert extract(parquets, tmp_path / "c").num_extracted == 0


@pytest.mark.parametrize(("owner", "name", "at"), [(ParquetImages, "open", 9), (Worker, "_publish", 3)])
def test_a_run_over_parquet_files_is_gone_on_with(
    parquets: str,
    tmp_path: Path,
    expected_of_parquets: ExtractionReport,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    at: int,
) -> None:
    with monkeypatch.context() as patch:
        breaking(patch, owner, name, at=at, error=RuntimeError("ended"))
        with pytest.raises(RuntimeError, match="ended"):
            extract(parquets, tmp_path / "c")
    assert [*(tmp_path / "c").rglob("*.lease")] == []
    check_same(extract(parquets, tmp_path / "c"), expected_of_parquets)


RUN = """
import os, signal, sys
from pathlib import Path
import test_blocks as tests
from featurecache.sources import file_units
file_units.UNSETTLED_NS = -(10**18)
tests.blocks._BLOCK_BYTES = min(tests.blocks._BLOCK_BYTES, int(sys.argv[6]))
owner = getattr(tests, sys.argv[3])
if sys.argv[4]:
    real, calls = getattr(owner, sys.argv[4]), iter(range(10**6))
    def killed(*args, **options):
        if next(calls) == int(sys.argv[5]):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)
    setattr(owner, sys.argv[4], killed)
tests.extract(sys.argv[1], Path(sys.argv[2]))
"""


def start(pattern: str, cache: Path, owner: str = "Tars", name: str = "", at: int = 0) -> subprocess.Popen[bytes]:
    """Extract in a process of its own, which is killed at a call of a method."""
    numbers = [str(at), str(blocks._BLOCK_BYTES)]
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{ENVIRONMENT['PYTHONPATH']}:{REPOSITORY / 'tests' / 'extraction'}"}
    return subprocess.Popen([sys.executable, "-c", RUN, pattern, str(cache), owner, name, *numbers], env=environment)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name", "at"),
    [
        ("Tars", "open", 12),
        ("UnitWriter", "add", 2),
        ("Worker", "extend", 2),
        ("Worker", "_publish", 4),
        ("UnitWriter", "finish", 0),
    ],
)
def test_one_of_two_processes_is_killed(
    owner: str, name: str, at: int, pattern: str, tmp_path: Path, expected: ExtractionReport
) -> None:
    killed = start(pattern, tmp_path / "c", owner, name, at)
    other = start(pattern, tmp_path / "c")
    assert [killed.wait(300), other.wait(300)] in ([-signal.SIGKILL, 0], [0, 0])
    report = extract(pattern, tmp_path / "c")
    assert report.num_extracted == 0
    check_same(report, expected)
    # And alone.
    killed = start(pattern, tmp_path / "alone", owner, name, at)
    assert killed.wait(300) == -signal.SIGKILL
    check_same(extract(pattern, tmp_path / "alone"), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name", "at"),
    [("ParquetImages", "open", 12), ("UnitWriter", "add", 2), ("Worker", "_publish", 4), ("UnitWriter", "finish", 0)],
)
def test_a_run_over_parquet_files_is_killed(
    owner: str, name: str, at: int, parquets: str, tmp_path: Path, expected_of_parquets: ExtractionReport
) -> None:
    killed, other = start(parquets, tmp_path / "c", owner, name, at), start(parquets, tmp_path / "c")
    assert [killed.wait(300), other.wait(300)] in ([-signal.SIGKILL, 0], [0, 0])
    check_same(extract(parquets, tmp_path / "c"), expected_of_parquets)
    killed = start(parquets, tmp_path / "alone", owner, name, at)
    assert killed.wait(300) == -signal.SIGKILL
    check_same(extract(parquets, tmp_path / "alone"), expected_of_parquets)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["processes", "rank"])
def test_other_engines_read_in_blocks(
    engine: str, pattern: str, tmp_path: Path, expected: ExtractionReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    time.sleep(2 if engine == "processes" else 0)  # until the tars are settled, as they look in other processes
    told = list[tuple[str, int]]()

    class Listening(Silent):
        def start(self, phase: str, total: int) -> None:
            told.append((phase, total))

    report = extract(pattern, tmp_path / "c", engine=engine, progress=Listening())
    assert told == [("extracting", 0)]
    assert report.num_extracted == NUM_TARS * PER_TAR
    check_same(report, expected)
    assert extract(pattern, tmp_path / "c", engine=engine).num_extracted == 0


@pytest.mark.parametrize("is_quick", [True, False])
def test_blocks_are_one_stream_where_reading_keeps_up(
    is_quick: bool, pattern: str, tmp_path: Path, expected: ExtractionReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device does not wait at the end of each; a lease lasts until the last shard of its block is in the cache."""
    streams, real = list[int](), worker.run_chunks
    reader: Any = blocks.BlockReader
    monkeypatch.setattr(reader, "next_if_read", reader.next if is_quick else lambda _: None)
    monkeypatch.setattr(worker, "run_chunks", lambda *args, **options: streams.append(1) or real(*args, **options))
    leases, done = list[tuple[bool, bool]](), list[int]()

    def close(shard: OpenShard, real_close: Any = OpenShard.close) -> None:
        real_close(shard)
        done.extend(shard.rows.tolist())
        store = FeatureStore.open(tmp_path / "c")
        for part in store.listings.loose():
            for number, prefix in enumerate(part.prefixes.encoded()):
                new = {row for row in part.unit(number).rows.tolist() if PER_TAR * at(prefix) <= row}
                lease = store.listings.leases(pattern).is_taken(f"block-{digest_bytes(prefix)[:16]}")
                leases.append((new <= set(done), lease))

    def at(prefix: bytes) -> int:
        return int(prefix[2:3])

    monkeypatch.setattr(OpenShard, "close", close)
    check_same(extract(pattern, tmp_path / "c"), expected)
    assert len(streams) == (1 if is_quick else NUM_TARS)
    # A block is held as long as rows of it are missing, and no longer.
    assert all(is_held != is_done for is_done, is_held in leases)
    assert {is_held for _, is_held in leases} == {True, False}


def test_what_goes_wrong_with_a_block_costs_none_of_those_before(
    parquets: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(parquets).with_name("p-3.parquet")
    data = path.read_bytes()
    path.write_bytes(data[:100])
    reader: Any = blocks.BlockReader
    real_next = reader.next_if_read

    def next_if_read(self: Any) -> Any:
        self._ahead.exception()  # waits: reading keeps up
        return real_next(self)

    monkeypatch.setattr(reader, "next_if_read", next_if_read)
    for _ in range(2):
        with pytest.raises(SourceError, match=r"p-3\.parquet is no whole Parquet file"):
            extract(parquets, tmp_path / "c")
    store = FeatureStore.open(tmp_path / "c")
    assert len(store.find(dtype="float16").open()) == 3 * PER_TAR
    path.write_bytes(data)
    calls, real = [0], worker.estimate

    def estimate(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise RequestError("there is no room")
        return real(*args, **options)

    monkeypatch.setattr(worker, "estimate", estimate)
    with pytest.raises(RequestError, match="there is no room"):
        extract(parquets, tmp_path / "c")
    assert len(store.find(dtype="float16").open()) == 4 * PER_TAR
    extract(parquets, tmp_path / "c")
    assert len(store.find(dtype="float16").open()) == NUM_TARS * PER_TAR


def test_workers_share_the_blocks(pattern: str, tmp_path: Path, listed: Counter[str]) -> None:
    """A block that another holds is left to it, and computed by whoever is there where that one is lost."""
    job = ExtractionJob(
        source=source_spec(pattern), cache=tmp_path / "c", backbone=make_request(TINY), settings=SETTINGS
    )
    assert scan(job) is None
    store = FeatureStore.open(tmp_path / "c")
    units = blocks.unlisted_blocks(job, store, blocks_of(job))
    leases = store.listings.leases(job.opened_source.key)
    with leases.hold(units[1].key) as mine:
        assert mine
        reader = blocks.BlockReader(job, units)
        read = [reader.next() for _ in range(NUM_TARS - 1)]
        assert [block.listing.paths[0][:7] for block in read] == ["p-0.tar", "p-2.tar", "p-3.tar", "p-4.tar"]
        assert reader.next_if_read() is None
    last = reader.next()
    assert last is not None
    assert last.listing.paths[0].startswith("p-1.tar")
    assert reader.next() is None
    reader.close()
    for block in (*read, last):
        block.lease.close()
    # All are listed, and none is computed.
    assert work(job).num_rows == NUM_TARS * PER_TAR


def blocks_of(job: ExtractionJob) -> Any:
    from featurecache.extraction.known_units import units_of

    return units_of(job.opened_source)
