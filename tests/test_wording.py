"""Numbers of things as people read them: one file, two files."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from featurecache.wording import counted, some_of

pytestmark = pytest.mark.quick

PACKAGE = Path(__file__).resolve().parent.parent / "featurecache"
# What is counted of data that people bring: each of it may be one.
THINGS = "cells classes copies features files folders groups heads images inputs labels others pairs parts"
THINGS += " pictures problems rows samples shards sources texts trainings views workers"
BARE_NUMBER = re.compile(rf" ({'|'.join(THINGS.split())})\b(?!/s)")
# No number stands there, or one that is settled here and is not one.
NO_NUMBERS = re.compile(r"name|split|reported|dtype|modality|percent|join|_?[A-Z_]{4,}")


@pytest.mark.parametrize("number", range(5))
def test_all_names_are_written_or_counted(number: int) -> None:
    names = ["ant", "bee", "cow", "doe"][:number]
    expected = ", ".join(names) if number <= 2 else f"ant, bee and {number - 2} more"
    assert some_of(names, 2) == expected


@pytest.mark.parametrize(
    ("said", "arguments"),
    [
        ("0 files", {"count": 0, "noun": "file"}),
        ("1 file", {"count": 1, "noun": "file"}),
        ("2 files", {"count": 2, "noun": "file"}),
        ("1,281,167 files", {"count": 1281167, "noun": "file"}),
        ("1 copy", {"count": 1, "noun": "copy"}),
        ("2 copies", {"count": 2, "noun": "copy"}),
        ("2 classes", {"count": 2, "noun": "class"}),
        ("1 of 2 rows", {"count": 1, "noun": "row", "of": 2}),
        ("1 of 1 row", {"count": 1, "noun": "row", "of": 1}),
        ("0 of 1 row have", {"count": 0, "noun": "row", "of": 1, "verb": "has"}),
        ("1 of 3 rows has", {"count": 1, "noun": "row", "of": 3, "verb": "has"}),
        ("2 of 3 rows have", {"count": 2, "noun": "row", "of": 3, "verb": "has"}),
        ("1 sample is", {"count": 1, "noun": "sample", "verb": "is"}),
        ("2 samples are", {"count": 2, "noun": "sample", "verb": "is"}),
        ("2 files were", {"count": 2, "noun": "file", "verb": "was"}),
        ("2 rows say", {"count": 2, "noun": "row", "verb": "says"}),
    ],
    ids=str,
)
def test_nouns_and_verbs_agree_with_numbers(said: str, arguments: dict) -> None:
    assert counted(**arguments) == said


def bare_numbers(path: Path) -> list[str]:
    """Return the texts of a file where a noun of many stands behind any number."""
    found = []
    for text in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.JoinedStr)):
        for number, behind in zip(text.values, text.values[1:], strict=False):
            if isinstance(number, ast.FormattedValue) and isinstance(behind, ast.Constant):
                inside = ast.unparse(number.value)
                if BARE_NUMBER.match(str(behind.value)) and not NO_NUMBERS.search(inside):
                    found.append(f"{path.relative_to(PACKAGE)}:{number.lineno}: {{{inside}}}{behind.value}"[:160])
    return found


def test_every_text_that_counts_says_one_of_one() -> None:
    assert [text for path in sorted(PACKAGE.rglob("*.py")) for text in bare_numbers(path)] == []
