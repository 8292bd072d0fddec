"""Leases: who is working on which shard, so that several writers share the work instead of doing it twice.

No lease is needed for safety: commits are published first-writer-wins, so the worst that a lost or expired lease
can do is to have a shard computed twice. A lease is a file made exclusively and touched while its holder lives. Its age
is read off the file system's own clock (the mtime of a file touched just now), so machines need not agree on the time.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from featurecache.atomic import make_folder, partial_name
from featurecache.files import open_regular
from featurecache.stopping import forget, temporary

# Twelve heartbeats must be missed before a lease counts for nothing: network file systems stall, and what a worker does
# whose lease is lost too early is done twice. Longer, and others wait for a worker that was killed with its machine.
HEARTBEAT_SECONDS = 10.0
EXPIRY_SECONDS = 120.0


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    Attributes
    ----------
    host, pid : str, int
    age : float
        Seconds since it last touched the lease.
    """

    host: str
    pid: int
    age: float


class Leases:
    """The leases of one folder of shards.

    Parameters
    ----------
    folder : Path
        Where the lease files lie; made when the first is taken.
    heartbeat, expiry : float
        Seconds between two signs of life, and seconds without one after which a lease counts for nothing.
    """

    def __init__(self, folder: Path, *, heartbeat: float = HEARTBEAT_SECONDS, expiry: float = EXPIRY_SECONDS) -> None:
        self._folder, self._heartbeat, self._expiry = folder, heartbeat, expiry
        self._holder = json.dumps({"host": socket.gethostname(), "boot": _boot_id(), "pid": os.getpid()})

    @contextmanager
    def hold(self, key: str) -> Iterator[bool]:
        """Try to take the lease of ``key`` for the length of the block; yield whether it was free."""
        path = self._folder / f"{key}.lease"
        if not self._take(path):
            yield False
            return
        ended = threading.Event()
        beat = threading.Thread(target=self._keep_alive, args=(path, ended), daemon=True)
        beat.start()
        try:
            yield True
        finally:
            ended.set()
            beat.join()
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            forget(path)

    def is_taken(self, key: str) -> bool:
        """Tell whether there is a lease of ``key``, perhaps of a worker that died."""
        return (self._folder / f"{key}.lease").exists()

    def holders(self) -> list[Holder]:
        """Return who holds which lease, but for those that count for nothing; nothing is written."""
        found = []
        for path in sorted(self._folder.glob("*.lease")):
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # given back, or says nothing
                holder = _read_holder(path)
                # By this machine's clock, as that of a file system cannot be asked where nothing can be written. Of a
                # machine whose clock goes ahead of it, leases have been touched just now.
                age = max(time.time() - path.stat().st_mtime, 0.0)
                if not self._is_lost(holder, age):
                    found.append(Holder(str(holder["host"]), int(str(holder["pid"])), age))
        return found

    def _take(self, path: Path) -> bool:
        try:
            # Lastingly, though leases need not last: who finds a folder takes the way to it for flushed to the disk.
            if not self._folder.is_dir():
                make_folder(self._folder)
        except OSError as error:
            # A cache that only can be read is looked at, and nobody is at work there.
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise
            return True
        if self._create(path):
            return True
        if not self._is_dead(path):
            return False
        # Only one of several who find a dead lease moves it away; then all are equal again.
        tombstone = partial_name(path)
        with contextlib.suppress(OSError):
            path.rename(tombstone)
            tombstone.unlink(missing_ok=True)
        return self._create(path)

    def _create(self, path: Path) -> bool:
        # Written elsewhere and linked, so that a lease is never seen without its holder.
        draft = partial_name(path)
        try:
            draft.write_text(self._holder)
            os.link(draft, path)
            temporary(path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                raise
            return self._create_without_links(path)
        finally:
            draft.unlink(missing_ok=True)
        return True

    def _create_without_links(self, path: Path) -> bool:
        """Make the file exclusively: for a moment it is there without its holder, who then counts as alive."""
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        except OSError:
            return True  # where not even that can be done, work goes on without leases
        temporary(path)
        with os.fdopen(descriptor, "w") as file:
            file.write(self._holder)
        return True

    def _is_dead(self, path: Path) -> bool:
        try:
            age = self._now() - path.stat().st_mtime
            holder = _read_holder(path)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return self._is_lost(holder, age)

    def _is_lost(self, holder: dict[str, object], age: float) -> bool:
        """Tell whether a holder will never give its lease back."""
        if age > self._expiry:
            return True
        mine = json.loads(self._holder)
        same_machine = all(holder.get(name) == mine[name] for name in ("host", "boot"))
        return same_machine and not _is_running(holder.get("pid"))

    def _now(self) -> float:
        """The file system's clock."""
        stamped = partial_name(self._folder / "clock")
        stamped.touch()
        try:
            return stamped.stat().st_mtime
        finally:
            stamped.unlink(missing_ok=True)

    def _keep_alive(self, path: Path, ended: threading.Event) -> None:
        while not ended.wait(self._heartbeat):
            with contextlib.suppress(OSError):  # stolen or the disk is away: at worst the work is done twice
                os.utime(path)


def _read_holder(path: Path) -> dict[str, object]:
    """Read what a lease says; nothing where it is half written, cut off by a power cut, unreadable or a stranger's."""
    # A named pipe would be waited for.
    with contextlib.suppress(OSError, ValueError, RecursionError), open_regular(path) as (file, _):
        holder = json.loads(file.read(4096))
        if isinstance(holder, dict):
            return holder
    return {}


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _is_running(pid: object) -> bool:
    try:
        os.kill(pid, 0)  # type: ignore[arg-type]
    except (OSError, OverflowError, TypeError) as error:  # somebody else's process, or no number of one, may run
        return not isinstance(error, ProcessLookupError)
    return True
