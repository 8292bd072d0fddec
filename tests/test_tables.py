"""Tables are read as they were written, by whatever program; what cannot be told is refused in one line."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurecache.errors import MissingExtraError
from featurecache.tables import Row, TableError, TableFormat, is_table_name, open_table

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
        (json.dumps({"images": [{"id": 1}], "annotations": [{"id": 1}], "categories": []}), "are not as COCO has them"),
        (json.dumps({"images": [[]], "annotations": [], "categories": []}), "are not as COCO has them"),
        (json.dumps({"images": [{"id": 1, "file_name": 2}], "annotations": [], "categories": []}), "as COCO has them"),
        (pickle.dumps({"a.jpg": 1}), "it is a pickle, which could run code when it is read; load it where you trust"),
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


def text_of(columns: list[str], rows: list[tuple[str, ...]], delimiter: str = ",") -> str:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter).writerows([columns, *rows])
    return file.getvalue()


PLAIN = text_of(["file", "note", "label"], [(f"{k}.jpg", 'a "word", ' * k, "ab"[k % 2]) for k in range(40)])
LINES = "".join(json.dumps({"file": f"{k}.jpg", "label": k % 2, "more": {"x": k}}) + "\n" for k in range(40))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", PLAIN.encode()),
        ("t.csv", PLAIN.encode("utf-16")),
        ("t.csv", PLAIN.replace("word", "Wörter").encode("cp1252")),
        ("t.tsv", PLAIN.replace(",", "\t").encode()),
        ("t.tsv", b'text\tlabel\n"quoted, never closed\ta\nplain\tb\n'),
        ("t.jsonl", LINES.encode()),
        ("t.json", json.dumps([json.loads(line) for line in LINES.splitlines()]).encode()),
    ],
)
def test_what_gzip_compressed_says_the_same(tmp_path: Path, name: str, content: bytes) -> None:
    packed = put(tmp_path / f"{name}.gz", gzip.compress(content))
    assert read(packed) == read(put(tmp_path / name, content))
    assert is_table_name(packed)
    # In two parts, as some programs append.
    half = len(content) // 2
    packed.write_bytes(gzip.compress(content[:half]) + gzip.compress(content[half:]))
    assert read(packed) == read(tmp_path / name)


ROWS_OF_ZEROS = b"a,b\n" + b"0,0\n" * (1 << 20)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv.gz", gzip.compress(PLAIN.encode(), mtime=0)[:-20], "it is no whole gzip file"),
        ("t.csv.gz", gzip.compress(PLAIN.encode(), mtime=0)[:40] + b"\0" * 100, "it is no whole gzip file"),
        ("t.csv.gz", gzip.compress(ROWS_OF_ZEROS, mtime=0), "it inflates to more than 1 MiB; unpack it"),
        (
            "t.csv.gz",
            gzip.compress(gzip.compress(b"a,b\n", mtime=0), mtime=0),
            "compressed by gzip over what is compressed already",
        ),
        (
            "t.parquet.gz",
            gzip.compress(b"PAR1 and more", mtime=0),
            "compressed by gzip over what is compressed already",
        ),
        ("t.csv.bz2", bz2.compress(PLAIN.encode()), "it is compressed by bzip2; unpack it to CSV UTF-8"),
        ("t.csv.xz", lzma.compress(PLAIN.encode()), "it is compressed by xz; unpack it to CSV UTF-8"),
        ("t.csv.zst", b"\x28\xb5\x2f\xfd and more", "it is compressed by zstd; unpack it to CSV UTF-8"),
        ("t.csv.zip", None, "it is an archive and no sheet of Excel; unpack it, or save the sheet as CSV UTF-8"),
        ("t.xls", b"\xd0\xcf\x11\xe0 and more", "it is an old spreadsheet; save the sheet as CSV UTF-8"),
        ("t.xlsx", b"PK\x03\x04 and more", "it is no whole Excel file or archive"),
    ],
)
def test_what_is_packed_otherwise_is_refused(
    tmp_path: Path, name: str, content: bytes | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featurecache.table_files._FREE_BYTES", 1 << 20)
    if content is None:
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("t.csv", PLAIN)
    else:
        put(tmp_path / name, content)
    with pytest.raises(TableError, match=message):
        read(tmp_path / name)


def test_a_csv_that_begins_like_a_mark_is_a_table(tmp_path: Path) -> None:
    assert read(put(tmp_path / "t.csv", "BZh,7z\n1,2\n"))[0] == ["BZh", "7z"]


def sheet(path: Path, *sheets: list[list[object]], hidden: int = 0) -> Path:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.remove(book.active)
    for number, rows in enumerate(sheets):
        page = book.create_sheet(f"page {number}")
        page.sheet_state = "hidden" if number < hidden else "visible"
        for row in rows:
            page.append(row)
    book.save(path)
    return path


def test_a_sheet_of_excel_says_what_csv_says(tmp_path: Path) -> None:
    rows = [[f"{k}.jpg", k, k / 4, k % 2 == 0, None if k % 3 else "ü", f"{k} words"] for k in range(2500)]
    columns = [" file", "whole", "part", "is_valid", "gap", "text"]
    path = sheet(tmp_path / "t.xlsx", [[], columns, *rows[:1000], [], *rows[1000:], [None, ""]], [["other"], ["sheet"]])
    text = text_of(columns, [tuple("" if cell is None else f"{cell}" for cell in row) for row in rows])
    expected = read(put(tmp_path / "t.csv", re.sub(r"\b(\d+)\.0\b", r"\1", text)))
    with open_table(path) as table:
        assert (table.columns, [row for _, row in table]) == (expected[0], [row for _, row in expected[1]])
        assert table.remarks == ("the first of 2 sheets is read, 'page 0'",)
    found = read(path, has_header=False)
    assert (found[0], found[1][0]) == (list("123456"), (2, dict(zip("123456", columns, strict=True))))
    assert found[1][1001][0] == 1004  # as the sheet numbers it
    hidden = sheet(tmp_path / "h.xlsx", [["no"], ["no"]], [["a", "b"], [1, 2]], hidden=1)
    assert read(hidden)[:2] == (["a", "b"], [(2, {"a": "1", "b": "2"})])


def broken(path: Path, name: str, old: bytes, new: bytes) -> None:
    """Rewrite a part of a sheet by hand."""
    with zipfile.ZipFile(path) as archive:
        parts = {each: archive.read(each) for each in archive.namelist()}
    assert old in parts[name]
    parts[name] = parts[name].replace(old, new)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for each, content in parts.items():
            archive.writestr(each, content)


@pytest.mark.parametrize(
    ("part", "old", "new", "message"),
    [
        ("xl/worksheets/sheet1.xml", b'r="2"', b'r="99999999999"', "has a row beyond 1,048,576"),
        ("xl/worksheets/sheet1.xml", b'r="B2"', b'r="ZZZZZZ2"', "it is no whole Excel file"),
        ("xl/worksheets/sheet1.xml", b"<sheetData>", b"<sheetData", "it is no whole Excel file"),
        ("xl/workbook.xml", b"<sheets>", b"<nothing>", "it is no whole Excel file"),
        ("xl/worksheets/sheet1.xml", b"</worksheet>", b" " * (3 << 20) + b"</worksheet>", "it inflates to 3 MiB"),
    ],
)
def test_a_sheet_that_a_stranger_wrote_is_bounded(
    tmp_path: Path, part: str, old: bytes, new: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featurecache.table_files._MOST_SHEET_BYTES", 1 << 20)
    path = sheet(tmp_path / "t.xlsx", [["file", "label"], ["a.jpg", "x"]])
    broken(path, part, old, new)
    with pytest.raises(TableError, match=message):
        read(path)


def test_a_sheet_without_the_extra_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "t.xlsx", "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
    monkeypatch.setattr("featurecache.table_files.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="openpyxl, which reads Excel files, is not installed; install it with"):
        read(tmp_path / "t.xlsx")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "above",
    [
        ["# exported on Monday"],
        ["# exported on Monday, by me", "#", "# 12 rows; no more"],
        ["#file: the name", '# label: "what it is'],
    ],
)
def test_comments_above_the_names_of_columns_are_left_out(
    tmp_path: Path, delimiter: str, packed: bool, above: list[str]
) -> None:
    text = text_of(["file", "note", "label"], [(f"{k}.jpg", "two\nlines", "#a") for k in range(9)], delimiter)
    content = "".join(f"{line}\n" for line in above).encode() + text.encode()
    path = put(tmp_path / "t.csv", gzip.compress(content) if packed else content)
    expected = read(put(tmp_path / "plain.csv", text))
    with open_table(path) as table:
        assert table.columns == expected[0]
        assert list(table) == [(number + len(above), row) for number, row in expected[1]]
        assert table.remarks == (f"lines above the table that begin with # are left out: {len(above)}",)


@pytest.mark.parametrize(
    "text",
    [
        "#file,label\na.jpg,x\n",
        "# file,label\n#a.jpg,x\n#b.jpg,y\n",
        "#file,label,note\na.jpg,x\n",
        "#words\nplain\n",
        "#only\n#this\n",
        "file,label\n# a row,x\n",
    ],
)
def test_names_of_columns_may_begin_with_that_mark(tmp_path: Path, text: str) -> None:
    first, *others = text.splitlines()
    columns, rows, _ = read(put(tmp_path / "t.csv", text))
    assert columns == first.split(",")
    assert [row[columns[0]] for _, row in rows] == [line.split(",")[0] for line in others]
    # A tweet is a row, and no comment.
    (tmp_path / "t.csv").write_text("#win now,spam\nid,ham\n")
    assert [row["1"] for _, row in read(tmp_path / "t.csv", has_header=False)[1]] == ["#win now", "id"]
