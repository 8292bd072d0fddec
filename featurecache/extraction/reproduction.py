"""The very backbone that stored features were made with, or a refusal that says what differs."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.random_weights import seed_of
from featurecache.backbones.registry import load_backbone
from featurecache.backbones.weights import key_of
from featurecache.errors import BackboneMismatchError
from featurecache.specs import BackboneRequest, FeatureIdentity, InitName, PrecisionName


def reproduce_backbone(
    identity: FeatureIdentity,
    made_with: str,
    *,
    needed_by: str,
    backbone: str | None = None,
    weights: str | Path | None = None,
    weights_key: str | None = None,
) -> Backbone:
    """Load the backbone of an identity.

    Parameters
    ----------
    identity : FeatureIdentity
        How the features were made; the same backbone makes plain features and those of views.
    made_with : str
        Where the weights came from, as it was recorded.
    needed_by : str
        Who asks, for the messages: ``this head``.
    backbone : str, optional
        Needed only for a ``python:`` backbone: naming it here agrees to run that code, which a record never does.
    weights : path, optional
        The weights file, if it is not the provider's own.
    weights_key : str, optional
        The part of that file; the recorded one when left out.

    Raises
    ------
    BackboneMismatchError
        The backbone here would make other features.
    """
    name = identity.backbone
    if name.startswith("python:") and backbone != name:
        raise BackboneMismatchError(
            f"{needed_by} needs the backbone {name!r}, which is code on this machine; "
            f"if you trust it, pass --backbone {name}"
        )
    if name.startswith("hub:") and backbone is None:
        raise BackboneMismatchError(
            f"{needed_by} needs the backbone {name!r}, a checkout with code; if you trust it, pass --backbone "
            "hub:FOLDER:entrypoint"
        )
    if name.startswith("file:") and backbone is None and not Path(name.removeprefix("file:")).is_file():
        raise BackboneMismatchError(
            f"{needed_by} needs the backbone {name!r}, an exported program; pass --backbone file:PROGRAM.pt2"
        )
    if backbone is not None and not may_be(name, backbone):
        raise BackboneMismatchError(
            f"{needed_by} was made with backbone {name!r}, not {backbone!r}; leave --backbone out"
        )
    if weights is None and made_with.startswith("file "):
        raise BackboneMismatchError(
            f"{needed_by} was made with weights from the {made_with}; pass that file with --weights"
        )
    preprocess = tuple(sorted(identity.preprocess.choices().items()))
    path = None if weights is None else Path(weights)
    seed = seed_of(made_with) if path is None else None
    init: InitName = "pretrained" if seed is None else "random"
    request = BackboneRequest(
        name=backbone or name,
        weights=path,
        weights_key=weights_key or (None if path is None else key_of(made_with)),
        preprocess=preprocess,
        init=init,
        seed=seed or 0,
        precision=cast(PrecisionName, identity.precision),
    )
    network = _as_recorded(request, identity)
    if differences := identity.plain.differences(network.identity):
        raise BackboneMismatchError(
            f"the backbone of {needed_by} cannot be reproduced here: {'; '.join(differences)}. It was made with "
            f"{made_with}; pass that file with --weights"
        )
    return network


def _as_recorded(request: BackboneRequest, identity: FeatureIdentity) -> Backbone:
    """Load a backbone, by the defaults of today or else by those that the features were made with."""
    network = load_backbone(request)
    for earlier in network.earlier:
        if not identity.plain.differences(network.identity):
            break
        before = load_backbone(request, earlier=earlier)
        if not identity.plain.differences(before.identity):
            return before
    return network


def may_be(name: str, backbone: str) -> bool:
    """Tell whether a backbone may be the recorded one: of files and folders the identity decides, not the place."""
    prefixes = ("hub:", "hf:", "file:")
    return name == backbone or any(name.startswith(prefix) and backbone.startswith(prefix) for prefix in prefixes)
