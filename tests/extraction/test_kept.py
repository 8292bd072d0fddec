"""Of a source that is far away each sample comes once: what identifies it is what is decoded."""

from __future__ import annotations

import http.server
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from conftest import REPOSITORY, TINY, image_bytes, tar_bytes
from fsspec.implementations.memory import MemoryFileSystem
from object_store import Store

import featurecache as fc
from featurecache import spill
from featurecache.errors import FeatureCacheError
from featurecache.sources.opening import source_spec

IMAGES = {f"{number:02d}.png": image_bytes(number) for number in range(12)}
SIZE = sum(map(len, IMAGES.values()))
SETTINGS = fc.ExtractionSettings(runtime="torch", batch_size=4, shard_rows=4)
Features = dict[bytes, bytes]


class _Server(http.server.BaseHTTPRequestHandler):
    """Serves objects with tags, by ranges where it is asked, and counts the bytes of each that went out."""

    protocol_version = "HTTP/1.1"
    objects: ClassVar[dict[str, bytes]] = {}
    served: ClassVar[Counter[str]] = Counter()
    has_tags = True
    waits_for: ClassVar[set[str]] = set()
    waiting = threading.Event()
    goes_on = threading.Event()

    def do_HEAD(self) -> None:
        self._answer(is_head=True)

    def do_GET(self) -> None:
        self._answer(is_head=False)

    def _answer(self, *, is_head: bool) -> None:
        data = self.objects[self.path[1:]]
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        self.send_response(206 if span else 200)
        if self.has_tags:
            self.send_header("ETag", str(hash(data)))
        if span:
            self.send_header("Content-Range", f"bytes {span[1]}-{span[2]}/{len(data)}")
            data = data[int(span[1]) : int(span[2]) + 1]
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if is_head:
            return
        if self.path[1:] in self.waits_for:
            self.waiting.set()
            self.goes_on.wait(300)
        self.served[self.path[1:]] += len(data)
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Print nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    _Server.objects, _Server.served, _Server.has_tags, _Server.waits_for = dict(IMAGES), Counter(), True, set()
    _Server.waiting, _Server.goes_on = threading.Event(), threading.Event()
    _Server.objects["p.tar"] = tar_bytes({f"p.tar/{name}": data for name, data in IMAGES.items()})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server) as found:
        found.daemon_threads = True
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()
        thread.join()


class Counted(MemoryFileSystem):
    """The memory file system of fsspec, with a count of the bytes that were read."""

    protocol = "counted"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    served: ClassVar[Counter[str]] = Counter()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("counted://"))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        data = super().cat_file(path, start, end, **options)
        self.served[path] += len(data)
        return data


def table(server: str, tmp_path: Path) -> Any:
    (tmp_path / "t.csv").write_text("\n".join(["image", *(f"{server}/{name}" for name in IMAGES)]))
    return source_spec(tmp_path / "t.csv", path_column="image", allow_local_urls=True)


@pytest.fixture(params=["URL table", "URL table without tags", "tar over HTTP", "folder", "store", "tars", "tar.gz"])
def far(request: pytest.FixtureRequest, server: str, tmp_path: Path) -> tuple[Any, Counter[str], int]:
    """A source, the bytes that came of each of its objects so far, and how many there are to come."""
    tars = {f"b/p-{k}.tar": tar_bytes({f"x/{n}": IMAGES[n] for n in list(IMAGES)[k::2]}) for k in range(2)}
    if request.param.startswith("URL table"):
        _Server.has_tags = request.param == "URL table"
        return table(server, tmp_path), _Server.served, SIZE
    if request.param == "tar over HTTP":
        pytest.importorskip("aiohttp")
        return f"{server}/p.tar", _Server.served, len(_Server.objects["p.tar"])
    if request.param == "folder":
        fsspec.register_implementation("counted", Counted, clobber=True)
        Counted.store.clear()
        Counted().pipe({f"/photos/{name}": data for name, data in IMAGES.items()})
        Counted.served = Counter()
        return "counted://photos", Counted.served, SIZE
    compressed = tar_bytes({f"x/{name}": data for name, data in IMAGES.items()}, compressed=True)
    Store.serve({**{f"b/photos/{name}": data for name, data in IMAGES.items()}, **tars, "b/p.tar.gz": compressed})
    if request.param == "store":
        return "store://b/photos", Store.served, SIZE
    if request.param == "tars":
        return "store://b/p-{0..1}.tar", Store.served, sum(map(len, tars.values()))
    return "store://b/p.tar.gz", Store.served, len(compressed)


@pytest.fixture(scope="module")
def of_folder(tmp_path_factory: pytest.TempPathFactory) -> Features:
    folder = tmp_path_factory.mktemp("photos")
    for name, data in IMAGES.items():
        (folder / name).write_bytes(data)
    return extracted(folder, tmp_path_factory.mktemp("truth") / "c")


def extracted(source: Any, cache: Path, **options: Any) -> Features:
    """Extract, and return the stored features of each sample by its id."""
    store = fc.extract(source, cache, backbone=TINY, settings=SETTINGS, **options)
    (plain,) = [found for found in store.feature_sets() if found.identity.views is None]
    features = plain.open()
    good = features.rows[features.usable(features.rows)]
    ids = np.array(store.samples.ids)[good]
    return {i.tobytes(): np.ascontiguousarray(f).tobytes() for i, f in zip(ids, features.read(good), strict=True)}


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_a_sample_comes_once_and_never_again(
    far: tuple[Any, Counter[str], int],
    where: str,
    of_folder: Features,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(spill.tempfile, "tempdir", str(tmp_path / "tmp"))
    if where == "disk":  # room for the index and for one image
        monkeypatch.setattr(spill, "_MOST_MEMORY", 2 * (len(IMAGES) * spill._ENTRY_BYTES))
    source, served, size = far
    assert extracted(source, tmp_path / "c") == of_folder
    assert served.total() == size
    assert list((tmp_path / "tmp").iterdir()) == []
    served.clear()
    assert extracted(source, tmp_path / "c") == of_folder
    # Without tags a server does not say whether an object is another one by now.
    assert served.total() == (size if "without tags" in request.node.name else 0)


def test_views_are_made_of_what_came_once(server: str, of_folder: Features, tmp_path: Path) -> None:
    assert extracted(table(server, tmp_path), tmp_path / "c", views=2) == of_folder
    assert _Server.served.total() == SIZE


def test_what_there_is_no_room_for_is_read_again(
    server: str, of_folder: Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill, "_MOST_MEMORY", 8 * spill._ENTRY_BYTES)
    monkeypatch.setattr(spill, "_DISK_SHARE", 0)
    assert extracted(table(server, tmp_path), tmp_path / "c") == of_folder
    # To identify, to choose the stored type by a few (these are few), and to compute.
    assert _Server.served.total() == 3 * SIZE


@pytest.mark.parametrize("source", ["store://b/photos", "store://b/p.tar"])
def test_what_was_identified_is_what_is_decoded(source: str, of_folder: Features, tmp_path: Path) -> None:
    """An object that is replaced once it was read is for the next run."""
    objects = {f"b/photos/{name}": data for name, data in IMAGES.items()}
    Store.serve(objects | {"b/p.tar": tar_bytes({f"x/{name}": data for name, data in IMAGES.items()})})
    others = {f"b/photos/{name}": image_bytes(100 + k) for k, name in enumerate(IMAGES)}
    others["b/p.tar"] = tar_bytes({f"x/{name}": others[f"b/photos/{name}"] for name in IMAGES})
    whole = len(Store.objects["b/p.tar"])

    def replace(path: str) -> None:
        if path != "b/p.tar" or Store.served[path] == whole:
            Store.objects[path] = others[path]

    Store.after_read = replace
    assert extracted(source, tmp_path / "c") == of_folder
    Store.after_read = None
    assert extracted(source, tmp_path / "c").keys() > of_folder.keys()


def test_of_tars_only_what_changed_is_read_again(tmp_path: Path) -> None:
    tars = {f"b/p-{k}.tar": tar_bytes({f"x/{n}": IMAGES[n] for n in list(IMAGES)[k::3]}) for k in range(3)}
    Store.serve(dict(tars))
    before = extracted("store://b/p-*.tar", tmp_path / "c")
    Store.objects["b/p-1.tar"] = tar_bytes({"x/new.png": image_bytes(50), "x/00.png": IMAGES["00.png"]})
    Store.objects["b/p-3.tar"] = tar_bytes({"x/last.png": image_bytes(51)})
    Store.served.clear()
    assert len(extracted("store://b/p-*.tar", tmp_path / "c")) == len(before) + 2
    assert set(Store.served) == {"b/p-1.tar", "b/p-3.tar"}
    assert Store.served.total() == len(Store.objects["b/p-1.tar"]) + len(Store.objects["b/p-3.tar"])
    # The same listing as one that was made from nothing.
    extracted("store://b/p-*.tar", tmp_path / "anew")
    (listing,), (anew,) = (fc.FeatureStore.open(tmp_path / name).listings.all() for name in ("c", "anew"))
    assert list(listing.paths) == list(anew.paths)
    assert np.array_equal(listing.stamps, anew.stamps)
    Store.objects["b/p-0.tar"] = Store.objects["b/p-3.tar"] = b""
    Store.objects["b/p-1.tar"] = Store.objects["b/p-2.tar"] = tar_bytes({})
    with pytest.raises(FeatureCacheError, match="no whole tar|holds no images"):
        extracted("store://b/p-*.tar", tmp_path / "c")


def test_a_tar_of_the_same_second_is_noticed(tmp_path: Path) -> None:
    Store.serve({"b/p.tar": tar_bytes({"x/00.png": IMAGES["00.png"]})})
    Store.has_digests = False
    extracted("store://b/p.tar", tmp_path / "c")
    Store.objects["b/p.tar"] = tar_bytes({"x/00.png": IMAGES["00.png"], "x/new.png": image_bytes(50)})
    assert len(extracted("store://b/p.tar", tmp_path / "c")) == 2


def test_what_lies_beside_the_images_of_all_tars_is_counted_and_remembered(tmp_path: Path) -> None:
    members = [{"x/a.png": IMAGES["00.png"], "x/b.psd": b"8BPS"}, {"x/c.png": IMAGES["01.png"], "x/d.psd": b"8BPS"}]
    Store.serve({f"b/p-{k}.tar": tar_bytes(each) for k, each in enumerate(members)})
    for _ in range(2):
        extracted("store://b/p-*.tar", tmp_path / "c")
        (listing,) = fc.FeatureStore.open(tmp_path / "c").listings.all()
        assert listing.ignored.images == {".psd": 2}
        assert len(listing.ignored.examples) == 2


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        signal.SIGKILL,
    ],
)
def test_nothing_is_left_over_after_an_interrupt(number: signal.Signals, server: str, tmp_path: Path) -> None:
    table(server, tmp_path)
    (tmp_path / "tmp").mkdir()
    _Server.waits_for = {list(IMAGES)[-1]}
    command = (
        "import sys; from featurecache import spill; spill._MOST_MEMORY = 8000; "
        "from featurecache.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    options = ["--path-column", "image", "--allow-local-urls", "--cache", "c", "--backbone", TINY, "--jobs", "1"]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"}
    process = subprocess.Popen(
        [sys.executable, "-c", command, "extract", "t.csv", *options], cwd=tmp_path, env=environment, stderr=-1
    )
    assert _Server.waiting.wait(120)
    links = [str(link.readlink()) for link in Path(f"/proc/{process.pid}/fd").iterdir() if link.is_symlink()]
    assert any(link.startswith(str(tmp_path / "tmp")) for link in links), links  # it has spilled by now
    process.send_signal(number)
    started = time.monotonic()
    process.communicate(timeout=60)
    _Server.goes_on.set()
    assert process.returncode != 0
    assert time.monotonic() - started < 30
    assert list((tmp_path / "tmp").iterdir()) == []
