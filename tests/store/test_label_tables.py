"""Tables of labels as different programs write them: all say the same, or say in one line what they lack."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import make_store
from hypothesis import given
from hypothesis import strategies as st

import featurecache as fc
from featurecache.errors import TaskError
from featurecache.store.label_matching import match_names
from featurecache.store.label_tables import labels_from_csv, labels_from_frame, labels_from_mapping
from featurecache.store.labels import TableLabels, labels_from_folders
from featurecache.store.store import FeatureStore
from featurecache.store.tasks import Task

pytestmark = pytest.mark.quick

NAMES = [f"{number:04d}f3" for number in range(24)]
CLASSES = {name: ("back pack", "bike", "mug")[number % 3] for number, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return make_store(tmp_path_factory.mktemp("tables"), {f"{name}.jpg": name for name in NAMES})


def written(
    rows: list[list[str]], header: list[str] | None = None, delimiter: str = ",", encoding: str = "utf-8"
) -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter).writerows([*([header] if header else []), *rows])
    return file.getvalue().encode(encoding)


def rows_of(form: Callable[[str], str], *more: Callable[[int], str]) -> list[list[str]]:
    return [[form(name), CLASSES[name], *(column(k) for column in more)] for k, name in enumerate(NAMES)]


PLAIN = rows_of(lambda name: f"{name}.jpg")
COCO = json.dumps(
    {
        "info": {},
        "images": [{"id": 7 * k, "file_name": path} for k, (path, _) in enumerate(PLAIN)],
        # Two boxes of one category are one label.
        "annotations": [
            {"image_id": 7 * k, "category_id": ord(label[1])} for k, (_, label) in 2 * list(enumerate(PLAIN))
        ],
        "categories": [{"id": ord(name[1]), "name": name} for name in sorted(set(CLASSES.values()))],
    }
)
TABLES: dict[str, tuple[bytes, str]] = {
    "kaggle": (written(rows_of(str), ["image_id", "label"]), "24 of 24 names matched by name without suffix"),
    "filename": (written(PLAIN, ["filename", "label"]), ""),
    "hugging face": (written(PLAIN, ["file_name", "label"]), ""),
    "from the root": (
        written(rows_of(lambda name: f"photos/{name}.jpg"), ["path", "label"]),
        "24 of 24 names matched by the end of the path: 'photos/0000f3.jpg' is '0000f3.jpg'",
    ),
    "windows": (written(rows_of(lambda name: f"D:\\me\\photos\\{name}.jpg"), ["path", "label"]), "by the end"),
    "absolute": (written(rows_of(lambda name: f"/home/me/photos/{name}.jpg"), ["path", "label"]), "by the end"),
    "capital suffix": (written(rows_of(lambda name: f"{name}.JPG"), ["path", "label"]), "in another case"),
    "no suffix": (written(rows_of(str), ["path", "label"]), "by name without suffix"),
    "another suffix": (written(rows_of(lambda name: f"{name}.png"), ["path", "label"]), "by name with another suffix"),
    "another folder": (
        written(rows_of(lambda name: f"old/{name}.png"), ["path", "label"]),
        "with another suffix",
    ),
    "semicolons": (written(PLAIN, ["path", "label"], ";"), ""),
    "tabs": (written(PLAIN, ["path", "label"], "\t"), ""),
    "strokes": (written(PLAIN, ["path", "label"], "|"), ""),
    "told by a spreadsheet": (b"sep=;\r\n" + written(PLAIN, ["path", "label"], ";"), ""),
    "utf-16": (written(PLAIN, ["path", "label"], encoding="utf-16"), "read as utf-16, not UTF-8"),
    "utf-16 without a mark": (written(PLAIN, ["path", "label"], encoding="utf-16-le"), "read as utf-16-le"),
    "utf-8 with a mark": (written(PLAIN, ["path", "label"], encoding="utf-8-sig"), ""),
    "spaces": (written([[f" {path} ", f" {label}"] for path, label in PLAIN], ["path ", " label"]), ""),
    "capital names": (written(PLAIN, ["Path", "LABEL"]), ""),
    "row numbers first": (written([[str(k), *row] for k, row in enumerate(PLAIN)], ["", "path", "label"]), ""),
    "row numbers of pandas": (written([[str(k), *row] for k, row in enumerate(PLAIN)], ["Unnamed: 0", "img", "y"]), ""),
    "row numbers called id": (written([[str(k), *row] for k, row in enumerate(PLAIN)], ["id", "file", "species"]), ""),
    "the only other column": (written(PLAIN, ["image", "what"]), ""),
    "compressed": (gzip.compress(written(PLAIN, ["path", "label"])), ""),
    "with comments above": (
        b"# exported on Monday\n# by me\n" + written(PLAIN, ["path", "label"]),
        "lines above the table that begin with # are left out: 2",
    ),
    "a column for each class": (
        written(
            [
                [path, *("1.0" if label == name else "0.0" for name in ("back pack", "bike", "mug", "none"))]
                for path, label in PLAIN
            ],
            ["image", "back pack", "bike", "mug", "none"],
        ),
        "4 columns are the classes, as each row has a 1 in one of them: back pack, bike, mug, none",
    ),
    "annotations of COCO on one line": (COCO.encode(), "the labels of an image are the categories of its boxes"),
    "annotations of COCO on several lines": (
        json.dumps(json.loads(COCO), indent=1).encode(),
        "categories of its boxes",
    ),
    "empty rows at the end": (written([*PLAIN, ["", ""], ["", ""]], ["path", "label"]), ""),
}


def as_dict(task: Task, store: FeatureStore) -> dict[str, str]:
    names = store.samples.uris_of(store.samples.rows_of(task.ids))
    return {Path(name).stem: task.classes[y] for name, y in zip(names, task.labels.tolist(), strict=True)}


def added(store: FeatureStore, labels: TableLabels, **options: bool) -> Task:
    return store.add_task("t", labels, replace=True, **options)


@pytest.mark.parametrize("name", TABLES)
def test_every_way_to_write_a_table_says_the_same(store: FeatureStore, tmp_path: Path, name: str) -> None:
    content, said = TABLES[name]
    (tmp_path / "labels.csv").write_bytes(content)
    task = added(store, labels_from_csv(tmp_path / "labels.csv"))
    assert as_dict(task, store) == CLASSES
    texts = [warning.text for warning in task.warnings()]
    assert (said in texts[0]) if said else not texts


def test_parquet_says_the_same(store: FeatureStore, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {"image_id": list(CLASSES), "label": list(CLASSES.values())}
    parquet.write_table(arrow.table(columns), tmp_path / "t.parquet")
    assert as_dict(added(store, labels_from_csv(tmp_path / "t.parquet")), store) == CLASSES
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "t.parquet").read_bytes()[:100])
    with pytest.raises(TaskError, match="it is no whole Parquet file"):
        labels_from_csv(tmp_path / "cut.parquet")


def test_a_sheet_of_excel_says_the_same(store: FeatureStore, tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (["image_id", "label"], *CLASSES.items()):
        book.active.append(row)
    book.create_sheet("notes")
    book.save(tmp_path / "t.xlsx")
    task = added(store, labels_from_csv(tmp_path / "t.xlsx"))
    assert as_dict(task, store) == CLASSES
    assert "the first of 2 sheets is read, 'Sheet'" in [warning.text for warning in task.warnings()]
    book.active.append(["no such", "x", "more"])
    book.save(tmp_path / "t.xlsx")
    with pytest.raises(TaskError, match=r"t.xlsx line 26 has more fields than there are columns, first 'more'"):
        labels_from_csv(tmp_path / "t.xlsx")


def test_a_table_without_a_header(store: FeatureStore, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(written(PLAIN))
    for path, rows in (("t.csv", PLAIN), ("turned.csv", [[label, path] for path, label in PLAIN])):
        (tmp_path / path).write_bytes(written(rows))
        assert as_dict(added(store, labels_from_csv(tmp_path / path, has_header=False)), store) == CLASSES
        found = labels_from_csv(tmp_path / path)
        assert as_dict(added(store, found), store) == CLASSES
        assert [warning.kind for warning in found.warnings] == ["no_header"]
        # Where a column is named, its name stands in the first line.
        with pytest.raises(TaskError, match="unknown column 'file'"):
            labels_from_csv(tmp_path / path, path_column="file")
    turned = labels_from_csv(tmp_path / "turned.csv", has_header=False, path_column="2", label_column="1")
    assert as_dict(added(store, turned), store) == CLASSES
    book = pytest.importorskip("openpyxl").Workbook()
    for row in PLAIN:
        book.active.append(row)
    book.save(tmp_path / "t.xlsx")
    with pytest.raises(TaskError, match="the first line looks like a row and not like names of columns: 0000f3.jpg"):
        labels_from_csv(tmp_path / "t.xlsx")


def test_letters_of_a_german_spreadsheet_are_read_and_told(store: FeatureStore, tmp_path: Path) -> None:
    rows = [[path, f"{label} (größer)"] for path, label in PLAIN]
    (tmp_path / "t.csv").write_bytes(written(rows, ["path", "label"], ";", "cp1252"))
    task = added(store, labels_from_csv(tmp_path / "t.csv"))
    assert task.classes == ["back pack (größer)", "bike (größer)", "mug (größer)"]
    (warning,) = task.warnings()
    assert (
        warning.text == "the table was read as cp1252, not UTF-8; look whether 'back pack (größer)' is what was meant"
    )


def test_numbers_of_a_german_spreadsheet(store: FeatureStore, tmp_path: Path) -> None:
    rows = [[path, f"{k},5"] for k, (path, _) in enumerate(PLAIN)]
    (tmp_path / "t.csv").write_bytes(written(rows, ["path", "height"], ";"))
    task = added(store, labels_from_csv(tmp_path / "t.csv", kind="regression"))
    assert sorted(task.labels[:, 0].tolist()) == [k + 0.5 for k in range(24)]
    (tmp_path / "t.csv").write_bytes(written(rows, ["path", "height"], "\t"))
    with pytest.raises(TaskError, match="no number: '0,5'; decimals are written with a point, or with a comma where ;"):
        labels_from_csv(tmp_path / "t.csv", kind="regression")


@pytest.mark.parametrize(
    ("columns", "splits"),
    [
        ({"is_valid": lambda k: str(k % 4 == 0)}, {"train": 18, "validation": 6}),
        ({"is_test": lambda k: "yes" if k % 4 == 0 else ""}, {"train": 18, "test": 6}),
        (
            {"is_valid": lambda k: str(int(k % 4 == 0)), "is_test": lambda k: str(int(k % 8 == 0))},
            {"train": 18, "validation": 3, "test": 3},
        ),
        ({"split": lambda k: "dev" if k % 4 == 0 else "training"}, {"train": 18, "validation": 6}),
    ],
)
def test_flags_and_splits(
    store: FeatureStore, tmp_path: Path, columns: dict[str, Callable[[int], str]], splits: dict[str, int]
) -> None:
    rows = rows_of(lambda name: f"{name}.jpg", *columns.values())
    (tmp_path / "t.csv").write_bytes(written(rows, ["path", "label", *columns]))
    task = added(store, labels_from_csv(tmp_path / "t.csv"))
    assert task.counts() == splits
    assert task.about["splits"] == "given"


def test_a_flag_beside_a_split_is_told(store: FeatureStore, tmp_path: Path) -> None:
    rows = rows_of(lambda name: f"{name}.jpg", lambda k: "test" if k % 3 else "train", lambda k: "1")
    rows = [[*row[:2], "test" if k % 4 == 0 else "train", "1"] for k, row in enumerate(rows)]
    (tmp_path / "t.csv").write_bytes(written(rows, ["path", "label", "split", "is_valid"]))
    task = added(store, labels_from_csv(tmp_path / "t.csv"))
    assert task.counts() == {"train": 18, "test": 6}
    assert [w.text for w in task.warnings()] == [
        "'is_valid' is not looked at, as 'label' says the label and 'split' the split"
    ]


def test_rows_without_a_label_are_counted(store: FeatureStore, tmp_path: Path) -> None:
    empty = ["", "NaN", "None", "none"]
    rows = [[path, empty[k] if k < 4 else label] for k, (path, label) in enumerate(PLAIN)]
    rows += [[path.replace("f3", "f4"), "none"] for path, _ in PLAIN[:3]]
    (tmp_path / "t.csv").write_bytes(written(rows, ["path", "label"]))
    labels = labels_from_csv(tmp_path / "t.csv")
    assert len(labels.labels) == 24  # "none" is the name of a class, as pandas reads it
    (warning,) = labels.warnings
    assert (warning.kind, warning.count) == ("unlabelled_rows", 3)
    assert warning.text == (
        "3 of 27 rows have no label, left out (empty: 1, 'NaN': 1, 'None': 1); --keep-na if these are names of classes"
    )
    kept = labels_from_csv(tmp_path / "t.csv", keep_na=True)
    assert len(kept.labels) == 26


def test_spellings_are_told_and_made_one_where_asked(store: FeatureStore, tmp_path: Path) -> None:
    rows = [[path, label.title().replace(" ", "") if k % 4 == 0 else label] for k, (path, label) in enumerate(PLAIN)]
    (tmp_path / "t.csv").write_bytes(written(rows, ["path", "label"]))
    task = added(store, labels_from_csv(tmp_path / "t.csv"))
    assert len(task.classes) == 6
    (warning,) = task.warnings()
    assert warning.text.startswith(
        "3 names are spelled in several ways that differ only in case or spaces, first 'back pack' (6) and 'BackPack' "
        "(2): taken for different ones; --merge-spellings makes them one"
    )
    merged = added(store, labels_from_csv(tmp_path / "t.csv", merge_spellings=True))
    assert as_dict(merged, store) == CLASSES
    assert [warning.kind for warning in merged.warnings()] == ["spellings"]


def test_spellings_of_folders_and_of_lists(tmp_path: Path) -> None:
    store = make_store(tmp_path, {f"{c}/{i}.jpg": f"{c}{i}" for c in ("Cat", "cat", "dog") for i in range(6)})
    task = store.add_task("t", labels_from_folders())
    assert task.classes == ["Cat", "cat", "dog"]
    assert task.warnings()[0].kind == "spellings"
    assert store.add_task("m", labels_from_folders(merge_spellings=True)).classes == ["Cat", "dog"]
    lines = [f"{c}/{i}.jpg,{'Red;small' if i % 2 else 'red'}" for c in ("Cat", "cat", "dog") for i in range(6)]
    (tmp_path / "t.csv").write_text("\n".join(["path,tags", *lines]))
    with pytest.raises(TaskError, match="'Red' holds for all"):
        store.add_task("l", labels_from_csv(tmp_path / "t.csv", kind="multilabel", merge_spellings=True))
    assert store.add_task("l", labels_from_csv(tmp_path / "t.csv", kind="multilabel")).classes == [
        "Red",
        "red",
        "small",
    ]


def test_data_frames_and_mappings_say_the_same(store: FeatureStore) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"image_id": list(CLASSES), "label": list(CLASSES.values())})
    assert as_dict(added(store, labels_from_frame(frame)), store) == CLASSES
    indexed = frame.set_index("image_id")
    assert as_dict(added(store, labels_from_frame(indexed)), store) == CLASSES
    assert (
        as_dict(added(store, labels_from_mapping({f"{name}.jpg": CLASSES[name] for name in NAMES})), store) == CLASSES
    )
    frame.loc[0, "label"] = np.nan
    frame.loc[1, "label"] = "NA"  # a text, which the frame would not hold for an empty cell
    labels = labels_from_frame(frame)
    assert labels.warnings[0].count == 1
    assert labels.labels[0].label == "NA"
    flags = frame.assign(is_test=[k % 4 == 0 for k in range(24)], label=list(CLASSES.values()))
    assert added(store, labels_from_frame(flags)).counts() == {"train": 18, "test": 6}
    assert fc.labels_from_frame is labels_from_frame


def test_a_name_that_fits_two_samples_is_refused(tmp_path: Path) -> None:
    files = [f"{folder}/{number}.jpg" for folder in ("left", "right") for number in range(3)]
    store = make_store(tmp_path, {name: name for name in files})
    with pytest.raises(TaskError, match=r"'0.jpg' fits several samples .*'left/0.jpg' and 'right/0.jpg' among them"):
        store.add_task("t", labels_from_mapping({"0.jpg": "a", "1.jpg": "b"}))
    with pytest.raises(TaskError, match=r"'x/left/0.jpg' and 'y/left/0.jpg' of the labels both fit 'left/0.jpg'"):
        store.add_task("t", labels_from_mapping({"x/left/0.jpg": "a", "y/left/0.jpg": "b"}))


def test_other_folders_match_only_where_all_names_do() -> None:
    paths = ["cats/1.jpg", "cats/2.jpg"]
    assert match_names(["dogs/1.png", "dogs/2.png"], paths).paths == {"dogs/1.png": paths[0], "dogs/2.png": paths[1]}
    # One that is not there shows that the others are not meant either.
    assert match_names(["dogs/1.png", "dogs/2.png", "dogs/3.png"], paths).paths == {}
    assert match_names(["dogs/1.jpg"], ["cats/2.jpg"]).paths == {}


def test_a_longer_end_counts_more_and_dots_in_names_are_no_suffix() -> None:
    paths = ["1.jpg", "cats/1.jpg"]
    assert match_names(["/data/cats/1.jpg"], paths).paths == {"/data/cats/1.jpg": "cats/1.jpg"}
    assert match_names(["v1.2"], ["v1.2.jpg", "v1.3.jpg"]).paths == {"v1.2": "v1.2.jpg"}
    assert match_names(["cafe\u0301.jpg"], ["caf\u00e9.jpg"]).paths == {"cafe\u0301.jpg": "caf\u00e9.jpg"}


PARTS = st.lists(st.sampled_from(["a", "b", "cats"]), max_size=2)
CHANGES: dict[str, Callable[[str], str]] = {
    "same": str,
    "root": lambda path: f"/data/{path}",
    "case": str.upper,
    "no suffix": lambda path: path.rpartition(".")[0],
    "suffix": lambda path: path.rpartition(".")[0] + ".png",
}


@given(
    folders=st.lists(PARTS, min_size=1, max_size=8),
    change=st.sampled_from(sorted(CHANGES)),
)
def test_changed_names_are_found_again_whatever_the_folders(folders: list[list[str]], change: str) -> None:
    """Files have names of their own, in any folders: each change of a name that a rule forgives finds its file."""
    paths = ["/".join([*parts, f"img{number}.jpg"]) for number, parts in enumerate(folders)]
    names = {CHANGES[change](path): path for path in paths}
    found = match_names(names, paths)
    assert found.paths == names
    assert bool(found.warnings) == (change != "same")


def test_labels_of_files_that_cannot_be_read_are_left_out_aloud(tmp_path: Path) -> None:
    store = make_store(tmp_path, {f"{number}.jpg": f"content {number}" for number in range(8)}, bad=["bad.jpg"])
    labels = {f"{number}.jpg": "ab"[number % 2] for number in range(8)} | {"bad.jpg": "a"}
    task = store.add_task("t", labels_from_mapping(labels))
    assert len(task.ids) == 8
    assert [warning.text for warning in task.warnings()] == [
        "1 of 9 labels is for inputs that cannot be read, left out, first bad.jpg"
    ]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("image,label\n0000f3.jpg,black, small\n", {}, r"line 2 has more fields than there are columns, first 'small'"),
        ("image,price\n0000f3.jpg,3,5\n", {"kind": "regression"}, "line 2 has more fields than there are columns"),
        ('image,note,label\n0000f3.jpg,"12 inch,a\n0001f3.jpg,"12 inch,b\n', {}, "is a quote left open"),
        ('image,label,note\n0000f3.jpg,a,"open\n0001f3.jpg,b,x\n', {}, "is a quote left open"),
        ('{"path": {"0": "a.jpg"}}', {}, "it is one JSON object; a table is a list of objects"),
        ("image,label\n0000f3.jpg,a;b\n", {"separator": ""}, "--separator is one or more characters"),
        ("image,label,site\n0000f3.jpg,a,NA\n", {"domain_column": "site"}, "the site is empty; say where"),
        ("image,price\n0000f3.jpg,1_5\n", {"kind": "regression"}, "the price is no number: '1_5'"),
    ],
)
def test_what_would_be_read_wrong_is_refused(tmp_path: Path, text: str, options: dict[str, str], message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(TaskError, match=message):
        labels_from_csv(tmp_path / "t.csv", **options)


@pytest.mark.parametrize("name", ["set", "Subset", "phase", "data set", "whatever"])
def test_a_column_of_nothing_but_splits_says_the_split(store: FeatureStore, tmp_path: Path, name: str) -> None:
    rows = rows_of(lambda name: f"{name}.jpg", lambda k: "test" if k % 4 == 0 else "train")
    (tmp_path / "t.csv").write_bytes(written(rows, ["path", "label", name]))
    task = added(store, labels_from_csv(tmp_path / "t.csv"))
    assert task.counts() == {"train": 18, "test": 6}
    (warning,) = task.warnings()
    assert warning.text == f"the column {name!r} holds nothing but names of splits, and says the split"
    # Two such columns say two things: the right one has to be named.
    rows = rows_of(
        lambda name: f"{name}.jpg", lambda k: "test" if k % 4 == 0 else "train", lambda k: "test" * (k > 9) or "val"
    )
    (tmp_path / "t.csv").write_bytes(written(rows, ["path", "label", name, "other"]))
    assert added(store, labels_from_csv(tmp_path / "t.csv")).about["splits"] == "made"
    assert added(store, labels_from_csv(tmp_path / "t.csv", split_column=name)).counts() == {"train": 18, "test": 6}


def test_a_flag_of_training_says_the_split(store: FeatureStore, tmp_path: Path) -> None:
    rows = rows_of(lambda name: f"{name}.jpg", lambda k: str(int(k % 4 > 0)))
    (tmp_path / "t.csv").write_bytes(written(rows, ["path", "label", "is_training_image"]))
    assert added(store, labels_from_csv(tmp_path / "t.csv")).counts() == {"train": 18, "test": 6}


def test_names_of_files_count_more_than_numbers_of_rows(tmp_path: Path) -> None:
    store = make_store(tmp_path, {f"{k}.jpg": f"content {k}" for k in range(1, 13)})
    lines = [f"{13 - k},{k}.jpg,{'ab'[k % 2]}" for k in range(1, 13)]
    (tmp_path / "t.csv").write_text("\n".join(["id,picture of,label", *lines]))
    task = added(store, labels_from_csv(tmp_path / "t.csv"))
    assert as_dict(task, store) == {str(k): "ab"[k % 2] for k in range(1, 13)}
    assert not task.warnings()


def test_columns_that_could_be_meant_too_are_told(store: FeatureStore, tmp_path: Path) -> None:
    rows = rows_of(lambda name: f"{name}.jpg", lambda k: f"kind {k % 2}")
    (tmp_path / "t.csv").write_bytes(written(rows, ["path", "label", "species"]))
    task = added(store, labels_from_csv(tmp_path / "t.csv"))
    assert [warning.text for warning in task.warnings()] == ["'species' is not looked at, as 'label' says the label"]
    assert not added(store, labels_from_csv(tmp_path / "t.csv", label_column="label")).warnings()


def test_lists_in_frames_are_lists_of_labels(store: FeatureStore) -> None:
    pandas = pytest.importorskip("pandas")
    tags = [["small", "red"] if k % 3 else ["red"] * (k % 2) for k in range(24)]
    frame = pandas.DataFrame({"image_id": NAMES, "tags": tags})
    task = added(store, labels_from_frame(frame, kind="multilabel"))
    assert task.classes == ["red", "small"]
    with pytest.raises(TaskError, match="row 1: the tags holds several values; say --kind multilabel"):
        labels_from_frame(frame)


def test_what_frames_hold_for_nothing_is_no_label() -> None:
    pandas = pytest.importorskip("pandas")
    values = pandas.array([1, None, 2], dtype="Int64")
    labels = labels_from_frame(pandas.DataFrame({"id": ["a", "b", "c"], "label": values}))
    assert [label.label for label in labels.labels] == ["1", "2"]
    floats = labels_from_frame(pandas.DataFrame({"id": ["a", "b", "c"], "label": [1.0, 2.0, float("nan")]}))
    assert [label.label for label in floats.labels] == ["1", "2"]
    twice = pandas.DataFrame([["a", 1, 2]], columns=["id", "x", "x"])
    with pytest.raises(TaskError, match="2 columns of the data frame are called 'x'"):
        labels_from_frame(twice)
    with pytest.raises(TaskError, match="takes a data frame with columns, not a Series"):
        labels_from_frame(pandas.Series(["a"]))


def test_a_missing_sample_takes_no_other_ones_place(tmp_path: Path) -> None:
    """What matched as it is written has its sample; what is not there stays missing."""
    files = [f"{folder}/{number}.jpg" for folder in ("left", "right") for number in range(3)]
    assert "webcam/1.jpg" not in match_names([*files, "webcam/1.jpg"], files).paths
    flat = [f"{number}.jpg" for number in range(4)]
    assert "test/1.jpg" not in match_names([*flat, "test/1.jpg"], flat).paths
    assert "1.png" not in match_names([*flat, "1.png"], flat).paths
    assert match_names([*flat[1:], "0.JPG"], flat).paths["0.JPG"] == "0.jpg"
    assert match_names(["b/0.png"], ["a/0.jpg"]).paths
    assert not match_names(["b/0.png"], ["a/0.jpg"], by_file=False).paths
    store = make_store(tmp_path, {name: name for name in flat})
    labels = {name: "ab"[k % 2] for k, name in enumerate(flat)} | {"test/1.jpg": "b"}
    assert len(added(store, labels_from_mapping(labels), allow_missing=True).ids) == 4


def test_many_files_of_one_name_are_matched_at_once() -> None:
    """Each name is looked up: in pairs, this would take minutes."""
    paths = [f"patient{k}/study1/view1.jpg" for k in range(20_000)]
    names = [f"CheXpert/train/{path}" for path in paths]
    assert match_names(names, paths).paths == dict(zip(names, paths, strict=True))


def test_one_number_written_in_two_ways_is_told(store: FeatureStore, tmp_path: Path) -> None:
    rows = [
        [path, "1" if k % 4 == 0 else "1.0" if k % 4 == 1 else "1 2" if k % 4 == 2 else "12"]
        for k, (path, _) in enumerate(PLAIN)
    ]
    (tmp_path / "t.csv").write_bytes(written(rows, ["path", "label"]))
    task = added(store, labels_from_csv(tmp_path / "t.csv", merge_spellings=True))
    assert sorted(task.classes) == ["1", "1 2", "12"]


def test_splits_are_kept_only_where_they_still_mean_the_same(store: FeatureStore, tmp_path: Path) -> None:
    plain = added(store, labels_from_mapping({f"{name}.jpg": CLASSES[name] for name in NAMES}))
    other = added(store, labels_from_mapping({f"{name}.jpg": "xy"[k % 2] for k, name in enumerate(NAMES)}))
    fresh = store.add_task("fresh", labels_from_mapping({f"{name}.jpg": "xy"[k % 2] for k, name in enumerate(NAMES)}))
    assert other.splits.tolist() == fresh.splits.tolist() != plain.splits.tolist()
    rows = rows_of(lambda name: f"{name}.jpg", lambda k: f"patient {k // 2}")
    (tmp_path / "t.csv").write_bytes(written(rows, ["path", "label", "patient"]))
    grouped = labels_from_csv(tmp_path / "t.csv", label_column="label", group_column="patient")
    assert added(store, grouped).splits.tolist() == store.add_task("g", grouped).splits.tolist()


def test_a_conflict_of_one_name_shows_both_labels(store: FeatureStore, tmp_path: Path) -> None:
    rows = [*PLAIN, [PLAIN[0][0], "mug"]]
    (tmp_path / "t.csv").write_bytes(written(rows, ["path", "label"]))
    task = added(store, labels_from_csv(tmp_path / "t.csv"))
    assert task.about["conflicts"] == [{"0000f3.jpg": "back pack and mug"}]


@pytest.mark.parametrize(
    ("name", "entries", "splits"),
    [
        ("val", ("True", "False"), {"train": 18, "validation": 6}),
        ("holdout", ("1", "0"), {"train": 18, "test": 6}),
        ("train", ("no", "yes"), {"train": 18, "test": 6}),
        ("Usage", ("PrivateTest", "Training"), {"train": 18, "test": 6}),
    ],
)
def test_flags_and_words_of_contests(
    store: FeatureStore, tmp_path: Path, name: str, entries: tuple[str, str], splits: dict[str, int]
) -> None:
    rows = rows_of(lambda name: f"{name}.jpg", lambda k: entries[k % 4 > 0])
    (tmp_path / "t.csv").write_bytes(written(rows, ["path", "label", name]))
    assert added(store, labels_from_csv(tmp_path / "t.csv")).counts() == splits


def test_lists_as_a_program_prints_them_and_names_joined_elsewhere(store: FeatureStore, tmp_path: Path) -> None:
    tags = ["['old', 'red']", "['red']", "[]", "['old']"]
    rows = [[path, tags[k % 4]] for k, (path, _) in enumerate(PLAIN)]
    (tmp_path / "t.csv").write_bytes(written(rows, ["path", "tags"]))
    task = added(store, labels_from_csv(tmp_path / "t.csv", kind="multilabel"))
    assert task.classes == ["[]", "old", "red"] or task.classes == ["old", "red"]
    rows = [[path, ("old,red", "old", "red", "big")[k % 4]] for k, (path, _) in enumerate(PLAIN)]
    (tmp_path / "t.csv").write_bytes(written(rows, ["path", "tags"]))
    for kind in ("multilabel", "classification"):
        (warning,) = added(store, labels_from_csv(tmp_path / "t.csv", kind=kind)).warnings()
        assert warning.kind == "joined_labels"
        assert "--separator ','" in warning.text


def test_json_lines_beside_the_images_say_the_same(store: FeatureStore, tmp_path: Path) -> None:
    lines = [json.dumps({"file_name": f"{name}.jpg", "label": label}) for name, label in CLASSES.items()]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    task = store.add_task("lines", labels_from_csv(tmp_path / "metadata.jsonl"), replace=True)
    assert as_dict(task, store) == CLASSES


def test_names_mean_the_samples_beside_their_table(tmp_path: Path) -> None:
    """Of two folders that have files of the same names, as data sets of Hugging Face do."""
    names = [f"{folder}/{number}.jpg" for folder in ("train", "validation") for number in range(6)]
    store = make_store(tmp_path / "cache", {name: name for name in names})
    for name in ("train", "validation"):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        lines = [{"file_name": f"{k}.jpg", "label": k % 2 if name == "train" else 1 - k % 2} for k in range(6)]
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    listed = store.listings.names()
    one = labels_from_csv(tmp_path / "photos/validation/metadata.jsonl", names=listed)
    assert {label.key: label.label for label in one.labels} == {f"validation/{k}.jpg": "10"[k % 2] for k in range(6)}
    both = labels_from_csv(tmp_path / "photos", names=listed)
    assert store.add_task("both", both).counts() == {"train": 6, "validation": 6}
    assert {label.key: label.label for label in both.labels if label.split == "validation"} == {
        label.key: label.label for label in one.labels
    }
    # Where one name is not there, none is taken for another folder's.
    with (tmp_path / "photos/train/metadata.jsonl").open("a") as file:
        file.write('\n{"file_name": "6.jpg", "label": 0}')
    with pytest.raises(TaskError, match="'0.jpg' fits several samples"):
        store.add_task("more", labels_from_csv(tmp_path / "photos/train/metadata.jsonl", names=listed))
    with pytest.raises(TaskError, match=r"cache: it is a folder without metadata.csv, .jsonl or .parquet"):
        labels_from_csv(tmp_path / "cache")
    (tmp_path / "photos/train/metadata.jsonl").write_text(
        '{"id": "0.jpg", "a": 1, "b": 0}\n{"id": "1.jpg", "a": 0, "b": 1}'
    )
    with pytest.raises(TaskError, match=r"train.metadata.jsonl has labels called a, b, and .*validation.*label"):
        labels_from_csv(tmp_path / "photos", kind="multilabel")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["0030f3.jpg", "1", "1", "0"], "line 26: 'a' and 'b' are both 1, and a sample has one class; drop the line"),
        (["0030f3.jpg", "0", "0", "0"], "line 26: none of 3 columns is 1, and a sample has one class"),
        (["0030f3.jpg", "1", "0", "maybe"], "line 26: the c is neither 1 nor 0: 'maybe'"),
    ],
)
def test_a_row_of_no_class_or_two_is_refused(tmp_path: Path, row: list[str], message: str) -> None:
    rows = [[path, *(str(int(k % 3 == n)) for n in range(3))] for k, (path, _) in enumerate(PLAIN)]
    # Behind the rows by which columns are told apart.
    rows = rows * 9
    (tmp_path / "t.csv").write_bytes(written([*rows, row], ["image", "a", "b", "c"]))
    with pytest.raises(TaskError, match=message.replace("26", str(len(rows) + 2))):
        labels_from_csv(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_bytes(written([*rows, ["0030f3.jpg", "", "", ""]], ["image", "a", "b", "c"]))
    (left_out, said) = labels_from_csv(tmp_path / "t.csv").warnings
    assert left_out.text == f"1 of {len(rows) + 1} rows has no label, left out"
    assert said.kind == "label_column"


def test_quotes_that_are_letters_are_told(store: FeatureStore, tmp_path: Path) -> None:
    rows = [f"{name}.jpg\t{label}\t{note}" for (name, label), note in zip(CLASSES.items(), '"ab"c' * 9, strict=False)]
    (tmp_path / "t.tsv").write_text("image\tlabel\tnote\n" + "\n".join(rows))
    task = store.add_task("quotes", labels_from_csv(tmp_path / "t.tsv"), replace=True)
    assert len(task.ids) == len(NAMES)
    assert [warning["kind"] for warning in task.about["warnings"]] == ["quotes"]


def test_the_class_is_told_from_what_is_the_same_everywhere_or_comes_once(store: FeatureStore, tmp_path: Path) -> None:
    rows = [[str(k), path, label, "2026", f"{k / 7:.3f}", str(k % 5)] for k, (path, label) in enumerate(PLAIN)]
    header = ["#", "photo", "seen", "year", "length", "fold"]
    (tmp_path / "t.csv").write_bytes(written(rows, header))
    found = labels_from_csv(tmp_path / "t.csv")
    assert as_dict(added(store, found), store) == CLASSES
    assert [warning.text for warning in found.warnings] == [
        "'year', 'length' are not looked at, as 'seen' says the label"
    ]
    # Two columns whose values come again leave it open, and so do few rows.
    (tmp_path / "t.csv").write_bytes(written([[*row, "xyz"[k % 3]] for k, row in enumerate(rows)], [*header, "odd"]))
    with pytest.raises(TaskError, match=r"does not say which column holds the class .*seen \(3\).*odd \(3\)"):
        labels_from_csv(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_bytes(written(rows[:9], header))
    with pytest.raises(TaskError, match="does not say which column holds the class"):
        labels_from_csv(tmp_path / "t.csv")


def test_columns_of_yes_and_no_are_labels(store: FeatureStore, tmp_path: Path) -> None:
    classes = sorted(set(CLASSES.values()))
    rows = [[path, *(str(int(label == name)) for name in classes)] for path, label in PLAIN]
    (tmp_path / "t.csv").write_bytes(written(rows, ["image_name", *classes]))
    assert labels_from_csv(tmp_path / "t.csv", kind="multilabel").names == tuple(classes)


@pytest.mark.parametrize("header", [None, ["path", "label"]], ids=["no header", "header"])
def test_a_list_of_images_with_spaces(store: FeatureStore, tmp_path: Path, header: list[str] | None) -> None:
    lines = [f"{path} {label.replace(' ', '-')}" for path, label in PLAIN]
    (tmp_path / "train.txt").write_text("\n".join([*([" ".join(header)] if header else []), *lines]))
    found = labels_from_csv(tmp_path / "train.txt")
    assert as_dict(added(store, found), store) == {path: label.replace(" ", "-") for path, label in CLASSES.items()}
