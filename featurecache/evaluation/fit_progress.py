"""How far fits are: which head, at which of its settings, for how long.

A search may take hours in another process, which shares nothing with this one but the disk: so each writes one
small file, and a thread here reads them. Queues of multiprocessing would need one more process with joblib: a server.
On another machine the folder is not there, and nothing is written.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from featurecache.evaluation.configuring import in_words
from featurecache.progress import Progress, Silent

SECONDS_BETWEEN_READS = 1.0
"""People read no faster, and a hundred searches of a second each should not write on the screen."""


@dataclass(frozen=True, slots=True)
class FitSteps:
    """Where a search writes how far it is; nowhere without a folder.

    Attributes
    ----------
    folder : Path or None
        From `watched`.
    label : str
        What is fitted, for people.
    started : float
        When the search was asked for.
    """

    folder: Path | None = None
    label: str = ""
    started: float = field(default_factory=time.time)

    def at(self, setting: int, count: int) -> None:
        """Write that setting number ``setting`` of ``count`` is being fitted; the first is 1."""
        if self.folder is None:
            return
        name = _own_name()
        partial = self.folder / f".{name}"
        with suppress(OSError):  # a full disk must not cost a fit of hours
            partial.write_text(f"{self.started}\n{self.label}: setting {setting} of {count}")
            # Renamed, so that the reader never finds half a line.
            partial.replace(self.folder / name)

    def end(self) -> None:
        """Take away what was written: nothing is being fitted by this thread."""
        if self.folder is not None:
            with suppress(OSError):
                (self.folder / _own_name()).unlink()


def _own_name() -> str:
    """Return the name of what this thread writes: each fits one head at a time."""
    return f"{os.getpid()}-{threading.get_ident()}"


@contextmanager
def watched(progress: Progress | None) -> Iterator[Path | None]:
    """Yield a folder for `FitSteps`, and say on ``progress`` what is in it while the block runs.

    None where nobody watches: then nothing is written.
    """
    if progress is None or isinstance(progress, Silent):
        yield None
        return
    with TemporaryDirectory(prefix="featurecache-fits-") as folder:
        ended = threading.Event()
        # A thread, because the main one waits inside joblib, or inside compiled code that lets others run.
        thread = threading.Thread(target=_say_steps, args=(Path(folder), progress, ended), name="fits", daemon=True)
        thread.start()
        try:
            yield Path(folder)
        finally:
            ended.set()
            thread.join()


def _say_steps(folder: Path, progress: Progress, ended: threading.Event) -> None:
    while not ended.wait(SECONDS_BETWEEN_READS):
        steps = []
        for path in sorted(folder.glob("[0-9]*")):
            with suppress(OSError):  # its fit has ended meanwhile
                started, _, text = path.read_text().partition("\n")
                steps.append(f"{text}, {in_words(time.time() - float(started))}")
        if steps:
            progress.say("; ".join(steps))
