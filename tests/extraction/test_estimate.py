"""What a run says before it begins: how many bytes it will write, and that a disk is too small."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY

import featurecache as fc
from featurecache.errors import RequestError
from featurecache.extraction.estimate import Estimate, estimate
from featurecache.extraction.extract import make_request, run_extraction
from featurecache.progress import Silent
from featurecache.specs import ExtractionSettings

Disk = namedtuple("Disk", "total used free")


class Notes(Silent):
    """Keeps what should stay readable."""

    def __init__(self) -> None:
        self.noted: list[str] = []

    def note(self, text: str) -> None:
        self.noted.append(text)


def extracted(source: Path, cache: Path, *, dtype: str, views: int | None) -> tuple[Notes, list[Estimate]]:
    """Extract two taps and return what was said and estimated."""
    notes, found = Notes(), list[Estimate]()

    def kept(*args: object, **kwargs: object) -> Estimate:
        found.append(estimate(*args, **kwargs))  # type: ignore[arg-type]
        return found[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featurecache.extraction.worker.estimate", kept)
        settings = ExtractionSettings(runtime="torch", dtype=dtype)  # type: ignore[arg-type]
        taps = ["body:avg", "body:flatten"]
        run_extraction(source, cache, make_request(TINY), taps=taps, views=views, settings=settings, progress=notes)
    return notes, found


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int8"])
@pytest.mark.parametrize("views", [None, 3])
def test_the_bytes_that_are_said_are_those_that_are_written(
    dtype: str, views: int | None, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    notes, found = extracted(make_folder(per_class=20), tmp_path / "c", dtype=dtype, views=views)
    shards = [path.stat().st_size for path in (tmp_path / "c" / "features").rglob("*.h5")]
    said, written = sum(each.num_bytes for each in found), sum(shards)
    assert said <= written <= said + 16_000 * len(shards)  # what HDF5 says of its arrays comes on top
    assert [each.sentence() for each in found] == notes.noted
    assert notes.noted[0].startswith("60 samples to extract: ")
    assert "are free" in notes.noted[0]
    again, nothing = extracted(tmp_path / "photos", tmp_path / "c", dtype=dtype, views=views)
    assert (again.noted, nothing) == ([], [])


def test_a_disk_that_is_too_small_is_told_before_anything_is_computed(
    make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, settings = make_folder(per_class=4), ExtractionSettings(runtime="torch")
    with monkeypatch.context() as patch:
        patch.setattr("featurecache.extraction.estimate.shutil.disk_usage", lambda path: Disk(1000, 900, 100))
        with pytest.raises(RequestError, match=r"12 samples take .*, and 100 B are free on the disk of .*--dtype") as e:
            fc.extract(source, tmp_path / "c", backbone=TINY, settings=settings)
    assert "\n" not in str(e.value)
    assert len(fc.extract(source, tmp_path / "c", backbone=TINY, settings=settings).features()) == 12


def test_seconds_are_said_where_a_rate_was_measured() -> None:
    assert "s of the network" not in Estimate(10, 10, 10**10, None).sentence()
    assert Estimate(12_345, 2_500_000, 10**10, 3601.0).sentence() == (
        "12,345 samples to extract: 2.5 MB of features, 10.0 GB are free, about 3,601 s of the network"
    )
