"""A cache that was begun before a default changed is continued as it was, with a warning that names the new default.

Every change of a default that would give features of another fingerprint, tap or type goes through here:

* a provider says in `Provided.earlier` what it made of the same name before (preprocess, removed output layers, default
  tap), and `continue_earlier` loads that where the cache holds such features and none of today's;
* the stored type that ``--dtype auto`` stands for is that of the features which are there: see
  `featurecache.extraction.stored_type`.

A second tap, type or fingerprint never begins next to an old one in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.provider import EarlierDefault, PreprocessRefusedError
from featurecache.backbones.registry import load_backbone
from featurecache.backbones.taps import DEFAULT, Tap, resolve_taps
from featurecache.errors import ReportWarning
from featurecache.extraction.reproduction import with_recorded_architecture
from featurecache.specs import BackboneRequest
from featurecache.store.store import FeatureStore


def load_or_continue(cache: Path, request: BackboneRequest, names: Sequence[str]) -> tuple[Backbone, tuple[Tap, ...]]:
    """Load the backbone of a request as a cache needs it; see `continue_earlier`.

    Parameters
    ----------
    cache : Path
        Its folder, which may not be there yet.
    request : BackboneRequest
    names : sequence of str
        Taps, ``default`` among them.
    """
    store = FeatureStore.open(cache) if (cache / "FORMAT.json").exists() else None
    try:
        backbone = load_backbone(request)
    except PreprocessRefusedError as refused:
        if store is None:
            raise
        # What is refused today may be what this cache was begun with.
        for earlier in refused.earlier:
            before = load_backbone(request, earlier=earlier)
            taps = resolve_taps(before, names)
            if _holds(store, before, taps, names):
                return _warned(before, earlier, advice="a new cache cannot be begun"), taps
        raise
    if store is None:
        return backbone, resolve_taps(backbone, names)
    return continue_earlier(store, request, backbone, names)


def continue_earlier(
    store: FeatureStore, request: BackboneRequest, backbone: Backbone, names: Sequence[str]
) -> tuple[Backbone, tuple[Tap, ...]]:
    """Return the backbone and taps that a cache is extended with.

    Parameters
    ----------
    store : FeatureStore
        The cache.
    request : BackboneRequest
        What was asked for.
    backbone : Backbone
        What it means by the defaults of today.
    names : sequence of str
        Taps, ``default`` among them.

    Returns
    -------
    backbone, taps
        Those of today, unless the cache holds features that an earlier release made of this request and none of
        today's: then those, with a warning that names the new default.
    """
    for held in store.feature_sets():
        backbone = with_recorded_architecture(backbone, held.identity, held.about.weights_source)
    # Without a default tap today the cache may still hold that of an earlier release: refused only at the end.
    if DEFAULT in names and backbone.default.tap is None:
        taps: tuple[Tap, ...] = ()
    else:
        taps = resolve_taps(backbone, names)
    others = {
        s.identity.plain.fingerprint for s in store.feature_sets() if s.identity.backbone == backbone.identity.backbone
    }
    if not others or _holds(store, backbone, taps, names):
        return backbone, taps or resolve_taps(backbone, names)
    for earlier in backbone.earlier:
        only_tap_changed = earlier.preprocess is None and earlier.classifiers is None
        before = backbone if only_tap_changed else load_backbone(request, earlier=earlier)
        if before.identity.fingerprint not in others:
            continue
        taps_before = resolve_taps(before, [earlier.default_tap or name if name == DEFAULT else name for name in names])
        if _holds(store, before, taps_before, names):
            return _warned(before, earlier), taps_before
    return backbone, taps or resolve_taps(backbone, names)


def _holds(store: FeatureStore, backbone: Backbone, taps: Sequence[Tap], names: Sequence[str]) -> bool:
    """Tell whether a cache was begun with a backbone; where the default tap was asked for, with one of these taps."""
    held = {s.tap for s in store.feature_sets() if s.identity.plain.fingerprint == backbone.identity.fingerprint}
    return bool(held & {tap.name for tap in taps}) if DEFAULT in names else bool(held)


def _warned(
    backbone: Backbone, earlier: EarlierDefault, *, advice: str = "extract into another cache to have that"
) -> Backbone:
    warning = ReportWarning(
        kind=earlier.kind,
        count=1,
        text=f"this cache is continued as it was begun, and {earlier.now}; {advice}",
    )
    # The backbone's own warning of this kind is about a default that is not used here.
    others = tuple(warning for warning in backbone.warnings if warning.kind != earlier.kind)
    return replace(backbone, warnings=(*others, warning))
