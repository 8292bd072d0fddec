"""A network that a program holds already: ``module:NAME``, known in the process that named it.

Its identity is the digest of its weights and code's structure, as of any network; the name is for people. Another
process knows it once it is named there too.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

from featurecache.backbones.provider import Provided, Provider
from featurecache.backbones.providers.python_factory import provide
from featurecache.errors import BackboneError, RequestError

if TYPE_CHECKING:
    from torch import nn

PREFIX = "module:"
_modules: dict[str, nn.Module] = {}


def name_module(module: nn.Module, name: str | None = None) -> str:
    """Make a network known by a name, and return the name of the backbone.

    Parameters
    ----------
    module : nn.Module
        Is copied when it is used, and may go on being trained.
    name : str, optional
        The name of its class when left out; another network under the same name takes its place.

    Raises
    ------
    RequestError
        A name that could be taken for something else.
    """
    name = name or type(module).__name__
    if not name or any(mark in name for mark in ":/\\ "):
        raise RequestError(f"{name!r} cannot name a network: leave out spaces, colons and slashes")
    _modules[name] = module
    return f"{PREFIX}{name}"


class ModuleProvider(Provider):
    """Copies a network that was named in this process."""

    def list_names(self) -> list[str]:
        """Return the names in this process."""
        return [f"{PREFIX}{name}" for name in sorted(_modules)]

    def build(self, name: str, *, pretrained: bool, weights: Path | None, keep_classifier: bool) -> Provided:
        """Copy the network.

        Parameters
        ----------
        name, pretrained, weights, keep_classifier
            See `Provider.build`.

        Raises
        ------
        BackboneError
            No network of this name is in this process.
        """
        full = f"{PREFIX}{name}"
        if name not in _modules:
            raise BackboneError(
                f"{full} is a network in the memory of the program that made these features; in Python, name it again: "
                f"featurecache.name_module(network, {name!r})"
            )
        provided = provide(full, lambda: deepcopy(_modules[name]), untrained=not pretrained and weights is None)
        provided.weights_source = "a network in memory"
        return provided
