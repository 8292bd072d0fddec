"""The same bytes are the same samples whatever holds them; what is in memory is extracted, run and predicted too."""

from __future__ import annotations

import http.server
import io
import pickle
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import h5py
import numpy as np
import pytest
from conftest import COLOURS, TINY, write_folder
from PIL import Image

import featurecache as fc
from featurecache.backbones.torchvision_compat import import_torchvision
from featurecache.errors import InputError, RequestError, SourceError
from featurecache.extraction.job import ExtractionJob
from featurecache.sources import urls
from featurecache.sources.decoding.arrays import array_bytes, image_of_bytes
from featurecache.sources.inputs import Input
from featurecache.sources.opening import open_source, samples_in_memory, source_spec
from featurecache.sources.urls import UrlReader
from featurecache.specs import BackboneRequest, ExtractionSettings
from featurecache.train import TrainingSettings

pytestmark = pytest.mark.usefixtures("few_settings")
SETTINGS = ExtractionSettings(runtime="torch", batch_size=4)
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("same") / "photos", per_class=10)


def files_in(photos: Path) -> dict[str, bytes]:
    return {path.relative_to(photos).as_posix(): path.read_bytes() for path in sorted(photos.rglob("*.png"))}


def extracted(source: Any, cache: Path, **options: Any) -> fc.FeatureStore:
    return fc.extract(source, cache, backbone=TINY, settings=SETTINGS, **options)


def test_folder_tar_zip_memory_table_and_lists_give_one_cache(photos: Path, tmp_path: Path) -> None:
    files = files_in(photos)
    with tarfile.open(tmp_path / "p.tar", "w") as tar, zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
            archive.writestr(name, data)
            fsspec.filesystem("memory").pipe_file(f"/{tmp_path.name}/{name}", data)
    (tmp_path / "t.csv").write_text("\n".join(["path", *(str(photos / name) for name in files)]))
    import_torchvision()
    from torchvision.datasets import ImageFolder

    sources: list[Any] = [
        photos,
        tmp_path / "p.tar",
        tmp_path / "p.zip",
        f"memory://{tmp_path.name}",
        tmp_path / "t.csv",
        [photos / name for name in files],
        list(files.values()),
        ImageFolder(str(photos)),
    ]
    store = extracted(sources[0], tmp_path / "c")
    expected = {row.tobytes() for row in store.samples.ids}
    for number, source in enumerate(sources[1:]):
        store = extracted(source, tmp_path / "c", source_name=f"s{number}")
        assert {row.tobytes() for row in store.samples.ids} == expected
    assert len(store.listings.all()) == len(sources)
    assert {len(listing.unique_rows) for listing in store.listings.all()} == {len(files)}


def test_a_data_set_of_hugging_face_has_the_ids_of_its_files(photos: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    files = files_in(photos)
    names, labels = list(files), sorted(COLOURS)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=labels)})
    rows = {
        "image": [{"bytes": files[name], "path": None} for name in names],
        "label": [labels.index(name.split("/")[0]) for name in names],
    }
    dataset = datasets.Dataset.from_dict(rows, features=features)
    store = extracted(photos, tmp_path / "c")
    ids = {row.tobytes() for row in store.samples.ids}
    again = extracted(dataset, tmp_path / "c")
    assert {row.tobytes() for row in again.samples.ids} == ids
    task = again.add_task("kind", fc.labels_from_dataset(dataset, root="memory:memory"))
    assert task.classes == labels
    uris = again.samples.uris_of(again.samples.rows_of(task.ids))
    assert [task.classes[y] for y in task.labels] == [uri.split("/")[0] for uri in uris]
    parts = datasets.DatasetDict({"train": dataset.select(range(20)), "test": dataset.select(range(20, 30))})
    extracted(parts, tmp_path / "c", source_name="parts")
    given = fc.labels_from_dataset(parts, root="memory:parts")
    assert [label.split for label in given.labels].count("test") == 10
    with pytest.raises(RequestError, match="the data set has no column of images; it has: label"):
        open_source(dataset.select_columns(["label"]))


@pytest.mark.parametrize("kind", ["array", "tensor", "pictures", "torch dataset", "hdf5"])
def test_decoded_pictures_are_samples_with_ids_of_their_pixels(photos: Path, tmp_path: Path, kind: str) -> None:
    import torch
    from torch.utils.data import Dataset

    files = files_in(photos)
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in files.values()])
    names = [name.split("/")[0] for name in files]

    class Pairs(Dataset):
        classes = sorted(COLOURS)

        def __len__(self) -> int:
            return len(pixels)

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return Image.fromarray(pixels[index]), self.classes.index(names[index])

    with h5py.File(tmp_path / "p.h5", "w") as file:
        file["raw"] = pixels
    sources = {
        "array": pixels,
        "tensor": torch.from_numpy(pixels).permute(0, 3, 1, 2),
        "pictures": [Image.fromarray(picture) for picture in pixels],
        "torch dataset": Pairs(),
        "hdf5": tmp_path / "p.h5",
    }
    store = extracted(sources[kind], tmp_path / "c", taps=("default",))
    reference = extracted(photos, tmp_path / "r")
    listing = store.listings.all()[0]
    features = store.features().read(listing.rows[np.argsort(list(listing.paths))])
    rows = reference.listings.all()[0]
    expected = reference.features().read([rows.row_of[name] for name in files])
    np.testing.assert_allclose(features, expected, atol=1e-2 * np.abs(expected).max())
    assert sha256(array_bytes(pixels[0])).digest() in {row.tobytes() for row in store.samples.ids}
    if kind == "torch dataset":
        task = store.add_task("kind", fc.labels_from_dataset(sources[kind]))
        assert task.counts() == {"train": 18, "validation": 6, "test": 6}


def test_arrays_of_every_kind_come_back_and_others_are_refused() -> None:
    rng = np.random.default_rng(0)
    for array in (
        rng.integers(0, 256, (5, 4)).astype(np.uint8),
        rng.integers(0, 256, (5, 4, 1)).astype(np.uint8),
        rng.integers(0, 256, (5, 4, 4)).astype(np.uint8),
        rng.integers(0, 60000, (5, 4)).astype(np.uint16),
        rng.random((5, 4)),
        rng.random((5, 4)) > 0.5,
    ):
        found = np.asarray(image_of_bytes(array_bytes(array), 1000))
        expected = array[..., 0] if array.shape[-1:] == (1,) else array
        np.testing.assert_allclose(found, expected * 255 if array.dtype == bool else expected, rtol=1e-6)
    # The same pixels have the same id in any memory layout.
    assert array_bytes(np.asfortranarray(np.arange(20, dtype=np.uint8).reshape(5, 4))) == array_bytes(
        np.arange(20, dtype=np.uint8).reshape(5, 4)
    )
    with pytest.raises(RequestError, match=r"a colour picture of float64 says nothing of its range; give uint8"):
        array_bytes(rng.random((5, 4, 3)).astype(">f8"))
    with pytest.raises(RequestError, match=r"a picture of shape \(5,\) is neither grey"):
        array_bytes(np.zeros(5, np.uint8))
    good = array_bytes(np.zeros((50, 40, 3), np.uint8))
    for data, status in (
        (good[:-1], "undecodable"),
        (good[:20], "undecodable"),
        (good.replace(b"|u1", b"|O8"), "undecodable"),
        (good.replace(b"(50, 40, 3)", b"(50, 40, 2)"), "undecodable"),
    ):
        with pytest.raises(InputError) as caught:
            image_of_bytes(data, 10_000)
        assert caught.value.status == status
    with pytest.raises(InputError, match="40x50 pixels, the limit is 100"):
        image_of_bytes(good, 100)


def test_run_and_predict_take_what_is_in_memory(photos: Path, tmp_path: Path) -> None:
    files = files_in(photos)
    pictures = {name: Image.open(io.BytesIO(data)) for name, data in files.items()}
    labels = {name: name.split("/")[0] for name in files}
    done = fc.run(
        pictures,
        cache=tmp_path / "c",
        labels=labels,
        backbone=TINY,
        settings=SETTINGS,
        training=TrainingSettings(heads=("nearest_mean",)),
    )
    assert done.saved is not None
    assert done.report is not None
    assert "data:image/jpeg" in done.report.read_text() or done.training.best.result.reported
    found = list(fc.predict(done.saved, [list(pictures.values())[:3], photos], backbone=TINY, settings=SETTINGS))
    assert [item.label for item in found[:3]] == list(labels.values())[:3]
    assert len(found) == 33
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"path": [str(photos / name) for name in files], "label": list(labels.values())})
    again = fc.run(
        frame,
        cache=tmp_path / "f",
        backbone=TINY,
        settings=SETTINGS,
        training=TrainingSettings(heads=("nearest_mean",)),
    )
    assert again.training.task.classes == sorted(COLOURS)
    with pytest.raises(RequestError, match="say where the cache of samples in memory goes"):
        fc.run(pictures, labels=labels, backbone=TINY)


def test_tars_carry_labels_and_run_takes_them(photos: Path, tmp_path: Path, call: Call) -> None:
    for number in range(2):
        with tarfile.open(tmp_path / f"p-{number}.tar", "w") as tar:
            for index, (name, data) in enumerate(list(files_in(photos).items())[number::2]):
                for suffix, content in ((".png", data), (".cls", name.split("/")[0].encode())):
                    info = tarfile.TarInfo(f"{index:05}{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    pattern = str(tmp_path / "p-{0..1}.tar")
    options = ["--backbone", TINY, "--head", "nearest_mean", "--device", "cpu", "--runtime", "torch"]
    status, out, err = call("run", pattern, "--cache", tmp_path / "c", *options)
    assert status == 0, err
    assert f"task run: {len(COLOURS)} classes" in out
    status, added, err = call("task", "add", tmp_path / "c", "again", pattern)
    assert status == 0, err
    assert added == out[out.index("task run:") :].replace("task run:", "task again:")[: len(added)]
    for given in (["--kind", "multilabel"], ["--label-column", "x"], ["--group-column", "x"], ["--keep-na"]):
        status, _, err = call("task", "add", tmp_path / "c", "several", pattern, *given)
        assert status == 2
        assert f"carries one class for each image; leave {given[0]} out" in err
    with tarfile.open(tmp_path / "bare.tar", "w") as tar:
        tar.add(photos, "photos")
    status, _, err = call("task", "add", tmp_path / "c", "none", tmp_path / "bare.tar")
    assert status == 2
    assert "bare.tar carries no labels; give a table, or --from-folders" in err
    status, _, err = call("run", pattern, *options, "--cache", tmp_path / "c", "--class-folder", "outermost")
    assert status == 2
    assert "carries one class for each image; leave --class-folder out" in err
    more = ["--cache", tmp_path / "bare", "--class-folder", "outermost"]
    status, _, err = call("run", tmp_path / "bare.tar", *options, *more)
    assert status == 2
    assert "30 labelled files are of one class ('bare.tar')" in err  # the first part of every name
    assert call("run", tmp_path / "bare.tar", *options, "--cache", tmp_path / "bare", "--merge-spellings")[0] == 0
    for number in range(2):
        with tarfile.open(tmp_path / f"flat-{number}.tar", "w") as tar:
            for path in sorted(photos.rglob("*.png"))[number::2]:
                tar.add(path, f"{path.parent.name}-{path.name}")
    status, out, err = call("run", tmp_path / "flat-*.tar", *options, "--cache", tmp_path / "flat")
    assert status == 0, err
    assert "2 of 2 classes are called by the file that holds the samples, such as 'flat-0.tar'" in out + err
    status, _, err = call("run", pattern, *options)
    assert status == 2
    assert "say where the cache of" in err


def test_samples_in_memory_stay_in_this_process(photos: Path, tmp_path: Path) -> None:
    source = samples_in_memory([photos / name for name in files_in(photos)])
    job = ExtractionJob(source=source, cache=tmp_path, backbone=BackboneRequest(name=TINY))
    with pytest.raises(RequestError, match="are in the memory of this process, where the engine local runs"):
        pickle.dumps(job)
    with pytest.raises(RequestError, match="a source is a path, a URL, a list of paths or pictures"):
        open_source(object())
    with pytest.raises(RequestError, match="names a path twice"):
        samples_in_memory([photos / "a.png", photos / "a.png"])
    with pytest.raises(RequestError, match="an array of pictures has 3 or 4 axes"):
        samples_in_memory(np.zeros((3, 4)))


def test_what_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no file fits"):
        list(open_source(str(tmp_path / "*.tar")).units())
    (tmp_path / "x.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(SourceError, match="is no whole tar"):
        [list(source.list(unit)) for source in [open_source(tmp_path / "x.tar")] for unit in source.units()]
    with pytest.raises(SourceError, match="holds no images; looked for"):
        [list(source.list(unit)) for source in [open_source("memory://nothing_here")] for unit in source.units()]
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["a"], file["b"] = np.zeros((2, 3, 4), np.uint8), np.zeros((2, 3, 4), np.uint8)
    with pytest.raises(SourceError, match=r"has 2 arrays of pictures; write h5://.*::NAME, with one of: a, b"):
        open_source(tmp_path / "two.h5")


class _Server(http.server.BaseHTTPRequestHandler):
    """A picture with a tag, one that breaks off, one that has moved to another host, and nothing else."""

    picture = b""
    tag = "one"
    changed_ago: ClassVar[int | None] = None
    reads: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self._answer(head=True)

    def do_GET(self) -> None:
        self.reads.append(self.path)
        self._answer(head=False)

    def _answer(self, *, head: bool) -> None:
        if self.path == "/moved.png":
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.2:1/x.png")
            self.end_headers()
            return
        if self.path not in ("/a.png", "/cut.png", "/cut-once.png", "/slow.png"):
            self.send_error(404 if self.path == "/gone.png" else 403)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.picture)))
        self.send_header("ETag", self.tag)
        if self.changed_ago is not None:
            self.send_header("Last-Modified", self.date_time_string(int(time.time()) - self.changed_ago))
        self.end_headers()
        is_cut = self.path == "/cut.png" or (self.path == "/cut-once.png" and self.reads.count(self.path) == 1)
        if not head and self.path == "/slow.png":
            for byte in self.picture:
                try:
                    self.wfile.write(bytes([byte]))
                except OSError:
                    return
                time.sleep(0.01)
        elif not head:
            self.wfile.write(self.picture[:20] if is_cut else self.picture)

    def log_message(self, *args: Any) -> None:
        """Print nothing."""


@pytest.fixture
def server(photos: Path) -> Iterator[str]:
    _Server.picture, _Server.tag, _Server.reads = next(iter(files_in(photos).values())), "one", []
    _Server.changed_ago = None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()
        thread.join()


def test_urls_in_a_table_are_read_once_and_again_when_they_change(
    server: str, photos: Path, tmp_path: Path, call: Call
) -> None:
    local = str(next(iter(photos.rglob("*.png"))))
    names = [f"{server}/{name}" for name in ("a.png", "cut.png", "moved.png", "gone.png", "secret.png")]
    (tmp_path / "t.csv").write_text("\n".join(["image", *names, local, "file:///etc/passwd"]))
    extract = ["extract", tmp_path / "t.csv", "--cache", tmp_path / "c", "--backbone", TINY, "--json", "--quiet"]
    options = ["--allow-local-urls", "--runtime", "torch", "--max-bad", "9"]
    status, _, err = call(*extract, *options)
    assert status == 0, err
    (listing,) = fc.FeatureStore.open(tmp_path / "c").listings.all()
    assert set(listing.row_of) == {f"{server}/a.png", local}
    reasons = {name.rpartition("/")[2]: reason for name, reason in listing.problems.items()}
    assert "another host" in reasons["moved.png"]
    assert "404" in reasons["gone.png"]
    assert "403" in reasons["secret.png"]
    assert "of" in reasons["cut.png"]
    assert "passwd" in reasons  # no such file below the folder of the table
    _Server.reads.clear()
    call(*extract, *options)
    assert "/a.png" not in _Server.reads  # what broke off is asked for again, what is known is not
    _Server.tag = "two"
    call(*extract, *options)
    assert "/a.png" in _Server.reads


def test_a_table_names_no_address_of_this_machine_unless_it_may(server: str) -> None:
    with pytest.raises(InputError, match="an address of this machine or its network; --allow-local-urls allows it"):
        UrlReader(max_bytes=1000).read(f"{server}/a.png")
    reader = UrlReader(max_bytes=100_000, allow_local=True)
    assert reader.read(f"{server}/a.png") == _Server.picture
    with pytest.raises(InputError, match="more than 10 bytes"):
        UrlReader(max_bytes=10, allow_local=True).read(f"{server}/a.png")
    stamp = reader.stamp(f"{server}/a.png")
    _Server.tag = "two"
    with pytest.raises(InputError, match="replaced while the run went on"):
        reader.read(f"{server}/a.png", stamp=stamp)
    with pytest.raises(InputError, match="only http and https URLs are followed"):
        reader.read("file:///etc/passwd")


def test_a_connection_that_was_cut_is_tried_again(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls.time, "sleep", lambda seconds: None)
    reader = UrlReader(max_bytes=100_000, allow_local=True)
    assert reader.read(f"{server}/cut-once.png") == _Server.picture
    assert _Server.reads == ["/cut-once.png"] * 2
    with pytest.raises(InputError, match=r"the connection ended: .*20 of \d+ bytes came"):
        reader.read(f"{server}/cut.png")
    assert _Server.reads.count("/cut.png") == urls._TRIES


def test_an_object_that_comes_byte_by_byte_is_given_up(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "PATIENCE", 0.05)
    with pytest.raises(InputError, match=r"it comes too slowly: \d+ bytes in 0 s"):
        UrlReader(max_bytes=100_000, allow_local=True).read(f"{server}/slow.png")


def test_what_was_changed_within_the_clock_of_its_server_has_no_settled_stamp(server: str) -> None:
    reader = UrlReader(max_bytes=100_000, allow_local=True)
    for ago, is_settled in ((0, False), (1, False), (60, True), (None, True)):
        _Server.changed_ago = ago
        stamp = reader.stamp(f"{server}/a.png")
        assert stamp is not None
        assert (stamp[2] >= 0) == is_settled
    listed = {"Date": "Sun, 29 Nov 2026 10:00:00 GMT", "Last-Modified": "no date", "Content-Length": "3"}
    assert urls._stamp_of(listed)[2] >= 0


def test_other_bytes_behind_the_same_stamp_are_noticed(server: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"image\n{server}/a.png\n")
    source = open_source(source_spec(tmp_path / "t.csv", path_column="image", allow_local_urls=True))
    (entry,) = source.list(next(iter(source.units())))
    data = source.open(entry.name, stamp=entry.stamp)
    known = Input(source, entry.name, sha256(data).hexdigest(), entry.stamp)
    assert known.read() == data
    _Server.picture = data[:-1] + bytes([data[-1] ^ 1])
    assert source.open(entry.name, stamp=entry.stamp) != data  # the server says that nothing changed
    with pytest.raises(InputError, match="edited while the run went on"):
        known.read()


def test_tars_of_one_name_in_two_folders_are_told_apart(photos: Path, tmp_path: Path) -> None:
    pictures = list(files_in(photos).values())[:2]
    for folder, data in zip(("one", "two"), pictures, strict=True):
        (tmp_path / folder).mkdir()
        with tarfile.open(tmp_path / folder / "photos.tar", "w") as tar:
            info = tarfile.TarInfo("x.png")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    source = open_source(str(tmp_path / "*" / "photos.tar"))
    names = [entry.name for unit in source.units() for entry in source.list(unit)]
    assert names == ["one/photos.tar/x.png", "two/photos.tar/x.png"]
    assert [source.open(name, stamp=None) for name in names] == pictures
    assert [data for unit in source.units() for _, data in source.read(unit)] == pictures
    again = open_source(str(tmp_path / "*" / "photos.tar"))  # one that has walked none of them
    assert [again.open(name, stamp=None) for name in reversed(names)] == pictures[::-1]
    with pytest.raises(InputError, match="no file of"):
        again.open("photos.tar/x.png", stamp=None)
