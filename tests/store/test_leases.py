"""Leases spread work, expire by themselves, and never stop anybody for good."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from featurecache.store.leases import Leases

pytestmark = pytest.mark.quick
WITHOUT_LINKS = """
import errno, os
def refused(*paths):
    raise OSError(errno.EPERM, "no hard links here")
os.link = refused
"""


@pytest.fixture(params=["links", "no links"], autouse=True)
def prelude(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both kinds of file system; return what makes another process see the same kind."""
    if request.param == "links":
        return ""
    names: dict[str, object] = {}
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", os.link)  # given back when the block ends
        exec(WITHOUT_LINKS, names)
    monkeypatch.setattr(os, "link", names["refused"])
    return WITHOUT_LINKS


def test_a_held_lease_is_not_given_twice_and_comes_back(tmp_path: Path) -> None:
    first, second = Leases(tmp_path), Leases(tmp_path)
    with first.hold("a") as mine, second.hold("a") as theirs, second.hold("b") as other:
        assert (mine, theirs, other) == (True, False, True)
    with second.hold("a") as again:
        assert again
    assert list(tmp_path.iterdir()) == []


def test_a_lease_of_a_dead_process_is_free_at_once(tmp_path: Path, prelude: str) -> None:
    code = f"""{prelude}
import os
from pathlib import Path
from featurecache.store.leases import Leases
with Leases(Path({str(tmp_path)!r})).hold("a") as held:
    assert held
    os._exit(9)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 9
    assert (tmp_path / "a.lease").exists()
    with Leases(tmp_path).hold("a") as held:
        assert held


def test_a_silent_holder_elsewhere_expires_and_a_living_one_does_not(tmp_path: Path) -> None:
    lease = tmp_path / "a.lease"
    lease.write_text('{"host": "elsewhere", "boot": "x", "pid": 1}')
    with Leases(tmp_path).hold("a") as held:
        assert not held
    os.utime(lease, (time.time() - 110, time.time() - 110))
    with Leases(tmp_path).hold("a") as held:
        assert not held
    os.utime(lease, (time.time() - 130, time.time() - 130))
    with Leases(tmp_path).hold("a") as held:
        assert held


def test_the_heartbeat_keeps_a_lease_alive(tmp_path: Path) -> None:
    with Leases(tmp_path, heartbeat=0.05).hold("a") as held:
        assert held
        lease = tmp_path / "a.lease"
        os.utime(lease, (1, 1))
        for _ in range(100):
            if lease.stat().st_mtime > 1:
                break
            time.sleep(0.02)
        assert lease.stat().st_mtime > 1


@pytest.mark.parametrize(
    "content",
    ["", "{", "[1, 2]", "null", '"words"', "9" * 5000, '{"host": HOST, "boot": BOOT, "pid": 99999999999999999999}'],
)
def test_a_lease_that_names_no_holder_is_respected_until_it_expires(tmp_path: Path, content: str) -> None:
    # A stranger may have written it.
    with Leases(tmp_path).hold("mine"):
        mine = json.loads((tmp_path / "mine.lease").read_text())
    (tmp_path / "a.lease").write_text(
        content.replace("HOST", json.dumps(mine["host"])).replace("BOOT", json.dumps(mine["boot"]))
    )
    with Leases(tmp_path, expiry=60).hold("a") as free:
        assert not free
    Leases(tmp_path, expiry=60).holders()
    os.utime(tmp_path / "a.lease", (time.time() - 100,) * 2)
    with Leases(tmp_path, expiry=60).hold("a") as free:
        assert free


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: path.symlink_to("nowhere")])
def test_a_lease_that_is_no_file_stops_nobody_for_good(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "a.lease")
    if not (tmp_path / "a.lease").is_symlink():  # a link to nothing is nobody's
        os.utime(tmp_path / "a.lease", (time.time() - 100,) * 2)
    leases = Leases(tmp_path, expiry=60)
    assert leases.holders() == []
    with leases.hold("a") as free:
        assert free


def test_a_lease_whose_holder_is_not_written_yet_counts_as_alive(tmp_path: Path) -> None:
    (tmp_path / "a.lease").touch()
    with Leases(tmp_path).hold("a") as held:
        assert not held


def test_where_no_file_can_be_made_exclusively_work_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def no_exclusive(path: object, flags: int, *more: object, **options: object) -> int:
        if flags & os.O_EXCL and str(path).endswith(".lease"):
            raise OSError(errno.EOPNOTSUPP, "not here")
        return real(path, flags, *more, **options)

    monkeypatch.setattr(os, "open", no_exclusive)
    with Leases(tmp_path).hold("a") as held:
        assert held
