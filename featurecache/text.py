"""A column of text as two plain arrays, so that ten million file names are two blocks of memory instead of objects.

Entries are the bytes of the file system, so names that are no valid UTF-8 survive.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import overload

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1 << 16


class TextColumn(Sequence[str]):
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
        places = self.starts[:-1, None].astype(np.int64) + np.arange(len(prefix))
        if (lengths < len(prefix)).any() or (text[places] != np.frombuffer(prefix, np.uint8)).any():
            raise ValueError(f"an entry does not begin with {os.fsdecode(prefix)!r}")
        is_kept = np.ones(len(text), bool)
        is_kept[places] = False
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

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        index = range(len(self))[index]  # negative ones count from the end
        return os.fsdecode(self.text[int(self.starts[index]) : int(self.starts[index + 1])].tobytes())

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


def _check_starts(starts: NDArray[np.uint64], end: int) -> None:
    if starts.ndim != 1 or len(starts) == 0 or starts[0] != 0 or starts[-1] > end:
        raise ValueError("a text column whose entries do not lie in its text")
    for first in range(0, len(starts), _BLOCK):
        block = starts[first : first + _BLOCK + 1]
        if (block[1:] < block[:-1]).any():
            raise ValueError("a text column whose entries overlap")
