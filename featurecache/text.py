"""A column of text as two plain arrays, so that ten million file names are two blocks of memory instead of objects.

Entries are the bytes of the file system, so names that are no valid UTF-8 survive.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1 << 16


class _Texts(Sequence[str]):
    """Text entries that are stored as bytes of the file system."""

    __slots__ = ()

    @abstractmethod
    def bytes_at(self, index: int) -> bytes:
        """Return the bytes of an entry."""

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return os.fsdecode(self.bytes_at(range(len(self))[index]))  # negative ones count from the end


class TextColumn(_Texts):
    """Text entries: all bytes end to end, and where each entry starts.

    Parameters
    ----------
    text : ndarray of uint8
        The bytes of all entries.
    starts : ndarray of uint64, shape (n + 1,)
        Where in ``text`` each entry begins, and where the last one ends.

    Raises
    ------
    ValueError
        The starts are no positions in ``text``, or not in order.
    """

    __slots__ = ("starts", "text")

    def __init__(self, text: NDArray[np.uint8], starts: NDArray[np.uint64]) -> None:
        _check_starts(starts, len(text))
        self.text, self.starts = text, starts

    @classmethod
    def pack(cls, texts: Iterable[str | bytes]) -> TextColumn:
        """Make a column of entries that come one by one."""
        if isinstance(texts, TextColumn):
            return texts
        blob, lengths = bytearray(), [np.zeros(1, np.uint64)]
        block: list[int] = []
        for text in texts:
            encoded = os.fsencode(text)
            blob += encoded
            block.append(len(encoded))
            if len(block) == _BLOCK:
                lengths.append(np.array(block, np.uint64))
                block = []
        lengths.append(np.array(block, np.uint64))
        return cls(np.frombuffer(blob, np.uint8), np.cumsum(np.concatenate(lengths), dtype="<u8"))

    @classmethod
    def of_lengths(cls, text: NDArray[np.uint8], lengths: NDArray[Any]) -> TextColumn:
        """Make a column of how long its entries are.

        Raises
        ------
        ValueError
            They are not as long as ``text`` together.
        """
        starts = np.zeros(len(lengths) + 1, "<u8")
        if lengths.min(initial=0) < 0:
            raise ValueError("a text column with entries of a negative length")
        np.cumsum(lengths, dtype="<u8", out=starts[1:])
        return cls(text, starts)

    @classmethod
    def joined(cls, columns: Sequence[TextColumn]) -> TextColumn:
        """Return the entries of several columns, one after the other."""
        lengths = np.concatenate([np.zeros(1, np.uint64), *(np.diff(column.starts) for column in columns)])
        texts = [column.text[: int(column.starts[-1])] for column in columns]
        return cls(np.concatenate([np.zeros(0, np.uint8), *texts]), np.cumsum(lengths, dtype="<u8"))

    def without_prefix(self, prefix: bytes) -> TextColumn:
        """Return the entries without what all of them begin with.

        Raises
        ------
        ValueError
            One begins otherwise.
        """
        text, lengths = self.text[: int(self.starts[-1])], np.diff(self.starts)
        indices = self.starts[:-1, None].astype(np.int64) + np.arange(len(prefix))
        if (lengths < len(prefix)).any() or (text[indices] != np.frombuffer(prefix, np.uint8)).any():
            raise ValueError(f"an entry does not begin with {os.fsdecode(prefix)!r}")
        is_kept = np.ones(len(text), bool)
        is_kept[indices] = False
        return TextColumn(
            text[is_kept], np.append(np.uint64(0), np.cumsum(lengths - np.uint64(len(prefix)))).astype("<u8")
        )

    def take(self, indices: NDArray[np.int64]) -> TextColumn:
        """Return some of the entries."""
        lengths = np.diff(self.starts)[indices]
        starts = np.zeros(len(indices) + 1, "<u8")
        np.cumsum(lengths, out=starts[1:])
        text = np.empty(int(starts[-1]), np.uint8)
        for to, end, index in zip(starts[:-1].tolist(), starts[1:].tolist(), indices.tolist(), strict=True):
            begin = int(self.starts[index])
            text[to:end] = self.text[begin : begin + end - to]
        return TextColumn(text, starts)

    def encoded(self) -> Iterator[bytes]:
        """Yield the bytes of each entry."""
        for first in range(0, len(self), _BLOCK):
            indices = self.starts[first : first + _BLOCK + 1]
            low = int(indices[0])
            data = self.text[low : int(indices[-1])].tobytes()
            yield from (data[a - low : b - low] for a, b in pairwise(indices.tolist()))

    def find_all(self, other: TextColumn) -> NDArray[np.int64]:
        """Return the index of each entry of ``other`` in this column, -1 where there is none; both are sorted."""
        # The usual case, of a source that has not changed.
        if self == other:
            return np.arange(len(other))
        found = np.full(len(other), -1, np.int64)
        mine = enumerate(self.encoded())
        index, entry = next(mine, (-1, None))
        for number, other_entry in enumerate(other.encoded()):
            while entry is not None and entry < other_entry:
                index, entry = next(mine, (-1, None))
            if entry == other_entry:
                found[number] = index
        return found

    def arrays(self) -> dict[str, tuple[str, NDArray[np.generic]]]:
        """Return what is stored: the arrays ``text`` and ``text_start``, and their types."""
        text = self.text if len(self.text) else np.zeros(1, np.uint8)  # HDF5 gives an empty array no bytes in the file
        return {"text": ("uint8", text), "text_start": ("uint64", self.starts)}

    def compact(self) -> dict[str, tuple[str, NDArray[np.generic]]]:
        """Return what is stored where there are many: the arrays ``text`` and ``text_length``, and their types."""
        return {"text": self.arrays()["text"], "text_length": narrowed(np.diff(self.starts), "uint8", "int32")}

    def __len__(self) -> int:
        return len(self.starts) - 1

    def bytes_at(self, index: int) -> bytes:
        """Return the bytes of an entry."""
        return self.text[int(self.starts[index]) : int(self.starts[index + 1])].tobytes()

    def __iter__(self) -> Iterator[str]:
        return map(os.fsdecode, self.encoded())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, TextColumn):
            end = int(self.starts[-1])
            return np.array_equal(self.starts, other.starts) and np.array_equal(self.text[:end], other.text[:end])
        return NotImplemented

    def __hash__(self) -> int:
        raise TypeError("a TextColumn has no hash")

    def __repr__(self) -> str:
        return f"TextColumn of {len(self)} entries"


class PrefixedText(_Texts):
    """Entries of which those that follow each other begin alike, as the names of files in a folder do.

    Parameters
    ----------
    prefixes : TextColumn
    starts : ndarray of int64, shape (n_prefixes + 1,)
        The first entry with each prefix, and the number of entries.
    rests : TextColumn
        What comes after the prefix in each entry.

    Raises
    ------
    ValueError
        The starts are not in order, or of another number of prefixes or entries.
    """

    __slots__ = ("prefixes", "rests", "starts")

    def __init__(self, prefixes: TextColumn, starts: NDArray[np.int64], rests: TextColumn) -> None:
        if len(starts) != len(prefixes) + 1 or starts[0] != 0 or starts[-1] != len(rests):
            raise ValueError("prefixes of other entries")
        if (starts[1:] <= starts[:-1]).any():
            raise ValueError("prefixes that are not in order")
        self.prefixes, self.starts, self.rests = prefixes, starts, rests

    def bytes_at(self, index: int) -> bytes:
        """Return the bytes of an entry."""
        return self.prefixes.bytes_at(int(np.searchsorted(self.starts, index, side="right")) - 1) + self.rests.bytes_at(
            index
        )

    def __len__(self) -> int:
        return len(self.rests)


def narrowed(values: NDArray[Any], narrow: str, wide: str) -> tuple[str, NDArray[Any]]:
    """Return numbers in a narrow type where all of them fit, and its name.

    Parameters
    ----------
    values : ndarray of int
    narrow, wide : str
        Types of numpy.
    """
    dtype = narrow if values.max(initial=0) <= np.iinfo(narrow).max else wide
    return dtype, values.astype(dtype)


def _check_starts(starts: NDArray[np.uint64], end: int) -> None:
    if starts.ndim != 1 or len(starts) == 0 or starts[0] != 0 or starts[-1] > end:
        raise ValueError("a text column whose entries do not lie in its text")
    for first in range(0, len(starts), _BLOCK):
        block = starts[first : first + _BLOCK + 1]
        if (block[1:] < block[:-1]).any():
            raise ValueError("a text column whose entries overlap")
