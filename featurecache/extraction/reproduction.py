"""The very backbone that stored features were made with, or a refusal that says what differs.

A record never decides what is opened, imported or asked of a network. What it names is used as it stands only where it
is a name of an installed registry whose weights are on this machine; for all else the caller says the name again.
"""

from __future__ import annotations

import shlex
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import cast

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.providers.hub_access import no_network
from featurecache.backbones.registry import is_listed, load_backbone
from featurecache.backbones.weights.loading import key_of
from featurecache.backbones.weights.random_weights import seed_of
from featurecache.errors import BackboneMismatchError, DownloadNeededError, NotAgreedError
from featurecache.specs import BackboneRequest, FeatureIdentity, PrecisionName

# Libraries whose providers take the names of their registries and nothing else.
_REGISTRIES = ("torchvision", "timm", "open_clip")
_WHAT_NAMES_ARE = {
    "python:": "which is code on this machine",
    "module:": "a network in the memory of a program",
    "hub:": "a checkout with code, wherever it lies now (hub:FOLDER:entrypoint)",
    "file:": "a program that can run code, wherever it lies now (file:PROGRAM.pt2)",
    "hf:": "a folder or a page of the hub, wherever it lies now (hf:FOLDER or hf:NAME)",
}


def reproduce_backbone(
    identity: FeatureIdentity,
    weights_source: str,
    *,
    needed_by: str,
    backbone: str | None = None,
    weights: str | Path | None = None,
    weights_key: str | None = None,
    also: tuple[str, ...] = (),
) -> Backbone:
    """Load the backbone of an identity.

    Parameters
    ----------
    identity : FeatureIdentity
        How the features were made; the same backbone makes plain features and those of views.
    weights_source : str
        Where the weights came from, as it was recorded.
    needed_by : str
        Who asks, for the messages: ``this head``.
    backbone : str, optional
        Agrees to run the code, to open the path or to download the weights that this name stands for.
    weights : path, optional
        The weights file, if it is not the provider's own.
    weights_key : str, optional
        The section of that file; the recorded one when left out.
    also : tuple of str
        Options that the caller needs besides, for the message.

    Raises
    ------
    NotAgreedError
        The record names what only the caller may decide to open; it has the options that agree.
    BackboneMismatchError
        The backbone here would make other features.
    """
    request = agreed_request(
        identity,
        weights_source,
        needed_by=needed_by,
        backbone=backbone,
        weights=weights,
        weights_key=weights_key,
        also=also,
    )
    name = identity.backbone
    try:
        # What only a record names is taken from this machine or not at all.
        with no_network() if backbone is None else nullcontext():
            network = _as_recorded(request, identity, weights_source)
    except DownloadNeededError as error:
        raise NotAgreedError(
            f"{needed_by} needs the backbone {name!r}, and {error}; to download them, pass --backbone "
            f"{shlex.quote(name)}, or the file with --weights",
            ("--backbone", name),
        ) from None
    # By the content of what was loaded: a name alone promises nothing.
    if differences := identity.plain.differences(network.identity):
        raise BackboneMismatchError(
            f"the backbone of {needed_by} cannot be reproduced here: {'; '.join(differences)}. It was made with "
            f"{weights_source}; pass that file with --weights"
        )
    return network


def agreed_request(
    identity: FeatureIdentity,
    weights_source: str,
    *,
    needed_by: str,
    backbone: str | None = None,
    weights: str | Path | None = None,
    weights_key: str | None = None,
    also: tuple[str, ...] = (),
) -> BackboneRequest:
    """Return the request of a recorded backbone, as far as its name opens nothing that the caller has not named.

    Parameters
    ----------
    identity, weights_source, needed_by, backbone, weights, weights_key, also
        As for `reproduce_backbone`.

    Raises
    ------
    NotAgreedError, BackboneMismatchError
        As `reproduce_backbone`.
    """
    name = identity.backbone
    if not may_be(name, backbone):
        advice = "leave --backbone out" if opened_by_name(name) else f"pass --backbone {shlex.quote(name)}"
        raise BackboneMismatchError(f"{needed_by} was made with backbone {name!r}, not {backbone!r}; {advice}")
    named = backbone if backbone is not None else opened_by_name(name)
    file_needed = weights is None and weights_source.startswith("file ")
    if named is None or file_needed or also:
        _raise_not_agreed(name if named is None else None, weights_source if file_needed else None, needed_by, also)
    return _request_of(identity, weights_source, backbone or name, weights, weights_key)


def _request_of(
    identity: FeatureIdentity, weights_source: str, name: str, weights: str | Path | None, weights_key: str | None
) -> BackboneRequest:
    seed = seed_of(weights_source) if weights is None else None
    return BackboneRequest(
        name=name,
        weights=None if weights is None else Path(weights),
        weights_key=weights_key or (None if weights is None else key_of(weights_source)),
        preprocess=tuple(sorted(identity.preprocess.choices().items())),
        init="pretrained" if seed is None else "random",
        seed=seed or 0,
        precision=cast(PrecisionName, identity.precision),
    )


def opened_by_name(name: str) -> str | None:
    """Return a name that a record may decide, None where the caller has to say it.

    Parameters
    ----------
    name : str
        Of a backbone, as a stranger's record may have it.
    """
    prefix, colon, _ = name.partition(":")
    if prefix + colon in _WHAT_NAMES_ARE:
        return None
    # Of other distributions' names it is not known whether they are paths, unless they list them.
    return name if not colon or prefix in _REGISTRIES or is_listed(name) else None


def _raise_not_agreed(name: str | None, file: str | None, needed_by: str, also: tuple[str, ...]) -> None:
    """Say everything at once that a caller has to add."""
    reasons, options = [], list(also)
    if name is not None:
        what = _WHAT_NAMES_ARE.get(name.partition(":")[0] + ":", "which its provider does not list")
        reasons.append(f"{needed_by} needs the backbone {name!r}, {what}; if you trust it, pass --backbone "
                       f"{shlex.quote(name)}")  # fmt: skip
        options += ["--backbone", name]
    if file is not None:
        reasons.append(f"{needed_by} was made with weights from the {file}; pass that file with --weights")
        options += ["--weights", file.removeprefix("file ").rpartition(" (sha256 ")[0] or "FILE"]
    if also:
        reasons.append(f"it has layers of somebody's own, which are code on this machine; if you trust it, pass "
                       f"{shlex.join(also)}")  # fmt: skip
    raise NotAgreedError("; ".join(reasons), options)


def with_recorded_architecture(network: Backbone, identity: FeatureIdentity, weights_source: str) -> Backbone:
    """Return an exported program under the digest that an earlier release gave its architecture.

    Release 0.1 digested the file, or the calls in it by other rules. That it is the very file is known from the
    record of where the weights came from.

    Parameters
    ----------
    network : Backbone
        The program as it is known today.
    identity : FeatureIdentity
        As it was recorded.
    weights_source : str
        Recorded with it.
    """
    before = replace(network.identity, architecture=identity.architecture)
    same_file = weights_source.startswith("program ") and weights_source == network.weights_source
    return replace(network, identity=before) if same_file and before == identity.plain else network


def _as_recorded(request: BackboneRequest, identity: FeatureIdentity, weights_source: str) -> Backbone:
    """Load a backbone, by the defaults of today or else by those that the features were made with."""
    network = with_recorded_architecture(load_backbone(request), identity, weights_source)
    for earlier in network.earlier:
        if not identity.plain.differences(network.identity):
            break
        before = load_backbone(request, earlier=earlier)
        if not identity.plain.differences(before.identity):
            return before
    return network


def may_be(name: str, backbone: str | None) -> bool:
    """Tell whether a recorded backbone may be the one that is meant by a name; ``None`` names none, so any may be."""
    if backbone is None or name == backbone:
        return True
    # Files and folders may lie elsewhere now: of these the identity decides, not the path.
    return any(name.startswith(prefix) and backbone.startswith(prefix) for prefix in ("hub:", "hf:", "file:"))
