"""A text column is a list of strings, whatever the strings are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurecache.text import TextColumn

pytestmark = pytest.mark.quick

names = st.lists(st.binary(max_size=6).map(lambda data: data.decode("utf-8", "surrogateescape")), max_size=20)


@given(names)
def test_holds_what_was_packed(texts: list[str]) -> None:
    column = TextColumn.pack(texts)
    stored = {name: values for name, (_, values) in column.arrays().items()}
    again = TextColumn(stored["text"], stored["text_start"])
    assert list(again) == texts == [again[k] for k in range(len(texts))] == again[:]
    assert again == column


@given(names, st.data())
def test_take_is_a_list_of_entries(texts: list[str], data: st.DataObject) -> None:
    places = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=8)) if texts else []
    assert list(TextColumn.pack(texts).take(np.array(places, np.int64))) == [texts[k] for k in places]


@given(names, names)
def test_find_all_agrees_with_a_dict(mine: list[str], theirs: list[str]) -> None:
    mine, theirs = ([*map(decoded, sorted({*map(encoded, texts)}))] for texts in (mine, theirs))
    place = {text: k for k, text in enumerate(mine)}
    assert TextColumn.pack(mine).find_all(TextColumn.pack(theirs)).tolist() == [place.get(text, -1) for text in theirs]


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def decoded(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def test_more_entries_than_fit_a_block() -> None:
    texts = [str(k) * (k % 3) for k in range(200_000)]
    assert list(TextColumn.pack(iter(texts))) == texts


@pytest.mark.parametrize("starts", [[], [1, 2], [0, 9], [0, 3, 2], [[0, 1]], [0, 2**63, 4]])
def test_impossible_starts_are_refused(starts: list[int]) -> None:
    with pytest.raises(ValueError, match="text column"):
        TextColumn(np.zeros(4, np.uint8), np.array(starts, np.uint64))


def test_a_column_has_no_hash() -> None:
    with pytest.raises(TypeError, match="no hash"):
        hash(TextColumn.pack([]))
