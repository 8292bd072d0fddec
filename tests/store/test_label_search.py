"""A table whose column of names has a name that nobody knows says the same as one where it is called path."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import RUNTIME, TINY, make_store

import featurecache as fc
from featurecache.errors import TaskError
from featurecache.store import label_search
from featurecache.store.label_search import chosen_column, match_columns
from featurecache.store.label_tables import labels_from_csv, labels_from_frame
from featurecache.store.store import FeatureStore
from featurecache.store.tasks import Task

pytestmark = pytest.mark.quick

# As emojis are called. A column of names that end as images do is known by that.
FILES = [f"svg/{0x1F600 + number:X}.svg" for number in range(60)]
SETTINGS = fc.ExtractionSettings(runtime="torch", batch_size=8)
WRITTEN: dict[str, tuple[Callable[[str], str], str]] = {
    "as in the source": (str, "60 of 60 names are in the source"),
    "without suffix": (
        lambda path: Path(path).stem,
        "60 of 60 names matched by name without suffix: '1F60C' is 'svg/1F60C.svg'",
    ),
    "in small letters": (lambda path: Path(path).stem.lower(), "60 of 60 names matched by name without suffix"),
    "below another root": (lambda path: f"D:\\me\\{path}".replace("/", "\\"), "60 of 60 names matched by the end"),
    "with another suffix": (lambda path: path.replace(".svg", ".emf"), "60 of 60 names matched by name with another"),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return make_store(tmp_path_factory.mktemp("search"), {name: name for name in FILES})


def table_of(form: Callable[[str], str], **more: Callable[[int], object]) -> dict[str, list[str]]:
    """Columns in an order that does not tell: the column of names stands last."""
    columns = {name: [str(value(number)) for number in range(len(FILES))] for name, value in more.items()}
    return {**columns, "hexcode": [form(path) for path in FILES]}


def put(path: Path, columns: dict[str, list[str]], *, seed: int = 0) -> Path:
    rows = list(zip(*columns.values(), strict=True))
    random.Random(seed).shuffle(rows)
    path.write_text("\n".join(",".join(row) for row in [tuple(columns), *rows]))
    return path


def task_of(store: FeatureStore, labels: Any, **options: Any) -> Task:
    return store.add_task("t", labels, replace=True, **options)


def targets(task: Task) -> dict[bytes, str]:
    return {row.tobytes(): task.classes[y] for row, y in zip(task.ids, task.labels.tolist(), strict=True)}


@pytest.mark.parametrize("first", ["without suffix", "as in the source", "below another root"])
@pytest.mark.parametrize("says", [True, False], ids=["--no-header", "nothing said"])
def test_a_table_without_a_header_loses_no_row(store: FeatureStore, tmp_path: Path, first: str, says: bool) -> None:
    form, names = WRITTEN[first][0], store.listings.names(None)
    table = tmp_path / "t.csv"
    # The number of the row, which is no class, stands before; where it is the only other column, that is one.
    for columns in (["label", "name"], ["name", "label"], ["name", "label", "number"]):
        rows = [{"label": str(k % 3), "name": form(path), "number": f"n{k}"} for k, path in enumerate(FILES)]
        table.write_text("\n".join(",".join(row[column] for column in columns) for row in rows))
        found = labels_from_csv(table, has_header=not says, names=names)
        assert [label.label for label in found.labels] == [str(k % 3) for k in range(60)]
        assert [warning.kind for warning in found.warnings] == ([] if says else ["no_header"])
        assert len(task_of(store, found).ids) == 60
    # Three columns, of which neither other one stands behind the name.
    table.write_text("\n".join(f"{k % 3},x{k % 5},{form(path)}" for k, path in enumerate(FILES)))
    with pytest.raises(TaskError, match=r"which column holds the class .*: 1 \(3\), 2 \(5\); name it with --label-"):
        labels_from_csv(table, has_header=not says, names=names)


def test_a_first_line_that_may_be_a_header_is_one(store: FeatureStore, tmp_path: Path) -> None:
    names, table = [f"{k}.png" for k in range(60)], tmp_path / "t.csv"
    # As a data frame without names of columns is written, and where the name of a column is that of a sample.
    for header in ("0,1", "path,0", "5,thing"):
        table.write_text("\n".join([header, *(f"{k},{k % 3}" for k in range(60))]))
        assert len(labels_from_csv(table, names=names).labels) == 60
    table.write_text("\n".join(["thing", *(f"{k}.png,{k % 3}" for k in range(60))]))


@pytest.mark.parametrize("way", WRITTEN)
def test_the_column_that_names_the_samples_is_found_by_its_entries(
    store: FeatureStore, tmp_path: Path, way: str
) -> None:
    form, said = WRITTEN[way]
    columns = table_of(form, skintone=lambda k: k // 2, group=lambda k: ["face", "hand", "flag"][k % 3])
    path = put(tmp_path / "emojis.csv", columns)
    named = task_of(store, labels_from_csv(path, path_column="hexcode", label_column="group"))
    found = labels_from_csv(path, label_column="group", names=store.listings.names())
    task = task_of(store, found)
    assert targets(task) == targets(named)
    assert len(targets(task)) == 60
    (warning,) = task.warnings()
    assert warning.text.startswith(f"column 'hexcode' names the samples: {said}")
    assert warning.text.endswith("; --path-column names another")
    # What is found is what is left out when the label is looked for.
    del columns["skintone"]
    path = put(tmp_path / "two.csv", columns)
    assert targets(task_of(store, labels_from_csv(path, names=store.listings.names()))) == targets(named)


def test_without_a_source_it_is_refused_as_before(tmp_path: Path) -> None:
    path = put(tmp_path / "t.csv", table_of(str, group=lambda k: k % 3))
    with pytest.raises(TaskError, match="needs a column that names the samples.*it has: group, hexcode; name it with"):
        labels_from_csv(path)


def test_a_data_frame_says_the_same(store: FeatureStore) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(table_of(lambda path: Path(path).stem, group=lambda k: "ab"[k % 2]))
    task = task_of(store, labels_from_frame(frame, names=store.listings.names()))
    assert list(targets(task).values()).count("a") == 30


def test_a_known_column_that_names_nothing_is_passed_over(store: FeatureStore, tmp_path: Path) -> None:
    columns = table_of(lambda path: Path(path).stem, id=lambda k: f"row {k}", label=lambda k: "ab"[k % 2])
    path = put(tmp_path / "t.csv", columns)
    task = task_of(store, labels_from_csv(path, names=store.listings.names()))
    assert len(targets(task)) == 60
    assert task.warnings()[0].text.startswith("column 'hexcode' names the samples: 60 of 60")
    # Named by the user, it is what he says.
    with pytest.raises(TaskError, match="60 of 60 labels are for inputs that are not in the cache"):
        task_of(store, labels_from_csv(path, path_column="id", names=store.listings.names()))
    del columns["hexcode"]
    path = put(tmp_path / "none.csv", columns | {"n": [f"{k} m" for k in range(60)]})
    with pytest.raises(TaskError, match="or say --path-column: of 60 rows so many name samples of the source: 'id' 0"):
        labels_from_csv(path, names=store.listings.names())


def test_a_known_column_that_names_some_is_taken_as_before(store: FeatureStore, tmp_path: Path) -> None:
    columns = table_of(str, image=lambda k: FILES[k] if k == 59 else f"none/{k}", label=lambda k: "ab"[k % 2])
    path = put(tmp_path / "t.csv", columns)
    labels = labels_from_csv(path, names=store.listings.names())
    assert labels == labels_from_csv(path)
    assert labels.key_column is None


@pytest.mark.parametrize(
    ("more", "message"),
    [
        # Each could be meant.
        ({"other": lambda k: FILES[59 - k]}, "of 60 rows so many name samples of the source: 'other' 60, 'hexcode' 60"),
        ({"other": lambda k: f"{k}.svg"}, None),
    ],
)
def test_several_columns_are_a_question(
    store: FeatureStore, tmp_path: Path, more: dict[str, Callable[[int], object]], message: str | None
) -> None:
    path = put(tmp_path / "t.csv", table_of(str, **more, label=lambda k: "ab"[k % 2]))
    if message is None:
        assert labels_from_csv(path, names=store.listings.names()).key_column == "hexcode"
        return
    with pytest.raises(TaskError, match=message):
        labels_from_csv(path, names=store.listings.names())


def test_numbers_that_repeat_name_nothing(tmp_path: Path) -> None:
    store = make_store(tmp_path, {f"{k}.jpg": f"content {k}" for k in range(1, 91)})
    rows = [f"{k % 30 + 1},{'ab'[k % 2]}" for k in range(90)]
    (tmp_path / "t.csv").write_text("\n".join(["age,label", *rows]))
    with pytest.raises(TaskError, match="so many name samples of the source: 'age' repeats numbers"):
        labels_from_csv(tmp_path / "t.csv", names=store.listings.names())
    # With a number of its own in each row, the other column is the one.
    rows = [f"{row},{k + 1}" for k, row in enumerate(rows)]
    (tmp_path / "t.csv").write_text("\n".join(["age,label,photo_no", *rows]))
    found = labels_from_csv(tmp_path / "t.csv", names=store.listings.names())
    assert (found.key_column, len(targets(task_of(store, found)))) == ("photo_no", 90)


def test_a_table_of_more_than_the_source_holds(store: FeatureStore, tmp_path: Path) -> None:
    columns = table_of(str, label=lambda k: "ab"[k % 2], note=lambda k: f"seen {k} times")
    columns = {name: [*entries, *(f"{name} {k}" for k in range(900))] for name, entries in columns.items()}
    columns["label"] = ["ab"[k % 2] for k in range(960)]
    labels = labels_from_csv(put(tmp_path / "t.csv", columns), names=store.listings.names())
    with pytest.raises(TaskError, match="900 of 960 labels are for inputs .* not in the cache by the column 'hexcode'"):
        task_of(store, labels)
    task = task_of(store, labels, allow_missing=True)
    assert len(targets(task)) == 60
    assert task.warnings()[0].text == (
        "column 'hexcode' names the samples: 60 of 960 names are in the source; --path-column names another"
    )


def test_of_a_long_or_wide_table_only_the_first_rows_are_looked_at(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def counted(columns: Any, names: Any) -> Any:
        seen.append(sum(map(len, columns.values())))
        return match_columns(columns, names)

    monkeypatch.setattr(label_search, "match_columns", counted)
    monkeypatch.setattr("featurecache.store.label_tables.MOST_ROWS", 20)
    path = put(tmp_path / "t.csv", table_of(str, label=lambda k: "ab"[k % 2]))
    assert labels_from_csv(path, names=store.listings.names()).key_column == "hexcode"
    monkeypatch.setattr("featurecache.store.label_tables.MOST_FIELDS", 500)
    path = put(tmp_path / "wide.csv", table_of(str, **{f"c{n}": lambda k: k // 2 for n in range(98)}, label=str))
    assert labels_from_csv(path, names=store.listings.names(), kind="classification").key_column == "hexcode"
    assert seen == [20, 99 * 5]


def test_a_name_that_fits_several_is_no_name() -> None:
    names = [f"{folder}/{number}.jpg" for folder in "ab" for number in range(4)]
    matches = match_columns({"number": ["0", "1", "2"], "path": ["a/0", "b/1", ""], "no": ["x", "y", "z"]}, names)
    assert [str(match) for match in matches] == ["'number' fits several each", "'path' 2", "'no' 0"]
    assert chosen_column(matches, len(names)) == "path"
    assert chosen_column(matches[:1], len(names)) is None


def test_an_ambiguous_label_column_shows_how_many_values_each_has(store: FeatureStore, tmp_path: Path) -> None:
    path = put(
        tmp_path / "t.csv", table_of(str, group=lambda k: k % 3, order=int, at=lambda k: k % 4, note=lambda k: "")
    )
    message = r"in brackets its distinct values in 60 rows\): group \(3\), order \(60\), at \(4\), note \(0\); name it"
    with pytest.raises(TaskError, match=message):
        labels_from_csv(path, names=store.listings.names())


def test_the_command_line_and_run_find_it(
    make_folder: Callable[..., Path], call: Callable[..., Any], tmp_path: Path
) -> None:
    source = make_folder(per_class=8)
    names = sorted(path.relative_to(source) for path in source.rglob("*.png"))
    rows = [f"{number},{name.with_suffix('')},{'ab'[number % 2]}" for number, name in enumerate(names)]
    table = tmp_path / "t.csv"
    table.write_text("\n".join(["photo_no,where,kind of it", *rows]))
    cache, line = tmp_path / "c", f"column 'where' names the samples: {len(rows)} of {len(rows)} names matched by name"
    command = ["run", source, "--cache", cache, "--labels", table, "--label-column", "kind of it", "--task", "r"]
    status, out, _ = call(*command, "--backbone", TINY, *RUNTIME, "--head", "knn", "--jobs", "1")
    assert status == 0
    assert line in out
    status, out, _ = call("task", "add", cache, "t", table, "--label-column", "kind of it", "--json")
    assert status == 0
    assert line in json.loads(out)["warnings"][0]["text"]
    assert targets(FeatureStore.open(cache).task("t")) == targets(FeatureStore.open(cache).task("r"))
    frame = pytest.importorskip("pandas").read_csv(table)[["where", "kind of it"]]
    done = fc.run(source, cache=cache, labels=frame, task="frame", backbone=TINY, settings=SETTINGS)
    assert targets(done.training.task) == targets(FeatureStore.open(cache).task("r"))
