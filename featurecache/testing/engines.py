"""What every engine does."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featurecache.errors import RequestError
from featurecache.extraction.engines import Engine
from featurecache.extraction.engines.local import LocalEngine
from featurecache.extraction.extract import make_request
from featurecache.extraction.job import ExtractionJob
from featurecache.extraction.scan import scan
from featurecache.extraction.work import ExtractionWork
from featurecache.extraction.worker_report import WorkerReport
from featurecache.progress import Progress, Silent
from featurecache.sources.opening import source_spec
from featurecache.specs import ExtractionSettings, ViewSpec
from featurecache.store.store import FeatureStore
from featurecache.wording import counted

NUM_IMAGES, VIEWS, TAPS = 18, ViewSpec(count=2), ("default", "stem:avg")
SETTINGS = ExtractionSettings(runtime="torch", batch_size=4, shard_rows=5, dtype="float16")
"""Several shards, the last of them short."""


class EngineContract:
    """Laws of `featurecache.extraction.engines.Engine`; a subclass says how to make one."""

    def make_engine(self, progress: Progress) -> Engine:
        """Return the engine as its entry point would: from ``progress`` alone."""
        # Not abstract: pytest would pass over a subclass that forgot it, without a word.
        raise NotImplementedError(f"{type(self).__name__} is to define make_engine, which this contract asks")

    @pytest.fixture
    def images(self, tmp_path: Path) -> Path:
        """A folder of small images, all different."""
        folder, rng = tmp_path / "images", np.random.default_rng(0)
        folder.mkdir()
        for index in range(NUM_IMAGES):
            Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).save(folder / f"{index:02d}.png")
        return folder

    def test_every_shard_is_computed_once_and_a_second_run_does_nothing(self, images: Path, tmp_path: Path) -> None:
        job = _job(images, tmp_path / "cache")
        scan(job)
        first = sum(self.make_engine(Silent()).run(ExtractionWork(job)), WorkerReport())
        assert first.num_rows == 2 * NUM_IMAGES  # plain, and with views
        assert not first.postponed
        assert first.runtime == "torch"
        again = _job(images, tmp_path / "cache")
        second = sum(self.make_engine(Silent()).run(ExtractionWork(again)), WorkerReport())
        assert second.num_rows == 0
        assert set(second.sets) == set(first.sets)
        assert len(first.sets) == 2 * len(TAPS)

    def test_its_cache_is_byte_for_byte_that_of_the_local_engine(self, images: Path, tmp_path: Path) -> None:
        # The reference is what a laptop does.
        found = []
        for name, engine in (("local", LocalEngine(Silent())), ("other", self.make_engine(Silent()))):
            job = _job(images, tmp_path / name)
            scan(job)
            list(engine.run(ExtractionWork(job)))
            files = {path.relative_to(job.cache).as_posix(): path for path in job.cache.rglob("*") if path.is_file()}
            # All but the listings, whose stamps tell when the source was scanned.
            found.append({file: path.read_bytes() for file, path in files.items() if not file.startswith("sources/")})
        assert found[0] == found[1]

    def test_it_continues_where_another_run_ended(self, images: Path, tmp_path: Path) -> None:
        whole, rest = _job(images, tmp_path / "whole"), _job(images, tmp_path / "rest")
        for job in (whole, rest):
            scan(job)
        list(LocalEngine(Silent()).run(ExtractionWork(whole)))
        list(LocalEngine(Silent()).run(ExtractionWork(_job(images, tmp_path / "rest", taps=("stem:avg",)))))
        list(self.make_engine(Silent()).run(ExtractionWork(rest)))
        features = [FeatureStore.open(job.cache).features("stem:avg")[:] for job in (whole, rest)]
        np.testing.assert_array_equal(features[0], features[1])

    def test_it_runs_jobs_of_any_kind(self, tmp_path: Path) -> None:
        folder = tmp_path / "done"
        folder.mkdir()
        reports = list(self.make_engine(Silent()).run(_AnyJob(folder)))
        assert reports != []
        assert sorted(reports) == sorted(path.name for path in folder.iterdir())

    def test_an_error_in_a_worker_reaches_the_caller(self, images: Path, tmp_path: Path) -> None:
        FeatureStore.create(tmp_path / "cache")
        with pytest.raises(RequestError, match=r"holds no listing of .*; scan the source before work begins"):
            list(self.make_engine(Silent()).run(ExtractionWork(_job(images, tmp_path / "cache"))))


@dataclass(frozen=True)
class _AnyJob:
    """Leaves a file for each worker, and returns its name."""

    folder: Path
    settings: ExtractionSettings = SETTINGS

    def work(self, *, device: str | None = None, cores: int | None = None, progress: Progress | None = None) -> str:
        name = uuid.uuid4().hex
        (self.folder / name).touch()
        return name

    def progress_in_words(self) -> str:
        return counted(sum(1 for _ in self.folder.iterdir()), "file")


def _job(images: Path, cache: Path, taps: tuple[str, ...] = TAPS) -> ExtractionJob:
    request = make_request("python:featurecache.testing.networks:small")
    return ExtractionJob(
        source=source_spec(images), cache=cache, backbone=request, taps=taps, views=VIEWS, settings=SETTINGS
    )
