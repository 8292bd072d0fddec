"""Statuses of bad inputs: one list, that of the format's description, and all that is raised."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import REPOSITORY, TINY

import featurecache as fc
from featurecache.specs import ExtractionSettings
from featurecache.store.bad_inputs import PERMANENT, TRANSIENT, bad_of_source, list_bad

PACKAGE = REPOSITORY / "featurecache"


@pytest.mark.quick
def test_statuses_are_those_that_are_raised_and_described() -> None:
    code = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    raised = set(re.findall(r'InputError\(\s*"([a-z_]+)"', code))
    assert raised == PERMANENT | TRANSIENT
    section = (PACKAGE / "store" / "FORMAT.md").read_text().partition("## Statuses of bad inputs")[2].partition("##")[0]
    permanent, transient = section.split("tried again.")
    assert set(re.findall(r"`([a-z_]+)`", permanent)) == PERMANENT
    assert set(re.findall(r"`([a-z_]+)`", transient)) == TRANSIENT


def test_every_bad_input_is_listed_with_its_reason(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    source = make_folder(per_class=2)
    (source / "red" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (source / "red" / "empty.png").write_bytes(b"")
    settings = ExtractionSettings(runtime="torch", batch_size=4)
    store = fc.extract(source, tmp_path / "c", backbone=TINY, settings=settings)
    listing = store.listings.load(source)
    assert listing is not None
    found = bad_of_source(listing, store.feature_sets())
    assert {path: status for path, (status, _) in found.items()} == {
        "red/broken.png": "not_an_image",
        "red/empty.png": "empty",
    }
    assert {item["path"]: (item["status"], item["reason"]) for item in list_bad(store)} == found
