"""Reading ahead."""

from __future__ import annotations

import threading

import pytest

from featurecache.heads.gradient.datasets import read_ahead


def test_what_is_read_comes_in_order_and_at_most_one_ahead() -> None:
    begun: list[int] = []
    allowed = [threading.Event() for _ in range(5)]

    def read(item: int) -> int:
        assert allowed[item].wait(10)
        begun.append(item)
        return item * item

    allowed[0].set()
    allowed[1].set()
    results = read_ahead(read, range(5))
    assert next(results) == 0
    for item in range(1, 5):
        assert set(begun) <= set(range(item + 1))
        if item < 4:
            allowed[item + 1].set()
        assert next(results) == item * item
    assert list(results) == []
    assert begun == [0, 1, 2, 3, 4]


def test_nothing_to_read() -> None:
    assert list(read_ahead(lambda item: item, [])) == []


def test_an_error_comes_where_it_belongs() -> None:
    results = read_ahead(lambda item: 1 // item, [1, 0, 1])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
