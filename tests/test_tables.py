"""Tables are read as they were written, by whatever program; what cannot be told is refused in one line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurecache.tables import Row, TableError, TableFormat, open_table

pytestmark = pytest.mark.quick

Value = str | int | float | bool | None
ROWS: list[dict[str, Value]] = [
    {"file_name": "a.jpg", "label": "café", "height": 1.5, "seen": True},
    {"file_name": "b.jpg", "label": None, "height": 3.0, "seen": False},
    {"file_name": "c.jpg", "label": "two\nlines", "height": 10**9, "seen": True},
]
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=5)


def read(path: Path, **options: object) -> tuple[list[str], list[tuple[int, Row]], TableFormat | None]:
    with open_table(path, **options) as table:
        return table.columns, list(table), table.format


def put(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


WAYS: dict[str, Callable[[], str]] = {
    "a list": lambda: json.dumps(ROWS),
    "a list of many lines": lambda: json.dumps(ROWS, indent=4, ensure_ascii=False),
    "lines": lambda: "".join(json.dumps(row) + "\n" for row in ROWS),
    "lines with spaces and no end": lambda: "\n\n".join(json.dumps(row, ensure_ascii=False) + " " for row in ROWS),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_says_what_csv_says(tmp_path: Path, way: str, encoding: str) -> None:
    columns, rows, _ = read(put(tmp_path / "t.json", WAYS[way]().encode(encoding)))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(ROWS[0]))
    writer.writeheader()
    writer.writerows(row | {"height": f"{row['height']:g}" if row["height"] != 10**9 else 10**9} for row in ROWS)
    expected = read(put(tmp_path / "t.csv", text.getvalue()))
    assert (columns, [row for _, row in rows]) == (expected[0], [row for _, row in expected[1]])


def test_objects_in_objects_are_columns_and_lists_are_several_values(tmp_path: Path) -> None:
    rows = [{"id": 1, "of": {"kind": "x", "by": {"who": "me"}}, "tags": ["a", "b"]}, {"late": None, "id": 2, "of": {}}]
    columns, found, _ = read(put(tmp_path / "t.jsonl", "\n".join(map(json.dumps, rows))))
    assert columns == ["id", "of.kind", "of.by.who", "tags", "late", "of"]
    assert [(number, row["of.by.who"], row["late"]) for number, row in found] == [(1, "me", ""), (2, "", "")]
    assert found[0][1]["tags"].items == ("a", "b")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps({"a": {"0": "x"}, "b": {"0": "y"}}), "it is one JSON object; a table is a list of objects"),
        (json.dumps({"images": [{"id": 1}], "annotations": [{"id": 1}]}), "it is one JSON object"),
        (json.dumps({"images": [{"id": 1}]}, indent=1), "it is one JSON object"),
        ('{"a": 1}\n{"a": ', "line 2 is no whole JSON"),
        ('[{"a": 1}, ', "it is no whole JSON"),
        ('[{"a": 1}, 2]', "item 2 is no JSON object"),
        ('{"a": 1}\n[1]\n', "line 2 is no JSON object"),
        ('[{"a": ' + "[" * 100_000, "it is nested too deep"),
        ('{"a": 1}\n{"a": ' + "9" * 10_000 + "}", "line 2 is no whole JSON"),
        (b'{"a": 1}\n{"a": "\xff"}', "no text in UTF-8"),
    ],
)
def test_json_that_is_no_table_is_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(TableError, match=message):
        read(put(tmp_path / "t.json", content))


def test_half_a_letter_is_replaced(tmp_path: Path) -> None:
    _, rows, _ = read(
        put(tmp_path / "t.json", r'[{"text": "a\ud800b", "n": Infinity}, {"text": "\ud83d\ude00"}]'), raw=True
    )
    assert [row["text"] for _, row in rows] == ["a\ufffdb", "\U0001f600"]


@given(rows=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=8))
def test_texts_between_tabs_are_read_as_they_are(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    """Written without quotes, as most programs do: no row is lost, and where quotes matter texts keep theirs."""
    lines = [("'name", '"open'), *rows, ('close"', "last")]
    path = put(tmp_path_factory.mktemp("tabs") / "t.tsv", "".join(f"{name}\t{text}\n" for name, text in lines))
    columns, found, form = read(path, has_header=False)
    assert form is not None
    assert not form.has_quotes
    assert [tuple(row[name] for name in columns) for _, row in found] == lines


def test_quoted_texts_between_tabs_are_read_as_before(tmp_path: Path) -> None:
    rows = [["a", 'he said "no"'], ["b", "two\nlines"], ["c", "a\ttab"], ["d", '"']]
    text = io.StringIO(newline="")
    csv.writer(text, delimiter="\t").writerows([["name", "text"], *rows])
    _, found, form = read(put(tmp_path / "t.tsv", text.getvalue()))
    assert [list(row.values()) for _, row in found] == rows
    assert form == TableFormat("utf-8", "\t")


def test_rows_that_say_types_of_columns_are_no_samples(tmp_path: Path) -> None:
    head = "Category\tText\nd\tstring\nclass\tinclude=True\n"
    body = "earn\tcents a share\ntrade\ttariffs\n"
    columns, rows, _ = read(put(tmp_path / "t.tab", head + body))
    assert (columns, [(number, row["Category"]) for number, row in rows]) == (
        ["Category", "Text"],
        [(4, "earn"), (5, "trade")],
    )
    # Under another suffix, or with other words, they are rows like others.
    assert len(read(put(tmp_path / "t.tsv", head + body))[1]) == 4
    assert len(read(put(tmp_path / "u.tab", head.replace("string", "strings") + body))[1]) == 4


def test_an_empty_cell_of_parquet_is_an_empty_field(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"text": ["a", None], "tags": [["x", "y"], None]}), tmp_path / "t.parquet")
    _, rows, _ = read(tmp_path / "t.parquet")
    assert [row["text"] for _, row in rows] == ["a", ""]
    assert rows[0][1]["tags"].items == ("x", "y")  # type: ignore[union-attr]
