"""Pipes, devices, sockets, links into nothing and giants end no verb: each is one bad input with its true reason."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import RUNTIME, TINY

from featurecache.errors import InputError
from featurecache.files import FileError, GrowingError, blocks_of, open_regular
from featurecache.hashing import digest_file
from featurecache.reporting.pictures import thumbnail
from featurecache.sources.files import read_file

Call = Callable[..., tuple[int, str, str]]
REASONS = {
    "dangling.png": "it is a link that leads nowhere (to 'gone.png')",
    "endless.png": "it is a device, not a file",
    "giant.png": "the file has 1099511627776 bytes, the limit is 500000000",
    "loop.png": "it is a link that leads back to itself",
    "pipe.png": "it is a named pipe, not a file",
    "pipe_link.png": "it is a named pipe, not a file",
    "socket.png": "it is a socket, not a file",
}


@pytest.fixture(autouse=True)
def not_for_ever() -> Iterator[None]:
    """A verb that waits for a pipe would wait until the whole suite is ended."""

    def stop(*_: object) -> None:
        raise AssertionError("still waiting after ten minutes")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(600)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def add_strange_files(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dangling.png").symlink_to("gone.png")
    (folder / "endless.png").symlink_to("/dev/zero")
    (folder / "giant.png").touch()
    os.truncate(folder / "giant.png", 1 << 40)  # a terabyte of nothing: it takes no place on the disk
    (folder / "loop.png").symlink_to("loop.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "pipe_link.png").symlink_to("pipe.png")
    before = Path.cwd()
    os.chdir(folder)  # the name of a socket has at most 108 bytes
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("socket.png")
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def cached(make_folder: Callable[..., Path], tmp_path: Path, call: Call) -> tuple[Path, Path]:
    """A folder with strange files in it, and its cache with a head."""
    source, cache = make_folder(per_class=6), tmp_path / "c"
    add_strange_files(source / "red")
    run = ["run", source, "--cache", cache, "--backbone", TINY, "--head", "ridge", "--max-bad", "1", *RUNTIME]
    assert call(*run)[0] == 0
    return source, cache


def test_every_verb_ends_with_the_true_reason(cached: tuple[Path, Path], call: Call) -> None:
    source, cache = cached
    info = json.loads(call("info", cache, "--json")[1])
    wanted = {f"red/{name}": reason for name, reason in REASONS.items()}
    assert {bad["path"]: bad["reason"] for bad in info["bad"]} == wanted
    status, out, _ = call("info", cache, "--source", source, "--json")
    assert (status, json.loads(out)["now"]["unreadable"]) == (0, len(REASONS))

    named = [source / "red" / name for name in REASONS]
    for inputs in ([source], named):
        status, out, _ = call("predict", cache / "heads/run", *inputs, "--backbone", TINY, "--json", *RUNTIME)
        answers = json.loads(out)["predictions"]
        bad = {Path(each["path"]).name: each["reason"] for each in answers if each["status"] != "ok"}
        assert (status, bad) == (1, REASONS)
    status, out, _ = call("verify", cache, "--deep", "--source", source, "--backbone", TINY, "--quiet")
    assert (status, "0 different" in out) == (0, True)


def test_tables_and_weights_may_not_be_pipes_either(cached: tuple[Path, Path], tmp_path: Path, call: Call) -> None:
    source, cache = cached
    for name in ("pipe.png", "endless.png", "loop.png", "dangling.png", "socket.png"):
        strange, reason = source / "red" / name, REASONS[name]
        tries = [
            ["task", "add", cache, "t", strange],
            ["run", source, "--cache", tmp_path / "d", "--backbone", TINY, "--labels", strange],
            ["extract", strange, "--text-column", "text", "--cache", tmp_path / "d", "--backbone", TINY],
            ["extract", source, "--cache", tmp_path / "d", "--backbone", TINY, "--weights", strange],
            ["extract", source, "--cache", tmp_path / "d", "--backbone", f"file:{strange}"],
        ]
        for words in tries:
            status, _, err = call(*words)
            assert (status, reason in err) == (2, True), (words, err)
            assert err.count("\n") == 1
        with pytest.raises(FileError) as caught:
            digest_file(strange)
        assert str(caught.value) == f"cannot read {strange}: {reason}"


def test_a_table_without_line_ends_is_not_read_into_memory(cached: tuple[Path, Path], call: Call) -> None:
    source, cache = cached
    status, _, err = call("task", "add", cache, "t", source / "red" / "giant.png")
    assert (status, "a line has more than 16,000,000 characters; is it a table?" in err) == (2, True)


def bytes_of(path: Path) -> bytes | None:
    """Return what a source reads of a file, as the report asks for it."""
    try:
        return read_file(path, stamp=None, max_bytes=500_000_000)
    except InputError:
        return None


def test_a_thumbnail_of_none_of_them(tmp_path: Path) -> None:
    folder = add_strange_files(tmp_path / "strange")
    assert [thumbnail(bytes_of(folder / name)) for name in REASONS] == [None] * len(REASONS)


def test_a_folder_with_the_name_of_an_image_is_a_folder(
    make_folder: Callable[..., Path], tmp_path: Path, call: Call
) -> None:
    source = make_folder(per_class=2)
    shutil.move(source / "red", source / "red.jpg")
    status, out, _ = call("extract", source, "--cache", tmp_path / "c", "--backbone", TINY, "--json", *RUNTIME)
    assert (status, json.loads(out)["samples"], json.loads(out)["bad"]) == (0, 6, [])


def test_a_file_that_grows_while_it_is_read_is_no_sample(tmp_path: Path) -> None:
    path = tmp_path / "growing.png"
    path.write_bytes(bytes(1000))
    with open_regular(path) as (file, status):
        with path.open("ab") as more:
            more.write(b"more")
        with pytest.raises(GrowingError, match="it grew while it was read"):
            list(blocks_of(file, status))
    assert len(read_file(path, stamp=None, max_bytes=1 << 30)) == 1004


@pytest.mark.parametrize(
    "read", [digest_file, lambda path: read_file(path, stamp=None, max_bytes=1 << 30)], ids=["digest", "read"]
)
def test_a_file_that_somebody_is_writing_ends_where_it_ended_at_first(
    tmp_path: Path, read: Callable[[Path], object]
) -> None:
    """Who is faster decides whether growth is seen; nothing but a true reason may come of it."""
    path = tmp_path / "log.png"
    path.write_bytes(bytes(1 << 20))

    def write() -> None:
        with path.open("ab", buffering=0) as file:
            for _ in range(1 << 10):
                file.write(bytes(1 << 12))

    writer = threading.Thread(target=write)
    writer.start()
    with suppress(GrowingError, InputError):
        read(path)
    writer.join()
    assert read_file(path, stamp=None, max_bytes=1 << 30) == bytes(5 << 20)
