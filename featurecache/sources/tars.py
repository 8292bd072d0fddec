"""Tar files of samples, as WebDataset writes them.

A file in a tar that has the suffix of an image is a sample, named by the tar and its path in it; what lies beside it
under the same name with ``.cls``, ``.txt`` or ``.json`` may say its label.
"""

from __future__ import annotations

import io
import json
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import PurePosixPath
from typing import IO, Any, NamedTuple

from featurecache.errors import InputError, SourceError
from featurecache.files import open_regular, reason_of
from featurecache.ignored import IgnoredCounter, IgnoredFiles
from featurecache.sources.file_units import FileUnits
from featurecache.sources.folder import IMAGE_SUFFIXES
from featurecache.sources.source import Entry, Stamp, Unit
from featurecache.specs import MAX_FILE_BYTES

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_LABEL_SUFFIXES = (".cls", ".txt")
# A label is a word or a line; a longer text beside an image is something else.
_MOST_LABEL_BYTES = 1 << 16
# Where samples lie is remembered of the tars listed last: of so many samples at most (80 MB), but of so many tars at
# least, as a batch of inputs may lie in several.
_MOST_MEMBERS, _FEWEST_TARS = 1 << 18, 4


class _Member(NamedTuple):
    """Where a sample lies in a tar that is not compressed."""

    offset: int
    size: int
    id: bytes = b""
    """SHA-256 of its bytes, under which they are kept; empty where they were not read."""


class Tars(FileUnits):
    """The images in tar files; each tar is a unit, read from its beginning to its end.

    Parameters
    ----------
    url : str
        A path or URL of one tar, or a pattern of several.
    max_bytes : int
        Larger files in them are not read.
    """

    suffix = ".tar"

    def __init__(self, url: str, *, max_bytes: int = MAX_FILE_BYTES) -> None:
        super().__init__(url, max_bytes=max_bytes)
        self._ignored: dict[str, IgnoredCounter] = {}
        self._members: dict[str, dict[str, _Member]] = {}
        self._walking, self._remembering = threading.Lock(), threading.Lock()

    @property
    def ignored(self) -> IgnoredFiles:
        """What lies in the tars that were listed besides images."""
        total = IgnoredCounter()
        for counter in self._ignored.values():
            total.update(counter)
        return total.result()

    def ignored_of(self, unit: Unit) -> IgnoredFiles:
        """Return what lies in a tar that was listed besides images."""
        return self._ignored[unit.name].result()

    def list(self, unit: Unit) -> Iterator[Entry]:
        """Yield the images of a tar, in its order, all with the stamp of the tar."""
        return self._list(unit, {})

    def _list(self, unit: Unit, members: dict[str, _Member]) -> Iterator[Entry]:
        """Yield the images of a tar, and fill in where they lie."""
        stamp, counter = self._stamp(unit), IgnoredCounter()
        for member, content in self._walk(unit):
            name = self._name(unit, member.name)
            if not member.isfile() or PurePosixPath(member.name).name.startswith("."):
                continue
            if not _is_image(member.name):
                if PurePosixPath(member.name).suffix.lower() not in (*_LABEL_SUFFIXES, ".json"):
                    counter.add(PurePosixPath(member.name).name, name, "")
                continue
            if name in members:
                raise SourceError(f"{unit.name} holds {member.name!r} twice; give each sample its own name")
            members[name] = _Member(member.offset_data, member.size, self._keep(member, content))
            # The first number of a stamp is the size of the sample; what else changes with it is the tar's.
            yield Entry(name, None if stamp is None else (member.size, *stamp[1:]))
        self._ignored[unit.name] = counter
        self._remember(unit, members)

    def _remember(self, unit: Unit, members: dict[str, _Member]) -> None:
        """Keep where the samples of the tars that were listed last lie."""
        with self._remembering:  # one thread may list a tar while others open samples of another
            self._members.pop(unit.name, None)
            self._members[unit.name] = members
            total = sum(map(len, self._members.values()))
            for name in [*self._members][:-_FEWEST_TARS]:
                if total <= _MOST_MEMBERS:
                    break
                total -= len(self._members.pop(name, {}))

    def read(self, unit: Unit) -> Iterator[tuple[str, bytes]]:
        """Yield the images of a tar by one pass over it, or as they were kept when it was listed."""
        known, kept = self._members.get(unit.name, {}), self.kept
        if kept is not None and known and all(member.id in kept for member in known.values()):
            yield from ((name, data) for name, member in known.items() if (data := kept.get(member.id)) is not None)
            return
        for member, content in self._walk(unit):
            if member.isfile() and _is_image(member.name) and member.size <= self._max_bytes and content is not None:
                yield self._name(unit, member.name), content.read()

    def open(self, name: str, *, stamp: Stamp | None) -> bytes:
        """Return one image; of a compressed tar all before it is read."""
        unit = self._unit_of(name)
        tar = unit.name
        if stamp is None and (data := self._kept_bytes(self._members.get(tar, {}).get(name))) is not None:
            return data
        try:
            now = self._stamp(unit)
            # Where a member lies is known once its tar was walked, which another process may have done.
            with self._walking:  # once, not by every thread that reads
                if (members := self._members.get(tar)) is None:
                    members = {}
                    list(self._list(unit, members))
            if (member := members.get(name)) is None:
                raise InputError("missing", f"{tar} has no file {name[len(tar) + 1 :]!r}")
            if stamp is not None and (now is None or (member.size, *now[1:]) != stamp):
                raise InputError("changed", "the tar was replaced while the run went on")
            if member.size > self._max_bytes:
                raise InputError("too_large", f"the file has {member.size} bytes, the limit is {self._max_bytes}")
            data = self._slice(unit, name, member)
        except SourceError as error:
            raise InputError("unreadable", str(error)) from None
        if len(data) != member.size:
            raise InputError("unreadable", f"{tar} ends in the middle of it")
        return data

    def labels(self) -> Iterator[tuple[str, str]]:
        """Yield the name and the label of each sample that has one: ``.cls``, ``.txt``, or ``label`` in ``.json``."""
        for unit in self.units():
            images, labels = dict[str, str](), dict[str, str]()
            for member, content in self._walk(unit):
                # As WebDataset has it: all from the first dot of the last part of the path is the suffix.
                folder, slash, file = member.name.rpartition("/")
                stem, dot, suffix = file.partition(".")
                base = f"{folder}{slash}{stem}"
                if _is_image(member.name):
                    images.setdefault(base, self._name(unit, member.name))
                    continue
                text = content.read() if content is not None and member.size <= _MOST_LABEL_BYTES else b""
                if (label := _label_in(f"{dot}{suffix}".lower(), text)) is not None:
                    labels[base] = label
            yield from ((name, labels[base]) for base, name in images.items() if base in labels)

    def _name(self, unit: Unit, member: str) -> str:
        return f"{self._short_names[unit.name]}/{member.removeprefix('./')}"

    def _keep(self, member: tarfile.TarInfo, content: IO[bytes] | None) -> bytes:
        """Keep the bytes of a member of a tar that is listed, and return their digest."""
        # The members of a tar that is far away pass by while it is listed, and would come again for each read.
        if self.kept is None or content is None or member.size > self._max_bytes:
            return b""
        data = content.read()
        self.kept.add(digest := sha256(data).digest(), data)
        return digest

    def _kept_bytes(self, member: _Member | None) -> bytes | None:
        return None if member is None or self.kept is None else self.kept.get(member.id)

    @contextmanager
    def _opened(self, unit: Unit) -> Iterator[IO[bytes]]:
        if not self.is_far:
            with open_regular(unit.name) as (file, _), io.BufferedReader(file, 1 << 20) as buffered:
                yield buffered
            return
        files, path = self._remote(unit)
        with files.open(path) as opened:
            yield opened

    def _walk(self, unit: Unit) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
        """Yield the members of a tar with what reads them, in their order."""
        try:
            # As a stream: what is compressed or far away is read once, from its beginning to its end.
            with self._opened(unit) as file, tarfile.open(fileobj=file, mode="r|*") as tar:
                for member in tar:
                    yield member, tar.extractfile(member) if member.isfile() else None
                    tar.members = []  # type: ignore[attr-defined]  # else it keeps all of them
        except tarfile.TarError as error:
            raise SourceError(f"{unit.name} is no whole tar: {error}") from None
        except OSError as error:
            raise SourceError(f"cannot read {unit.name}: {reason_of(error)}") from None

    def _slice(self, unit: Unit, name: str, member: _Member) -> bytes:
        """Return the bytes of a member."""
        # In a compressed tar there are no offsets to go to.
        if unit.name.endswith((".gz", ".tgz")):
            return next((data for found, data in self.read(unit) if found == name), b"")
        try:
            if not self.is_far:
                with open_regular(unit.name) as (file, _):
                    file.seek(member.offset)
                    return file.read(member.size) or b""
            files, path = self._remote(unit)
            return files.cat(path, start=member.offset, size=member.size)
        except OSError as error:
            raise InputError("unreadable", reason_of(error)) from None


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def _label_in(suffix: str, data: bytes) -> str | None:
    text = data.decode("utf-8", "replace").strip()
    if suffix == ".json":
        with suppress(ValueError):
            document: Any = json.loads(text)
            found = document.get("label") if isinstance(document, dict) else None
            return None if found is None else str(found)
    return text or None if suffix in _LABEL_SUFFIXES else None
