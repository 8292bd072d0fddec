"""Files that hold many samples each, local or on any file system that fsspec knows: one by its name, or a pattern.

``photos.tar``, ``shards/*.tar``, ``shards/photos-{0000..0099}.tar``, ``s3://bucket/photos-*.parquet``. Each file is a
unit, and its samples are named by it and by what they are called in it.
"""

from __future__ import annotations

import glob
import re
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from featurecache.errors import InputError, SourceError
from featurecache.files import reason_of
from featurecache.sources.path_list import stamp_of
from featurecache.sources.remote_files import RemoteFiles, stamp_of_object, tells_each_change
from featurecache.sources.source import UNSETTLED_NS, Stamp, Unit
from featurecache.specs import MAX_FILE_BYTES
from featurecache.spill import Spill

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
# A slip in a range must not make a list that fills the memory.
_MOST_FILES = 1_000_000


class FileUnits:
    """Base of sources whose units are files.

    Parameters
    ----------
    url : str
        A path or URL of one file, or a pattern of several.
    max_bytes : int
        Larger samples in them are not read.
    """

    modality = "image"
    suffix = ""
    """That the files usually have, for messages."""

    def __init__(self, url: str, *, max_bytes: int = MAX_FILE_BYTES) -> None:
        self.url, self._max_bytes = str(url), max_bytes
        self.is_far = "://" in self.url or "::" in self.url
        self.key = self.url if self.is_far else str(Path(self.url).absolute())
        self.kept: Spill | None = None
        self._file_systems: dict[str, RemoteFiles] = {}
        self.has_coarse_stamps = self.is_far

    def units(self) -> Iterator[Unit]:
        """Yield the files, sorted by name.

        Raises
        ------
        SourceError
            The pattern fits no file.
        """
        return (Unit(name) for name in self._files)

    def unit_stamp(self, unit: Unit) -> tuple[str, Stamp | None]:
        """Return what the names of a file's samples begin with, and the stamp that all have but for the size."""
        prefix = f"{self._short_names[unit.name]}/"
        if not self.is_far:
            return prefix, self._stamp(unit)
        about = self._about(unit)
        # By a time in seconds alone, another file of the same second would be taken for the same.
        return prefix, stamp_of_object(about) if tells_each_change(about) else None

    def _unit_of(self, name: str) -> Unit:
        """Return the file that a sample is in, by its name."""
        files = self._files_by_short_name
        # The name of a file may have slashes itself, where several are called the same.
        ends = (index for index, letter in enumerate(name) if letter == "/")
        if (file := next((files[name[:end]] for end in ends if name[:end] in files), None)) is None:
            raise InputError("missing", f"no file of {self.url} has a sample {name!r}")
        return Unit(file)

    @cached_property
    def _short_names(self) -> dict[str, str]:
        """What each file is called in the names of its samples: its last part, or all that tells it from the others."""
        lasts = {file: file.rpartition("/")[2] for file in self._files}
        if len(set(lasts.values())) == len(lasts):
            return lasts
        # Of sorted paths the first and the last have in common what all have.
        folders = zip(self._files[0].split("/"), self._files[-1].split("/"), strict=False)
        common = len(list(takewhile(lambda pair: pair[0] == pair[1], folders)))
        return {file: "/".join(file.split("/")[common:]) for file in self._files}

    @cached_property
    def _files_by_short_name(self) -> dict[str, str]:
        return {short: file for file, short in self._short_names.items()}

    @cached_property
    def _files(self) -> Sequence[str]:
        patterns = [""]
        rest = self.url
        while found := _RANGE.search(rest):
            first, last = found[1], found[2]
            count = int(last) - int(first) + 1
            if not 0 < count * len(patterns) <= _MOST_FILES:
                raise SourceError(f"{self.url}: the range {found[0]} holds no files, or too many")
            numbers = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
            patterns = [pattern + rest[: found.start()] + number for pattern in patterns for number in numbers]
            rest = rest[found.end() :]
        names = [pattern + rest for pattern in patterns]
        expanded = [path for name in names for path in (self._fitting(name) if is_pattern(name) else [name])]
        if not expanded:
            raise SourceError(f"no file fits {self.url}; name the files, such as shards/*{self.suffix}")
        return sorted(set(expanded))

    def _fitting(self, pattern: str) -> Sequence[str]:
        if not self.is_far:
            return glob.glob(pattern)  # noqa: PTH207 - of a pattern that may be absolute
        try:
            return RemoteFiles(pattern).glob()
        except OSError as error:
            raise SourceError(f"cannot list {pattern}: {reason_of(error)}") from None

    def _remote(self, unit: Unit) -> tuple[RemoteFiles, str]:
        """Return the file system that a file lies on, and its path there."""
        # A file within an archive has a file system of its own; all others share one.
        key = unit.name if "::" in unit.name else ""
        if (files := self._file_systems.get(key)) is None:
            files = self._file_systems.setdefault(key, RemoteFiles(unit.name))
        return files, files.root if key else files.path_of(unit.name)

    def _stamp(self, unit: Unit) -> Stamp | None:
        if self.is_far:
            return stamp_of_object(self._about(unit))
        try:
            return stamp_of(Path(unit.name).stat(), time.time_ns() - UNSETTLED_NS)
        except OSError as error:
            raise SourceError(f"cannot read {unit.name}: {reason_of(error)}") from None

    def _about(self, unit: Unit) -> dict[str, Any]:
        """Return what its file system says of a file that is far away."""
        files, path = self._remote(unit)
        try:
            return files.info(path)
        except OSError as error:
            raise SourceError(f"cannot read {unit.name}: {reason_of(error)}") from None


def is_pattern(name: str) -> bool:
    """Tell whether the name of a file stands for those that fit it."""
    return "*" in name or "?" in name
