"""Features of one tap on their way to a shard: converted as they come, measured, and committed when all are there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from featurecache.errors import InputError
from featurecache.extraction.pipeline import Outcome, to_stored
from featurecache.specs import shape_of_row
from featurecache.store.bad_inputs import TRANSIENT
from featurecache.store.constants import ConstantFinder
from featurecache.store.dtypes import Array, decode
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.image_warnings import REMARK_FIELDS
from featurecache.store.precision import finite_rows, measure_error, read_back, stored_arrays
from featurecache.store.row_runs import runs_of_rows
from featurecache.store.samples import Ids, Rows
from featurecache.store.schemas import Precision
from featurecache.store.shards import ShardWriter

# Rows whose error in the stored type is recorded; a fixed number, so that equal work gives equal records.
_ROWS_MEASURED = 32


class Draft:
    """Features of one tap on their way to a commit; `close` removes what was not committed.

    Parameters
    ----------
    feature_set : FeatureSet
        What they extend.
    shape : tuple of int
        Of the tap's features of one sample, or of one view of it.
    count : int
        Samples that will come, bad ones included.
    """

    def __init__(self, feature_set: FeatureSet, shape: tuple[int, ...], count: int) -> None:
        self.bad: dict[int, InputError] = {}
        self._cut: list[bool] = []
        self._set, self._dtype = feature_set, feature_set.dtype
        self._remarks: list[str] = []
        self._views = feature_set.identity.views
        # The scale of int8 is known only when all rows are: until then they are kept as they come.
        self._draft_dtype = "float32" if self._dtype == "int8" else self._dtype
        layout = {
            "features": (self._draft_dtype, (count, *shape_of_row(shape, self._views))),
            "id": ("uint8", (count, 32)),
        }
        self._writer = ShardWriter(feature_set.folder.path, layout, self._attributes)
        self._start = 0
        self._precision: Precision | None = None
        self._constant = ConstantFinder(self._views)

    def close(self) -> None:
        """Remove what was not committed."""
        self._writer.__exit__()

    def add(self, outcome: Outcome) -> None:
        """Take the next batch."""
        values = outcome.features[self._set.tap]
        stored, problems = to_stored(values, outcome.problems, self._draft_dtype)
        self._writer.append("features", stored)
        self._cut += outcome.cut
        self._remarks += outcome.remarks
        self.bad |= {self._start + index: error for index, error in problems.items()}
        self._start += len(values)
        # As readers will see them: what differs in float32 only may be constant in the stored type.
        self._constant.add(decode(np.delete(stored, list(problems), axis=0), self._draft_dtype))
        if self._precision is None and len(good := np.delete(values, list(problems), axis=0)[:_ROWS_MEASURED]):
            arrays = stored_arrays(good, self._dtype, self._views)
            self._precision = measure_error(good, arrays, against="float32", views=self._views)

    def publish(self, rows: Rows, ids: Ids, record: Mapping[str, Any]) -> bool:
        """Commit everything but rows whose inputs changed or vanished meanwhile.

        Parameters
        ----------
        rows : ndarray of int64
            Of the samples that came, in their order.
        ids : ndarray of uint8, shape (n, 32)
        record : mapping
            What else the commit says.

        Returns
        -------
        bool
            False if another writer was first.
        """
        keep = np.array([i not in self.bad or self.bad[i].status not in TRANSIENT for i in range(len(rows))], bool)
        if not keep.any():
            return True  # nothing to commit, and so nobody who could have been first
        # The usual case: what was written as it came is the shard. Else its good rows are copied into another one.
        if keep.all() and self._dtype == self._draft_dtype:
            self._writer.append("id", ids)
            return self._commit(self._writer, rows, keep, record)
        arrays = {"features": (self._dtype, self._writer.written("features")[keep])}
        if self._dtype == "int8":
            arrays = self._as_int8(arrays["features"][1])
        arrays["id"] = ("uint8", ids[keep])
        layout = {name: (dtype, values.shape) for name, (dtype, values) in arrays.items()}
        with ShardWriter(self._set.folder.path, layout, self._attributes) as writer:
            for name, (_, values) in arrays.items():
                writer.append(name, values)
            return self._commit(writer, rows, keep, record)

    def _as_int8(self, values: NDArray[np.float32]) -> dict[str, tuple[str, Array]]:
        """Return int8 features; only now are their steps known, and what is constant in them."""
        arrays = stored_arrays(values, "int8", self._views)
        good = finite_rows(values)
        measured = np.flatnonzero(good)[:_ROWS_MEASURED]
        some = {**arrays, "features": ("int8", arrays["features"][1][measured])}
        self._precision = measure_error(values[measured], some, against="float32", views=self._views)
        self._constant = ConstantFinder(self._views)
        self._constant.add(read_back(arrays)[good])
        return arrays

    @property
    def _attributes(self) -> dict[str, str]:
        return {
            "format": "featurecache",
            "kind": "features",
            "backbone": self._set.identity.backbone,
            "tap": self._set.tap,
            "fingerprint": self._set.fingerprint,
        }

    def _commit(self, writer: ShardWriter, rows: Rows, keep: NDArray[np.bool_], record: Mapping[str, Any]) -> bool:
        kept, cut = rows[keep], rows[keep & np.array(self._cut, bool)]
        remarks = np.array(self._remarks)[keep]
        # By the first row: two writers of the same rows meet at one name, and the first of them has it.
        key = f"{kept[0]:012d}"
        body = {
            "rows": runs_of_rows(kept),
            "bad": [[int(rows[i]), error.status, error.reason] for i, error in self.bad.items() if keep[i]],
            "fingerprint": self._set.fingerprint,
            "tap": self._set.tap,
            "precision": None if self._precision is None else msgspec.to_builtins(self._precision),
            **({"cut": runs_of_rows(cut)} if len(cut) else {}),
            **({} if (constant := self._constant.runs()) is None else {"constant": constant}),
            **{
                REMARK_FIELDS[remark]: runs_of_rows(kept[remarks == remark])
                for remark in np.unique(remarks).tolist()
                if remark
            },
            **record,
        }
        return self._set.folder.commit(key, writer.finish(key), body)
