"""A folder source finds every image once, in sorted order, and reads only what changed."""

from __future__ import annotations

import hashlib
import os
import pickle
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from featurecache.errors import SourceError
from featurecache.extraction.identify import identified
from featurecache.progress import Silent
from featurecache.sources import files, folder
from featurecache.sources.entries import Entries
from featurecache.sources.folder import FolderSource
from featurecache.sources.inputs import inputs_of
from featurecache.sources.opening import open_source, open_sources
from featurecache.sources.source import check_source

pytestmark = pytest.mark.quick


def touch(path: Path, content: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


@dataclass
class Scan:
    """A listing whose files were read unless they are unchanged."""

    listing: Entries
    ids: np.ndarray
    num_read: int


class Counting(Silent):
    """Counts what is read."""

    num_read = 0

    def advance(self, count: int, *, bad: int = 0) -> None:
        self.num_read += count


def scan(root: Path, before: Scan | None = None) -> Scan:
    source = FolderSource(root)
    listing = Entries.of(source)
    indices = np.full(len(listing.names), -1)
    ids = np.zeros((len(indices), 32), np.uint8)
    if before is not None:
        indices = listing.unchanged_since(before.listing.names, before.listing.stamps)
        ids[indices >= 0] = before.ids[indices[indices >= 0]]
    progress = Counting()
    for read, found in identified(source, listing, np.flatnonzero(indices < 0), progress):
        ids[read] = found
    return Scan(listing, ids, progress.num_read)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the clock be an hour further, so that fresh files count as settled."""
    real = time.time_ns
    monkeypatch.setattr(folder.time, "time_ns", lambda: real() + 3600 * 10**9)


def test_finds_images_recursively_sorted_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("b/2.JPG", "b/10.png", "a/1.webp", "a/deep/er/x.tiff", "z.gif", "a/notes.txt", "Thumbs.db"):
        touch(tmp_path / name)
    for name in (".hidden/1.jpg", "a/.2.jpg", ".3.png"):
        touch(tmp_path / name)
    found = scan(tmp_path)
    assert list(found.listing.names) == ["a/1.webp", "a/deep/er/x.tiff", "b/10.png", "b/2.JPG", "z.gif"]
    assert found.listing.ignored.others == {".txt": 1, ".db": 1, "hidden": 3}


def test_order_is_that_of_the_whole_paths(tmp_path: Path) -> None:
    names = [
        "a-b/1.jpg",
        "a.jpg",
        "a/1.jpg",
        "a/b.jpg",
        "a/b/1.jpg",
        "a0/1.jpg",
        "b.jpg",
        "b/\udcff.jpg",
        "b/\ue000.jpg",
    ]
    for name in names:
        touch(tmp_path / name)
    paths = list(Entries.of(FolderSource(tmp_path)).names)
    assert paths == sorted(names, key=os.fsencode)


def test_ids_are_digests_of_content(tmp_path: Path) -> None:
    touch(tmp_path / "a.jpg", "one")
    touch(tmp_path / "b.jpg", "two")
    touch(tmp_path / "copy.jpg", "one")
    ids = [row.tobytes() for row in scan(tmp_path).ids]
    assert ids == [hashlib.sha256(text).digest() for text in (b"one", b"two", b"one")]


def test_links_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path / "src/a/1.jpg")
    touch(tmp_path / "elsewhere/2.jpg")
    (tmp_path / "src/back").symlink_to(tmp_path / "src")
    (tmp_path / "src/a/up").symlink_to("..")
    (tmp_path / "src/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "src/linked_again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "src/file.jpg").symlink_to(tmp_path / "elsewhere/2.jpg")
    (tmp_path / "src/broken.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "src/itself.jpg").symlink_to(tmp_path / "src/itself.jpg")
    found = scan(tmp_path / "src")
    assert list(found.listing.names) == ["a/1.jpg", "broken.jpg", "file.jpg", "itself.jpg", "linked/2.jpg"]
    assert set(found.listing.problems) == {"broken.jpg", "itself.jpg"}


@pytest.mark.usefixtures("settled")
def test_unchanged_files_are_not_read_again(tmp_path: Path) -> None:
    for name in "abc":
        touch(tmp_path / f"{name}.jpg", name)
    first = scan(tmp_path)
    touch(tmp_path / "b.jpg", "edited")
    touch(tmp_path / "d.jpg", "d")
    second = scan(tmp_path, first)
    assert (first.num_read, second.num_read) == (3, 2)
    assert np.array_equal(second.ids, scan(tmp_path).ids)


@pytest.mark.usefixtures("settled")
def test_an_edit_that_keeps_size_and_mtime_is_noticed(tmp_path: Path) -> None:
    path = touch(tmp_path / "a.jpg", "one")
    first = scan(tmp_path)
    path.write_text("two")
    os.utime(path, ns=(0, int(first.listing.stamps[0, 1])))
    assert scan(tmp_path, first).ids[0].tobytes() == hashlib.sha256(b"two").digest()


@pytest.mark.usefixtures("settled")
def test_swapped_files_of_equal_size_and_mtime_are_noticed(tmp_path: Path) -> None:
    for name in "ab":
        os.utime(touch(tmp_path / f"{name}.jpg", name), ns=(0, 10**18))
    first = scan(tmp_path)
    (tmp_path / "a.jpg").rename(tmp_path / "c")
    (tmp_path / "b.jpg").rename(tmp_path / "a.jpg")
    (tmp_path / "c").rename(tmp_path / "b.jpg")
    assert np.array_equal(scan(tmp_path, first).ids, first.ids[::-1])


def test_a_file_written_just_now_is_read_again_next_time(tmp_path: Path) -> None:
    touch(tmp_path / "a.jpg", "one")
    first = scan(tmp_path)
    assert scan(tmp_path, first).num_read == 1


def test_an_unreadable_file_is_reported_not_fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "a.jpg", "a")
    touch(tmp_path / "b.jpg", "b")
    real = files.open_regular

    def refuse(path: Path, **limit: int) -> AbstractContextManager:
        if path.name == "a.jpg":
            raise PermissionError(13, "Permission denied")
        return real(path, **limit)

    monkeypatch.setattr(files, "open_regular", refuse)
    found = scan(tmp_path)
    assert found.listing.problems == {"a.jpg": "Permission denied"}
    assert found.ids[1].any()


def test_empty_missing_and_wrong_sources_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "docs/readme.txt")
    for call in (Entries.of, check_source):
        with pytest.raises(SourceError, match=r"holds no images; looked for names ending in .apng.*; it holds 1 .txt$"):
            call(FolderSource(tmp_path / "docs"))
    with pytest.raises(SourceError, match="there is no such folder; name the folder that holds the images"):
        check_source(FolderSource(tmp_path / "none"))
    with pytest.raises(SourceError, match="is a file; name the folder"):
        check_source(FolderSource(tmp_path / "docs/readme.txt"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        # As CIFAR's archives have them.
        ("data_batch_1", pickle.dumps([1]), "is a file of Python objects, which could run code when it is read"),
        ("train.pt", b"PK\x03\x04", "hand on its images: fc.extract"),
        ("images.npy", b"\x93NUMPY\x01\0", "is an array of numpy; hand it on in Python"),
        ("images.npz", b"PK\x03\x04", "is an array of numpy"),
        ("notes", b"", "is a file; name the folder"),
    ],
)
def test_files_of_programs_are_told_apart(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message):
        open_source(tmp_path / name)


def test_sources_are_files_and_folders_in_the_order_in_which_they_are_named(tmp_path: Path) -> None:
    touch(tmp_path / "f/b.jpg")
    touch(tmp_path / "f/a.png")
    odd = touch(tmp_path / "scan.dat")
    names = [each.name for source in open_sources([odd, tmp_path / "f", odd]) for each in inputs_of(source)]
    assert names == [str(odd), str(tmp_path / "f/a.png"), str(tmp_path / "f/b.jpg"), str(odd)]
    with pytest.raises(SourceError, match="no input at .*none.jpg"):
        open_sources([tmp_path / "none.jpg"])
