"""Any file system that fsspec knows, asked with a deadline: a server that falls silent must not hold a run up for ever.

Packages for object stores try again by themselves, and multiply: s3fs five times what botocore does five times with a
minute for each answer. So every request for one object ends after a time of ours, and its connection is given back.
"""

from __future__ import annotations

import errno
import io
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from featurecache.errors import MissingExtraError, SourceError, shortened
from featurecache.sources.path_list import stamp_of
from featurecache.sources.source import LEAST_RATE, PATIENCE, Stamp

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# What tells that an object is another one than before, by the file systems of fsspec; the first that is there.
_DIGESTS = ("ETag", "etag", "md5Hash", "crc32c", "CRC")
_TAGS = (*_DIGESTS, "mtime", "LastModified", "last_modified", "updated", "created")
# A long object comes in blocks, each with a deadline of its own: small ones where the line is slow, so that whatever
# brings 1 kB/s is waited for, and large ones where a request costs more than its bytes.
_FIRST_BLOCK, _LEAST_BLOCK, _LARGEST_BLOCK = 1 << 15, 1 << 14, 1 << 23
_FAST_SECONDS, _SLOW_SECONDS = 1.0, 10.0
_TRIES = 3


class RemoteFiles:
    """The file system that a URL names; several threads may ask at once.

    It is kept, because a file system for each request costs a client of its store each time (of S3 up to a second of
    computing), and opened anew in another process and where an archive on this machine was replaced.

    Parameters
    ----------
    url : str
        As fsspec takes it.

    Raises
    ------
    SourceError
        fsspec knows no such URL, or needs a package for it.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        archive = Path(url.rpartition("::")[2])
        self._archive = archive if "::" in url and archive.is_file() else None
        self.is_local = self._archive is not None
        """It is an archive on this machine."""
        self._lock = threading.Lock()
        self._head: tuple[tuple[str, Stamp], bytes] | None = None
        self._open()

    def refresh(self) -> bool:
        """Open it anew where that is needed, and tell whether an archive was replaced: it is held open until then."""
        if self._state() == self._opened_as:
            return False
        with self._lock:
            before, now = self._opened_as, self._state()
            if now != before:
                self._open()
        return now[1:] != before[1:]

    def info(self, path: str) -> dict[str, Any]:
        """Return what the file system says of an object.

        Raises
        ------
        FileNotFoundError
            It is not there.
        OSError
            What went wrong, in a few words: each file system has errors of its own.
        """
        return self._ask("info", path)

    def cat(self, path: str, *, size: int, start: int | None = None) -> bytes:
        """Return the bytes of an object, or ``size`` bytes from ``start``; raises as `info`."""
        span = {} if start is None else {"start": start, "end": start + size}
        return bytes(self._ask("cat_file", path, seconds=PATIENCE + size / LEAST_RATE, **span))

    def find(self) -> dict[str, dict[str, Any]]:
        """Return all objects below the URL with what is said of them; raises as `info`."""
        # No deadline: millions of objects take as long as they take.
        return self._ask("find", self.root, seconds=None, detail=True)

    def glob(self) -> list[str]:
        """Return the URLs of the objects that fit the pattern of this one; raises as `info`."""
        return [self._files.unstrip_protocol(path) for path in self._ask("glob", self.root, seconds=None)]

    def path_of(self, url: str) -> str:
        """Return the path of another URL of the same file system."""
        return self._files._strip_protocol(url)  # as `url_to_fs` does it; there is no public name

    @contextmanager
    def open(self, path: str) -> Iterator[IO[bytes]]:
        """Open an object to read it from its beginning to its end; raises as `info`, also while it is read."""
        self.refresh()
        if not self._has_deadlines:
            with self._files.open(path, "rb") as file:
                # What lies in memory is one file for all who open it, position included.
                yield io.BytesIO(file.getvalue()) if isinstance(file, io.BytesIO) else file
            return
        with io.BufferedReader(_BlockFile(self._blocks(path))) as buffered:
            yield buffered

    def _open(self) -> None:
        state = self._state()
        # `root` is the path of the URL on its file system.
        self._files, self.root = open_file_system(self.url)
        self._opened_as = state

    def _state(self) -> tuple[int, Stamp | None]:
        try:
            return os.getpid(), None if self._archive is None else stamp_of(self._archive.stat(), 0)
        except OSError:  # the archive was removed: what reads it next says so
            return os.getpid(), None

    @property
    def _has_deadlines(self) -> bool:
        # Those that wait for servers are written for asyncio, by which a request can be given up; of the others (zip
        # files, memory, FTP) only their own timeouts end a request.
        return bool(getattr(self._files, "async_impl", False))

    def _ask(self, method: str, *arguments: Any, seconds: float | None = PATIENCE, **options: Any) -> Any:
        self.refresh()
        with _explained(seconds):
            if not self._has_deadlines:
                return getattr(self._files, method)(*arguments, **options)
            return self._run(getattr(self._files, f"_{method}"), *arguments, seconds=seconds, **options)

    def _run(self, function: Any, *arguments: Any, seconds: float | None, **options: Any) -> Any:
        # Its timeout cancels what goes on, which frees the connection: of ten at once, silent ones would take all.
        return import_module("fsspec.asyn").sync(self._files.loop, function, *arguments, timeout=seconds, **options)

    def _blocks(self, path: str) -> Iterator[bytes]:
        """Yield an object in blocks of a length that the line deserves."""
        about = self.info(path)
        key = (path, stamp) if (stamp := stamp_of_object(about)) is not None else None
        size, position, length = about.get("size"), 0, _FIRST_BLOCK
        if key is not None and self._head is not None and self._head[0] == key:
            position = len(self._head[1])
            yield self._head[1]
        while size is None or position < size:
            started = time.monotonic()
            end = position + length if size is None else min(position + length, size)
            try:
                block = self._range(path, position, end)
            except _WholeOnlyError:
                yield from self._streamed(path, position)
                return
            if not block:
                return
            if position == 0 and key is not None:
                # A look at the first member is followed by reading all: the beginning need not come twice.
                self._head = (key, block)
            position += len(block)
            yield block
            seconds = time.monotonic() - started
            if seconds < _FAST_SECONDS:
                length = min(2 * length, _LARGEST_BLOCK)
            elif seconds > _SLOW_SECONDS:
                length = max(length // 2, _LEAST_BLOCK)

    def _range(self, path: str, start: int, end: int) -> bytes:
        """Return a block of an object."""
        if self._is_http:
            # Its file, not `cat_file`, sees that a server answers with more than it was asked for.
            fetch = self._files.open(path, size=end).async_fetch_range
        else:
            fetch = partial(self._files._cat_file, path)
        for number in range(_TRIES):
            with _explained(PATIENCE):
                try:
                    return bytes(self._run(fetch, seconds=PATIENCE, start=start, end=end))
                except (TimeoutError, FileNotFoundError, PermissionError):
                    raise
                except ValueError as error:
                    raise (_WholeOnlyError() if self._is_http else error) from None
                except Exception:  # a connection that was cut once may hold the next time
                    if number == _TRIES - 1:
                        raise
            time.sleep(0.2 * 2**number)
        raise AssertionError("unreachable")

    def _streamed(self, path: str, position: int) -> Iterator[bytes]:
        """Yield what follows a position in an object that its server gives out whole only."""
        started, num_read = time.monotonic(), 0
        with _explained(PATIENCE):
            file = self._files.open(path, block_size=0)
        with file:
            while True:
                with _explained(PATIENCE):
                    block = file.read(1 << 20, timeout=PATIENCE)
                if not block:
                    return
                yield block[max(position - num_read, 0) :]
                num_read += len(block)
                if (seconds := time.monotonic() - started) > PATIENCE + num_read / LEAST_RATE:
                    raise OSError(errno.ETIMEDOUT, f"it comes too slowly: {num_read} bytes in {seconds:.0f} s")

    @property
    def _is_http(self) -> bool:
        return "http" in self._files.protocol


class _WholeOnlyError(Exception):
    """A server gives out whole objects only."""


class _BlockFile(io.RawIOBase):
    """A file of blocks that come one after the other."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._block = blocks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        while not self._block:
            if (block := next(self._blocks, None)) is None:
                return 0
            self._block = memoryview(block)
        target = memoryview(buffer)
        count = min(len(target), len(self._block))
        target[:count], self._block = self._block[:count], self._block[count:]
        return count


@contextmanager
def _explained(seconds: float | None) -> Iterator[None]:
    """Raise what a file system raises as an `OSError` that says it in a few words."""
    try:
        yield
    except _WholeOnlyError:
        raise
    except FileNotFoundError as error:
        # fsspec says so of all that an HTTP server did not answer well, with what aiohttp said as the cause.
        cause = error.__cause__
        if cause is None or not type(cause).__module__.startswith("aiohttp") or getattr(cause, "status", 0) == 404:
            raise
        raise OSError(errno.EIO, _reason(cause)) from None
    except TimeoutError as error:
        waited = _reason(error) if seconds is None else f"the server did not answer within {seconds:.0f} s"
        raise OSError(errno.ETIMEDOUT, waited) from None
    except Exception as error:
        raise OSError(errno.EIO, _reason(error)) from None


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
        found: tuple[Any, str] = fsspec.core.url_to_fs(
            url, skip_instance_cache=True, use_listings_cache=False, **_client_options(url)
        )
    except Exception as error:  # of the file system that the URL names
        raise SourceError(f"cannot open {url}: {_reason(error)}") from None
    return found


def tells_each_change(about: dict[str, Any]) -> bool:
    """Tell whether an object has a tag that no other bytes would have; a time may be one of seconds."""
    return any(about.get(name) is not None for name in _DIGESTS)


def _client_options(url: str) -> dict[str, Any]:
    """Return options of a file system by which a long answer may take its time: aiohttp ends it after five minutes."""
    protocol = url.partition("://")[0].lower()
    if protocol not in ("http", "https") or "::" in url:
        return {}
    timeout = import_module("aiohttp").ClientTimeout(total=None, sock_connect=PATIENCE, sock_read=PATIENCE)
    configured = import_module("fsspec.config").conf.get(protocol, {}).get("client_kwargs", {})
    return {"client_kwargs": {"timeout": timeout, **configured}}


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
