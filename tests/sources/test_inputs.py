"""A file must still be what it was at the scan: by its stamp where that says enough, else by its bytes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from featurecache.errors import InputError
from featurecache.hashing import digest_bytes
from featurecache.sources import inputs
from featurecache.sources.folder import FolderSource
from featurecache.sources.inputs import FileInput

pytestmark = pytest.mark.quick


def stamp(path: Path) -> tuple[int, int, int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    path.write_bytes(b"first content")
    return path


def test_an_untouched_file_is_taken_at_the_word_of_its_stamp(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = FileInput(file, "0" * 64, stamp(file))
    monkeypatch.setattr(inputs, "digest_bytes", None)
    assert source.read() == b"first content"


def test_a_file_edited_in_place_is_changed_even_with_its_old_times_and_size(file: Path) -> None:
    before, seen = file.stat(), stamp(file)
    file.write_bytes(b"other content")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(InputError, match="edited while the run went on"):
        FileInput(file, digest_bytes(b"first content"), seen).read()


def test_a_touched_file_with_the_same_bytes_is_the_same(file: Path) -> None:
    seen = stamp(file)
    os.utime(file)
    assert FileInput(file, digest_bytes(b"first content"), seen).read() == b"first content"


def test_without_a_stamp_the_bytes_decide(file: Path) -> None:
    assert FileInput(file, digest_bytes(b"first content")).read() == b"first content"
    with pytest.raises(InputError, match="edited"):
        FileInput(file, digest_bytes(b"other content")).read()


def test_files_written_just_now_are_not_taken_at_their_word(file: Path) -> None:
    source = FolderSource(file.parent)
    listing = source.find()
    (fresh,) = source.inputs(["a.png"], ["0" * 64], listing.stamps)
    assert fresh.stamp is None
    with pytest.raises(InputError, match="edited"):
        fresh.read()


def test_limits_and_missing_files(file: Path) -> None:
    with pytest.raises(InputError, match="the file has 13 bytes, the limit is 12"):
        FileInput(file).read(12)
    with pytest.raises(InputError, match="removed while the run went on"):
        FileInput(file.parent / "b.png").read()
    with pytest.raises(InputError, match="it is a folder, not a file"):
        FileInput(file.parent).read()
