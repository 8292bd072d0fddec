"""Notes of changes become one section of a changelog."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from conftest import REPOSITORY

pytestmark = pytest.mark.quick
SPEC = importlib.util.spec_from_file_location("changelog", REPOSITORY / "scripts" / "changelog.py")
assert SPEC is not None
assert SPEC.loader is not None
changelog = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(changelog)


def test_notes_stand_by_kind_and_number(tmp_path: Path) -> None:
    for name, text in (("12.fixed.md", "A leak.\n"), ("3.added.md", "A verb\nthat helps.\n"), ("20.added.md", "More.")):
        (tmp_path / name).write_text(text)
    (tmp_path / "README.md").write_text("How to write one.")
    assert changelog.section("0.2.0", tmp_path).split("\n") == [
        *("## 0.2.0", "", "### Added", "", "- A verb that helps. (#3)", "- More. (#20)", ""),
        *("### Fixed", "", "- A leak. (#12)", ""),
    ]


@pytest.mark.parametrize(("name", "text"), [("a.added.md", "x"), ("1.new.md", "x"), ("1.added.md", " \n")])
def test_what_is_no_note_is_refused(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match="KIND one of added, changed, fixed, removed"):
        changelog.section("0.2.0", tmp_path)


def test_the_notes_of_this_tree_are_well_formed() -> None:
    assert changelog.section("next").startswith("## next\n")


def test_the_lowest_versions_are_read_from_the_project() -> None:
    spec = importlib.util.spec_from_file_location("lowest", REPOSITORY / "scripts" / "lowest.py")
    assert spec is not None
    assert spec.loader is not None
    lowest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lowest)
    found = dict(line.split("==") for line in lowest.lowest(REPOSITORY / "pyproject.toml", ["parquet"]))
    assert found["scikit-learn"] == "1.6"
    assert found["pyarrow"] == "15"
    assert len(found) >= 14
