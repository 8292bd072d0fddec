"""Inputs that have no features: which statuses there are, which are tried again, and all that a cache holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurecache.store.feature_sets import FeatureSet
    from featurecache.store.listings import Listing
    from featurecache.store.store import FeatureStore

PERMANENT = frozenset({"empty", "not_an_image", "undecodable", "too_large", "non_finite", "overflow"})
"""They follow from the bytes and the network: such a row is committed with status and reason, and not tried again."""
TRANSIENT = frozenset({"missing", "changed", "unreadable", "no_memory"})
"""They say nothing about the bytes: such a row is not committed, and the next run takes it."""


def list_bad(store: FeatureStore) -> list[dict[str, Any]]:
    """List every bad input once: unreadable files, and samples that some backbone could not use."""
    listings = store.listings.all()
    bad = [
        {"path": path, "status": "unreadable", "reason": reason}
        for listing in listings
        for path, reason in listing.problems.items()
    ]
    rows = {row: problem for feature_set in store.feature_sets() for row, problem in feature_set.open().bad.items()}
    uris = store.samples.uris_of(sorted(rows))
    return bad + [
        {"path": uri, "status": status, "reason": why}
        for uri, (_, (status, why)) in zip(uris, sorted(rows.items()), strict=True)
    ]


def bad_of_source(listing: Listing, sets: Sequence[FeatureSet]) -> dict[str, tuple[str, str]]:
    """Return status and reason of every bad input that a source holds now, by path.

    Parameters
    ----------
    listing : Listing
    sets : sequence of FeatureSet
        Of several the last one counts: all of them read the same files, and so have the same statuses.
    """
    bad = {path: ("unreadable", reason) for path, reason in listing.problems.items()}
    for feature_set in sets:
        rows = feature_set.open().bad
        indices, found = listing.find_rows(list(rows))
        bad |= {path: rows[row] for path, row in zip(listing.names_of(indices), found.tolist(), strict=True)}
    return dict(sorted(bad.items()))
