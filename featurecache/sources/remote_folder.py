"""A folder on any file system that fsspec knows: object stores, archives, memory, servers.

``s3://bucket/photos``, ``gs://...``, ``memory://...``, ``zip://::/data/photos.zip``; the packages that fsspec needs for
a store are the user's to install.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from hashlib import sha256
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

from featurecache.errors import InputError, MissingExtraError, SourceError, shortened
from featurecache.ignored import IgnoredCounter, IgnoredFiles
from featurecache.sources.folder import IMAGE_SUFFIXES
from featurecache.sources.path_list import stamp_of
from featurecache.sources.source import Entry, SingleUnit, Stamp, Unit
from featurecache.specs import MAX_FILE_BYTES

# What tells that an object is another one than before, by the file systems of fsspec; the first that is there.
_TAGS = ("ETag", "etag", "md5Hash", "crc32c", "CRC", "mtime", "LastModified", "last_modified", "updated", "created")


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
        self._files, self._root = open_file_system(url)
        # An archive on this machine is held open: what replaces it is seen by its own stamp.
        archive = Path(url.rpartition("::")[2])
        self._archive = archive if "::" in url and archive.is_file() else None
        self._archive_stamp = None if self._archive is None else stamp_of(self._archive.stat(), 0)

    def list(self, unit: Unit) -> Iterator[Entry]:
        """Yield the images, sorted by name; objects are listed, not read.

        Raises
        ------
        SourceError
            Nothing can be listed there, or no images are.
        """
        try:
            found = self._files.find(self._root, detail=True)
        except Exception as error:  # each file system has errors of its own
            raise SourceError(f"cannot list {self.url}: {_reason(error)}") from None
        ignored, names = IgnoredCounter(), list[tuple[str, dict[str, Any]]]()
        for path, about in found.items():
            if about.get("type", "file") != "file":
                continue
            name = path[len(self._root) :].lstrip("/") if path.startswith(self._root) else path
            if not name or any(folder.startswith(".") for folder in PurePosixPath(name).parts):
                ignored.add_hidden(1)
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
        path = f"{self._root.rstrip('/')}/{name}" if self._root else name
        try:
            now = None if self._archive is None else stamp_of(self._archive.stat(), 0)
            if now != self._archive_stamp:
                if stamp is not None:
                    raise InputError("changed", "the archive was replaced while the run went on")
                (self._files, self._root), self._archive_stamp = open_file_system(self.url), now
            about = self._files.info(path)
            if stamp is not None and stamp_of_object(about) != stamp:
                raise InputError("changed", "the object was replaced while the run went on")
            if (size := about.get("size")) is not None and size > self._max_bytes:
                raise InputError("too_large", f"the object has {size} bytes, the limit is {self._max_bytes}")
            data = bytes(self._files.cat_file(path))
        except FileNotFoundError:
            raise InputError("missing", "the object is not there") from None
        except InputError:
            raise
        except Exception as error:  # each file system has errors of its own
            raise InputError("unreadable", _reason(error)) from None
        if size is not None and len(data) != size:
            raise InputError("changed", f"{len(data)} bytes came of an object of {size}")
        return data


def open_file_system(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path on it.

    Parameters
    ----------
    url : str

    Raises
    ------
    SourceError
        fsspec knows no such URL, or needs a package for it.
    """
    try:
        fsspec = import_module("fsspec")
    except ImportError:
        raise MissingExtraError("fsspec, which reads URLs,", "remote") from None
    try:
        # Anew: fsspec keeps file systems, and would go on with what an archive held before.
        found: tuple[Any, str] = fsspec.core.url_to_fs(url, skip_instance_cache=True, use_listings_cache=False)
    except Exception as error:  # of the file system that the URL names
        raise SourceError(f"cannot open {url}: {_reason(error)}") from None
    return found


def is_remote(url: str) -> bool:
    """Tell whether fsspec knows the kind of a URL; nothing is imported for a path."""
    kind = url.partition("::")[0].partition("://")[0]
    if not kind or ("://" not in url and "::" not in url):
        return False
    try:
        registry = import_module("fsspec.registry")
    except ImportError:
        return False
    return kind in registry.known_implementations or kind in registry.registry


def stamp_of_object(about: dict[str, Any]) -> Stamp | None:
    """Return the stamp of an object from what its file system says of it; None where that tells no change.

    Parameters
    ----------
    about : dict
        As ``fsspec`` gives it: its size, and a tag or a time.
    """
    tag = next((about[name] for name in _TAGS if about.get(name) is not None), None)
    if tag is None or about.get("size") is None:
        return None
    # Listed, a time may be a number where it is a date of the object itself.
    digest = sha256(str(tag.timestamp() if isinstance(tag, datetime) else tag).encode()).digest()
    first, second, third = (int.from_bytes(digest[start : start + 7], "little") for start in (0, 7, 14))
    return int(about["size"]), first, second, third


def _reason(error: BaseException) -> str:
    return shortened(" ".join(f"{type(error).__name__}: {error}".split()), 200)
