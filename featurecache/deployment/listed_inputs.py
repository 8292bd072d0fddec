"""The inputs of predictions: every sample of the sources that were named, in their order, as columns."""

from __future__ import annotations

import hashlib
import struct
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from featurecache.errors import InputError, ReportWarning, RequestError
from featurecache.ignored import IgnoredFiles
from featurecache.sources.entries import ENCODING, ERRORS
from featurecache.sources.inputs import Input
from featurecache.sources.opening import open_source, open_sources
from featurecache.sources.source import Entry, Source, Unit, check_modality
from featurecache.specs import AnyPreprocess
from featurecache.text import TextColumn

# Bytes that tell what a sample holds: four whole numbers of a stamp, or a digest.
_WIDTH = 32


@dataclass(frozen=True)
class OpenedSource:
    """A source that somebody named, and what stands in front of the names of its samples."""

    source: Source
    prefix: str


@dataclass(frozen=True, eq=False)
class ListedInputs(Sequence[Input]):
    """Samples of several sources: objects are made when they are asked for, as ten million would fill the memory.

    Attributes
    ----------
    opened : sequence of OpenedSource
    names : TextColumn
        Of all samples.
    starts : sequence of int
        Where the samples of each source begin, and where those of the last end.
    """

    opened: Sequence[OpenedSource]
    names: TextColumn
    starts: Sequence[int]

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Input]:
        return self._between(0, len(self))

    @overload
    def __getitem__(self, index: int) -> Input: ...
    @overload
    def __getitem__(self, index: slice) -> list[Input]: ...
    def __getitem__(self, index: int | slice) -> Input | list[Input]:
        if isinstance(index, int):
            index = range(len(self))[index]
            return next(self._between(index, index + 1))
        first, stop, step = index.indices(len(self))
        return list(self._between(first, stop))[::step]

    def _between(self, first: int, stop: int) -> Iterator[Input]:
        for one, (begin, end) in zip(self.opened, pairwise(self.starts), strict=True):
            for number in range(max(first, begin), min(stop, end)):
                yield Input(one.source, self.names[number], prefix=one.prefix)


def open_inputs(
    named: Sequence[Any], preprocess: AnyPreprocess, *, text_column: str | None, id_column: str | None
) -> list[OpenedSource]:
    """Open what somebody wants predictions of.

    Parameters
    ----------
    named : sequence
        Files, folders and what else `extract` takes; with ``text_column``, tables.
    preprocess : PreprocessSpec or TextPreprocessSpec
        Of the head's backbone.
    text_column, id_column : str, optional
        Of tables.

    Raises
    ------
    RequestError
        Images for a head on texts, or the other way round.
    SourceError
        There is no such file or folder.
    """
    if not any("://" in str(name) for name in named) and (preprocess.modality == "text") != (text_column is not None):
        raise RequestError(
            "this head labels texts: name tables, and the column that holds the texts with --text-column"
            if preprocess.modality == "text"
            else f"this head labels images; leave --text-column {text_column} out"
        )
    if text_column is not None:
        # With several tables a row is named with its own.
        return [
            OpenedSource(
                open_source(path, text_column=text_column, id_column=id_column),
                f"{getattr(path, 'url', path)}: " if len(named) > 1 else "",
            )
            for path in named
        ]
    sources = open_sources(named)
    for source in sources:
        check_modality(source, preprocess, "this head")
    return [OpenedSource(source, str(getattr(source, "prefix", ""))) for source in sources]


def list_inputs(
    opened: Sequence[OpenedSource], *, with_contents: bool = False
) -> tuple[ListedInputs, NDArray[np.uint8], list[ReportWarning]]:
    """List every sample, in the order of the sources.

    Parameters
    ----------
    opened : sequence of OpenedSource
    with_contents : bool
        Also tell what each sample holds.

    Returns
    -------
    inputs : ListedInputs
    contents : ndarray of uint8, shape (n, 32)
        Bytes that differ where samples do: the stamp of a sample, or the digest of one whose stamp says nothing. Of
        shape (0, 32) where that was not asked for.
    warnings : list of ReportWarning
        Of pictures in folders that are left out.
    """
    text, ends, starts, contents = bytearray(), array("Q", [0]), [0], bytearray()
    warnings: list[ReportWarning] = []
    for one in opened:
        for unit in one.source.units():
            unknown: dict[int, Entry] = {}
            for entry in one.source.list(unit):
                if with_contents:
                    known = _known_contents(entry)
                    if known is None:
                        unknown[len(ends) - 1] = entry
                    contents += known or bytes(_WIDTH)
                text += entry.name.encode(ENCODING, ERRORS)
                ends.append(len(text))
            for index, digest in _digests(one.source, unit, unknown):
                contents[index * _WIDTH : (index + 1) * _WIDTH] = digest
        starts.append(len(ends) - 1)
        # Classes without an image matter to nobody here.
        left_out = replace(getattr(one.source, "ignored", IgnoredFiles()), folders=(), num_folders=0).warnings()
        name = (one.prefix or one.source.key).rstrip("/")
        warnings += left_out if len(opened) == 1 else [warning.about(name) for warning in left_out]
    names = TextColumn(np.frombuffer(text, np.uint8), np.frombuffer(ends, np.uint64))
    return ListedInputs(opened, names, starts), np.frombuffer(contents, np.uint8).reshape(-1, _WIDTH), warnings


def _known_contents(entry: Entry) -> bytes | None:
    """Return bytes that tell what a sample holds, as far as its listing says it."""
    if entry.problem:
        return hashlib.sha256(entry.problem.encode(errors="surrogatepass")).digest()
    if entry.stamp is None or entry.stamp[2] < 0:
        return None
    return struct.pack("<4q", *entry.stamp)


def _digests(source: Source, unit: Unit, unknown: Mapping[int, Entry]) -> Iterator[tuple[int, bytes]]:
    """Read samples whose stamps say nothing; what cannot be read stays as it is."""
    # Of a table, one pass instead of a million calls.
    index_of = {entry.name: index for index, entry in unknown.items() if entry.stamp is None}
    for name, data in source.read(unit) if index_of else ():
        if (index := index_of.get(name)) is not None:
            yield index, hashlib.sha256(data).digest()
    for index, entry in unknown.items():
        if entry.stamp is not None:
            try:
                yield index, hashlib.sha256(source.open(entry.name, stamp=None)).digest()
            except InputError:
                continue
