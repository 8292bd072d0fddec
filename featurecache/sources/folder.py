"""A folder of images as a source: found recursively, in sorted order, recognised by content."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from featurecache.errors import SourceError
from featurecache.files import reason_of, why_not_regular
from featurecache.ignored import HIDDEN, IgnoredCounter, IgnoredFiles, by_suffix
from featurecache.sources.decoding.images import FORMATS, SUFFIXES
from featurecache.sources.entries import ENCODING, ERRORS
from featurecache.sources.files import read_file
from featurecache.sources.path_list import stamp_of
from featurecache.sources.source import NO_STAMP, UNSETTLED_NS, Entry, SingleUnit, Stamp, Unit
from featurecache.specs import MAX_FILE_BYTES

IMAGE_SUFFIXES = frozenset(suffix for name in FORMATS for suffix in SUFFIXES[name])

_SUFFIXES = frozenset(os.fsencode(suffix) for suffix in IMAGE_SUFFIXES)


class FolderSource(SingleUnit):
    """All images in a folder and the folders below it, named by their path in it, with forward slashes.

    It is one unit: names come sorted, and no folder twice, only where one walk lists all of them.

    Hidden files and folders (whose names begin with a dot) are left out. Links are followed, but no folder is
    entered twice, so a link that leads back up ends the walk instead of making it endless.

    Parameters
    ----------
    url : path
        The folder.
    max_bytes : int
        Larger files are not read, not even to identify them.

    Attributes
    ----------
    key, prefix : str
        The absolute path, and the path as it was given, with a slash.
    ignored : IgnoredFiles
        What it held besides images when it was last listed.
    """

    modality = "image"

    def __init__(self, url: str | Path, *, max_bytes: int = MAX_FILE_BYTES) -> None:
        self.root, self._max_bytes = Path(url), max_bytes
        self.key, self.prefix = str(self.root.resolve()), str(self.root / "x")[:-1]
        self.ignored = IgnoredFiles()

    def list(self, unit: Unit) -> Iterator[Entry]:
        """Yield the images, sorted by the bytes of their paths; each folder is asked once.

        The ctime of a file that was written just now is -1: it could be written again within one tick of the clock.

        Raises
        ------
        SourceError
            The folder is missing or cannot be listed, or holds no images.
        """
        self._check_folder()
        walk, settled, is_empty = _Walk(self.root), time.time_ns() - UNSETTLED_NS, True
        for found, path in walk.images():
            is_empty = False
            name = path.decode(ENCODING, ERRORS)
            try:
                status = found.stat()
            except OSError as error:
                yield Entry(name, NO_STAMP, why_not_regular(os.fsdecode(found.path)) or reason_of(error))
                continue
            yield Entry(name, stamp_of(status, settled))
        if is_empty:  # known only now: to ask first would walk the folders twice
            ignored = replace(walk.ignored.result(), folders=(), num_folders=0)
            left_out = "".join(f"; {warning.text}" for warning in ignored.warnings())
            held = f"; it holds {by_suffix(ignored.others)}" if ignored.others else ""
            suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
            raise SourceError(f"{self.root} holds no images; looked for names ending in {suffixes}{left_out}{held}")
        self.ignored = walk.ignored.result()

    def open(self, name: str, *, stamp: Stamp | None) -> bytes:
        """Return the bytes of a file; see `featurecache.sources.files.read_file`."""
        return read_file(self.root / name, stamp=stamp, max_bytes=self._max_bytes)

    def _check_folder(self) -> None:
        if not self.root.exists():
            raise SourceError(
                f"no source at {self.root}: there is no such folder; name the folder that holds the images"
            )
        if not self.root.is_file() and not self.root.is_dir():
            raise SourceError(f"{self.root} cannot be a source: {why_not_regular(self.root)}; name a folder")
        if not self.root.is_dir():
            raise SourceError(
                f"{self.root} is a file; name the folder that holds the images, or add --text-column NAME if it is a "
                "table of texts"
            )


# Absolute path, relative path (a folder's ends in a slash), and the entry of a file.
_Found = tuple[bytes, bytes, os.DirEntry[bytes] | None]


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
            elif os.path.splitext(entry.name)[1].lower() in _SUFFIXES:  # noqa: PTH122 - once for every file
                pending[-1].has_images = True
                yield entry, path
            else:
                self.ignored.add(*(os.fsdecode(name) for name in (entry.name, path, entry.path)))

    def _leave(self, pending: list[_Entered]) -> None:
        """Go back to the folder above, which reports its folders without images only if it has some itself."""
        left = pending.pop()
        if not left.has_images and pending:
            pending[-1].empty.append(left.path)
            return
        if pending:
            pending[-1].has_images = True
            for path in left.empty:
                self.ignored.folders.append(os.fsdecode(path.rstrip(b"/")))

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
        self.ignored.others[HIDDEN] += len(every) - len(visible)
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
