"""Samples of a cache as inputs of the pipeline: rows of the sample table, found again in the source that holds them."""

from __future__ import annotations

from collections.abc import Sequence

from featurecache.sources.inputs import Input
from featurecache.sources.source import NO_STAMP, Source
from featurecache.spill import Spill
from featurecache.store.listings import Listing
from featurecache.store.samples import Rows, SampleTable


def inputs_of_rows(
    source: Source,
    listing: Listing,
    samples: SampleTable,
    rows: Rows,
    *,
    by_stamp: bool = True,
    kept: Spill | None = None,
) -> Sequence[Input]:
    """Return one input for each row; reading it says so where it is not what it was at the scan.

    Parameters
    ----------
    source : Source
    listing : Listing
        What the source held at the scan, the rows among it.
    samples : SampleTable
        Has the id of each row.
    rows : ndarray of int64
    by_stamp : bool
        What still has the stamp of the scan is taken for unchanged, as in the next scan; else only its bytes tell.
    kept : Spill, optional
        Bytes that the scan has kept.
    """
    # An unsettled stamp is none: its file could have been written again within the same tick of the clock.
    prefix = str(getattr(source, "prefix", ""))
    indices = listing.indices_of(rows)
    stamps = listing.stamps_of(indices).tolist() if by_stamp else [NO_STAMP] * len(rows)
    return [
        Input(source, name, identity.tobytes().hex(), tuple(stamp) if stamp[2] >= 0 else None, prefix, kept)
        for name, identity, stamp in zip(listing.names_of(indices), samples.ids[rows], stamps, strict=True)
    ]
