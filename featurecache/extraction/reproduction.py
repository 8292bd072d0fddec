"""The very backbone that stored features were made with, or a refusal that says what differs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.registry import load_backbone
from featurecache.errors import BackboneMismatchError
from featurecache.specs import BackboneRequest, FeatureIdentity


def reproduce_backbone(
    identity: FeatureIdentity,
    made_with: str,
    *,
    needed_by: str,
    backbone: str | None = None,
    weights: str | Path | None = None,
) -> Backbone:
    """Load the backbone of an identity.

    Parameters
    ----------
    identity : FeatureIdentity
        How the features were made.
    made_with : str
        Where the weights came from, as it was recorded.
    needed_by : str
        Who asks, for the messages: ``this head``.
    backbone : str, optional
        Needed only for a ``python:`` backbone: naming it here agrees to run that code, which a record never does.
    weights : path, optional
        The weights file, if it is not the provider's own.

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
    if backbone is not None and backbone != name:
        raise BackboneMismatchError(
            f"{needed_by} was made with backbone {name!r}, not {backbone!r}; leave --backbone out"
        )
    if weights is None and made_with.startswith("file "):
        raise BackboneMismatchError(
            f"{needed_by} was made with weights from the {made_with}; pass that file with --weights"
        )
    preprocess = tuple(sorted(asdict(identity.preprocess).items()))
    path = None if weights is None else Path(weights)
    network = load_backbone(BackboneRequest(name=name, weights=path, preprocess=preprocess))
    if differences := identity.differences(network.identity):
        raise BackboneMismatchError(
            f"the backbone of {needed_by} cannot be reproduced here: {'; '.join(differences)}. It was made with "
            f"{made_with}; pass that file with --weights"
        )
    return network
