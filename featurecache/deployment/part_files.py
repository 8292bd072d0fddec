"""The file of a finished part of predictions: a line of JSON for each input, and one that ends it, packed."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from featurecache.deployment.prediction import Prediction
from featurecache.errors import MAX_EXAMPLES, CorruptError
from featurecache.store.image_warnings import RemarkCounter


@dataclass
class PartDraft:
    """Predictions of a part that is being computed, packed as they come."""

    remarks: RemarkCounter = field(default_factory=RemarkCounter)
    count: int = 0
    num_bad: int = 0
    _packed: io.BytesIO = field(default_factory=io.BytesIO)

    @cached_property
    def _file(self) -> gzip.GzipFile:
        # Without a time: equal parts are equal bytes. Level 1 takes a tenth of the size for probabilities of nought.
        return gzip.GzipFile(fileobj=self._packed, mode="wb", compresslevel=1, mtime=0)

    def add(self, predictions: Sequence[Prediction], remarks: Sequence[str]) -> None:
        """Take the next predictions, and what is remarked on their inputs."""
        for item, remark in zip(predictions, remarks, strict=True):
            self.remarks.add(item.path, remark)
            self._file.write(json.dumps(_encoded(item), separators=(",", ":")).encode() + b"\n")
        self.count += len(predictions)
        self.num_bad += sum(item.status != "ok" for item in predictions)

    def to_bytes(self) -> bytes:
        """Return the whole file; nothing can be added after that."""
        remarks = self.remarks
        end = {"counts": remarks.counts, "flat": remarks.flat, "damaged": remarks.damaged, "count": self.count}
        self._file.write(json.dumps(end).encode() + b"\n")
        self._file.close()
        return self._packed.getvalue()


def read_part(path: Path, classes: Sequence[str], remarks: RemarkCounter) -> Iterator[Prediction]:
    """Yield the predictions of a part.

    Parameters
    ----------
    path : Path
    classes : sequence of str
        Of the head.
    remarks : RemarkCounter
        Gets those on the inputs.

    Raises
    ------
    CorruptError
        The file is damaged.
    """
    count, expected = 0, None
    try:
        with gzip.open(path, "rt", encoding="ascii") as file:
            for line in file:
                if isinstance(row := json.loads(line), dict):
                    remarks.counts.update(row["counts"])
                    for names, more in ((remarks.flat, row["flat"]), (remarks.damaged, row["damaged"])):
                        names += more[: max(MAX_EXAMPLES - len(names), 0)]
                    expected = row["count"]
                else:
                    count += 1
                    yield _decoded(row, classes)
    except (EOFError, gzip.BadGzipFile, ValueError, LookupError, TypeError, zlib.error):
        expected = None
    if count != expected:
        raise CorruptError(f"{path} is damaged; remove the file and run the command again")


def _encoded(item: Prediction) -> list[Any]:
    """Return the values of a prediction without the names of the classes, which are the same for all."""
    values = item.numbers or item.probabilities
    return [item.path, item.label, item.probability, list(values.values()), item.status, item.reason, item.p_value]


def _decoded(row: list[Any], classes: Sequence[str]) -> Prediction:
    path, label, probability, values, status, reason, p_value = row
    named = dict(zip(classes, values, strict=True)) if values else {}
    probabilities, numbers = ({}, named) if label is None else (named, {})
    return Prediction(path, label, probability, probabilities, status, reason, numbers, p_value)
