"""Tar files of samples, as WebDataset writes them: local or on any file system that fsspec knows, one or many.

``photos.tar``, ``shards/*.tar``, ``shards/photos-{0000..0099}.tar``, ``s3://bucket/photos-*.tar``. A file in a tar that
has the suffix of an image is a sample, named by the tar and its path in it; what lies beside it under the same name
with ``.cls``, ``.txt`` or ``.json`` may say its label.
"""

from __future__ import annotations

import glob
import io
import json
import re
import tarfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from hashlib import sha256
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from featurecache.errors import InputError, SourceError
from featurecache.files import open_regular, reason_of
from featurecache.ignored import IgnoredCounter, IgnoredFiles
from featurecache.sources.folder import IMAGE_SUFFIXES
from featurecache.sources.path_list import stamp_of
from featurecache.sources.remote_files import RemoteFiles, stamp_of_object, tells_each_change
from featurecache.sources.source import UNSETTLED_NS, Entry, Stamp, Unit
from featurecache.specs import MAX_FILE_BYTES
from featurecache.spill import Spill

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_LABEL_SUFFIXES = (".cls", ".txt")
# A label is a word or a line; a longer text beside an image is something else.
_MOST_LABEL_BYTES = 1 << 16
# Where samples lie is remembered of the tars listed last: of so many samples at most (80 MB), but of so many tars at
# least, as a batch of inputs may lie in several.
_MOST_MEMBERS, _FEWEST_TARS = 1 << 18, 4
# A slip in a range must not make a list that fills the memory.
_MOST_TARS = 1_000_000


class _Member(NamedTuple):
    """Where a sample lies in a tar that is not compressed."""

    offset: int
    size: int
    id: bytes = b""
    """SHA-256 of its bytes, under which they are kept; empty where they were not read."""


class Tars:
    """The images in tar files; each tar is a unit, read from its beginning to its end.

    Parameters
    ----------
    url : str
        A path or URL of one tar, or a pattern of several.
    max_bytes : int
        Larger files in them are not read.

    Raises
    ------
    SourceError
        The pattern fits no file.
    """

    modality = "image"

    def __init__(self, url: str, *, max_bytes: int = MAX_FILE_BYTES) -> None:
        self.url, self._max_bytes = str(url), max_bytes
        self.is_far = "://" in self.url or "::" in self.url
        self.key = self.url if self.is_far else str(Path(self.url).absolute())
        self.kept: Spill | None = None
        self._ignored: dict[str, IgnoredCounter] = {}
        self._members: dict[str, dict[str, _Member]] = {}
        self._file_systems: dict[str, RemoteFiles] = {}
        self._walking, self._remembering = threading.Lock(), threading.Lock()
        self.has_coarse_stamps = self.is_far

    def units(self) -> Iterator[Unit]:
        """Yield the tars, sorted by name."""
        return (Unit(name) for name in self._tars)

    def unit_stamp(self, unit: Unit) -> tuple[str, Stamp | None]:
        """Return what the names of a tar begin with, and the stamp that all of them have but for the size."""
        prefix = f"{self._short_names[unit.name]}/"
        if not self.is_far:
            return prefix, self._stamp(unit)
        about = self._about(unit)
        # By a time in seconds alone, another tar of the same second would be taken for the same.
        return prefix, stamp_of_object(about) if tells_each_change(about) else None

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
        tars = self._tars_by_short_name
        # The name of a tar may have slashes itself, where several are called the same.
        ends = (index for index, letter in enumerate(name) if letter == "/")
        tar = next((tars[name[:end]] for end in ends if name[:end] in tars), None)
        if tar is None:
            raise InputError("missing", f"no tar of {self.url} has a file {name!r}")
        unit = Unit(tar)
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

    @cached_property
    def _short_names(self) -> dict[str, str]:
        """What each tar is called in the names of its samples: its last part, or all that tells it from the others."""
        lasts = {tar: tar.rpartition("/")[2] for tar in self._tars}
        if len(set(lasts.values())) == len(lasts):
            return lasts
        # Of sorted paths the first and the last have in common what all have.
        folders = zip(self._tars[0].split("/"), self._tars[-1].split("/"), strict=False)
        common = len(list(takewhile(lambda pair: pair[0] == pair[1], folders)))
        return {tar: "/".join(tar.split("/")[common:]) for tar in self._tars}

    @cached_property
    def _tars_by_short_name(self) -> dict[str, str]:
        return {short: tar for tar, short in self._short_names.items()}

    @cached_property
    def _tars(self) -> Sequence[str]:
        patterns = [""]
        rest = self.url
        while found := _RANGE.search(rest):
            first, last = found[1], found[2]
            count = int(last) - int(first) + 1
            if not 0 < count * len(patterns) <= _MOST_TARS:
                raise SourceError(f"{self.url}: the range {found[0]} holds no files, or too many")
            numbers = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
            patterns = [pattern + rest[: found.start()] + number for pattern in patterns for number in numbers]
            rest = rest[found.end() :]
        names = [pattern + rest for pattern in patterns]
        expanded = [path for name in names for path in (self._fitting(name) if "*" in name or "?" in name else [name])]
        if not expanded:
            raise SourceError(f"no file fits {self.url}; name the tars, such as shards/*.tar")
        return sorted(set(expanded))

    def _fitting(self, pattern: str) -> Sequence[str]:
        if not self.is_far:
            return glob.glob(pattern)  # noqa: PTH207 - of a pattern that may be absolute
        try:
            return RemoteFiles(pattern).glob()
        except OSError as error:
            raise SourceError(f"cannot list {pattern}: {reason_of(error)}") from None

    def _remote(self, unit: Unit) -> tuple[RemoteFiles, str]:
        """Return the file system that a tar lies on, and its path there."""
        # A tar within an archive has a file system of its own; all others share one.
        key = unit.name if "::" in unit.name else ""
        if (files := self._file_systems.get(key)) is None:
            files = self._file_systems.setdefault(key, RemoteFiles(unit.name))
        return files, files.root if key else files.path_of(unit.name)

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

    def _stamp(self, unit: Unit) -> Stamp | None:
        if self.is_far:
            return stamp_of_object(self._about(unit))
        try:
            return stamp_of(Path(unit.name).stat(), time.time_ns() - UNSETTLED_NS)
        except OSError as error:
            raise SourceError(f"cannot read {unit.name}: {reason_of(error)}") from None

    def _about(self, unit: Unit) -> dict[str, Any]:
        """Return what its file system says of a tar that is far away."""
        files, path = self._remote(unit)
        try:
            return files.info(path)
        except OSError as error:
            raise SourceError(f"cannot read {unit.name}: {reason_of(error)}") from None

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
