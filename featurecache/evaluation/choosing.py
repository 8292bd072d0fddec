"""Which cached features heads are trained on, where the request leaves that open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict, Unpack

from featurecache.errors import RequestError
from featurecache.heads.registry import needs_tokens
from featurecache.store.feature_sets import FeatureSet, pooled_if_any, prefer_wider
from featurecache.store.store import FeatureStore


class FeatureChoice(TypedDict, total=False):
    """Only features of this backbone, fingerprint, stored type and number of views; see `FeatureStore.select_sets`."""

    backbone: str | None
    fingerprint: str | None
    dtype: str | None
    views: int | None


def sets_to_train_on(
    store: FeatureStore,
    taps: Sequence[str] | None = None,
    heads: Sequence[str] = (),
    *,
    tta: bool = False,
    **choice: Unpack[FeatureChoice],
) -> list[FeatureSet]:
    """Return the feature sets of a training: one for each tap, plain ones and the widest type where both are there.

    Parameters
    ----------
    store : FeatureStore
    taps : sequence of str, optional
        Or ``all``: pooled taps, if there are any, unless a head needs tokens. When left out, the one there is.
    heads : sequence of str
        Names of the heads.
    tta : bool
        Heads are evaluated on views of each sample.
    **choice
        See `FeatureChoice`.

    Raises
    ------
    RequestError, UnknownNameError
        There are no such features, or several where one is needed.
    """
    if tta and choice.get("views") is None:
        choice["views"] = 0  # what is evaluated on does not say what is trained on
    if taps is None or "all" in taps:
        found = store.select_sets(**choice)
        # Whole maps of a layer are a hundred times as wide.
        found = found if any(map(needs_tokens, heads)) else pooled_if_any(found)
        return prefer_wider(found) if taps or len(found) == 1 else [store.find(**choice)]
    sets = [feature_set for tap in dict.fromkeys(taps) for feature_set in store.select_sets(tap=tap, **choice)]
    # Views are trained on where they are asked for: they take many times as long.
    plain = [feature_set for feature_set in sets if feature_set.num_views is None]
    return prefer_wider(plain if plain and choice.get("views") is None else sets)


def sets_to_sweep(
    store: FeatureStore, taps: Sequence[str] | None = None, heads: Sequence[str] = (), **choice: Unpack[FeatureChoice]
) -> list[FeatureSet]:
    """Return the feature sets of a sweep: all of the taps that are named, or all pooled ones; plain by default.

    Parameters
    ----------
    store, taps, heads, **choice
        As for `sets_to_train_on`.
    """
    choice["views"] = choice.get("views") or 0
    names: Sequence[str | None] = taps or [None]
    sets = [found for tap in names for found in store.select_sets(tap=tap, **choice)]
    if taps is None and not any(map(needs_tokens, heads)):
        sets = pooled_if_any(sets)
    return list({feature_set.key: feature_set for feature_set in sets}.values())


def set_of_images(store: FeatureStore, **choice: Unpack[FeatureChoice]) -> FeatureSet:
    """Return the features with the most samples of the one network that images are trained on by.

    Parameters
    ----------
    store, **choice
        As for `sets_to_train_on`.

    Raises
    ------
    RequestError
        Features of several networks, or of views.
    """
    if choice.get("views"):
        raise RequestError("--views is of cached views, and --from-images of none; show views with --augment views")
    choice["views"] = 0
    sets = store.select_sets(**choice)
    if others := [feature_set for feature_set in sets if feature_set.fingerprint != sets[0].fingerprint]:
        raise RequestError(
            f"{sets[0]} and {others[0]} are of two networks; say with --backbone or --fingerprint which of them is "
            "trained on images"
        )
    return max(sets, key=lambda feature_set: len(feature_set.open().rows))
