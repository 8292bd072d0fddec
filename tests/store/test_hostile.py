"""A cache from a stranger who computes digests too: refused in one clear line, never followed, never obeyed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import COLOURS, TINY, write_image

from featurecache.cli import main
from featurecache.errors import CorruptError, FeatureCacheError, HeadError, StoreError
from featurecache.extraction.extract import make_request, run_extraction
from featurecache.heads.bundle import save_head
from featurecache.heads.registry import make_head
from featurecache.records import encode_record, read_record
from featurecache.specs import ExtractionSettings
from featurecache.store.convert import convert_features
from featurecache.store.folders import ShardFolder
from featurecache.store.store import FeatureStore
from featurecache.store.verify import ask_libhdf5, verify

SECRET = "canary-5b1c2d"
SET = "features/*/*=*/float16"
RECORDS = {
    "samples": "samples/commits/*.json",
    "source": "sources/*/commits/*.json",
    "features": f"{SET}/commits/*.json",
    "task": "tasks/*/commits/*.json",
    "spec": "features/*/spec.json",
}
PLACES = ("FORMAT.json", "samples", "features", "features/*", SET, f"{SET}/commits", f"{SET}/shards/*.h5", "tasks/*")
LOOKS = ("verify", "info", "task ls", "gc")
WRONG: tuple[Any, ...] = (None, "\x1b[2J\n", [], {}, True, -1, 0.5, 10**30)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    for number, (label, colour) in enumerate(COLOURS.items()):
        for k in range(3):
            write_image(folder / "photos" / label / f"{k}.png", colour, seed=10 * number + k)
    settings = ExtractionSettings(runtime="torch", batch_size=4)
    store = run_extraction(folder / "photos", folder / "good", make_request(TINY), settings=settings).store
    convert_features(store, store.find(), "int8")
    assert main(["task", "add", str(store.path), "colour", "--from-folders", "--json"]) == 0
    return store.path


@pytest.fixture
def cache(good: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the good cache, with something secret beside it; what hangs ends after half a minute."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.txt").write_text(SECRET)
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(30)
    yield shutil.copytree(good, tmp_path / "cache")
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


def find(cache: Path, pattern: str) -> Path:
    return sorted(cache.glob(pattern))[0]


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a record and sign it again."""
    content = json.loads(path.read_bytes())
    change(content)
    content.pop("digest"), content.pop("version")
    path.write_bytes(encode_record(content.pop("format").removeprefix("featurecache."), content))


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change arrays of a shard; file and record are made to fit."""
    folder = ShardFolder(path)
    commit = folder.commits()[0]
    mapped = folder.open(commit)
    arrays = {name: [array.dtype, mapped.read(name).copy()] for name, array in commit.shard.arrays.items()}
    change(arrays)
    (path / "commits" / f"{commit.key}.json").unlink()
    folder.publish(commit.key, {name: tuple(array) for name, array in arrays.items()}, commit.body, kind="features")


def look(cache: Path, capsys: pytest.CaptureFixture, *, read: bool = True) -> str:
    """Look at a cache in every way that should be safe, and return what was said."""
    if read:
        with contextlib.suppress(FeatureCacheError, OSError):
            read_all(cache)
    capsys.readouterr()
    for words in LOOKS:
        assert main([*words.split(), str(cache)]) in (0, 1, 2)
    said = "".join(capsys.readouterr())
    assert SECRET not in said
    assert "unexpected" not in said
    assert all(char.isprintable() or char == "\n" for char in said)
    assert max(map(len, said.splitlines())) < 5000
    return said


def read_all(cache: Path) -> None:
    store = FeatureStore.open(cache)
    store.samples.uris_of(range(len(store.samples)))
    for listing in store.listings.all():
        assert len(list(listing.paths)) == len(listing.rows)
    for feature_set in store.feature_sets():
        features = feature_set.open()
        rows = features.rows[features.usable(features.rows)]
        assert len(features.read(rows)) == len(features.read(rows[::-1])) == len(rows)
    for name in store.task_names():
        task = store.task(name)
        task.select(store.features(dtype="float16"), "train")


def is_found(cache: Path, *, level: str = "digest") -> bool:
    try:
        return bool(verify(FeatureStore.open(cache), level=level).problems)
    except (StoreError, OSError):
        return True


OPENED: list[str] = []
_IS_WATCHING = [False]


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if not _IS_WATCHING[0] or event not in ("open", "os.listdir", "os.scandir", "pickle.find_class"):
        return
    path = Path(arguments[0]) if isinstance(arguments[0], str | Path) else Path()
    is_followed = event != "open" or not arguments[2] & os.O_NOFOLLOW
    OPENED.append(f"{event} {os.path.realpath(path if is_followed else path.parent)}")


sys.addaudithook(_note)


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """Everything that is opened or listed in the test, links followed."""
    OPENED.clear()
    _IS_WATCHING[0] = True
    yield OPENED
    _IS_WATCHING[0] = False


def test_the_good_cache_is_good(cache: Path, capsys: pytest.CaptureFixture) -> None:
    read_all(cache)
    assert "0 problems" in look(cache, capsys)


@pytest.mark.parametrize("place", PLACES)
def test_links_are_refused_and_not_followed(
    cache: Path, place: str, opened: list[str], capsys: pytest.CaptureFixture
) -> None:
    path, outside = find(cache, place), cache.parent / "outside"
    path.rename(outside / "moved")
    for target in (outside / "moved", Path(os.path.relpath(outside / "moved", path.parent)), outside / "secret.txt"):
        path.unlink(missing_ok=True)
        path.symlink_to(target)
        opened.clear()
        look(cache, capsys)
        assert is_found(cache)
        with pytest.raises(StoreError):
            FeatureStore.open(cache).features(dtype="float16")
        assert not [line for line in opened if str(outside) in line]


@pytest.mark.parametrize("place", ["FORMAT.json", f"{SET}/shards/*.h5", f"{SET}/commits/*.json"])
def test_pipes_and_sockets_are_named_and_not_waited_for(cache: Path, place: str, capsys: pytest.CaptureFixture) -> None:
    path = find(cache, place)
    for kind in (stat.S_IFIFO, stat.S_IFSOCK):
        path.unlink()
        os.mknod(path, kind | 0o600)
        look(cache, capsys)
        assert is_found(cache, level="structure")


@pytest.mark.parametrize("name", ["evil\x1b[2J\nall is well [red]", "*", "..%2F.."])
def test_names_steer_nothing(cache: Path, name: str, capsys: pytest.CaptureFixture) -> None:
    for folder in ("tasks/colour", "sources/*", "features/*/*=*", SET):
        path = find(cache, folder)
        shutil.copytree(path, path.with_name(name))
    for file in (f"{SET}/commits/*.json", f"{SET}/shards/*.h5", "samples/commits/*.json"):
        path = find(cache, file)
        shutil.copy(path, path.with_name(name + path.suffix))
    before = sorted(path.name for path in cache.rglob("*.h5"))
    look(cache, capsys)
    assert is_found(cache)
    assert sorted(path.name for path in cache.rglob("*.h5")) == before


@pytest.mark.parametrize("kind", RECORDS)
def test_no_depth_of_nesting_is_too_much(cache: Path, kind: str) -> None:
    path = find(cache, RECORDS[kind])
    data = path.read_bytes()
    text = json.dumps({**json.loads(data), "deep": "HERE"})
    for depth in (*range(900, 1000, 2), 100_000):  # reading takes less of the stack than writing
        path.write_text(text.replace('"HERE"', "[" * depth + "]" * depth))
        with pytest.raises(CorruptError):
            read_record(path, json.loads(data)["format"].removeprefix("featurecache."))


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "1e999", "1" * 5000, '{"a":1,"a":2}', "[" * 9, '"\x00"'])
@pytest.mark.parametrize("kind", RECORDS)
def test_what_is_no_strict_json_is_refused(cache: Path, kind: str, text: str) -> None:
    path = find(cache, RECORDS[kind])
    path.write_text(f'{path.read_text().rstrip()[:-1]},"more":{text}}}')
    with pytest.raises(CorruptError, match="is not valid JSON"):
        read_record(path, json.loads("{}").get("format", kind))


def test_messages_do_not_quote_at_length(cache: Path, capsys: pytest.CaptureFixture) -> None:
    marker = cache / "FORMAT.json"
    whole = marker.read_text()
    for fields in ({"format": "x" * 500_000}, {"version": ["x" * 500_000]}, {"required": ["x" * 10] * 50_000}):
        marker.write_text(json.dumps({**json.loads(whole), **fields}))
        look(cache, capsys, read=False)
    marker.write_text(whole)
    path = find(cache, RECORDS["features"])
    content = json.loads(path.read_bytes())
    path.write_text(json.dumps({**content, "version": "x" * 500_000}))
    look(cache, capsys, read=False)


def array(name: str, **fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["arrays"][name].update(fields)


def body(**fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["body"].update(fields)


IMPOSSIBLE: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "2**40 rows": ("features", array("features", shape=[2**40, 1])),
    "2**62 squared": ("features", array("features", shape=[2**62, 2**62])),
    "many dimensions": ("features", array("features", shape=[1] * 10_000)),
    "no dimension": ("features", array("features", shape=[])),
    "ids without dimension": ("samples", array("id", shape=[])),
    "task ids without dimension": ("task", array("id", shape=[])),
    "offset behind the end": ("features", array("features", offset=1 << 50)),
    "blocks of 10**30 bytes": ("features", array("id", block_bytes=10**30)),
    "no blocks": ("features", array("id", block_bytes=0)),
    "no such type": ("features", array("features", dtype="O")),
    "no arrays": ("features", lambda content: content.update(arrays={})),
    "an array too many": ("features", lambda c: c["arrays"].update({"../x\x1b": c["arrays"]["id"]})),
    "10**15 rows": ("features", body(rows=[[0, 10**15]])),
    "rows beyond int64": ("features", body(rows=[[2**63, 2**63 + 9]])),
    "negative rows": ("features", body(rows=[[-9, 0]])),
    "rows twice": ("features", body(rows=[[0, 5], [0, 4]])),
    "rows that are fractions": ("features", body(rows=[[0.0, 9.0]])),
    "a bad row of others": ("features", body(bad=[[10**6, "empty", "x"]])),
    "half a bad row": ("features", body(bad=[[0]])),
    "no body": ("features", lambda content: content.update(body=None)),
    "a gap in the samples": ("samples", body(start=5)),
    "no classes": ("task", body(classes=[])),
    "classes that are lists": ("task", body(classes=[["a"], ["b"], ["c"]])),
    "equal classes": ("task", body(classes=["a", "a", "a"])),
    "nothing about a task": ("task", body(about=None)),
    "problems that are numbers": ("source", body(problems={"a": 1})),
    "another backbone": ("spec", lambda content: content["identity"].update(backbone="other")),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_records_are_found(cache: Path, name: str, capsys: pytest.CaptureFixture) -> None:
    kind, change = IMPOSSIBLE[name]
    edit(find(cache, RECORDS[kind]), change)
    look(cache, capsys)
    assert is_found(cache, level="structure")


def value(name: str, number: float) -> Callable[[dict[str, Any]], object]:
    return lambda arrays: arrays[name][1].__setitem__(1, number)


WRONG_ARRAYS: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "a label too high": ("tasks/*", value("label", 3)),
    "a negative label": ("tasks/*", value("label", -1)),
    "a split too high": ("tasks/*", value("split", 3)),
    "a sample of others": ("tasks/*", value("id", 0)),
    "labels too few": ("tasks/*", lambda arrays: arrays["label"].__setitem__(1, arrays["label"][1][:2])),
    "a row too high": ("sources/*", value("row", 10**15)),
    "a row below -1": ("sources/*", value("row", -5)),
    "text that goes back": ("samples", value("text_start", 2**63)),
    "paths behind their end": ("sources/*", value("text_start", 2**64 - 1)),
    "other samples": (SET, value("id", 7)),
    "features that are no numbers": (SET, value("features", np.nan)),
}


@pytest.mark.parametrize("name", WRONG_ARRAYS)
def test_wrong_numbers_are_found(cache: Path, name: str, capsys: pytest.CaptureFixture) -> None:
    place, change = WRONG_ARRAYS[name]
    rewrite(find(cache, place), change)
    look(cache, capsys)
    assert is_found(cache)


def fields_of(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for name, item in items:
        yield from fields_of(item, (*path, name))


@pytest.mark.parametrize("kind", RECORDS)
def test_any_field_may_be_anything(cache: Path, kind: str) -> None:
    path = find(cache, RECORDS[kind])
    whole = path.read_bytes()
    for place in random.Random(kind).sample([f for f in fields_of(json.loads(whole)) if f and f[0] != "digest"], 8):
        wrong = random.Random(repr(place)).choice(WRONG)

        def replace(content: dict[str, Any], place: tuple[Any, ...] = place, wrong: Any = wrong) -> None:
            for name in place[:-1]:
                content = content[name]
            content[place[-1]] = wrong

        if place == ("format",) or place == ("version",):
            continue
        edit(path, replace)
        found = is_found(cache)
        try:
            read_all(cache)
        except (FeatureCacheError, OSError):
            assert found, f"{place} is {wrong!r}"
        path.write_bytes(whole)


def external_storage(file: Any, outside: Path) -> None:
    file.create_dataset("features", (9, 16), "f2", external=[(str(outside / "secret.txt"), 0, 288)])


def external_link(file: Any, outside: Path) -> None:
    import h5py

    file["features"] = h5py.ExternalLink(str(outside / "secret.txt"), "/features")


def virtual(file: Any, outside: Path) -> None:
    import h5py

    layout = h5py.VirtualLayout((9, 16), "f2")
    layout[:] = h5py.VirtualSource(str(outside / "secret.txt"), "x", (9, 16), "f2")
    file.create_virtual_dataset("features", layout)


def filtered(file: Any, outside: Path) -> None:
    file.create_dataset("features", (9, 16), "f2", compression="gzip")


@pytest.mark.parametrize("make", [external_storage, external_link, virtual, filtered])
def test_tricks_of_hdf5_are_named(cache: Path, make: Callable[[Any, Path], None]) -> None:
    import hashlib
    import zlib

    import h5py

    folder = find(cache, SET)
    path = find(cache, f"{SET}/commits/*.json")
    commit = ShardFolder(folder).commits()[0]
    arrays = {name: np.array(ShardFolder(folder).open(commit).read(name)) for name in ("features", "id")}
    shard = folder / "shards" / commit.file_name
    shard.unlink()
    with h5py.File(shard, "w") as file:
        file["id"] = arrays["id"]
        make(file, cache.parent / "outside")
    data = shard.read_bytes()
    content = json.loads(path.read_bytes())
    for name, values in arrays.items():  # behind what HDF5 uses, where our reader finds them
        data += b"\0" * (-len(data) % 64)
        content["arrays"][name].update(offset=len(data), crc32=[zlib.crc32(values.tobytes())])
        data += values.tobytes()
    digest = hashlib.sha256(data).hexdigest()
    shard.unlink()
    (folder / "shards" / f"{commit.key}-{digest[:16]}.h5").write_bytes(data)
    content |= {"sha256": digest, "size": len(data)}
    edit(path, lambda old: old.update(content))
    read_all(cache)
    (commit, *_) = ShardFolder(folder).commits()
    assert ask_libhdf5(folder / "shards" / commit.file_name, commit)


def test_a_scale_cannot_be_stretched(cache: Path) -> None:
    folder = find(cache, "features/*/*=*/int8")

    def widen(arrays: dict[str, Any]) -> None:
        arrays["features"][1] = np.ascontiguousarray(arrays["features"][1][:, :1])
        for name in ("scale", "offset"):
            arrays[name][1] = np.ones(100_000, "<f4")

    rewrite(folder, widen)
    assert is_found(cache, level="structure")
    with pytest.raises(CorruptError):
        FeatureStore.open(cache).features(dtype="int8")[:]


@pytest.mark.parametrize(
    "entry", [{"sha256": "\0"}, {"sha256": "../../x"}, {"bytes": 10**30}, {"bytes": -1}, {"bytes": True}]
)
def test_a_head_with_impossible_arrays_is_refused(tmp_path: Path, entry: dict[str, Any]) -> None:
    from featurecache.deployment.saved import open_head  # imports torch, which no other test here needs

    rng = np.random.default_rng(0)
    head = make_head("majority").fit(rng.normal(size=(6, 4)), [0, 1, 0, 1, 0, 1])
    save_head(tmp_path / "h", head, {})
    edit(tmp_path / "h" / "head.json", lambda content: content["arrays"].update(entry))
    with pytest.raises(HeadError):
        open_head(tmp_path / "h")


def test_saving_over_a_hostile_head_stays_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "ab").write_text(SECRET)
    folder = tmp_path / "cache" / "heads" / "h"
    head = make_head("majority").fit(np.zeros((6, 4)), [0, 1, 0, 1, 0, 1])
    save_head(folder, head, {})
    edit(folder / "head.json", lambda content: content["arrays"].update(sha256="x/../../../../ab"))
    (folder / ".head.safetensors.x").mkdir()
    save_head(folder, head, {})
    assert (tmp_path / "ab").read_text() == SECRET


@pytest.mark.parametrize("name", ["*", "**", "[!x]*"])
def test_repair_takes_no_pattern_for_a_key(cache: Path, name: str, capsys: pytest.CaptureFixture) -> None:
    (find(cache, f"{SET}/commits") / f"{name}.json").write_text("{}")
    assert main(["repair", str(cache)]) == 1
    assert "unexpected" not in capsys.readouterr().err
    assert find(cache, f"{SET}/shards/*.h5").exists()


@pytest.mark.parametrize("place", ["sources", "quarantine/0001/features"])
def test_deep_trees_are_no_errors(cache: Path, place: str, capsys: pytest.CaptureFixture) -> None:
    (cache / place).mkdir(parents=True, exist_ok=True)
    here = os.open(cache / place, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    try:
        look(cache, capsys)
        main(["repair", str(cache)])
        assert "unexpected" not in capsys.readouterr().err
    finally:
        subprocess.run(["rm", "-rf", str(cache / place)], check=True)  # too deep for rmtree


def test_broken_tasks_take_no_time(cache: Path, capsys: pytest.CaptureFixture) -> None:
    path = find(cache, RECORDS["task"])
    path.write_bytes(path.read_bytes()[:-20])
    for k in range(60):  # a pause for each would be a long wait
        shutil.copytree(cache / "tasks" / "colour", cache / "tasks" / f"x{k}")
    signal.alarm(10)
    look(cache, capsys)


@pytest.mark.parametrize("field", ["preprocess", "views"])
def test_an_identity_may_hold_anything(cache: Path, field: str, capsys: pytest.CaptureFixture) -> None:
    path = find(cache, RECORDS["spec"])
    right = path.read_bytes()
    kinds = ({"kind": []}, {"kind": "other"}) if field == "preprocess" else ()
    for wrong in (*WRONG, [[]], "x", *kinds):
        edit(path, lambda content, wrong=wrong: content["identity"].update({field: wrong}))
        look(cache, capsys)
        assert is_found(cache, level="structure"), wrong
        path.write_bytes(right)


def test_features_without_their_samples_are_one_clear_line(cache: Path, capsys: pytest.CaptureFixture) -> None:
    path = find(cache, RECORDS["features"])
    first = json.loads(path.read_bytes())["body"]["rows"][0][0]
    edit(path, lambda content: content["body"].update(bad=[[first, "empty", "a bad input"]]))
    shutil.rmtree(cache / "samples")
    look(cache, capsys, read=False)
    assert main(["info", str(cache)]) == 1
    assert "a part of samples/ is missing; restore it from a copy" in capsys.readouterr().err
    assert is_found(cache, level="structure")
