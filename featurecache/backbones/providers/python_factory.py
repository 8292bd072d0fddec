"""Anybody's own network: ``python:package.module:factory``."""

from __future__ import annotations

import inspect
import pkgutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.backbones.provider import Provided, Provider
from featurecache.backbones.torchvision_compat import retry_with_torchvision
from featurecache.code_notice import notice_code_of_others
from featurecache.errors import BackboneError, first_line
from featurecache.specs import PreprocessSpec

if TYPE_CHECKING:
    from torch import nn

PREFIX = "python:"


class PythonFactoryProvider(Provider):
    """Calls a factory that needs no arguments and returns a network.

    The factory may carry attributes: ``preprocess`` (a PreprocessSpec or a dict of its fields), ``classifier`` (the
    path of the output layer, ``None`` for a network without one), ``num_prefix_tokens`` (class and register tokens in
    front of the patch tokens), ``has_class_token`` and ``license``. One that takes ``pretrained`` is called with
    ``pretrained=False`` for a network before any training; without it the layers' own ``reset_parameters`` are called.
    """

    def build(self, name: str, *, pretrained: bool, weights: Path | None, keep_classifier: bool) -> Provided:
        """Import the factory and call it.

        Parameters
        ----------
        name, pretrained, weights, keep_classifier
            See `Provider.build`.
        """
        full = PREFIX + name
        factory = import_factory(full, name)
        untrained = not pretrained and weights is None
        provided = provide(full, factory, untrained=untrained)
        provided.weights_source = "python factory"
        return provided


def provide(full: str, factory: Callable[..., Any], *, untrained: bool, pretrained: bool | None = None) -> Provided:
    """Call somebody's function and describe the network that it returns.

    Parameters
    ----------
    full
        Name of the backbone, for messages.
    factory
        Returns the network; carries the attributes.
    untrained
        The weights must be those of a network before any training.
    pretrained
        What a factory with an argument of that name is called with, unless ``untrained``; None: its own default.
    """
    import torch

    from featurecache.backbones.weights.random_weights import reinitialise

    # The convention of timm and torchvision, which most own code keeps.
    try:
        takes_pretrained = "pretrained" in inspect.signature(factory).parameters
    except (TypeError, ValueError):  # a class of some extension module
        takes_pretrained = False
    if untrained:
        pretrained = False
    state = torch.get_rng_state()
    module = _call(
        full, factory if pretrained is None or not takes_pretrained else partial(factory, pretrained=pretrained)
    )
    if untrained and not takes_pretrained:
        torch.set_rng_state(state)  # the factory may have set a seed of its own
        reinitialise(full, module)
    return Provided(
        module=module,
        preprocess=_preprocess(full, getattr(factory, "preprocess", None)),
        classifiers=_declared_classifiers(full, factory, module),
        num_prefix_tokens=int(getattr(factory, "num_prefix_tokens", 0)),
        has_class_token=bool(getattr(factory, "has_class_token", True)),
        license=getattr(factory, "license", None),
    )


def _call(full: str, factory: Callable[[], Any]) -> nn.Module:
    import torch
    from torch import nn

    try:
        module = retry_with_torchvision(factory)
    except (Exception, SystemExit) as error:
        raise BackboneError(f"{full} failed: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(module, nn.Module):
        raise BackboneError(f"{full} returned {type(module).__name__}, not a torch.nn.Module")
    # Hooks on its layers are never called.
    if isinstance(module, torch.jit.ScriptModule):
        raise BackboneError(
            f"{full} returned TorchScript, whose layers cannot be tapped: return the network that it was made of, or "
            "save that with torch.export.save and use file:PROGRAM.pt2"
        )
    # What torch.compile wraps is the network, with the same weights.
    return getattr(module, "_orig_mod", module).eval()  # type: ignore[no-any-return]


def import_factory(full: str, name: str) -> Any:
    """Import somebody's function, ``package.module:function``; ``full`` is its name in messages.

    Raises
    ------
    BackboneError
        It cannot be imported, or called.
    """
    path, separator, attribute = name.partition(":")
    if not separator or not path or not attribute:
        raise BackboneError(f"{full} should read python:package.module:factory")
    notice_code_of_others(full, f"imports {path} and runs its code")
    # An installed command does not have the working folder on its path, where people's own networks live.
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        factory = retry_with_torchvision(lambda: pkgutil.resolve_name(name))
    except (Exception, SystemExit) as error:
        raise BackboneError(f"{full} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(factory):
        raise BackboneError(f"{full} is not callable")
    return factory


def _preprocess(full: str, declared: Any) -> PreprocessSpec:
    if declared is None:
        return PreprocessSpec()
    if isinstance(declared, PreprocessSpec):
        return declared
    if isinstance(declared, dict):
        return PreprocessSpec().override(**declared)
    raise BackboneError(f"{full} has a preprocess that is neither a PreprocessSpec nor a dict")


def _declared_classifiers(full: str, factory: Any, module: Any) -> tuple[str, ...] | None:
    """Return the output layer that the factory names; ``None`` where it says nothing, and it is to be found."""
    if not hasattr(factory, "classifier"):
        return None
    if factory.classifier is None:
        return ()
    if factory.classifier not in dict(module.named_modules()):
        raise BackboneError(f"{full} names {factory.classifier!r} as its classifier, which the network has not")
    return (factory.classifier,)
