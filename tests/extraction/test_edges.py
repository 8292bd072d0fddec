"""What happens between a worker's steps: other workers, files that come and go, disks that fill, empty selections."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep
from typing import Any

import pytest
from conftest import COLOURS, REPOSITORY, TINY, pretend_other_torch, write_image

from featurecache.errors import DriftError, InputError
from featurecache.extraction import modality
from featurecache.extraction import runtimes as runtimes_module
from featurecache.extraction import worker as worker_module
from featurecache.extraction.deep_verification import verify_deep
from featurecache.extraction.extract import make_request, run_extraction
from featurecache.extraction.job import ExtractionJob
from featurecache.extraction.recomputation import Inputs
from featurecache.extraction.scan import scan
from featurecache.extraction.work import ExtractionWork
from featurecache.extraction.worker import Worker
from featurecache.progress import Silent
from featurecache.sources.opening import source_spec
from featurecache.sources.source import Entry, Unit
from featurecache.specs import ExtractionSettings
from featurecache.store import shards
from featurecache.store.store import FeatureStore

Make = Callable[..., Path]
SETTINGS = ExtractionSettings(runtime="torch", batch_size=4, shard_rows=6)


class Away(Silent):
    """Removes a file when the network begins, after the scan has seen it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def start(self, phase: str, total: int) -> None:
        if phase == "extracting":
            self.path.unlink(missing_ok=True)


class Counting(Silent):
    """Counts the samples that are read."""

    def __init__(self) -> None:
        self.phase, self.total, self.done = "", 0, 0

    def start(self, phase: str, total: int) -> None:
        self.phase = phase
        self.total += total if phase == "reading" else 0

    def advance(self, count: int, *, bad: int = 0) -> None:
        self.done += count if self.phase == "reading" else 0


class Units:
    """Units without stamps, as tars of a server that gives no ETag; one gives out more than was listed."""

    modality, key = "image", "units://here"

    def __init__(self, folder: Path, late: dict[str, bytes] | None = None) -> None:
        self.folder, self.late = folder, late or {}

    def units(self) -> Iterator[Unit]:
        return iter([Unit(name) for name in COLOURS])

    def list(self, unit: Unit) -> Iterator[Entry]:
        return (Entry(f"{unit.name}/{path.name}", None) for path in sorted((self.folder / unit.name).iterdir()))

    def read(self, unit: Unit) -> Iterator[tuple[str, bytes]]:
        for entry in self.list(unit):
            yield entry.name, (self.folder / entry.name).read_bytes()
        yield from self.late.items()

    def open(self, name: str, *, stamp: Any) -> bytes:
        return (self.folder / name).read_bytes()


def test_what_another_worker_published_first_decides_the_batch_size(
    make_folder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, few = make_folder(per_class=3), tmp_path / "few"
    for index in range(3):
        write_image(few / f"{index}.png", COLOURS["red"], seed=900 + index)
    real, first = runtimes_module.open_runtime, iter([True])

    def slow(*args: Any, **options: Any) -> Any:
        opened = real(*args, **options)
        if next(first, False):  # meanwhile another worker begins, and is done
            other = ExtractionSettings(runtime="torch", batch_size=3)
            run_extraction(few, tmp_path / "c", make_request(TINY), settings=other)
        return opened

    monkeypatch.setattr(runtimes_module, "open_runtime", slow)
    run_extraction(source, tmp_path / "c", make_request(TINY), settings=ExtractionSettings(runtime="torch"))
    (feature_set,) = FeatureStore.open(tmp_path / "c").feature_sets()
    assert {c.body["provenance"]["batch_size"] for c in feature_set.folder.commits()} == {3}


def test_rows_that_another_worker_left_over_of_a_shard_are_computed(
    make_folder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_folder(per_class=4)
    real, first = worker_module.estimate, iter([True])

    def meanwhile(*args: Any, **options: Any) -> Any:
        """Commit a smaller shard under the same key, between plan and lease."""
        if next(first, False):
            store = FeatureStore.open(tmp_path / "c")
            listing = store.listings.load(source)
            assert listing is not None
            job = ExtractionJob(source=source_spec(source), cache=store.path, backbone=make_request(TINY))
            other = Worker(
                store=store,
                sets=args[1],
                source=job.opened_source,
                listing=listing,
                backbone=job.network.backbone,
                taps={tap.name: tap for tap in job.network.taps},
                settings=ExtractionSettings(runtime="torch", batch_size=4, shard_rows=5),
                progress=Silent(),
            )
            assert other.run(listing.unique_rows[:5]).num_rows == 5
        return real(*args, **options)

    monkeypatch.setattr(worker_module, "estimate", meanwhile)
    settings = ExtractionSettings(runtime="torch", batch_size=4, shard_rows=100)
    report = run_extraction(source, tmp_path / "c", make_request(TINY), settings=settings)
    assert len(report.store.features()) == 12


def test_a_tap_that_holds_none_of_the_sampled_rows_is_verified(make_folder: Make, tmp_path: Path) -> None:
    source, few = make_folder(per_class=5), tmp_path / "few"
    write_image(few / "0.png", COLOURS["red"], seed=900)
    run_extraction(few, tmp_path / "c", make_request(TINY), taps=("stem:avg",), settings=SETTINGS)
    store = run_extraction(source, tmp_path / "c", make_request(TINY), settings=SETTINGS).store
    found = verify_deep(store, Inputs(source=source, backbone=TINY), num_rows=4, random_state=0)
    assert not found.problems
    assert found.num_rows == 4


def test_rows_that_are_all_bad_are_verified(tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    (few / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    store = run_extraction(few, tmp_path / "c", make_request(TINY), settings=SETTINGS).store
    found = verify_deep(store, Inputs(source=few, backbone=TINY), num_rows=4, random_state=0)
    assert (found.num_rows, found.num_identical, found.problems) == (1, 1, [])


def test_what_is_read_is_counted_once(make_folder: Make, tmp_path: Path) -> None:
    counting = Counting()
    source = Units(make_folder(per_class=4))
    run_extraction(source, tmp_path / "c", make_request(TINY), settings=SETTINGS, progress=counting)
    assert (counting.done, counting.total) == (12, 12)


def test_a_sample_that_came_after_the_listing_is_for_the_next_scan(make_folder: Make, tmp_path: Path) -> None:
    folder = make_folder(per_class=4)
    late = {"blue/late.png": (folder / "blue" / "000.png").read_bytes()}
    report = run_extraction(Units(folder, late), tmp_path / "c", make_request(TINY), settings=SETTINGS)
    assert report.num_files == 12


def test_a_file_that_went_is_postponed_and_not_called_cached(make_folder: Make, tmp_path: Path) -> None:
    source = make_folder(per_class=3)
    away = Away(source / "blue" / "000.png")
    report = run_extraction(source, tmp_path / "c", make_request(TINY), settings=SETTINGS, progress=away, views=2)
    assert len(report.postponed) == 1
    assert (report.num_extracted, report.num_cached) == (16, 0)


def test_what_another_worker_computed_later_is_not_postponed(make_folder: Make, tmp_path: Path) -> None:
    source = make_folder(per_class=3)
    file = source / "blue" / "000.png"
    data = file.read_bytes()

    class TwoWorkers:
        """An engine whose second worker finds what the first had to leave."""

        def run(self, job: ExtractionWork) -> Iterator[Any]:
            yield job.work(progress=Away(file))
            file.write_bytes(data)
            yield pickle.loads(pickle.dumps(job)).work()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featurecache.extraction.extract.make_engine", lambda name, progress, **_: TwoWorkers())
        report = run_extraction(source, tmp_path / "c", make_request(TINY), settings=SETTINGS)
    assert (report.num_extracted, report.num_cached, report.postponed) == (9, 0, {})


@pytest.mark.parametrize("failing", ["layout", "second open"])
def test_a_shard_that_cannot_be_laid_out_leaves_no_file(
    failing: str, make_folder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, cache = make_folder(per_class=3), tmp_path / "c"
    scan(ExtractionJob(source=source_spec(source), cache=cache, backbone=make_request(TINY)))
    real = Path.open

    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    def none_left(self: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if mode == "r+b":
            raise OSError(errno.EMFILE, "Too many open files")
        return real(self, mode, *args, **options)

    if failing == "layout":
        monkeypatch.setattr(shards, "_reserve_array", full)
    else:
        monkeypatch.setattr(Path, "open", none_left)
    with pytest.raises(OSError, match="No space|Too many"):
        run_extraction(source, cache, make_request(TINY), settings=SETTINGS)
    monkeypatch.undo()
    assert [path for path in cache.rglob("*") if path.is_file() and path.name.startswith(".")] == []


def test_an_image_that_this_machine_cannot_decode_any_more_is_drift(
    make_folder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_folder(per_class=3)
    store = run_extraction(source, tmp_path / "c", make_request(TINY), settings=SETTINGS).store
    pretend_other_torch(store)
    first = (source / "blue" / "000.png").read_bytes()
    write_image(source / "red" / "new.png", (200, 0, 0), seed=50)
    real = modality.decode

    def decode(data: bytes, spec: Any) -> Any:
        if data == first:
            raise InputError("undecodable", "this Pillow has no decoder for it")
        return real(data, spec)

    monkeypatch.setattr(modality, "decode", decode)
    with pytest.raises(DriftError, match=r"000\.png has features .* cannot be decoded .* no decoder .*decoded pixels"):
        run_extraction(source, tmp_path / "c", make_request(TINY), settings=SETTINGS)


class Slow(Units):
    """Counts the samples that are read to be identified, each of which takes a while; they have stamps."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.opened: list[str] = []

    def list(self, unit: Unit) -> Iterator[Entry]:
        return (Entry(entry.name, (1, 2, 3, 4)) for entry in super().list(unit))

    def open(self, name: str, *, stamp: Any) -> bytes:
        self.opened.append(name)
        sleep(0.02)
        return super().open(name, stamp=stamp)


def test_of_several_that_scan_at_once_one_reads_the_source(make_folder: Make, tmp_path: Path) -> None:
    source = Slow(make_folder(per_class=4))
    jobs = [ExtractionJob(source=source, cache=tmp_path / "c", backbone=make_request(TINY)) for _ in range(3)]
    assert jobs[0].network  # loaded before, so that they begin together
    FeatureStore.create(tmp_path / "c")
    with ThreadPoolExecutor(3) as pool:
        listings = list(pool.map(scan, jobs))
    assert len(source.opened) == 12
    assert all(listing.same_as(listings[0]) for listing in listings)
    assert [*(tmp_path / "c").rglob("*.lease")] == []
    # And one that comes later finds that nothing has changed.
    assert scan(jobs[0]).same_as(listings[0])
    assert len(source.opened) == 12


def test_a_scan_goes_on_where_another_was_killed(make_folder: Make, tmp_path: Path) -> None:
    job = ExtractionJob(source=source_spec(make_folder(per_class=1)), cache=tmp_path / "c", backbone=make_request(TINY))
    store = FeatureStore.create(tmp_path / "c")
    code = "import os, sys; from pathlib import Path; from featurecache.store.store import FeatureStore\n"
    code += "with FeatureStore.open(Path(sys.argv[1])).listings.leases(sys.argv[2]).hold('scan') as mine:\n"
    code += "    assert mine; os._exit(9)"
    command = [sys.executable, "-c", code, str(store.path), job.opened_source.key]
    assert subprocess.run(command, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, check=False).returncode == 9
    assert len([*store.path.rglob("scan.lease")]) == 1
    assert len(scan(job).unique_rows) == 3
    assert [*store.path.rglob("scan.lease")] == []
