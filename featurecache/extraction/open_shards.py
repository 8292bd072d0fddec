"""A shard that this worker has taken: its lease, its inputs, and the features that have come so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from featurecache.extraction.drafts import Draft
from featurecache.extraction.modality import InputDigests
from featurecache.extraction.pipeline import Outcome, joined
from featurecache.sources.inputs import Input
from featurecache.store.samples import Rows

MOST_DIGESTED = 4
"""Rows of a shard that are digested at each stage, so that two good ones are among them although some are bad."""
# Good rows of a shard whose digests before the network are kept, for the drift guard of later runs.
_REFERENCE_ROWS = 2
# What is worth writing by itself: the lesser of the two. Batches are small on a CPU, and a write for each of them cost
# more calls to the system than bytes.
_ROWS_AT_A_TIME, _BYTES_AT_A_TIME = 64, 32 << 20


@dataclass(eq=False)
class OpenShard:
    """A shard whose lease is held, on its way through the pipeline.

    Attributes
    ----------
    taps : tuple of str
        Those that still miss it.
    rows : ndarray of int64
    inputs : sequence of Input
        One for each row.
    lease : ExitStack
        Gives the lease back.
    drafts : list of Draft
        One for each tap; opened when the first features come, so that not every shard that is loaded ahead has files
        open.
    num_written : int
        Rows whose features are in the drafts.
    """

    taps: tuple[str, ...]
    rows: Rows
    inputs: Sequence[Input]
    lease: ExitStack
    drafts: list[Draft] = field(default_factory=list)
    num_written: int = 0
    _collected: list[Outcome] = field(default_factory=list)
    _num_come: int = 0
    _digests: dict[int, InputDigests] = field(default_factory=dict)

    def collect(self, outcome: Outcome) -> Outcome | None:
        """Take the next features; return all that wait where they are worth writing, or are the last."""
        # Outcomes come in the order of the rows, so as many as have come is the index of the next.
        self._digests |= {self._num_come + index: s for index, s in enumerate(outcome.digests) if s is not None}
        self._collected.append(outcome)
        self._num_come += len(outcome.problems)
        num_rows = sum(len(batch.problems) for batch in self._collected)
        num_bytes = sum(values.nbytes for batch in self._collected for values in batch.features.values())
        is_last = self._num_come == len(self.rows)
        if not (is_last or num_rows >= _ROWS_AT_A_TIME or num_bytes >= _BYTES_AT_A_TIME):
            return None
        waiting, self._collected = joined(self._collected), []
        return waiting

    def publish(self, ids: Any, record: Mapping[str, Any]) -> bool:
        """Commit the features of every tap; False where another worker was first with one.

        Parameters
        ----------
        ids : column of sample ids
        record : mapping
            What each commit says of how they were made.
        """
        good = [index for index in sorted(self._digests) if index not in self.drafts[0].bad]
        digests = [(int(self.rows[index]), self._digests[index]) for index in good[:_REFERENCE_ROWS]]
        record = {**record, "probe": [[row, digest.decoded, digest.prepared] for row, digest in digests]}
        # A list, so that all are published: a race that is lost for one tap may be won for another.
        won = [draft.publish(self.rows, ids[self.rows], record) for draft in self.drafts]
        return all(won)

    def close(self) -> None:
        """Give the lease back, and leave nothing behind that is not committed."""
        with self.lease:
            for draft in self.drafts:
                draft.close()
