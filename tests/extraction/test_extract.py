"""The main job on generated images: incremental, repeatable, and never serving what is stale."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import COLOURS, TINY, write_image
from PIL import Image
from sklearn.base import clone
from tiny_backbones import TinyNet

import featurecache as fc
from featurecache.errors import RequestError, SourceError, UnknownNameError
from featurecache.extraction.extract import make_request, run_extraction
from featurecache.extraction.report import ExtractionReport
from featurecache.progress import Silent
from featurecache.specs import ExtractionSettings

Make = Callable[..., Path]


def run(source: Path, cache: Path, backbone: str = TINY, **settings: object) -> ExtractionReport:
    taps = settings.pop("taps", ("default",))
    preprocess = settings.pop("preprocess", None)
    request = make_request(backbone, preprocess=preprocess)
    return run_extraction(
        source,
        cache,
        request,
        taps=taps,
        settings=ExtractionSettings(**{"runtime": "torch", "batch_size": 4} | settings),
    )


def by_hand(path: Path) -> np.ndarray:
    """One image through the network without its output layer, in the obvious way."""
    image = Image.open(path).convert("RGB")
    width, height = image.size
    new = (32, int(32 * height / width)) if width <= height else (int(32 * width / height), 32)
    image = image.resize(new, Image.Resampling.BILINEAR)
    left, top = round((new[0] - 32) / 2), round((new[1] - 32) / 2)
    pixels = np.asarray(image.crop((left, top, left + 32, top + 32)))
    x = (torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5
    network = TinyNet().eval()
    network.fc = torch.nn.Identity()
    with torch.no_grad():
        return network(x)[0].numpy()


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def without_views(files: dict[str, bytes]) -> dict[str, bytes]:
    """Leave out what says when files were looked at."""
    return {name: data for name, data in files.items() if not name.startswith("sources")}


def test_features_equal_a_loop_by_hand(make_folder: Make, tmp_path: Path) -> None:
    source = make_folder(per_class=3)
    store = run(source, tmp_path / "c", dtype="float32").store
    features, listing = store.features(), store.listings.load(source)
    assert listing is not None
    assert features.shape == (9, 16)
    for path, row in listing.row_of.items():
        assert np.allclose(features.read(np.array([row]))[0], by_hand(source / path), atol=1e-5)


def test_second_run_computes_nothing_and_new_files_only_themselves(make_folder: Make, tmp_path: Path) -> None:
    source, cache = make_folder(), tmp_path / "c"
    assert run(source, cache).num_extracted == 24
    run(source, cache)  # the files were written a moment ago: this scan reads them once more
    before = tree(cache)
    assert run(source, cache).num_extracted == 0
    assert {name for name in tree(cache) if "sources" not in name} == {name for name in before if "sources" not in name}
    for i in range(10):
        write_image(source / "red" / f"new{i}.png", COLOURS["red"], seed=500 + i)
    shutil.copy(source / "red" / "000.png", source / "blue" / "copy.png")
    (source / "green" / "000.png").rename(source / "green" / "renamed.png")
    report = run(source, cache)
    assert (report.num_extracted, report.num_files, report.num_samples) == (10, 35, 34)
    assert all(tree(cache)[name] == data for name, data in before.items() if "features" in name)


def test_an_edited_file_is_a_new_sample(make_folder: Make, tmp_path: Path) -> None:
    source = make_folder(per_class=2)
    run(source, tmp_path / "c")
    write_image(source / "red" / "000.png", COLOURS["red"], seed=999)
    report = run(source, tmp_path / "c")
    assert report.num_extracted == 1
    assert len(report.store.samples) == 7


def test_any_split_of_work_gives_equal_features(make_folder: Make, tmp_path: Path) -> None:
    source = make_folder(per_class=5)
    reference = run(source, tmp_path / "a", dtype="float32").store.features()[:]
    for shard_rows, workers in ((1, 4), (4, 1), (5, 4), (100, 1)):
        options = {"dtype": "float32", "shard_rows": shard_rows, "num_workers": workers}
        other = run(source, tmp_path / f"{shard_rows}", **options).store.features()
        assert len(other.commits) == -(-15 // shard_rows)
        assert np.array_equal(other[:], reference)


def test_a_resumed_run_is_byte_for_byte_the_uninterrupted_one(make_folder: Make, tmp_path: Path) -> None:
    source = make_folder(per_class=5)
    run(source, tmp_path / "a", shard_rows=4)
    whole = tree(tmp_path / "a")
    store = run(source, tmp_path / "b", shard_rows=4).store
    for path in sorted(store.path.rglob("features/**/commits/*.json"))[1:3]:
        path.unlink()  # as if the run had been killed before these commits
    assert run(source, tmp_path / "b", shard_rows=4).num_extracted == 8
    assert without_views(tree(tmp_path / "b")) == without_views(whole)


def test_a_cache_keeps_its_batch_size_and_runtime(make_folder: Make, tmp_path: Path) -> None:
    source = make_folder(per_class=2)
    run(source, tmp_path / "c", batch_size=3)
    write_image(source / "red" / "new.png", (200, 0, 0), seed=50)
    store = run(source, tmp_path / "c", batch_size=None, runtime="auto").store
    ran = [commit.body["provenance"] for commit in store.feature_sets()[0].open().commits]
    assert [(r["batch_size"], r["runtime"]) for r in ran] == [(3, "torch")] * 2


def test_changes_that_matter_start_another_fingerprint(make_folder: Make, tmp_path: Path) -> None:
    source, cache = make_folder(per_class=2), tmp_path / "c"
    run(source, cache)
    for change in ({"backbone": "python:tiny_backbones:other_seed"}, {"preprocess": {"interpolation": "bicubic"}}):
        assert run(source, cache, **change).num_extracted == 6
    store = fc.FeatureStore.open(cache)
    assert len({s.fingerprint for s in store.feature_sets()}) == 3
    with pytest.raises(RequestError, match="3 feature sets fit"):
        store.features()


def test_several_taps_in_one_pass_and_one_added_later(make_folder: Make, tmp_path: Path) -> None:
    source, cache = make_folder(per_class=2), tmp_path / "c"
    run(source, cache, taps=["stem:avg", "default"])
    report = run(source, cache, taps=["stem:avg", "body:max", "default"])
    assert report.num_extracted == 6
    shapes = {s.tap: s.open().shape for s in report.store.feature_sets()}
    assert shapes == {"stem:avg": (6, 8), "body:max": (6, 16), "pre_logits:none": (6, 16)}
    assert all(len(s.open().commits) == 1 for s in report.store.feature_sets())


def test_bad_inputs_keep_their_row_and_stop_nothing(make_folder: Make, tmp_path: Path) -> None:
    source = make_folder(per_class=2)
    (source / "red" / "empty.jpg").write_bytes(b"")
    (source / "red" / "text.png").write_text("not an image")
    cut = (source / "red" / "000.png").read_bytes()[:300]
    (source / "blue" / "cut.png").write_bytes(cut)
    report = run(source, tmp_path / "c")
    assert {path: status for path, (status, _) in report.bad.items()} == {
        "blue/cut.png": "undecodable",
        "red/empty.jpg": "empty",
        "red/text.png": "not_an_image",
    }
    features = report.store.features()
    assert len(features) == 9
    assert features.usable(features.rows).sum() == 6
    assert run(source, tmp_path / "c").num_extracted == 0
    with h5py.File(next((tmp_path / "c").rglob("features/**/*.h5"))) as file:
        assert np.isnan(file["features"][...]).all(axis=1).sum() == 3
    task = report.store.add_task("t", fc.labels_from_folders())
    rows = [len(task.rows(features, split)[0]) for split in task.counts()]
    assert sum(rows) == 6
    assert len(task.left_out(features)) == 3


def test_numbers_too_large_for_float16_are_a_status(make_folder: Make, tmp_path: Path) -> None:
    source = make_folder(per_class=2)
    report = run(source, tmp_path / "c", "python:tiny_backbones:overflowing", dtype="float16")
    assert {status for status, _ in report.bad.values()} == {"overflow"}
    assert "use --dtype float32" in next(iter(report.bad.values()))[1]
    assert not run(source, tmp_path / "c", "python:tiny_backbones:overflowing", dtype="float32").bad


def test_types_agree_within_their_precision(make_folder: Make, tmp_path: Path) -> None:
    source = make_folder(per_class=2)
    values = {
        d: run(source, tmp_path / "c", dtype=d).store.features(dtype=d)[:] for d in ("float32", "float16", "bfloat16")
    }
    assert np.allclose(values["float16"], values["float32"], rtol=1e-3, atol=1e-4)
    assert np.allclose(values["bfloat16"], values["float32"], rtol=1e-2, atol=1e-3)


def test_a_file_that_changes_during_the_run_is_left_for_the_next(make_folder: Make, tmp_path: Path) -> None:
    source = make_folder(per_class=3)

    class Meddler(Silent):
        """Edits one file and removes another between the scan and the extraction."""

        def start(self, phase: str, total: int) -> None:
            if phase == "extracting":
                write_image(source / "red" / "000.png", COLOURS["red"], seed=777)
                (source / "blue" / "000.png").unlink()

        def advance(self, count: int, *, bad: int = 0) -> None: ...

    settings = ExtractionSettings(runtime="torch", batch_size=4)
    report = run_extraction(source, tmp_path / "c", make_request(TINY), settings=settings, progress=Meddler())
    assert {Path(p).name for p in report.postponed} == {"000.png"}
    assert (len(report.postponed), report.num_extracted, len(report.store.features())) == (2, 7, 7)
    again = run(source, tmp_path / "c")
    assert (again.num_extracted, again.postponed) == (1, {})
    assert again.store.features().usable(again.store.listings.load(source).unique_rows).all()


def test_eval_mode_is_enforced(make_folder: Make, tmp_path: Path) -> None:
    source = make_folder(per_class=3)
    a = run(source, tmp_path / "a", dtype="float32", batch_size=1).store.features()[:]
    b = run(source, tmp_path / "b", dtype="float32", batch_size=9).store.features()[:]
    assert np.allclose(a, b, atol=1e-5)  # batch norm or dropout in train mode would differ wildly


@pytest.mark.parametrize(
    ("backbone", "taps", "error", "message"),
    [
        ("efficientnet_lit0", ["default"], UnknownNameError, "unknown backbone 'efficientnet_lit0'; did you mean"),
        (TINY, ["bdy:avg"], UnknownNameError, "unknown tap 'bdy.*did you mean 'body'"),
    ],
)
def test_wrong_requests_write_nothing(
    make_folder: Make, tmp_path: Path, backbone: str, taps: list[str], error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        run(make_folder(per_class=1), tmp_path / "c", backbone, taps=taps)
    assert not (tmp_path / "c").exists()


def test_an_empty_source_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="holds no images"):
        run(tmp_path / "empty", tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_unknown_engine_names_the_known(make_folder: Make, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown engine 'locl'; did you mean 'local'"):
        run_extraction(make_folder(), tmp_path / "c", make_request(TINY), engine="locl")


def test_python_api_of_the_design(make_folder: Make, tmp_path: Path) -> None:
    source = make_folder(per_class=10)
    store = fc.extract(source, tmp_path / "c", backbone=TINY, taps=["stem:avg", "default"])
    task = store.add_task("colour", fc.labels_from_folders(source))
    features = store.features(tap="stem:avg")
    X, y = task.select(features, split="train")
    scores = fc.evaluate(fc.fit_head("logistic", X, y), *task.select(features, split="test"))
    assert X.dtype == np.float32
    assert scores.accuracy == 1.0  # three colours are no challenge
    assert scores.accuracy_low < 1.0


def test_transformer_equals_the_cache(make_folder: Make, tmp_path: Path) -> None:
    source = make_folder(per_class=2)
    store = run(source, tmp_path / "c", dtype="float32").store
    listing = store.listings.load(source)
    values = fc.FrozenBackbone(TINY, runtime="torch", batch_size=4).fit_transform([source / p for p in listing.paths])
    # A handful of inputs is run without folding norms into the layers before them, which changes the last bits.
    np.testing.assert_allclose(values, store.features().read(listing.rows), rtol=1e-5, atol=1e-6)
    (source / "bad.png").write_text("no image")
    with pytest.raises(ValueError, match="not_an_image") as caught:
        fc.FrozenBackbone(TINY, runtime="torch").fit_transform([source / "bad.png"])
    assert "bad.png" in caught.value.__notes__[0]


def test_transformer_takes_what_extract_takes(make_folder: Make, tmp_path: Path) -> None:
    source = make_folder(per_class=1)
    request = {"backbone": "torchvision:squeezenet1_1", "init": "random", "seed": 3}
    size = {"resize": 64, "crop": 64}
    settings = ExtractionSettings(dtype="float32", runtime="torch")
    store = fc.extract(source, tmp_path / "c", **request, preprocess=size, settings=settings)
    listing = store.listings.load(source)
    files = [source / p for p in listing.paths]
    head = fc.FrozenBackbone(**request, preprocess=size, runtime="torch")
    np.testing.assert_allclose(clone(head).fit_transform(files), store.features().read(listing.rows), atol=1e-5)
    other = clone(head).set_params(seed=4).fit_transform(files)
    assert np.abs(other - store.features().read(listing.rows)).max() > 1e-3
    with pytest.raises(ValueError, match="seed 3 is for random weights only"):
        clone(head).set_params(init="pretrained").fit(files)


def test_writers_with_different_shard_sizes_lose_no_row(make_folder: Make, tmp_path: Path) -> None:
    source = make_folder(per_class=5)
    run(source, tmp_path / "c", shard_rows=4)
    for path in sorted(tmp_path.glob("c/features/*/*/*/commits/*.json"))[1:]:
        path.unlink()  # the writer with small shards was killed after its first
    report = run(source, tmp_path / "c", shard_rows=8)
    assert report.store.features().shape == (15, 16)
    assert np.array_equal(report.store.features()[:], run(source, tmp_path / "d").store.features()[:])


def test_a_lost_race_is_looked_at_again(make_folder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another writer commits four of our eight rows between our plan and our commit."""
    from featurecache.store.folders import ShardFolder

    source = make_folder(per_class=5)
    other = run(source, tmp_path / "other", shard_rows=4).store
    shutil.copytree(tmp_path / "other", tmp_path / "c")
    for path in (tmp_path / "c").glob("features/*/*/*/commits/*.json"):
        path.unlink()
    first = sorted(other.path.glob("features/*/*/*/commits/*.json"))[0]
    real, raced = ShardFolder.commit, []

    def commit(self: ShardFolder, key: str, *args: object) -> bool:
        if not raced and key == first.stem:
            raced.append(key)
            shutil.copy(first, self.path / "commits" / first.name)
        return real(self, key, *args)

    monkeypatch.setattr(ShardFolder, "commit", commit)
    report = run(source, tmp_path / "c", shard_rows=8)
    assert raced
    assert np.array_equal(report.store.features()[:], other.features()[:])


def test_two_processes_share_the_work(make_folder: Make, tmp_path: Path) -> None:
    import os
    import subprocess
    import sys
    import time

    from conftest import REPOSITORY

    source, cache = make_folder(per_class=30), tmp_path / "c"
    command = [sys.executable, "-m", "featurecache", "extract", str(source), "--cache", str(cache)]
    command += ["--backbone", TINY, "--runtime", "torch", "--batch-size", "4", "--shard-rows", "5", "--json"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])}
    other = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while other.poll() is None and not list(cache.glob("features/*/*/*/commits/*.json")):
        time.sleep(0.001)  # until it is at work
    run(source, cache, shard_rows=5)
    said = other.communicate()
    assert other.returncode == 0, said
    store = fc.FeatureStore.open(tmp_path / "c")
    assert store.features().shape == (90, 16)
    assert len(store.features().commits) == 18
    assert not list(tmp_path.glob("c/**/*.partial")) + list(tmp_path.glob("c/**/*.lease"))
