"""Servers that fall silent, break off or say little: one clear reason, within a time, and the rest goes on."""

from __future__ import annotations

import http.server
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from conftest import TINY, image_bytes, tar_bytes, write_folder
from object_store import NEVER, Store

import featurecache as fc
from featurecache.errors import InputError, SourceError
from featurecache.sources import remote_files
from featurecache.sources.opening import open_source
from featurecache.sources.remote_files import RemoteFiles

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> type[Store]:
    """Three images in a folder, and a tar of them; who waits for half a second has waited long enough."""
    images = {f"{number}.png": image_bytes(number) for number in range(3)}
    objects = {f"b/photos/{name}": data for name, data in images.items()}
    Store.serve(objects | {"b/p.tar": tar_bytes({f"p.tar/{name}": data for name, data in images.items()})})
    monkeypatch.setattr(remote_files, "PATIENCE", 0.5)
    return Store


def test_a_silent_object_is_a_bad_input_and_the_rest_goes_on(store: type[Store], tmp_path: Path, call: Call) -> None:
    store.silent = {"b/photos/1.png"}
    extract = ["extract", "store://b/photos", "--cache", tmp_path / "c", "--backbone", TINY, "--runtime", "torch"]
    started = time.monotonic()
    status, _, err = call(*extract, "--max-bad", "1", "--quiet")
    assert status == 0, err
    assert time.monotonic() - started < NEVER / 2
    (listing,) = fc.FeatureStore.open(tmp_path / "c").listings.all()
    (reason,) = listing.problems.values()
    assert re.fullmatch("the server did not answer within [12] s", reason)
    assert list(listing.row_of) == ["0.png", "2.png"]
    # Given up, not left to wait: of a few connections silent objects would soon hold all.
    assert store.num_waiting == 0
    store.silent = set()
    assert call(*extract, "--quiet")[0] == 0
    assert not fc.FeatureStore.open(tmp_path / "c").listings.all()[0].problems


def test_a_silent_tar_ends_the_run_in_one_line(store: type[Store], tmp_path: Path, call: Call) -> None:
    store.silent = {"b/p.tar"}
    extract = ["extract", "store://b/p.tar", "--cache", tmp_path / "c", "--backbone", TINY, "--runtime", "torch"]
    status, _, err = call(*extract, "--quiet")
    assert (status, err.count("\n")) == (2, 1)
    assert "cannot read store://b/p.tar: the server did not answer within 0 s" in err
    assert store.num_waiting == 0


@pytest.mark.parametrize("url", ["store://b/photos", "store://b/p.tar", "store://b/*.tar"])
def test_a_source_has_one_client(url: str, store: type[Store]) -> None:
    """A client for each request made an extraction from tars on S3 minutes long: botocore computes for each."""
    source = open_source(url)
    names = [entry.name for unit in source.units() for entry in source.list(unit)]
    assert [source.open(name, stamp=None) for name in names] == [image_bytes(number) for number in range(3)]
    assert store.num_clients <= (2 if "*" in url else 1)


def test_a_block_that_was_cut_comes_again(store: type[Store], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_files, "_FIRST_BLOCK", 512)
    store.faults = {"b/p.tar": [RuntimeError("payload is not complete")] * 2}
    source = open_source("store://b/p.tar")
    (unit,) = source.units()
    assert [data for _, data in source.read(unit)] == [image_bytes(number) for number in range(3)]


def test_errors_of_a_file_system_are_said_in_one_line(store: type[Store]) -> None:
    store.faults = {"b/p.tar": [RuntimeError("payload is not complete")] * 3, "b/photos/0.png": [ValueError("odd\nly")]}
    source = open_source("store://b/p.tar")
    (unit,) = source.units()
    with pytest.raises(SourceError, match=r"cannot read store://b/p.tar: RuntimeError: payload is not complete$"):
        list(source.list(unit))
    with pytest.raises(InputError, match="unreadable: ValueError: odd ly$"):
        open_source("store://b/photos").open("0.png", stamp=None)
    with pytest.raises(InputError, match="missing"):
        open_source("store://b/photos").open("9.png", stamp=None)


def test_blocks_are_small_on_a_slow_line_and_large_on_a_fast_one(
    store: type[Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = np.random.default_rng(0).bytes(1 << 21)
    store.objects["b/large"] = data
    fast = b"".join(_pieces(RemoteFiles("store://b/large"), "b/large"))
    num_fast = store.asked.pop("b/large")
    monkeypatch.setattr(remote_files, "_FAST_SECONDS", -1.0)
    monkeypatch.setattr(remote_files, "_SLOW_SECONDS", -1.0)
    slow = b"".join(_pieces(RemoteFiles("store://b/large"), "b/large"))
    assert fast == slow == data
    assert num_fast < 8 < 100 < store.asked["b/large"]


def _pieces(files: RemoteFiles, path: str) -> Iterator[bytes]:
    with files.open(path) as file:
        while block := file.read(10_000):
            yield block


class _Server(http.server.BaseHTTPRequestHandler):
    """Gives out whole objects only, as `python -m http.server` does; some never, some byte by byte."""

    objects: ClassVar[dict[str, bytes]] = {}

    def do_HEAD(self) -> None:
        self._answer(is_head=True)

    def do_GET(self) -> None:
        self._answer(is_head=False)

    def _answer(self, *, is_head: bool) -> None:
        kind, _, name = self.path[1:].partition("/")
        if kind == "refused":
            self.send_error(403)
            return
        data = self.objects[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if is_head:
            return
        step = len(data) if kind == "good" else 100
        for start in range(0, len(data), step):
            try:
                self.wfile.write(data[start : start + step])
            except OSError:
                return
            if kind != "good":
                time.sleep(2 if kind == "silent" else 0.05)

    def log_message(self, *args: Any) -> None:
        """Print nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    pytest.importorskip("aiohttp")
    images = {f"p.tar/{number}.png": image_bytes(number) for number in range(60)}
    _Server.objects = {"p.tar": tar_bytes(images)}
    monkeypatch.setattr(remote_files, "PATIENCE", 1.0)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server) as found:
        found.daemon_threads = True
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()
        thread.join()


def test_a_server_that_gives_whole_objects_only_is_read_in_one_go(server: str) -> None:
    assert len(_Server.objects["p.tar"]) > 2 * remote_files._FIRST_BLOCK
    source = open_source(f"{server}/good/p.tar")
    (unit,) = source.units()
    assert [data for _, data in source.read(unit)] == [image_bytes(number) for number in range(60)]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("silent", "the server did not answer within 1 s"),
        ("dripping", "the server did not answer within 1 s"),
        ("refused", "ClientResponseError: 403"),
    ],
)
def test_a_tar_on_a_server_that_is_no_use_ends_in_one_line(kind: str, reason: str, server: str) -> None:
    source = open_source(f"{server}/{kind}/p.tar")
    (unit,) = source.units()
    started = time.monotonic()
    with pytest.raises(SourceError, match=rf"cannot read http:.*/p.tar: {reason}"):
        list(source.list(unit))
    assert time.monotonic() - started < 10


def test_tars_on_s3_are_as_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = write_folder(tmp_path / "photos", per_class=2)
    moto, boto3 = pytest.importorskip("moto.server"), pytest.importorskip("boto3")
    pytest.importorskip("s3fs")
    server = moto.ThreadedMotoServer(port=0)
    server.start()
    address, port = server.get_host_and_port()
    for name, value in (("ENDPOINT_URL_S3", f"http://{address}:{port}"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "test")
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    images = {path.relative_to(photos).as_posix(): path.read_bytes() for path in sorted(photos.rglob("*.png"))}
    for number in range(2):
        members = {f"p/{name}": data for name, data in list(images.items())[number::2]}
        client.put_object(Bucket="bucket", Key=f"p-{number}.tar", Body=tar_bytes(members))
    stores = [
        fc.extract(source, tmp_path / str(k), backbone=TINY, settings=fc.ExtractionSettings(runtime="torch"))
        for k, source in enumerate((photos, "s3://bucket/p-*.tar"))
    ]
    server.stop()
    of_folder, of_tars = ({bytes(i): f for i, f in zip(*_features(s), strict=True)} for s in stores)
    assert of_folder.keys() == of_tars.keys()
    assert all(np.array_equal(of_folder[sample], of_tars[sample]) for sample in of_folder)


def _features(store: fc.FeatureStore) -> tuple[Any, Any]:
    features = next(iter(store.feature_sets())).open()
    return np.array(store.samples.ids)[features.rows], features.read(features.rows)
