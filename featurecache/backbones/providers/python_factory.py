"""Anybody's own network: ``python:package.module:factory``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from featurecache.backbones.provider import Provided
from featurecache.errors import BackboneError
from featurecache.specs import PreprocessSpec

PREFIX = "python:"


class PythonFactoryProvider:
    """Calls a factory that takes no arguments and returns a network.

    The factory may carry two attributes: ``preprocess`` (a PreprocessSpec or a dict of its fields) and
    ``classifier`` (the path of the output layer, ``None`` for a network without one).
    """

    packages = ()

    def list_names(self) -> list[str]:
        """Return nothing: what can be imported is not listed."""
        return []

    def build(self, name: str, *, weights: Path | None, keep_classifier: bool) -> Provided:
        """Import the factory and call it."""
        from torch import nn

        full = PREFIX + name
        factory = _import_factory(full, name)
        try:
            module = factory()
        except (Exception, SystemExit) as error:
            raise BackboneError(f"{full} failed: {type(error).__name__}: {error}") from error
        if not isinstance(module, nn.Module):
            raise BackboneError(f"{full} returned {type(module).__name__}, not a torch.nn.Module")
        preprocess = _preprocess(full, getattr(factory, "preprocess", None))
        module.eval()
        classifiers, notes = _classifiers(full, factory, module, crop=preprocess.crop)
        return Provided(
            module=module, preprocess=preprocess, classifiers=classifiers, weights_source="python factory", notes=notes
        )

    def own_weights_digest(self, name: str) -> str | None:
        """Return ``None``: only running the factory tells."""
        return None

    def reproducible(self, name: str) -> bool:
        """Code can change without its name changing."""
        return False


def _import_factory(full: str, name: str) -> Any:
    path, separator, attribute = name.partition(":")
    if not separator or not path or not attribute:
        raise BackboneError(f"{full} should read python:package.module:factory")
    # An installed command does not have the working folder on its path, where people's own networks live.
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        factory = getattr(importlib.import_module(path), attribute)
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


def _classifiers(full: str, factory: Any, module: Any, *, crop: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if hasattr(factory, "classifier"):
        if factory.classifier is None:
            return (), ()
        if factory.classifier not in dict(module.named_modules()):
            raise BackboneError(f"{full} names {factory.classifier!r} as its classifier, which the network has not")
        return (factory.classifier,), ()
    if (path := _last_linear_if_output(full, module, crop=crop)) is not None:
        return (path,), (f"{path} taken for the output layer",)
    return (), ("no output layer found: pre_logits is the network's output (set the factory's `classifier`)",)


def _last_linear_if_output(full: str, module: Any, *, crop: int) -> str | None:
    """Return the last linear layer if the network's output is its output: removing another would break the network."""
    import torch
    from torch import nn

    linears = [path for path, layer in module.named_modules() if isinstance(layer, nn.Linear) and path]
    if not linears:
        return None
    seen: list[Any] = []
    handle = module.get_submodule(linears[-1]).register_forward_hook(lambda _module, _inputs, out: seen.append(out))
    try:
        with torch.inference_mode():
            output = module(torch.zeros(1, 3, crop, crop))
    except Exception as error:
        raise BackboneError(f"{full} rejects a {crop}x{crop} image: {type(error).__name__}: {error}") from error
    finally:
        handle.remove()
    is_output = bool(seen) and isinstance(output, torch.Tensor) and torch.equal(seen[-1], output)
    return linears[-1] if is_output else None
