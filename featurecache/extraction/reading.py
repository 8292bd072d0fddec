"""Samples of a cache as inputs of the pipeline: rows of the sample table, found again in the source that holds them."""

from __future__ import annotations

from collections.abc import Sequence

from featurecache.sources.inputs import Input
from featurecache.sources.source import Source
from featurecache.store.listings import Listing
from featurecache.store.samples import Rows, SampleTable


def inputs_of_rows(source: Source, listing: Listing, samples: SampleTable, rows: Rows) -> Sequence[Input]:
    """Return one input for each row; reading it says so where it is not what it was at the scan.

    Parameters
    ----------
    source : Source
    listing : Listing
        What the source held at the scan, the rows among it.
    samples : SampleTable
        Has the id of each row.
    rows : ndarray of int64
    """
    ids = [identity.tobytes().hex() for identity in samples.ids[rows]]
    return source.inputs(listing.paths_of(rows), ids, listing.stamps_of(rows))
