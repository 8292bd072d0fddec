"""Backbones by name. Importing this file imports no torch: an unchanged folder is recognised without it."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.backbones.provider import CERTAIN, EarlierDefault, PreprocessRefusedError, Provided, Provider
from featurecache.backbones.providers.efficientnet_lite import EfficientNetLiteProvider
from featurecache.backbones.providers.exported_program import ExportedProgramProvider
from featurecache.backbones.providers.hub_checkout import HubCheckoutProvider
from featurecache.backbones.providers.hugging_face import HuggingFaceProvider
from featurecache.backbones.providers.minilm import MiniLmProvider
from featurecache.backbones.providers.module_in_memory import ModuleProvider
from featurecache.backbones.providers.open_clip_models import OpenClipProvider
from featurecache.backbones.providers.pixels import ColoursProvider, PixelsProvider
from featurecache.backbones.providers.python_factory import PythonFactoryProvider
from featurecache.backbones.providers.timm_models import TimmProvider
from featurecache.backbones.providers.torchvision_models import TorchvisionProvider
from featurecache.backbones.providers.words import WordsProvider
from featurecache.backbones.weights.random_weights import random_source, seeded
from featurecache.errors import RequestError, UnknownNameError
from featurecache.hashing import digest_file, digest_json
from featurecache.plugins import load_plugin, plugin_names
from featurecache.specs import BackboneRequest
from featurecache.versions import installed_version

if TYPE_CHECKING:
    from featurecache.backbones.backbone import Backbone

_log = logging.getLogger(__name__)
_PROVIDERS: dict[str, Provider] = {}
ENTRY_POINTS = "featurecache.backbones"
"""Group under which an installed package offers a prefix (without its colon): a provider, or a class that makes one."""


def register_provider(prefix: str, provider: Provider) -> None:
    """Make backbones known.

    Parameters
    ----------
    prefix
        ``"mine:"`` for names such as ``mine:small``, or a whole backbone name without a colon.
    provider
        Builds the networks.
    """
    if prefix in _PROVIDERS:
        raise ValueError(f"provider {prefix!r} is already registered")
    _PROVIDERS[prefix] = provider


def list_backbones(pattern: str | None = None) -> list[str]:
    """Return the known backbone names.

    Parameters
    ----------
    pattern
        A glob, or a part of the name; every name without it.
    """
    names = sorted({name for provider in (*_PROVIDERS.values(), *_plugins()) for name in provider.list_names()})
    if pattern is None:
        return names
    # A word is taken for a part of a name, as in a search field.
    if not any(sign in pattern for sign in "*?["):
        pattern = f"*{pattern}*"
    return [name for name in names if fnmatch.fnmatchcase(name.lower(), pattern.lower())]


def _plugins() -> Iterator[Provider]:
    """Yield the providers of installed packages; one that is broken costs nobody the names of the others."""
    for prefix in plugin_names(ENTRY_POINTS):
        try:
            if f"{prefix}:" not in _PROVIDERS and (provider := _load_plugin(prefix)) is not None:
                yield provider
        except RequestError as error:
            _log.warning("%s", error)


def _load_plugin(prefix: str) -> Provider | None:
    def check(loaded: Any) -> Any:
        provider = loaded() if isinstance(loaded, type) else loaded
        methods = ("build", "list_names", "own_weights_digest", "reproducible")
        if missing := set(methods) - set(dir(provider)):
            raise TypeError(f"it is no provider, which has {min(missing)}()")
        return provider

    return load_plugin("backbone provider", prefix, group=ENTRY_POINTS, check=check)


def full_name(name: str) -> str:
    """Return a bare name with its provider where only one lists it, ``torchvision:alexnet`` for ``alexnet``.

    Any other name comes back as it is: of one that several list, loading says which they are.
    """
    if ":" in name or name in _PROVIDERS:
        return name
    same = [full for full in list_backbones() if full.partition(":")[2] == name]
    return same[0] if len(same) == 1 else name


def is_listed(name: str) -> bool:
    """Tell whether a provider that is installed lists a backbone of this name, so that it is no path of anything."""
    provider, _ = _find_provider(name)
    return name in provider.list_names()


def load_backbone(
    request: BackboneRequest, *, keep_classifier: bool = False, earlier: EarlierDefault | None = None
) -> Backbone:
    """Build a backbone, load its weights, remove its output layer and freeze it.

    Parameters
    ----------
    request
        Name, weights file and preprocess overrides. With a weights file nothing is fetched from a network.
    keep_classifier
        Keep the output layer; then its weights must be there too.
    earlier
        One of `Backbone.earlier`: build the backbone that this request meant before a default changed.
    """
    from featurecache.backbones.weights.checkpoints import check_exists
    from featurecache.backbones.weights.loading import check_finite

    provider, local_name = _find_provider(request.name)
    if request.weights is not None:
        check_exists(request.weights)
    provided = _build(provider, local_name, request, keep_classifier=keep_classifier)
    if earlier is not None:
        _as_before(provided, earlier)
    elif provided.refusal is not None:
        named = {name for name, value in request.preprocess if value is not None}
        # Where features or a head are reproduced, nothing of the provider's preprocess is left.
        if not set(provided.preprocess.choices()) <= named:
            raise PreprocessRefusedError(provided.refusal, provided.earlier)
    notes = [*provided.notes, *_load_file(provided, request, keep_classifier=keep_classifier)]
    if not keep_classifier:
        _remove_output_layers(provided)
    if request.init != "random":
        # Before it is frozen and digested: weights that hold NaN would become a fingerprint like any other.
        check_finite(provided.module, request.name if request.weights is None else str(request.weights))
    provided.module.eval().requires_grad_(False)
    return _assemble(request, provided, notes, joined=provided.join is not None and not keep_classifier)


def request_digest(request: BackboneRequest) -> str | None:
    """Digest a request without importing torch: it changes whenever the features could change.

    Returns
    -------
    digest
        ``None`` if that cannot be promised; then only loading the backbone tells.
    """
    provider, local_name = _find_provider(request.name)
    # Code that may change at any time: only loading it, and digesting what it made, tells.
    if not provider.reproducible(local_name):
        return None
    if request.weights is None:
        weights = random_source(request.seed) if request.init == "random" else provider.own_weights_digest(local_name)
    else:
        weights = digest_file(request.weights) if request.weights.is_file() else None
    if weights is None:
        return None
    # Where the name is a file or folder of this machine, what is in it counts as well as weights from elsewhere.
    is_path = (request.weights is not None or request.init == "random") and Path(local_name).expanduser().exists()
    packages = ("featurecache", "torch", *provider.packages)
    settings = {
        "name": request.name,
        "weights": weights,
        # The published name of a file may say which preprocess belongs to it.
        "weights_name": request.weights.name if request.weights else None,
        # Left out where it is not given, as before there was a choice.
        **({} if request.weights_key is None else {"weights_key": request.weights_key}),
        "place": provider.own_weights_digest(local_name) if is_path else None,
        "preprocess": [[name, _plain(value)] for name, value in sorted(request.preprocess)],
        "precision": request.precision,
        "versions": {package: installed_version(package) for package in packages},
    }
    return digest_json("backbone-request", 3, settings)


def _find_provider(name: str) -> tuple[Provider, str]:
    prefix, colon, rest = name.partition(":")
    provider = _PROVIDERS.get(prefix + colon) or (_load_plugin(prefix) if colon else None)
    if provider is None or (colon and not rest):
        raise _unknown_backbone(name)
    return provider, rest if colon else prefix


def _unknown_backbone(name: str) -> UnknownNameError:
    known = list_backbones()
    # Of a bare ``resnet18``, which several providers have, the caller chooses one.
    same = [repr(full) for full in known if full.partition(":")[2] == name]
    if same:
        return UnknownNameError("backbone", name, [], advice=f"did you mean {' or '.join(same)}?")
    prefix, colon, _ = name.partition(":")
    if colon and prefix + colon not in _PROVIDERS:
        return UnknownNameError(
            "backbone provider", prefix + colon, {*_PROVIDERS, *(f"{name}:" for name in plugin_names(ENTRY_POINTS))}
        )
    return UnknownNameError("backbone", name, known, advice="see `featurecache backbones`")


def _build(provider: Provider, name: str, request: BackboneRequest, *, keep_classifier: bool) -> Provided:
    is_random = request.init == "random"
    pretrained = not is_random and request.weights is None
    # The seed stands before everything that may draw: also factories that initialise their layers themselves, and the
    # first forward pass, which draws what lazy layers start with.
    with seeded(request.seed) if is_random else nullcontext():
        provided = provider.build(name, pretrained=pretrained, weights=request.weights, keep_classifier=keep_classifier)
        _find_output_layers(provided, request)
    if is_random:
        provided.weights_source = random_source(request.seed)
    return provided


def _find_output_layers(provided: Provided, request: BackboneRequest) -> None:
    """Find the output layers in the forward pass where the provider does not know them, on inputs as they will be."""
    if provided.classifiers is not None:
        return
    from featurecache.backbones.default_tap.output_layers import find_output_layers

    found = find_output_layers(provided, request)
    provided.classifiers, provided.default = found.classifiers, found.default
    provided.notes += found.notes
    provided.earlier += found.earlier_defaults()


def _as_before(provided: Provided, earlier: EarlierDefault) -> None:
    if earlier.preprocess is not None:
        provided.preprocess = earlier.preprocess
    if earlier.classifiers is not None:
        provided.classifiers, provided.join, provided.default = earlier.classifiers, None, CERTAIN


def _remove_output_layers(provided: Provided) -> None:
    from torch import nn

    if provided.join is not None:
        provided.join()
        return
    for path in provided.classifiers or ():
        provided.module.set_submodule(path, nn.Identity())


def _load_file(provided: Provided, request: BackboneRequest, *, keep_classifier: bool) -> tuple[str, ...]:
    """Load the file that is named, or the provider's own, and return what is to be noted of the former."""
    path, key = request.weights or provided.own_file, request.weights_key
    if path is None:
        return ()
    from featurecache.backbones.weights.checkpoints import read_checkpoint
    from featurecache.backbones.weights.loading import file_source, load_weights, name_warnings

    if request.weights is not None:
        provided.weights_source = file_source(path, key)
    provided.warnings += name_warnings(path)
    checkpoint = read_checkpoint(path, key)
    if provided.load_file is not None:
        provided.module = provided.load_file(checkpoint)
        return ()
    loaded = load_weights(
        provided.module,
        checkpoint,
        provided.classifiers or (),
        keep_classifier=keep_classifier,
        rename_key=provided.rename_key,
        what=request.name,
    )
    if request.weights is None:
        return ()
    provided.warnings += loaded.warnings
    return loaded.notes


def _assemble(request: BackboneRequest, provided: Provided, notes: list[str], *, joined: bool) -> Backbone:
    from featurecache.backbones import backbone as backbones
    from featurecache.specs import FeatureIdentity

    module = provided.module
    preprocess = provided.preprocess.override(**dict(request.preprocess))
    identity = FeatureIdentity(
        backbone=provided.identity_name or request.name,
        architecture=provided.architecture or backbones.architecture_digest(module),
        weights=backbones.weights_digest(module),
        preprocess=preprocess,
        precision=request.precision,
    )
    for note in notes:
        _log.info("%s: %s", request.name, note)
    return backbones.Backbone(
        name=request.name,
        module=module,
        preprocess=preprocess,
        classifier=provided.classifiers[0] if provided.classifiers and not joined else None,
        output_layers=provided.classifiers or (),
        identity=identity,
        notes=tuple(notes),
        num_parameters=sum(p.numel() for p in module.parameters()),
        num_trainable=sum(p.numel() for p in module.parameters() if p.requires_grad),
        **{name: getattr(provided, name) for name in _AS_PROVIDED},
    )


def _plain(value: object) -> object:
    """Return a JSON value for a preprocess setting."""
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise RequestError(f"preprocess setting {value!r} is not a plain value")


# Fields of a `Backbone` that are those of `Provided`.
_AS_PROVIDED = (
    *("default", "num_prefix_tokens", "has_class_token", "tokenizer", "token_pooling"),
    *("weights_source", "warnings", "earlier", "license"),
)
register_provider("efficientnet_lite0", EfficientNetLiteProvider())
register_provider("all_minilm_l6_v2", MiniLmProvider())
register_provider("torchvision:", TorchvisionProvider())
register_provider("pixels:", PixelsProvider())
register_provider("words", WordsProvider())
register_provider("colours", ColoursProvider())
register_provider("timm:", TimmProvider())
register_provider("hf:", HuggingFaceProvider())
register_provider("open_clip:", OpenClipProvider())
register_provider("hub:", HubCheckoutProvider())
register_provider("python:", PythonFactoryProvider())
register_provider("module:", ModuleProvider())
register_provider("file:", ExportedProgramProvider())
