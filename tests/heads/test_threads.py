"""One thread is one thread in every library, also after torch was told otherwise; afterwards all is as before."""

from __future__ import annotations

import pytest
import torch
from threadpoolctl import threadpool_info

from featurecache.heads.threads import one_thread


def num_threads() -> dict[str, int]:
    return {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()} | {"torch": torch.get_num_threads()}


def test_one_thread_and_then_as_before() -> None:
    torch.set_num_threads(torch.get_num_threads())  # from now on it asks nobody
    before = num_threads()
    with one_thread():
        assert set(num_threads().values()) == {1}
    assert num_threads() == before
    with pytest.raises(ZeroDivisionError), one_thread():
        raise ZeroDivisionError
    assert num_threads() == before
