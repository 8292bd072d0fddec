"""Sources behind real servers: nginx and an S3 server, over a wire that is cut, silent, slow, refuses and changes.

Each attempt extracts from one source with one fault at one object (or none). What the fault did not touch is cached,
equal to a run on the folder; what it did is a bad input with a reason, or the run ends in one line; the same command
over a whole wire completes the cache. Needs ``nginx`` on the PATH and ``pip install 'moto[server]' s3fs aiohttp``.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from trials.common import BACKBONE, Options, Tally, Truth, for_each, problems_of, run_child, warm_up, write_images

NUM_IMAGES = 24
LONGEST_SECONDS = 240.0
"""No run may take longer: a silent or dripping server is given up after a minute, or after three tries of 30 s."""
SOURCES = ("table of URLs", "tar over HTTP", "S3 folder", "S3 tars")
MISSING = "needs nginx and `pip install 'moto[server]' s3fs aiohttp`"


@dataclass(frozen=True)
class Ground:
    """The images, where they are served, and what a run on the folder stored of each."""

    scratch: Path
    images: Path
    truth: dict[bytes, bytes]
    """The stored bytes of every good image, by sample id: those of the folder, and the one that replaces another."""
    ports: dict[str, int]
    """The ports of the S3 server itself (``server``), and of the wires to nginx (``http``) and to it (``s3``)."""


def try_servers(options: Options) -> list[Tally]:
    """Extract from servers, with and without faults of the wire, and once more when the wire is whole."""
    tally = Tally("runs from real servers left a wrong row, hung, were unclear or could not be completed")
    if shutil.which("nginx") is None or any(find_spec(name) is None for name in ("moto", "s3fs", "aiohttp")):
        tally.notes.append(f"not tried: {MISSING}")
        return [tally]
    os.environ.update(AWS_ACCESS_KEY_ID="trial", AWS_SECRET_ACCESS_KEY="trial", AWS_DEFAULT_REGION="us-east-1")
    warm_up()
    images, other = options.scratch / "photos", options.scratch / "other"
    write_images(images, count=NUM_IMAGES)
    write_images(other, count=1, first=1001)
    for folder in (images, other):
        if (ended := run_child(lambda folder=folder: _extract(str(folder), options.scratch / "truth"))).status:
            raise RuntimeError(f"the run on the folder failed: {ended.error}")
    truth = Truth.of(options.scratch / "truth")
    rows = next(iter(truth.rows.values()))
    with _served(options.scratch) as ports:
        os.environ["AWS_ENDPOINT_URL_S3"] = f"http://127.0.0.1:{ports['s3']}"
        stored = {truth.ids[row].tobytes(): data for row, data in rows.items()}
        ground = Ground(options.scratch, images, stored, ports)
        attempts = [(ground, number, *attempt) for number, attempt in enumerate(_attempts(options.quick))]
        results = for_each(attempts, _attempt, jobs=options.jobs, timeout=2 * LONGEST_SECONDS)
    seconds: dict[str, float] = {}
    for (_, _, source, fault, after), result in zip(attempts, results, strict=True):
        tally.add(problems_of(result), label=f"{source}, {fault} after {after} bytes")
        if "value" in result:
            seconds[fault] = max(seconds.get(fault, 0), result["value"]["seconds"])
    tally.numbers = {"slowest_seconds": {fault: round(value, 1) for fault, value in seconds.items()}}
    tally.notes.append("slowest run: " + ", ".join(f"{fault} {value:.0f} s" for fault, value in seconds.items()))
    return [tally]


def _attempts(quick: bool) -> Iterator[tuple[str, str, int]]:
    """Source, fault, and the bytes of the answer that pass before it: within its head, its body, and near its end."""
    random = np.random.default_rng(0)
    for source in SOURCES:
        yield source, "none", 0
        for fault in ("refuse", "refuse once", "status 403", "status 404", "status 500", "status 503 once", "replace"):
            yield source, fault, 0
        for fault in ("cut", "reset"):
            for _ in range(2 if quick else 20):
                yield source, fault, int(random.integers(1, 6000))
        if not quick:
            yield source, "silent", 500
            yield source, "drip", 500


# Servers


@contextmanager
def _served(scratch: Path) -> Iterator[dict[str, int]]:
    """Serve the images by nginx and by an S3 server, each behind a wire; yield the ports of the wires."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        web_port, s3_port = _free_port(), _free_port()
        processes.append(
            _start(["nginx", "-c", str(_nginx_configuration(scratch, web_port)), "-p", str(scratch)], scratch)
        )
        processes.append(_start([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(s3_port)], scratch))
        for port in (web_port, s3_port):
            _wait_for(port)
        ports = {"server": s3_port}
        for name, port in (("http", web_port), ("s3", s3_port)):
            wire = [sys.executable, str(Path(__file__).with_name("wire.py")), str(scratch / "rules")]
            processes.append(_start([*wire, str(scratch / f"{name}.port"), str(port)], scratch))
            while not (scratch / f"{name}.port").exists():
                time.sleep(0.05)
            ports[name] = int((scratch / f"{name}.port").read_text())
        yield ports
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait(30)


def _nginx_configuration(scratch: Path, port: int) -> Path:
    for name in ("web", "rules", "nginx"):
        (scratch / name).mkdir()
    folders = "".join(
        f"{kind}_temp_path {scratch}/nginx/{kind}; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    path = scratch / "nginx.conf"
    path.write_text(
        f"daemon off; worker_processes 1; pid {scratch}/nginx/pid; error_log {scratch}/nginx/errors;\n"
        "events { worker_connections 512; }\n"
        f"http {{ access_log off; {folders} server {{ listen 127.0.0.1:{port}; root {scratch}/web; }} }}\n"
    )
    # Started by root, nginx serves as another user, who must get there.
    for folder in (scratch, scratch / "web"):
        folder.chmod(0o755)
    return path


def _start(command: list[str], scratch: Path) -> subprocess.Popen[bytes]:
    with (scratch / "servers.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _wait_for(port: int, seconds: float = 60.0) -> None:
    ends = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > ends:
                raise
            time.sleep(0.1)


# One attempt


@dataclass(frozen=True)
class _Served:
    """What one attempt serves: the source as a user types it, its options, and the object that the fault is about."""

    source: str
    options: tuple[str, ...]
    match: str
    """Part of the path of that object, as a request names it."""
    replacement: dict[str, str]
    """What a wire does to replace that object."""
    hidden: frozenset[str]
    """Names of the images that a fault at that object may hide."""


def _attempt(attempt: tuple[Ground, int, str, str, int]) -> dict[str, Any]:
    ground, number, source, fault, after = attempt
    served = _serve(ground, f"a{number}", source, number)
    rules, cache = ground.scratch / "rules" / f"a{number}.json", ground.scratch / f"cache{number}"
    kind, once = fault.removesuffix(" once"), fault.endswith(" once")
    rule = {"match": served.match, "kind": kind, "after": after, **({"times": 1} if once or kind == "replace" else {})}
    if kind != "none":
        rules.write_text(json.dumps({**rule, **served.replacement}))
    started = time.perf_counter()
    problems = _run(served, cache, LONGEST_SECONDS, may_fail=kind not in ("none", "replace") and not once)
    seconds = time.perf_counter() - started
    names = {path.relative_to(ground.images).as_posix(): path for path in ground.images.rglob("*.png")}
    whole = {_id_of(path) for path in names.values()} & ground.truth.keys()
    may_lack = {_id_of(names[name]) for name in served.hidden} if kind != "none" and not once else set()
    stored = _stored(cache)
    problems += [
        f"a wrong row of {sample.hex()[:8]}" for sample, row in stored.items() if ground.truth.get(sample) != row
    ]
    # A tar that cannot be listed ends the run in a line; every other fault is about its object alone.
    if "tar" not in source and (lacking := whole - may_lack - stored.keys()):
        problems.append(f"{len(lacking)} untouched images are not cached")
    rules.unlink(missing_ok=True)
    problems += [f"again: {problem}" for problem in _run(served, cache, LONGEST_SECONDS, may_fail=False)]
    stored = _stored(cache)
    if kind == "replace":
        whole = (whole - may_lack) | {next(iter(ground.truth.keys() - whole))}
    problems += [
        f"again: a wrong row {sample.hex()[:8]}" for sample, row in stored.items() if ground.truth.get(sample) != row
    ]
    if lacking := whole - stored.keys():
        problems.append(f"again: {len(lacking)} images are not cached")
    shutil.rmtree(cache, ignore_errors=True)
    return {"problems": problems, "seconds": seconds}


def _serve(ground: Ground, name: str, source: str, number: int) -> _Served:
    """Put the images where the attempt's source is served; the fault will be about one that has no equal copy."""
    paths = sorted(path.relative_to(ground.images).as_posix() for path in ground.images.rglob("*.png"))
    alone = [path for path in paths if Path(path).stem.isdecimal() and int(Path(path).stem) % 4]
    one = alone[number % len(alone)]
    other = next((ground.scratch / "other").rglob("1001.png"))
    web, host = ground.scratch / "web" / name, f"http://127.0.0.1:{ground.ports['http']}/{name}"
    if source == "table of URLs":
        shutil.copytree(ground.images, web)
        with (ground.scratch / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["image"], *([f"{host}/{path}"] for path in paths)])
        options = ("--path-column", "image", "--allow-local-urls")
        replacement = {"source": str(other), "file": str(web / one)}
        return _Served(str(ground.scratch / f"{name}.csv"), options, one, replacement, frozenset([one]))
    # The same tars with one image replaced are served after a fault of the kind `replace`.
    packs = {"photos-0.tar": paths} if source == "tar over HTTP" else {f"photos-{k}.tar": paths[k::3] for k in range(3)}
    pack = next(pack for pack, members in packs.items() if one in members)
    folder, changed = ground.scratch / f"{name}-tars", ground.scratch / f"{name}-changed.tar"
    folder.mkdir()
    for each, members in packs.items():
        _write_tar(folder / each, {path: ground.images / path for path in members})
    _write_tar(changed, {path: other if path == one else ground.images / path for path in packs[pack]})
    if source == "tar over HTTP":
        folder.rename(web)
        return _Served(f"{host}/{pack}", (), pack, {"source": str(changed), "file": str(web / pack)}, frozenset([one]))
    if source == "S3 folder":
        _upload(ground, name, {path: ground.images / path for path in paths})
        replacement = {"source": str(other), "object": f"photos/{name}/{one}"}
        return _Served(f"s3://photos/{name}", (), one, replacement, frozenset([one]))
    _upload(ground, name, {each: folder / each for each in packs})
    replacement = {"source": str(changed), "object": f"photos/{name}/{pack}"}
    return _Served(f"s3://photos/{name}/photos-*.tar", (), pack, replacement, frozenset([one]))


def _write_tar(path: Path, members: dict[str, Path]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, member in members.items():
            tar.add(member, name)


def _upload(ground: Ground, name: str, files: dict[str, Path]) -> None:
    import boto3

    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{ground.ports['server']}")
    client.create_bucket(Bucket="photos")
    for each, path in files.items():
        client.put_object(Bucket="photos", Key=f"{name}/{each}", Body=path.read_bytes())


def _extract(source: str, cache: Path, *options: str) -> int:
    from featurecache.cli import main

    numbers = ["--batch-size", "4", "--shard-rows", "8", "--jobs", "2", "--max-bad", "1"]
    command = ["extract", source, "--cache", str(cache), "--backbone", BACKBONE, "--runtime", "torch", "--quiet"]
    return main([*command, *numbers, *options])


def _run(served: _Served, cache: Path, seconds: float, *, may_fail: bool) -> list[str]:
    """Extract in a process of its own; what is not clear about how it ended."""
    ended = run_child(lambda: _extract(served.source, cache, *served.options), timeout=seconds)
    lines = [line for line in ended.error.splitlines() if line.startswith("featurecache: error")]
    problems = ["hung"] if ended.hung else []
    if "Traceback" in ended.error:
        problems.append(f"a traceback: {ended.error.splitlines()[-1]}")
    if ended.status not in ((0, 1, 2) if may_fail else (0,)):
        problems.append(f"status {ended.status}: {ended.error.strip()[-300:]}")
    if "error: unexpected" in ended.error:  # what the program takes for its own defect, in one line or not
        problems.append(ended.error.strip()[-300:])
    if ended.status == 2 and len(lines) != 1:
        problems.append(f"{len(lines)} lines of error: {ended.error.strip()[-300:]}")
    return problems


def _stored(cache: Path) -> dict[bytes, bytes]:
    """Return the stored bytes of every good row of a cache, by sample id."""
    if not (cache / "FORMAT.json").exists():
        return {}
    truth = Truth.of(cache)
    return {truth.ids[row].tobytes(): data for rows in truth.rows.values() for row, data in rows.items()}


def _id_of(path: Path) -> bytes:
    return np.frombuffer(sha256(path.read_bytes()).digest(), np.uint8).tobytes()
