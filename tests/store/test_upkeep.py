"""verify finds what is wrong, repair sets it aside, gc removes only what nobody needs, convert keeps its promises."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, features_body, make_store, write_image

from featurecache.cli import main
from featurecache.errors import CorruptError, RequestError
from featurecache.extraction.extract import make_request, run_extraction
from featurecache.specs import ExtractionSettings, FeatureIdentity, PreprocessSpec
from featurecache.store.constants import constant_warning
from featurecache.store.convert import convert_features
from featurecache.store.dtypes import quantise
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.folders import ShardFolder
from featurecache.store.gc import collect_garbage
from featurecache.store.precision import storage_error
from featurecache.store.repair import compare_set_aside, repair
from featurecache.store.row_runs import runs_of_rows
from featurecache.store.schemas import BackboneAbout
from featurecache.store.store import FeatureStore
from featurecache.store.verify import LEVELS, verify

ABOUT = BackboneAbout(
    num_parameters=0,
    num_trainable=0,
    weights_source="none",
    license=None,
    classifier=None,
    notes=[],
)
SETTINGS = ExtractionSettings(runtime="torch", batch_size=4, shard_rows=6, dtype="float32")


def extract(source: Path, cache: Path) -> FeatureStore:
    return run_extraction(source, cache, make_request(TINY), settings=SETTINGS).store


@pytest.fixture
def made(make_folder: Callable[..., Path], tmp_path: Path) -> tuple[Path, FeatureStore]:
    source = make_folder(per_class=5)
    store = extract(source, tmp_path / "c")
    assert main(["task", "add", str(store.path), "colour", "--from-folders"]) == 0
    return source, store


def places(store: FeatureStore) -> set[str]:
    return {problem.where for problem in verify(store, level="digest").problems}


@pytest.mark.parametrize("level", LEVELS)
def test_a_whole_cache_has_no_problems(made: tuple, level: str) -> None:
    _, store = made
    found = verify(store, level=level)
    assert found.problems == ()
    assert found.num_shards == 3 + 1 + 1 + 1  # features, samples, source view, task


def test_every_damaged_file_is_found_and_named(made: tuple, tmp_path: Path) -> None:
    _, store = made
    files = [p for p in store.path.rglob("*") if p.is_file() and p.name != "FORMAT.json" and "requests" not in p.parts]
    for path in files:
        data = path.read_bytes()
        for damage in (
            data[:-9],
            data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :],
        ):
            path.write_bytes(damage)
            broken = verify(FeatureStore.open(store.path)).problems
            path.write_bytes(data)
            if path.name != "probe.json":
                assert broken, path
    assert verify(FeatureStore.open(store.path)).problems == ()


def test_rows_that_belong_to_other_samples_are_refused(made: tuple) -> None:
    source, store = made
    write_image(source / "red" / "late.png", (200, 0, 0), seed=77)
    extract(source, store.path)
    part = sorted((store.path / "samples" / "commits").glob("*.json"))[-1]
    part.unlink()  # what a person in a hurry might do
    write_image(source / "red" / "later.png", (190, 0, 0), seed=78)
    (source / "red" / "late.png").unlink()
    fresh = extract(source, store.path)
    with pytest.raises(CorruptError, match="are not those of its rows in the sample table"):
        fresh.features()[:]
    first = sorted((store.path / "samples" / "commits").glob("*.json"))[0]
    first.unlink()
    with pytest.raises(CorruptError, match="the sample table has a gap before row"):
        _ = FeatureStore.open(store.path).samples


def test_repair_sets_aside_and_the_recomputed_shard_is_identical(made: tuple) -> None:
    source, store = made
    before = store.features()[:]
    shard = sorted(store.path.glob("features/*/*/*/shards/*.h5"))[1]
    shard.write_bytes(shard.read_bytes()[:-5])
    repairs = repair(FeatureStore.open(store.path))
    assert [r.action for r in repairs] == ["set aside; run `featurecache repair` with --source, or extract"]
    assert [r.state for r in compare_set_aside(store)] == ["missing"]
    assert np.array_equal(extract(source, store.path).features()[:], before)
    assert repair(FeatureStore.open(store.path)) == []
    assert [r.state for r in compare_set_aside(store)] == ["identical"]
    assert list((store.path / "quarantine" / "0001").rglob("*.h5"))


def test_a_damaged_sample_table_is_never_set_aside(made: tuple) -> None:
    _, store = made
    path = next((store.path / "samples" / "commits").glob("*.json"))
    path.write_bytes(path.read_bytes()[:-20])
    repairs = repair(FeatureStore.open(store.path))
    assert any(r.action.startswith("restore it from a copy") for r in repairs if r.where.startswith("samples"))
    assert path.exists()


@pytest.mark.parametrize("pattern", ["features/*/*/*/shards", "features/*", "samples/commits/*.json", "tasks/*"])
def test_links_are_named_and_never_followed(made: tuple, tmp_path: Path, pattern: str) -> None:
    _, store = made
    place = next(store.path.glob(pattern))
    shutil.move(place, tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CorruptError, match="is a symbolic link; a cache never contains links; remove it, and see"):
        FeatureStore.open(store.path)
    (problem,) = verify(FeatureStore.open(store.path, strange=True)).problems
    assert problem.where == str(place.relative_to(store.path))
    assert problem.what == "is a symbolic link; a cache never contains links"
    assert main(["verify", str(store.path)]) == 1
    assert main(["info", str(store.path)]) == 1
    assert main(["repair", str(store.path)]) == 1


@pytest.mark.parametrize("pattern", ["features/*/*/*/commits", "features/*/*/*/shards", "sources/*/commits"])
def test_a_file_in_place_of_a_folder_is_named(made: tuple, pattern: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, store = made
    place = next(store.path.glob(pattern))
    shutil.rmtree(place)
    place.write_text("no folder")
    problems = {problem.where: problem for problem in verify(FeatureStore.open(store.path)).problems}
    problem = problems[str(place.relative_to(store.path))]
    assert (problem.what, problem.advice) == ("is a file where a folder belongs", "remove it")
    for verb in ("info", "ls"):
        assert main([verb, str(store.path)]) in (0, 1)
        assert "Not a directory" not in capsys.readouterr().err


def test_pipes_are_not_waited_for(made: tuple) -> None:
    _, store = made
    os.mkfifo(store.path / "report.html")
    with pytest.raises(CorruptError, match="report.html is neither a file nor a folder; remove it"):
        FeatureStore.open(store.path)


def test_the_command_line_knows_every_level() -> None:
    from featurecache.cli import verify as verb

    assert verb.LEVELS == LEVELS  # written again there, so that `--help` loads nothing heavy


def test_verify_refuses_nonsense(made: tuple) -> None:
    _, store = made
    with pytest.raises(RequestError, match="unknown level 'deep'; known: structure"):
        verify(store, level="deep")
    with pytest.raises(RequestError, match="sample must be a share above 0"):
        verify(store, sample=0)


def test_gc_removes_only_old_leftovers(made: tuple) -> None:
    _, store = made
    folder = next(store.path.glob("features/*/*/*/shards"))
    old, young = folder / "000000000099-0123456789abcdef.h5", folder / ".shard.h5.1.partial"
    old.write_bytes(b"never committed")
    young.write_bytes(b"half")
    os.utime(old, (1, 1))
    before = places(store)
    found = collect_garbage(store)
    assert (len(found.leftovers), len(found.young), found.removed, old.exists()) == (1, 1, False, True)
    collect_garbage(store, remove=True)
    assert (old.exists(), young.exists()) == (False, True)
    assert places(FeatureStore.open(store.path)) == before == set()


def test_gc_unused_keeps_rows_where_they_are(made: tuple) -> None:
    source, store = made
    listing = store.listings.load(source)
    kept_paths = [path for path in listing.paths if not path.endswith("/000.png") and not path.startswith("blue/")]
    rows = np.array([listing.row_of[path] for path in kept_paths])
    before = store.features().read(rows)
    shutil.rmtree(source / "blue")
    for colour in ("red", "green"):
        (source / colour / "000.png").unlink()
    fresh = extract(source, store.path)
    assert collect_garbage(fresh, unused=True).unused_rows == 7
    assert len(FeatureStore.open(store.path).features()) == 15  # a dry run
    collect_garbage(fresh, unused=True, remove=True)
    after = FeatureStore.open(store.path)
    assert len(after.features()) == 8
    assert np.array_equal(after.features().read(rows), before)
    assert verify(after).problems == ()
    assert extract(source, store.path).features().shape == (8, 16)


def test_gc_removes_a_folder_that_was_never_published(made: tuple) -> None:
    _, store = made
    folder = store.heads_path / ".best.0123.partial"
    folder.mkdir(parents=True)
    (folder / "head.json").write_text("{}")
    assert store.head_names() == []
    assert collect_garbage(store, remove=True).young == ["heads/.best.0123.partial"]
    for path in (folder / "head.json", folder):
        os.utime(path, (1, 1))
    assert collect_garbage(store, remove=True).leftovers == ["heads/.best.0123.partial"]
    assert not folder.exists()


def publish_rows(store: FeatureStore, feature_set: FeatureSet, rows: np.ndarray) -> None:
    """Publish features as a writer does that computes these rows; each holds its row number."""
    values = np.repeat(rows[:, None], 3, axis=1).astype(np.float32)
    arrays = {"features": ("float32", values), "id": ("uint8", store.samples.ids[rows])}
    body = {**features_body("a:avg", feature_set.fingerprint, 1), "rows": runs_of_rows(rows)}
    assert feature_set.folder.publish(f"{rows[0]:012d}", arrays, body, kind="features")


def overlapping(path: Path, *shards: range) -> tuple[FeatureStore, FeatureSet]:
    store = make_store(path, {str(number): str(number) for number in range(12)})
    identity = FeatureIdentity(backbone="my:net", architecture="a", weights="w", preprocess=PreprocessSpec())
    feature_set = store.add_feature_set(identity, ABOUT, "a:avg", "float32")
    for rows in shards:
        publish_rows(store, feature_set, np.array(rows))
    return store, feature_set


@pytest.mark.parametrize(
    ("shards", "gone"),
    [
        ((range(6), range(3, 12)), range(3)),  # what is left of the first begins where the second does
        ((range(8), range(2, 5), range(4, 12)), range(4)),
        ((range(6), range(2, 12), range(6, 9)), (0, 1, 6)),
        ((range(6), range(3, 12)), (1, 4)),
    ],
)
def test_gc_never_takes_the_name_of_another_writers_shard(
    shards: tuple[range, ...], gone: tuple[int, ...], tmp_path: Path
) -> None:
    store, feature_set = overlapping(tmp_path, *shards)
    held = np.setdiff1d(np.arange(12), list(gone))
    (listing,) = store.listings.all()
    store.listings.save(replace(listing, rows=np.where(np.isin(listing.rows, held), listing.rows, -1)))
    for _ in range(2):  # the second time there is nothing to do
        collect_garbage(FeatureStore.open(store.path), unused=True, remove=True)
        features = feature_set.open()
        assert features.rows.tolist() == held.tolist()
        assert features.read(held)[:, 0].tolist() == held.tolist()
        assert verify(FeatureStore.open(store.path)).problems == ()
    publish_rows(store, feature_set, np.array(sorted(gone)))  # the files are there again
    assert len(feature_set.open().rows) == 12


def test_gc_that_was_killed_between_the_new_shard_and_the_old_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, feature_set = overlapping(tmp_path, range(12))
    (listing,) = store.listings.all()
    store.listings.save(replace(listing, rows=np.where(listing.rows > 3, listing.rows, -1)))
    with monkeypatch.context() as patch:
        patch.setattr(ShardFolder, "discard", lambda *_: None)
        collect_garbage(store, unused=True, remove=True)
    assert len(feature_set.folder.keys()) == 2
    assert feature_set.open().rows.tolist() == list(range(12))
    collect_garbage(store, unused=True, remove=True)
    assert len(feature_set.folder.keys()) == 1
    assert feature_set.open().rows.tolist() == list(range(4, 12))


def collected(store: FeatureStore, *gone: int) -> None:
    """Some rows are in no source any more, and a collection drops them."""
    (listing,) = store.listings.all()
    store.listings.save(replace(listing, rows=np.where(np.isin(listing.rows, gone), -1, listing.rows)))
    collect_garbage(FeatureStore.open(store.path), unused=True, remove=True)


def test_who_reads_beside_a_collection_finds_what_it_kept(tmp_path: Path) -> None:
    store, feature_set = overlapping(tmp_path, range(4), range(4, 8), range(8, 12))
    features = feature_set.open()
    assert features.read(np.array([9]))[0, 0] == 9  # of this shard the file is open already
    collected(store, 0, 1, 5, 9)
    kept = np.array([2, 3, 4, 6, 7, 8, 10, 11])
    features.check_files()
    assert constant_warning(feature_set, features) is None
    assert storage_error(feature_set, features) == 0.0
    for rows in (kept, kept[::-1], kept[:2]):
        assert features.read(rows)[:, 0].tolist() == rows.tolist()
    with pytest.raises(RequestError, match="lacks 4 rows, first 0; run `featurecache extract` again"):
        features.read(np.arange(12))
    collected(store, 0, 1, 2, 5, 9)  # and once more
    assert features.read(kept[1:])[:, 0].tolist() == kept[1:].tolist()


def test_what_is_lost_is_not_taken_for_collected(tmp_path: Path) -> None:
    store, feature_set = overlapping(tmp_path, range(6), range(6, 12))
    features = feature_set.open()
    for path in feature_set.folder.path.glob("shards/000000000000-*.h5"):
        path.unlink()
    with pytest.raises(CorruptError, match="although it was committed"):
        features.check_files()
    for read in (lambda: features.read(np.arange(3)), lambda: features.first_rows(features.commits[0], 3)):
        with pytest.raises(CorruptError, match="is missing although it was committed"):
            read()
    assert [Path(problem.where).name[:12] for problem in verify(store).problems] == ["000000000000"]


def test_verify_beside_a_collection_finds_no_damage(tmp_path: Path) -> None:
    store, feature_set = overlapping(tmp_path, range(6), range(6, 12))
    report = verify(store, on_shard=lambda done, _: collected(store, 0, 11) if done == 1 else None)
    assert report.problems == ()
    assert feature_set.open().rows.tolist() == list(range(1, 11))


def test_a_conversion_beside_a_collection_converts_what_is_left(tmp_path: Path) -> None:
    store, feature_set = overlapping(tmp_path, range(4), range(4, 8), range(8, 12))
    target = convert_features(
        store, feature_set, "float16", on_shard=lambda done, _: collected(store, 5, 9) if done == 1 else None
    )
    rows = target.open().rows
    assert rows.tolist() == [row for row in range(12) if row not in (5, 9)]
    assert target.open().read(rows)[:, 0].tolist() == rows.tolist()


def test_what_gc_leaves_of_a_commit_names_no_row_that_it_dropped(tmp_path: Path) -> None:
    store, feature_set = overlapping(tmp_path)
    values = np.ones((6, 3), np.float32)
    values[[1, 4]] = np.nan
    arrays = {"features": ("float32", values), "id": ("uint8", store.samples.ids[np.arange(6)])}
    body = features_body("a:avg", feature_set.fingerprint, 6) | {
        "bad": [[1, "empty", "-"], [4, "empty", "-"]],
        "probe": [[0, "a", "b"], [5, "a", "b"]],
        "cut": [[0, 2], [3, 6]],
    }
    assert feature_set.folder.publish("000000000000", arrays, body, kind="features")
    (listing,) = store.listings.all()
    store.listings.save(replace(listing, rows=np.where(listing.rows > 2, listing.rows, -1)))
    collect_garbage(store, unused=True, remove=True)
    (commit,) = feature_set.folder.commits()
    assert [commit.body[name] for name in ("rows", "bad", "probe", "cut")] == [
        [[3, 6]],
        [[4, "empty", "-"]],
        [[5, "a", "b"]],
        [[3, 6]],
    ]


def test_repair_of_a_damaged_task_does_not_bring_an_older_one_back(made: tuple) -> None:
    _, store = made
    assert main(["task", "add", str(store.path), "colour", "--from-folders", "--replace"]) == 0
    records = sorted((store.path / "tasks" / "colour" / "commits").glob("*.json"))
    assert len(records) == 2
    records[-1].write_bytes(records[-1].read_bytes()[:-9])
    repair(FeatureStore.open(store.path))
    assert FeatureStore.open(store.path).task_names() == []


def test_rows_that_came_back_in_other_shards_are_not_missing(made: tuple) -> None:
    source, store = made
    shard = sorted(store.path.glob("features/*/*/*/shards/*.h5"))[0]
    shard.write_bytes(shard.read_bytes()[:-5])
    repair(FeatureStore.open(store.path))
    (record,) = (store.path / "quarantine").rglob("commits/*.json")
    record.rename(record.with_name("0" * 32 + ".json"))  # as one that gc has made smaller
    extract(source, store.path)
    assert [r.state for r in compare_set_aside(store)] == ["other rows"]


def test_gc_unused_knows_what_belongs_to_all_rows_of_a_shard(made: tuple) -> None:
    source, store = made
    before = convert_features(store, store.find(), "int8").open()[:]
    shutil.rmtree(source / "blue")
    fresh = extract(source, store.path)
    held = set(store.listings.load(source).unique_rows.tolist())
    assert collect_garbage(fresh, unused=True, remove=True).unused_rows == 10
    after = FeatureStore.open(store.path).features(dtype="int8")
    assert set(after.rows.tolist()) == held
    assert np.array_equal(after[:], before[after.rows])


@pytest.mark.parametrize(("dtype", "limit"), [("float16", 1e-3), ("bfloat16", 1e-2), ("int8", 2e-2)])
def test_converted_features_are_close_and_the_first_untouched(made: tuple, dtype: str, limit: float) -> None:
    _, store = made
    exact = store.features()[:]
    files = {p: p.read_bytes() for p in store.path.rglob("float32/**/*") if p.is_file()}
    made_set = convert_features(store, store.find(), dtype)
    close = FeatureStore.open(store.path).features(dtype=dtype)[:]
    assert np.abs(close - exact).max() / np.abs(exact).max() <= limit
    assert all(path.read_bytes() == data for path, data in files.items())
    precision = made_set.open().commits[0].body["precision"]
    assert precision["against"] == "float32"
    assert precision["relative_largest"] <= limit
    assert convert_features(store, store.find(dtype="float32"), dtype).open().shape == (15, 16)


def test_a_killed_conversion_is_finished_by_the_same_command(made: tuple, capsys: pytest.CaptureFixture[str]) -> None:
    """Killed after each of its shards, and before the first."""
    _, store = made
    exact = store.features()[:]
    cache = str(store.path)

    def killed(done: int, _: int) -> None:
        if done == last:
            raise KeyboardInterrupt

    assert main(["train", cache, "--task", "colour", "--head", "ridge", "--jobs", "1"]) == 0
    assert "features of pre_logits:none are used" not in capsys.readouterr().out
    for last in (1, 2, 3):
        with pytest.raises(KeyboardInterrupt):
            convert_features(store, store.find(dtype="float32"), "int8", on_shard=killed)
        assert main(["train", cache, "--task", "colour", "--head", "ridge", "--jobs", "1"]) == 0
        rows = min(6 * last, 15)
        expected = (
            f"the float32 features of pre_logits:none are used (15 rows); they are cached as int8 (--dtype int8, {rows}"
        )
        assert expected in capsys.readouterr().out
    (folder,) = store.path.glob("features/*/*/int8")
    for record in (folder / "commits").glob("*.json"):
        record.unlink()
    assert main(["convert", cache, "--to", "int8", "--json"]) == 0
    close = FeatureStore.open(store.path).features(dtype="int8")[:]
    assert np.abs(close - exact).max() / np.abs(exact).max() < 2e-2
    assert FeatureStore.open(store.path).find().dtype == "float32"
    assert main(["convert", cache, "--to", "int8"]) == 0  # nothing is left to do


def test_a_conversion_adds_the_rows_that_an_extraction_in_that_type_left(made: tuple) -> None:
    """By rows: the shards of the two are of other sizes, so that equal names say nothing."""
    source, store = made
    small = replace(SETTINGS, dtype="int8", shard_rows=4)
    run_extraction(source, store.path, make_request(TINY), settings=small)
    folder = store.find(dtype="int8").folder
    for key in folder.keys()[1:]:
        folder.record(key).unlink()
    assert FeatureStore.open(store.path).find().dtype == "float32"
    made_set = convert_features(store, store.find(dtype="float32"), "int8")
    assert made_set.open().rows.tolist() == list(range(15))
    assert [commit.body["rows"] for commit in made_set.folder.commits()] == [[[0, 4]], [[4, 6]], [[6, 12]], [[12, 15]]]
    assert verify(FeatureStore.open(store.path)).problems == ()


def test_of_two_types_the_one_with_more_rows_is_taken(made: tuple, capsys: pytest.CaptureFixture[str]) -> None:
    """As where the extraction in the wider type was killed."""
    _, store = made
    convert_features(store, store.find(), "float16")
    folder = store.find(dtype="float32").folder
    folder.record(folder.keys()[-1]).unlink()
    assert main(["train", str(store.path), "--task", "colour", "--head", "ridge", "--jobs", "1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["results"][0]["dtype"] == "float16"
    (warning,) = (warning for warning in document["warnings"] if warning["kind"] == "stored_type")
    assert "the float16 features of pre_logits:none are used (15 rows)" in warning["text"]
    assert "float32 (--dtype float32, 12 rows)" in warning["text"]
    assert (
        main(["train", str(store.path), "--task", "colour", "--head", "ridge", "--jobs", "1", "--dtype", "float16"])
        == 0
    )
    assert "stored_type" not in capsys.readouterr().out


def test_the_error_of_two_roundings_is_bounded_against_float32(made: tuple, tmp_path: Path) -> None:
    source, store = made
    exact = store.features()[:]
    half = ExtractionSettings(runtime="torch", batch_size=4, shard_rows=6, dtype="float16")
    other = run_extraction(source, tmp_path / "half", make_request(TINY), settings=half).store
    twice = convert_features(other, other.find(), "int8").open()
    precision = twice.commits[0].body["precision"]
    assert (precision["against"], precision["bound"]) == ("float32", True)
    rows = store.features().rows[:6]
    error = np.abs(twice.read(rows) - exact[:6]).max() / np.abs(exact[:6]).max()
    assert 0 < error <= precision["relative_largest"] * 1.05


@pytest.mark.parametrize(("dtype", "value"), [("float16", 1e5), ("bfloat16", 3.4e38)])
def test_values_beyond_a_type_are_a_status_after_conversion_too(tmp_path: Path, dtype: str, value: float) -> None:
    store = FeatureStore.create(tmp_path / "c")
    identity = FeatureIdentity(backbone="my:net", architecture="a", weights="w", preprocess=PreprocessSpec())
    exact = store.add_feature_set(identity, ABOUT, "a:avg", "float32")
    values = np.array([[1, 2], [value, 3], [4, 5]], np.float32)
    ids = np.arange(96, dtype=np.uint8).reshape(3, 32)
    store.samples.append(ids, ["a", "b", "c"], np.ones(3))
    body = features_body("a:avg", identity.fingerprint, 3)
    exact.folder.publish("000000000000", {"features": ("float32", values), "id": ("uint8", ids)}, body, kind="features")
    features = convert_features(store, exact, dtype).open()
    assert features.bad == {1: ("overflow", f"a feature exceeds the range of {dtype}; use --dtype float32")}
    assert np.array_equal(features.read(np.array([2, 0])), [[4, 5], [1, 2]])


def test_digits_that_are_gone_do_not_come_back(made: tuple) -> None:
    _, store = made
    convert_features(store, store.find(), "int8")
    with pytest.raises(RequestError, match="int8 features cannot become float16: the missing digits are gone"):
        convert_features(store, store.find(dtype="int8"), "float16")
    with pytest.raises(RequestError, match="unknown dtype 'int4'"):
        convert_features(store, store.find(dtype="float32"), "int4")


def test_int8_can_be_extracted(made: tuple, tmp_path: Path) -> None:
    source, store = made
    settings = ExtractionSettings(runtime="torch", batch_size=4, shard_rows=6, dtype="int8")
    (source / "red" / "bad.png").write_bytes(b"")
    other = run_extraction(source, tmp_path / "i", make_request(TINY), settings=settings).store
    listing, old = other.listings.load(source), store.listings.load(source)
    paths = [path for path in old.paths if path in listing.row_of]
    ours = other.features().read(np.array([listing.row_of[path] for path in paths]))
    exact = store.features().read(np.array([old.row_of[path] for path in paths]))
    assert np.abs(ours - exact).max() / np.abs(exact).max() < 2e-2
    assert list(other.features().bad.values()) == [("empty", "the file has no bytes")]


@pytest.mark.parametrize("shape", [(50, 8), (50, 5, 8), (50, 3, 4, 4)])
def test_quantising_errs_by_at_most_half_a_step(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32) * 10
    values[..., 0] *= 100  # one loud channel must not drown the others
    stored, scale, offset = quantise(values)
    assert (np.abs(stored * scale + offset - values) <= scale * 0.501 + 1e-5).all()


def test_the_verbs_print_and_exit_as_they_should(made: tuple, capsys: pytest.CaptureFixture) -> None:
    _, store = made
    cache = str(store.path)
    assert main(["verify", cache]) == 0
    assert "0 problems in 6 shards" in capsys.readouterr().out
    assert main(["convert", cache, "--to", "int8"]) == 0
    assert main(["gc", cache, "--unused"]) == 0
    shard = next(store.path.glob("features/*/*/float32/shards/*.h5"))
    shard.unlink()
    assert main(["verify", cache, "--json"]) == 1
    assert "is missing although it was committed" in capsys.readouterr().out
    assert main(["repair", cache]) == 1
    assert "set aside" in capsys.readouterr().out
    assert main(["repair", cache, "--json"]) == 1  # nothing has taken its place


def test_a_run_killed_before_its_first_commit_is_no_problem(
    made: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where other features are there already: what has no rows yet is unfinished, not damaged."""
    source, store = made

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("featurecache.extraction.worker.Worker._publish", killed)
        with pytest.raises(KeyboardInterrupt):
            run_extraction(source, store.path, make_request(TINY), taps=["body:avg"], settings=SETTINGS)
    (unfinished,) = {path.parent for path in store.path.glob("features/*/body=avg/*/shards")}
    assert not list(unfinished.glob("commits/*.json"))
    for level in LEVELS:
        assert verify(FeatureStore.open(store.path), level=level).problems == ()
    assert repair(FeatureStore.open(store.path)) == []
    assert main(["info", str(store.path)]) == 0
    assert main(["verify", str(store.path), "--deep", "--source", str(source), "--backbone", TINY]) == 0
    again = run_extraction(source, store.path, make_request(TINY), taps=["body:avg"], settings=SETTINGS)
    assert again.num_extracted == again.num_samples
