"""Finished parts of predictions in a folder, for several workers and for a run that is killed and begun again.

The inputs are cut into parts of whole batches. A file holds the predictions of a part. Its name is a digest of all that
they follow from (the head, what the inputs are, what executes the network), so an edited input or another head finds
nothing that is of another.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from time import sleep

import msgspec
import numpy as np
from numpy.typing import NDArray

from featurecache.atomic import make_folder, publish_bytes, publish_once, published_folder
from featurecache.deployment.listed_inputs import ListedInputs, OpenedSource, list_inputs
from featurecache.deployment.part_files import PartDraft, read_part
from featurecache.deployment.prediction import Prediction
from featurecache.deployment.predictor import RuntimeChoice
from featurecache.errors import ReportWarning, RequestError
from featurecache.progress import Progress
from featurecache.records import encode_record, read_record
from featurecache.store.image_warnings import RemarkCounter
from featurecache.store.leases import Leases
from featurecache.text import TextColumn

# Seconds until the lease of a scan is tried again.
_PAUSE = 0.25
_RECORD, _END, _LEFT = "plan.json", "end.json", "left-"


class PartsGoneError(RequestError):
    """The parts of a run are no longer there: another process has written the table."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"another run has removed the finished parts in {folder}: it has written the table; name another one, or "
            "run the command again"
        )


@dataclass(frozen=True)
class Part:
    """Inputs that are predicted together: those from ``start`` to ``stop``, and the name of what comes of them."""

    key: str
    start: int
    stop: int


@dataclass(frozen=True)
class Plan:
    """What is to be predicted, as the first worker listed it.

    Attributes
    ----------
    name : str
        Follows from all of the others.
    inputs : ListedInputs
    contents : ndarray of uint8, shape (n, 32)
        Bytes that differ where samples do.
    warnings : list of ReportWarning
        Of what the sources hold besides.
    """

    name: str
    inputs: ListedInputs
    contents: NDArray[np.uint8]
    warnings: list[ReportWarning]

    def cut(self, made_with: str, size: int) -> list[Part]:
        """Cut the inputs into parts.

        Parameters
        ----------
        made_with : str
            Digest of the head and of what executes the network.
        size : int
            Inputs in a part.
        """
        names, count = self.inputs.names, len(self.inputs)
        parts = []
        for start in range(0, count, size):
            stop = min(start + size, count)
            hasher = hashlib.sha256(made_with.encode())
            for one, (begin, end) in zip(self.inputs.opened, pairwise(self.inputs.starts), strict=True):
                if max(begin, start) < min(end, stop):  # names as people read them, which the table has
                    hasher.update(f"\n{one.prefix}\n{max(begin, start) - start}".encode(errors="surrogatepass"))
            first, last = int(names.starts[start]), int(names.starts[stop])
            hasher.update((names.starts[start : stop + 1] - names.starts[start]).tobytes())
            hasher.update(names.text[first:last].tobytes())
            hasher.update(self.contents[start:stop].tobytes())
            parts.append(Part(hasher.hexdigest(), start, stop))
        return parts


@dataclass(frozen=True)
class End:
    """How a run has ended, for processes that did not write the table themselves.

    Attributes
    ----------
    num_inputs, num_bad : int
    first_bad : list of str, optional
        Name of the first bad input, and the reason.
    """

    num_inputs: int
    num_bad: int
    first_bad: list[str] | None


@dataclass(frozen=True, eq=False)
class PartsFolder:
    """The folder of a run.

    Parameters
    ----------
    path : path
        Made when it is first needed. Only what a run has put there is ever removed.
    """

    path: Path

    @cached_property
    def leases(self) -> Leases:
        """Who is at which part."""
        return Leases(self.path / "leases")

    def plan(self, opened: Sequence[OpenedSource], request: str, progress: Progress) -> Plan:
        """List the inputs, once for all workers that begin together, and keep the list.

        Parameters
        ----------
        opened : sequence of OpenedSource
        request : str
            Digest of what was asked for.
        progress : Progress
            Told that another process lists them.
        """
        make_folder(self.path)
        pattern = f"plan-{request[:16]}-*"
        before, has_waited = self._listed_at(pattern), False
        while True:
            with self.leases.hold("scan") as is_mine:
                if is_mine:
                    now = self._listed_at(pattern) if has_waited else {}
                    # Listed by another process while this one waited, unless it has ended its run since.
                    if new := [name for name in now if now[name] != before.get(name)]:
                        with contextlib.suppress(PartsGoneError):
                            return self.load_plan(max(new, key=now.__getitem__), opened)
                    return self._list(opened, request)
            if not has_waited:
                progress.say("another process lists the inputs")
            has_waited = True
            sleep(_PAUSE)

    def _listed_at(self, pattern: str) -> dict[str, int]:
        """Return the plans that are there, and when each was listed last."""
        found = {}
        for path in self.path.glob(pattern):
            with contextlib.suppress(FileNotFoundError):  # a run that ends removes its plan
                found[path.name] = path.stat().st_mtime_ns
        return found

    def _list(self, opened: Sequence[OpenedSource], request: str) -> Plan:
        inputs, contents, warnings = list_inputs(opened, with_contents=True)
        hasher = hashlib.sha256(request.encode())
        for values in (inputs.names.text, inputs.names.starts, contents):
            hasher.update(np.ascontiguousarray(values).tobytes())
        plan = Plan(f"plan-{request[:16]}-{hasher.hexdigest()[:32]}", inputs, contents, warnings)
        path = self.path / plan.name
        if path.is_dir():
            # Those that wait for it see that it is what the sources hold now.
            os.utime(path)
            return plan
        with contextlib.suppress(FileExistsError), published_folder(path, replace=False) as partial:
            for name, values in (("text", inputs.names.text), ("ends", inputs.names.starts), ("contents", contents)):
                np.save(partial / f"{name}.npy", values, allow_pickle=False)
            record = {"starts": list(inputs.starts), "warnings": [warning.to_json() for warning in warnings]}
            (partial / _RECORD).write_bytes(encode_record("prediction_plan", record))
        return plan

    def load_plan(self, name: str, opened: Sequence[OpenedSource]) -> Plan:
        """Read a plan; its columns are mapped, and no worker holds them.

        Parameters
        ----------
        name : str
        opened : sequence of OpenedSource
            The sources that it is of.

        Raises
        ------
        PartsGoneError
            Another process has ended the run.
        """
        path = self.path / name
        try:
            record = read_record(path / _RECORD, "prediction_plan")
            text, ends, contents = (
                np.load(path / f"{column}.npy", mmap_mode="r", allow_pickle=False)
                for column in ("text", "ends", "contents")
            )
        except FileNotFoundError:
            raise PartsGoneError(self.path) from None
        warnings = msgspec.convert(record["warnings"], list[ReportWarning])
        return Plan(name, ListedInputs(opened, TextColumn(text, ends), record["starts"]), contents, warnings)

    def has_plan(self, name: str) -> bool:
        """Tell whether a plan is there: it goes when the table is written."""
        return (self.path / name / _RECORD).exists()

    def choice(self, key: str) -> RuntimeChoice | None:
        """Return what the first worker has chosen for all; None before that."""
        try:
            record = read_record(self.path / f"runtime-{key}.json", "prediction_runtime")
        except FileNotFoundError:
            return None
        return msgspec.convert(record, RuntimeChoice)

    def choose(self, key: str, choice: RuntimeChoice) -> RuntimeChoice:
        """Choose for all workers, and return what holds: the first choice counts."""
        publish_once(self.path / f"runtime-{key}.json", encode_record("prediction_runtime", asdict(choice)))
        chosen = self.choice(key)
        assert chosen is not None
        return chosen

    def has(self, part: Part) -> bool:
        """Tell whether a part is finished."""
        return self._path(part).exists()

    def publish(self, part: Part, draft: PartDraft) -> None:
        """Keep a finished part, unless another worker was first."""
        publish_once(self._path(part), draft.to_bytes())

    def read(self, part: Part, classes: Sequence[str], remarks: RemarkCounter) -> Iterator[Prediction]:
        """Yield the predictions of a part.

        Parameters
        ----------
        part : Part
        classes : sequence of str
            Of the head.
        remarks : RemarkCounter
            Gets those on the inputs.

        Raises
        ------
        CorruptError
            The file is damaged.
        """
        yield from read_part(self._path(part), classes, remarks)

    def end(self, plan: str, out: Path) -> End | None:
        """Return how the run of a plan has ended, as long as the table is the one that it wrote.

        Parameters
        ----------
        plan : str
        out : Path
            The table.
        """
        with contextlib.suppress(FileNotFoundError):
            record = read_record(self.path / _END, "prediction_end")
            if record["plan"] == plan and record["table"] == _state(out):
                return msgspec.convert(record, End)
        return None

    def leave(self, name: str, size: int) -> None:
        """Note that a process has seen the end, and remove what is left once all have.

        Parameters
        ----------
        name : str
            Of the process.
        size : int
            Processes that were started together.
        """
        (self.path / f"{_LEFT}{name}").touch()
        if sum(1 for _ in self.path.glob(f"{_LEFT}*")) >= size:
            self.remove()

    def forget(self, plan: str) -> None:
        """Remove a plan that nobody will work on."""
        shutil.rmtree(self.path / plan, ignore_errors=True)
        self.remove_if_empty()

    def remove_if_empty(self) -> None:
        """Remove the folder where a look at leases has made it again after its run."""
        for path in (self.path / "leases", self.path):
            with contextlib.suppress(OSError):
                path.rmdir()

    def remove(self) -> None:
        """Remove all that runs have put here, and the folder where nothing else is in it."""
        if not self.path.is_dir():
            return
        self._remove_parts()
        for pattern in (_END, f".{_END}.*", f"{_LEFT}*"):
            for path in self.path.glob(pattern):
                path.unlink(missing_ok=True)
        shutil.rmtree(self.path / "leases", ignore_errors=True)
        with contextlib.suppress(OSError):  # there is something of somebody else's
            self.path.rmdir()

    def num_parts(self) -> int:
        """Count the parts that are finished."""
        return sum(1 for _ in self.path.glob("part-*.gz"))

    def _remove_parts(self) -> None:
        # Plans first: a worker that misses parts looks whether there is still a plan.
        for pattern in ("plan-*", ".plan-*"):
            for path in self.path.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)
        for pattern in ("part-*.gz", ".part-*", "runtime-*.json", ".runtime-*"):
            for path in self.path.glob(pattern):
                path.unlink(missing_ok=True)

    def finish(self, plan: str, out: Path, end: End) -> None:
        """Remove all, and leave the record of the end to processes that have not seen it.

        Parameters
        ----------
        plan : str
        out : Path
            The table.
        end : End
        """
        # Leases stay: whoever waits for that of the end sees its record before the lease is free.
        self._remove_parts()
        record = {"plan": plan, "table": _state(out), **asdict(end)}
        publish_bytes(self.path / _END, encode_record("prediction_end", record))

    def _path(self, part: Part) -> Path:
        return self.path / f"part-{part.key}.gz"


def _state(path: Path) -> list[int]:
    """Return numbers of which one differs once a file is another; none where there is no file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return []
    return [status.st_size, status.st_mtime_ns]
