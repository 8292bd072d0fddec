"""A folder of images as a source: found recursively, in sorted order, recognised by content."""

from __future__ import annotations

import os
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featurecache.errors import ReportWarning, SourceError
from featurecache.files import reason_of, why_not_regular
from featurecache.hashing import digest_file
from featurecache.ignored import IgnoredCounter, IgnoredFiles
from featurecache.machine import num_cores
from featurecache.sources.decoding.images import FORMATS, SUFFIXES
from featurecache.sources.inputs import FileInput
from featurecache.specs import MAX_FILE_BYTES
from featurecache.text import TextColumn

IMAGE_SUFFIXES = frozenset(suffix for name in FORMATS for suffix in SUFFIXES[name])

Stamp = tuple[int, int, int, int]
"""What tells that a file is unchanged: size, mtime and ctime in ns, inode."""

_SUFFIXES = frozenset(os.fsencode(suffix) for suffix in IMAGE_SUFFIXES)
_UNSETTLED_NS = 2_000_000_000  # the coarsest clock of a file system in use (FAT)
_UNREADABLE: Stamp = (0, 0, -1, 0)
_BLOCK = 1 << 18
"""Files whose digests are handed over at once."""
_HANDFUL = 8
"""Files that a thread reads without looking up."""


@dataclass(frozen=True)
class Entries:
    """The inputs that a source holds now, sorted by the bytes of their paths; no file was read.

    Attributes
    ----------
    paths : TextColumn
        Relative to the source, with forward slashes; of a table, the keys of its rows.
    stamps : ndarray of int64, shape (n, 4)
        Size, mtime and ctime in ns, inode. The ctime of a file that was written just now is -1: it could be written
        again within one tick of the clock, so the next scan reads it again.
    problems : dict of str to str
        Path -> why it could not be looked at.
    ignored : IgnoredFiles
        Files that are no inputs by their name.
    """

    paths: TextColumn
    stamps: NDArray[np.int64]
    problems: dict[str, str]
    ignored: IgnoredFiles = field(default_factory=IgnoredFiles)

    def unchanged_since(self, paths: TextColumn, stamps: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the place of each file in an earlier listing; -1 where it was not there, or may have changed."""
        places = paths.find_all(self.paths)
        known = np.flatnonzero(places >= 0)
        differs = (self.stamps[known] != stamps[places[known]]).any(axis=1) | (self.stamps[known, 2] < 0)
        places[known[differs]] = -1
        return places


@dataclass(frozen=True)
class FolderSource:
    """All images in a folder and the folders below it.

    Hidden files and folders (whose names begin with a dot) are left out. Links are followed, but no folder is
    entered twice, so a link that leads back up ends the walk instead of making it endless.
    """

    root: Path
    max_bytes: int = MAX_FILE_BYTES
    """Larger files are not read, not even to identify them."""

    modality = "image"
    noun = "files"

    def find(self) -> Entries:
        """List the images without reading any.

        Raises
        ------
        SourceError
            The folder is missing, or holds no images.
        """
        self._check_folder()
        stamps, problems, walk = array("q"), dict[str, str](), _Walk(self.root)
        paths = TextColumn.pack(self._images(stamps, problems, walk))
        if not len(paths):
            raise self._empty(walk)
        return Entries(paths, np.frombuffer(stamps, np.int64).reshape(-1, 4), problems, walk.ignored.result())

    def identify(
        self, listing: Entries, places: NDArray[np.int64], *, on_read: Callable[[int], None] = lambda count: None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        """Read some files of a listing and yield blocks of (places, ids): ids are the SHA-256 of the bytes.

        Parameters
        ----------
        listing : Entries
            Files that cannot be read are added to its ``problems`` and left out of the blocks.
        places : ndarray of int64
            Which files to read.
        on_read : callable, optional
            Called with a number of files that were read since.
        """
        with ThreadPoolExecutor(num_cores()) as pool:
            for first in range(0, len(places), _BLOCK):
                block = places[first : first + _BLOCK]
                paths = [listing.paths[place] for place in block.tolist()]
                ids, readable = np.zeros((len(block), 32), np.uint8), np.ones(len(block), bool)
                handfuls = (paths[start : start + _HANDFUL] for start in range(0, len(paths), _HANDFUL))
                for i, digest in enumerate(chain.from_iterable(pool.map(self._digest_all, handfuls))):
                    if isinstance(digest, str):
                        listing.problems[paths[i]] = digest
                        readable[i] = False
                    else:
                        ids[i] = np.frombuffer(digest, np.uint8)
                    on_read(1)
                yield block[readable], ids[readable]

    def inputs(
        self, paths: Sequence[str], ids: Sequence[str], stamps: NDArray[np.int64] | None = None
    ) -> list[FileInput]:
        """Return some files to be read, which must still hold the bytes that were seen at the scan.

        With their stamps of the scan, files that still have them are taken at their word, as in the next scan.
        """
        seen = (
            [None] * len(paths)
            if stamps is None
            else [tuple(stamp) if stamp[2] >= 0 else None for stamp in stamps.tolist()]
        )
        return [
            FileInput(self.root / path, identity, stamp) for path, identity, stamp in zip(paths, ids, seen, strict=True)
        ]

    def _digest_all(self, paths: Sequence[str]) -> list[bytes | str]:
        return [_digest(self.root / path, self.max_bytes) for path in paths]

    def _images(self, stamps: array[int], problems: dict[str, str], walk: _Walk) -> Iterator[bytes]:
        """Yield the paths of the images, and fill in what else a listing needs."""
        now = time.time_ns()
        for entry, path in walk.images():
            try:
                stamps.extend(_stamp(entry.stat(), now))
            except OSError as error:
                stamps.extend(_UNREADABLE)
                problems[os.fsdecode(path)] = why_not_regular(os.fsdecode(entry.path)) or reason_of(error)
            yield path

    def check(self) -> None:
        """Raise `SourceError` when there is no such folder, or no image in it."""
        self._check_folder()
        walk = _Walk(self.root)
        if next(walk.images(), None) is None:
            raise self._empty(walk)

    def _check_folder(self) -> None:
        if not self.root.exists():
            raise SourceError(
                f"no source at {self.root}: there is no such folder; name the folder that holds the images"
            )
        if self.root.exists() and not self.root.is_file() and not self.root.is_dir():
            raise SourceError(f"{self.root} cannot be a source: {why_not_regular(self.root)}; name a folder")
        if not self.root.is_dir():
            raise SourceError(
                f"{self.root} is a file; name the folder that holds the images, or add --text-column NAME if it is a "
                "table of texts"
            )

    def _empty(self, walk: _Walk) -> SourceError:
        ignored = replace(walk.ignored.result(), folders=(), num_folders=0)
        left_out = "".join(f"; {warning.text}" for warning in ignored.warnings())
        return SourceError(
            f"{self.root} holds no images; looked for names ending in {', '.join(sorted(IMAGE_SUFFIXES))}{left_out}"
        )


def find_images(inputs: list[Path], *, warnings: list[ReportWarning] | None = None) -> list[Path]:
    """List the images that files and folders name, folders recursively; a named file counts whatever its suffix.

    Parameters
    ----------
    inputs : list of Path
    warnings : list of ReportWarning, optional
        Takes what is to be said of files that folders hold beside images.
    """
    images: list[Path] = []
    for path in inputs:
        if path.is_dir():
            listing = FolderSource(path).find()
            images += [path / relative for relative in listing.paths]
            if warnings is not None:
                found = replace(listing.ignored, folders=(), num_folders=0).warnings()  # classes matter to nobody here
                warnings += found if len(inputs) == 1 else [warning.about(str(path)) for warning in found]
        elif os.path.lexists(path):  # why a link cannot be read is said where it is read
            images.append(path)
        else:
            raise SourceError(f"no input at {path}: there is no such file or folder")
    return images


_Found = tuple[bytes, bytes, os.DirEntry[bytes] | None]
"""Place, relative path (a folder's ends in a slash), and the entry of a file."""


class _Walk:
    """Goes through a folder and those below it, each once, and counts what is no image."""

    def __init__(self, root: Path) -> None:
        self._root, self._seen = root, set[tuple[int, int]]()
        self.ignored = IgnoredCounter()

    def images(self) -> Iterator[tuple[os.DirEntry[bytes], bytes]]:
        """Yield every visible image, links that lead nowhere included, sorted by its relative path."""
        pending: list[_Entered] = [_Entered(b"", iter([(os.fsencode(self._root), b"", None)]))]
        while pending:
            folder, path, entry = next(pending[-1].entries, (b"", b"", None))
            if not folder:
                self._leave(pending)
            elif entry is None:
                if (entries := self._listed(folder, path)) is not None:
                    pending.append(_Entered(path, entries))
            elif _is_image(entry):
                pending[-1].has_images = True
                yield entry, path
            else:
                self.ignored.add(*(os.fsdecode(each) for each in (entry.name, path, entry.path)))

    def _leave(self, pending: list[_Entered]) -> None:
        """Go back to the folder above, which tells of its folders without images only if it has some itself."""
        left = pending.pop()
        if not left.has_images and pending:
            pending[-1].empty.append(left.path)
            return
        if pending:
            pending[-1].has_images = True
            for path in left.empty:
                self.ignored.add_folder(os.fsdecode(path.rstrip(b"/")))

    def _listed(self, folder: bytes, prefix: bytes) -> Iterator[_Found] | None:
        """Return what one folder holds, sorted by relative path; nothing of one that was there before."""
        try:
            status = os.stat(folder)  # noqa: PTH116 - a Path for each folder would cost more than the walk
            if (status.st_dev, status.st_ino) in self._seen:
                return None
            self._seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                every = list(entries)
        except OSError as error:
            raise SourceError(
                f"cannot list {os.fsdecode(folder)}: {error.strerror}; make it readable, or move it away"
            ) from None
        visible = [entry for entry in every if not entry.name.startswith(b".")]
        self.ignored.add_hidden(len(every) - len(visible))
        # A folder sorts with its slash, as the paths below it do.
        named = sorted(((entry.name + b"/", entry) if _is_folder(entry) else (entry.name, entry)) for entry in visible)
        return ((entry.path, prefix + name, None if name.endswith(b"/") else entry) for name, entry in named)


@dataclass
class _Entered:
    """A folder that a walk is in: what is left of it, whether an image was in it, and folders below without any."""

    path: bytes
    entries: Iterator[_Found]
    has_images: bool = False
    empty: list[bytes] = field(default_factory=list)


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _stamp(status: os.stat_result, now_ns: int) -> Stamp:
    settled = max(status.st_mtime_ns, status.st_ctime_ns) < now_ns - _UNSETTLED_NS
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns if settled else -1, status.st_ino


def _is_image(entry: os.DirEntry[bytes]) -> bool:
    return os.path.splitext(entry.name)[1].lower() in _SUFFIXES  # noqa: PTH122 - once for every file


def _digest(path: Path, max_bytes: int) -> bytes | str:
    try:
        return bytes.fromhex(digest_file(path, max_bytes=max_bytes))
    except OSError as error:
        return reason_of(error)
