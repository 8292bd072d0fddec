"""A folder on any file system that fsspec knows: object stores, archives, memory, servers.

``s3://bucket/photos``, ``gs://...``, ``memory://...``, ``zip://::/data/photos.zip``; the packages that fsspec needs for
a store are the user's to install.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from featurecache.errors import InputError, SourceError
from featurecache.files import reason_of
from featurecache.ignored import HIDDEN, IgnoredCounter, IgnoredFiles
from featurecache.sources.folder import IMAGE_SUFFIXES
from featurecache.sources.remote_files import RemoteFiles, stamp_of_object
from featurecache.sources.source import Entry, SingleUnit, Stamp, Unit
from featurecache.specs import MAX_FILE_BYTES


class RemoteFolder(SingleUnit):
    """All images below a URL, named by their path below it.

    Parameters
    ----------
    url : str
        As fsspec takes it.
    max_bytes : int
        Larger objects are not read.

    Raises
    ------
    SourceError
        No such kind of URL, or what it names cannot be reached.
    """

    modality = "image"
    has_coarse_stamps = True
    """What a file system says of an object may be its time in seconds; digests take little beside a network."""

    def __init__(self, url: str, *, max_bytes: int = MAX_FILE_BYTES) -> None:
        self.url, self._max_bytes = url, max_bytes
        self.key, self.prefix = url.rstrip("/"), f"{url.rstrip('/')}/"
        self.ignored = IgnoredFiles()
        self._files = RemoteFiles(url)
        self.is_far = not self._files.is_local

    def list(self, unit: Unit) -> Iterator[Entry]:
        """Yield the images, sorted by name; objects are listed, not read.

        Raises
        ------
        SourceError
            Nothing can be listed there, or no images are.
        """
        try:
            found, root = self._files.find(), self._files.root
        except OSError as error:
            raise SourceError(f"cannot list {self.url}: {reason_of(error)}") from None
        ignored, names = IgnoredCounter(), list[tuple[str, dict[str, Any]]]()
        for path, about in found.items():
            if about.get("type", "file") != "file":
                continue
            name = path[len(root) :].lstrip("/") if path.startswith(root) else path
            if not name or any(folder.startswith(".") for folder in PurePosixPath(name).parts):
                ignored.others[HIDDEN] += 1
            elif PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES:
                names.append((name, about))
            else:
                ignored.add(PurePosixPath(name).name, name, "")
        self.ignored = ignored.result()
        if not names:
            suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
            raise SourceError(f"{self.url} holds no images; looked for names ending in {suffixes}")
        for name, about in sorted(names):
            yield Entry(name, stamp_of_object(about))

    def open(self, name: str, *, stamp: Stamp | None) -> bytes:
        """Return the bytes of an object; with a stamp given, it must still have that."""
        try:
            if self._files.refresh() and stamp is not None:
                raise InputError("changed", "the archive was replaced while the run went on")
            root = self._files.root
            path = f"{root.rstrip('/')}/{name}" if root else name
            about = self._files.info(path)
            if stamp is not None and stamp_of_object(about) != stamp:
                raise InputError("changed", "the object was replaced while the run went on")
            if (size := about.get("size")) is not None and size > self._max_bytes:
                raise InputError("too_large", f"the object has {size} bytes, the limit is {self._max_bytes}")
            data = self._files.cat(path, size=size or 0)
        except FileNotFoundError:
            raise InputError("missing", "the object is not there") from None
        except OSError as error:
            raise InputError("unreadable", reason_of(error)) from None
        if size is not None and len(data) != size:
            raise InputError("changed", f"{len(data)} bytes came of an object of {size}")
        return data
