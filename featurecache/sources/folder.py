"""A folder of images as a source: found recursively, in sorted order, recognised by content."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featurecache.errors import SourceError
from featurecache.hashing import digest_file

IMAGE_SUFFIXES = frozenset([".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"])

Known = dict[str, tuple[int, int, bytes]]
"""What the last scan knew: path -> (size, mtime in ns, id)."""


@dataclass(frozen=True)
class Scan:
    """What a source holds now, in sorted order.

    Attributes
    ----------
    paths : list of str
        Relative to the source, with forward slashes.
    sizes, mtimes_ns : ndarray of int64, shape (n,)
        In bytes, and nanoseconds since 1970.
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
    sizes: NDArray[np.int64]
    mtimes_ns: NDArray[np.int64]
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
            Result of the last scan; a file whose size and modification time are unchanged is not read again.
        on_read : callable, optional
            Called with (files read, files to read) as the bytes are digested.

        Raises
        ------
        SourceError
            The folder is missing, or holds no images.
        """
        found, num_ignored = self._find()
        known = known or {}
        changed = [
            i for i, (path, size, mtime) in enumerate(found) if known.get(path, (None,) * 3)[:2] != (size, mtime)
        ]
        ids = np.zeros((len(found), 32), np.uint8)
        problems: dict[str, str] = {}
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
        for i, (path, _, _) in enumerate(found):
            if i not in fresh:
                ids[i] = np.frombuffer(known[path][2], np.uint8)
        return Scan(
            paths=[path for path, _, _ in found],
            sizes=np.array([size for _, size, _ in found], np.int64),
            mtimes_ns=np.array([mtime for _, _, mtime in found], np.int64),
            ids=ids,
            problems=problems,
            num_read=len(changed),
            num_ignored=num_ignored,
        )

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

    def _find(self) -> tuple[list[tuple[str, int, int]], int]:
        self._check_folder()
        found, num_ignored = [], 0
        for entry, path in _walk(self.root):
            if _is_image(entry):
                status = entry.stat()
                found.append((path, status.st_size, status.st_mtime_ns))
            else:
                num_ignored += 1
        if not found:
            raise self._empty()
        return sorted(found), num_ignored

    def _empty(self) -> SourceError:
        return SourceError(
            f"{self.root} holds no images; looked for names ending in {', '.join(sorted(IMAGE_SUFFIXES))}"
        )


def find_images(inputs: list[Path]) -> list[Path]:
    """List the images that files and folders name, folders recursively; a named file counts whatever its suffix."""
    images: list[Path] = []
    for path in inputs:
        if path.is_dir():
            images += [path / relative for relative, _, _ in FolderSource(path)._find()[0]]
        elif path.exists():
            images.append(path)
        else:
            raise SourceError(f"no input at {path}: there is no such file or folder")
    return images


def _walk(root: Path) -> Iterator[tuple[os.DirEntry[str], str]]:
    """Yield every visible file below ``root`` with its relative path."""
    pending, seen = [(str(root), "")], set()
    while pending:
        folder, prefix = pending.pop()
        status = os.stat(folder)  # noqa: PTH116 - a Path for each folder would cost more than the walk
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            # Sorted, so that of two links to one folder the same one is followed every time.
            for entry in sorted(entries, key=lambda entry: entry.name, reverse=True):
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    pending.append((entry.path, f"{prefix}{entry.name}/"))
                elif entry.is_file():
                    yield entry, prefix + entry.name


def _is_image(entry: os.DirEntry[str]) -> bool:
    return os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 - once for every file


def _digest(path: Path) -> bytes | str:
    try:
        return bytes.fromhex(digest_file(path))
    except OSError as error:
        return error.strerror or type(error).__name__
