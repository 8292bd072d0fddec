"""A folder of images as a source: found recursively, in sorted order, recognised by content."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featurecache.errors import SourceError
from featurecache.hashing import digest_file

IMAGE_SUFFIXES = frozenset([".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"])

Stamp = tuple[int, int, int, int]
"""What tells that a file is unchanged: size, mtime and ctime in ns, inode."""
Known = dict[str, tuple[Stamp, bytes]]
"""What the last scan knew: path -> (stamp, id)."""

_UNSETTLED_NS = 2_000_000_000  # the coarsest clock of a file system in use (FAT)


@dataclass(frozen=True)
class Scan:
    """What a source holds now, in sorted order.

    Attributes
    ----------
    paths : list of str
        Relative to the source, with forward slashes.
    stamps : ndarray of int64, shape (n, 4)
        Size, mtime and ctime in ns, inode. The ctime of a file that was written just now is -1: it could be written
        again within one tick of the clock, so the next scan reads it again.
    ids : ndarray of uint8, shape (n, 32)
        SHA-256 of each file; zeros where the file could not be read.
    problems : dict of str to str
        Path -> why it could not be read.
    num_read : int
        Files whose bytes had to be read; the others were unchanged since the last scan.
    num_ignored : int
        Files that are no images by their name.
    """

    paths: list[str]
    stamps: NDArray[np.int64]
    ids: NDArray[np.uint8]
    problems: dict[str, str]
    num_read: int
    num_ignored: int


@dataclass(frozen=True)
class FolderSource:
    """All images in a folder and the folders below it.

    Hidden files and folders (whose names begin with a dot) are left out. Links are followed, but no folder is
    entered twice, so a link that leads back up ends the walk instead of making it endless.
    """

    root: Path

    def scan(self, known: Known | None = None, *, on_read: Callable[[int, int], None] | None = None) -> Scan:
        """List the images and identify each by the digest of its bytes.

        Parameters
        ----------
        known : dict, optional
            Result of the last scan; a file whose stamp is unchanged is not read again.
        on_read : callable, optional
            Called with (files read, files to read) as the bytes are digested.

        Raises
        ------
        SourceError
            The folder is missing, or holds no images.
        """
        found, problems, num_ignored = self._find()
        known = known or {}
        changed = [i for i, (path, stamp) in enumerate(found) if not _is_unchanged(stamp, known.get(path))]
        ids = np.zeros((len(found), 32), np.uint8)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            digests = pool.map(lambda i: _digest(self.root / found[i][0]), changed)
            for done, (i, digest) in enumerate(zip(changed, digests, strict=True), 1):
                if isinstance(digest, str):
                    problems[found[i][0]] = digest
                else:
                    ids[i] = np.frombuffer(digest, np.uint8)
                if on_read:
                    on_read(done, len(changed))
        fresh = set(changed)
        for i, (path, _) in enumerate(found):
            if i not in fresh:
                ids[i] = np.frombuffer(known[path][1], np.uint8)
        return Scan(
            paths=[path for path, _ in found],
            stamps=np.array([stamp for _, stamp in found], np.int64).reshape(-1, 4),
            ids=ids,
            problems=problems,
            num_read=len(changed),
            num_ignored=num_ignored,
        )

    def list_paths(self) -> list[str]:
        """Return the relative path of every image, sorted, without reading any."""
        return [path for path, _ in self._find()[0]]

    def check(self) -> None:
        """Raise `SourceError` when there is no such folder, or no image in it."""
        self._check_folder()
        if not any(_is_image(entry) for entry, _ in _walk(self.root)):
            raise self._empty()

    def _check_folder(self) -> None:
        if not self.root.exists():
            raise SourceError(
                f"no source at {self.root}: there is no such folder; name the folder that holds the images"
            )
        if not self.root.is_dir():
            raise SourceError(f"{self.root} is a file; name the folder that holds the images")

    def _find(self) -> tuple[list[tuple[str, Stamp]], dict[str, str], int]:
        self._check_folder()
        found: list[tuple[str, Stamp]] = []
        problems: dict[str, str] = {}
        num_ignored, now = 0, time.time_ns()
        for entry, path in _walk(self.root):
            if not _is_image(entry):
                num_ignored += 1
                continue
            try:
                found.append((path, _stamp(entry.stat(), now)))
            except OSError as error:
                found.append((path, (0, 0, -1, 0)))
                problems[path] = error.strerror or type(error).__name__
        if not found:
            raise self._empty()
        return sorted(found), problems, num_ignored

    def _empty(self) -> SourceError:
        return SourceError(
            f"{self.root} holds no images; looked for names ending in {', '.join(sorted(IMAGE_SUFFIXES))}"
        )


def find_images(inputs: list[Path]) -> list[Path]:
    """List the images that files and folders name, folders recursively; a named file counts whatever its suffix."""
    images: list[Path] = []
    for path in inputs:
        if path.is_dir():
            images += [path / relative for relative, _ in FolderSource(path)._find()[0]]
        elif path.exists():
            images.append(path)
        else:
            raise SourceError(f"no input at {path}: there is no such file or folder")
    return images


def _walk(root: Path) -> Iterator[tuple[os.DirEntry[str], str]]:
    """Yield every visible file below ``root``, links that lead nowhere included, with its relative path."""
    pending, seen = [(str(root), "")], set()
    while pending:
        folder, prefix = pending.pop()
        try:
            status = os.stat(folder)  # noqa: PTH116 - a Path for each folder would cost more than the walk
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                # Sorted, so that of two links to one folder the same one is followed every time.
                listed = sorted(entries, key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            raise SourceError(f"cannot list {folder}: {error.strerror}; make it readable, or move it away") from None
        for entry in listed:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                pending.append((entry.path, f"{prefix}{entry.name}/"))
            else:
                yield entry, prefix + entry.name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _is_unchanged(stamp: Stamp, known: tuple[Stamp, bytes] | None) -> bool:
    return known is not None and known[0] == stamp and stamp[2] >= 0


def _stamp(status: os.stat_result, now_ns: int) -> Stamp:
    settled = max(status.st_mtime_ns, status.st_ctime_ns) < now_ns - _UNSETTLED_NS
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns if settled else -1, status.st_ino


def _is_image(entry: os.DirEntry[str]) -> bool:
    return os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 - once for every file


def _digest(path: Path) -> bytes | str:
    try:
        if not path.is_file():
            return "not a file, or a link that leads nowhere"
        return bytes.fromhex(digest_file(path))
    except OSError as error:
        return error.strerror or type(error).__name__
