"""A file must still be what it was at the scan: by its stamp where that says enough, else by its bytes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from featurecache.errors import InputError
from featurecache.extraction.reading import inputs_of_rows
from featurecache.hashing import digest_bytes
from featurecache.sources import inputs
from featurecache.sources.entries import Entries
from featurecache.sources.files import NamedFiles
from featurecache.sources.folder import FolderSource
from featurecache.sources.inputs import Input
from featurecache.store.listings import Listing
from featurecache.store.store import FeatureStore

pytestmark = pytest.mark.quick


def stamp(path: Path) -> tuple[int, int, int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def named(
    path: Path, identity: str | None = None, seen: tuple[int, int, int, int] | None = None, **limit: int
) -> Input:
    return Input(NamedFiles([path], **limit), str(path), identity, seen)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    path.write_bytes(b"first content")
    return path


def test_an_untouched_file_is_taken_at_the_word_of_its_stamp(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = named(file, "0" * 64, stamp(file))
    monkeypatch.setattr(inputs, "digest_bytes", None)
    assert source.read() == b"first content"


def test_a_file_edited_in_place_is_changed_even_with_its_old_times_and_size(file: Path) -> None:
    before, seen = file.stat(), stamp(file)
    file.write_bytes(b"other content")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(InputError, match="edited while the run went on"):
        named(file, digest_bytes(b"first content"), seen).read()


def test_a_touched_file_with_the_same_bytes_is_the_same(file: Path) -> None:
    seen = stamp(file)
    os.utime(file)
    assert named(file, digest_bytes(b"first content"), seen).read() == b"first content"


def test_without_a_stamp_the_bytes_decide(file: Path) -> None:
    assert named(file, digest_bytes(b"first content")).read() == b"first content"
    with pytest.raises(InputError, match="edited"):
        named(file, digest_bytes(b"other content")).read()


def test_files_written_just_now_are_not_taken_at_their_word(file: Path) -> None:
    source = FolderSource(file.parent)
    samples = FeatureStore.create(file.parent / "cache").samples
    rows = samples.append(np.zeros((1, 32), np.uint8), ["a.png"], np.array([13]))
    entries = Entries.of(source)
    listing = Listing(source.key, entries.names, entries.stamps, rows, entries.problems)
    (fresh,) = inputs_of_rows(source, listing, samples, rows)
    assert fresh.stamp is None
    with pytest.raises(InputError, match="edited"):
        fresh.read()


def test_limits_and_missing_files(file: Path) -> None:
    with pytest.raises(InputError, match="the file has 13 bytes, the limit is 12"):
        named(file, max_bytes=12).read()
    with pytest.raises(InputError, match="the file has 13 bytes, the limit is 12"):
        named(file, None, stamp(file)).read(12)
    with pytest.raises(InputError, match="removed while the run went on"):
        named(file.parent / "b.png").read()
    with pytest.raises(InputError, match="it is a folder, not a file"):
        named(file.parent).read()
