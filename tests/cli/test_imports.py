"""Imports without garbage collection."""

from __future__ import annotations

import gc
import sys
from types import ModuleType

import pytest

from featurecache.cli.imports import without_collection

pytestmark = pytest.mark.quick


def test_nothing_is_collected_while_libraries_are_imported_and_all_that_comes_later_is(monkeypatch):
    frozen_before = gc.get_freeze_count()
    try:
        with without_collection():
            assert not gc.isenabled()
            kept = [[] for _ in range(1000)]
            monkeypatch.setitem(sys.modules, "as_if_imported", ModuleType("as_if_imported"))
        assert gc.isenabled()
        # What was imported is not looked through any more.
        assert gc.get_freeze_count() >= frozen_before + len(kept)
    finally:
        gc.unfreeze()


def test_an_import_that_fails_leaves_collection_as_it_was():
    try:
        with pytest.raises(ImportError), without_collection():
            raise ImportError
        assert gc.isenabled()
    finally:
        gc.unfreeze()


def test_what_was_imported_before_leaves_the_garbage_of_the_caller_to_be_collected():
    frozen_before = gc.get_freeze_count()
    with without_collection():
        pass
    assert gc.get_freeze_count() == frozen_before


def test_collection_that_the_caller_has_turned_off_stays_off():
    gc.disable()
    try:
        with without_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()
