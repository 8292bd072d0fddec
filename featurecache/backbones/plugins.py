"""Providers of other distributions, found by their entry points in the group ``featurecache.backbones``.

The entry point's name is the prefix without its colon, its object a provider or a class without arguments that makes
one. Nothing is loaded before a name with that prefix is asked for, and a built-in prefix cannot be taken over.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from featurecache.backbones.provider import Provider
from featurecache.errors import BackboneError

GROUP = "featurecache.backbones"


def plugin_prefixes() -> list[str]:
    """Return the prefixes that other distributions offer, without loading them."""
    return sorted({f"{point.name}:" for point in entry_points(group=GROUP)})


def load_plugin(prefix: str) -> Provider | None:
    """Load the provider of a prefix (without colon); ``None`` if no distribution offers it."""
    found = list(entry_points(group=GROUP, name=prefix))
    if not found:
        return None
    # The same value twice is one distribution that is on the path twice, as with an editable install.
    if len({point.value for point in found}) > 1:
        offers = ", ".join(sorted(f"{point.value} ({_distribution(point)})" for point in found))
        raise BackboneError(f"backbones {prefix}: are offered more than once: {offers}; uninstall all but one")
    return _load(found[0])


def _load(point: EntryPoint) -> Provider:
    what = f"backbones {point.name}: of {_distribution(point)} ({point.value})"
    try:
        loaded: Any = point.load()
        provider: Any = loaded() if isinstance(loaded, type) else loaded
    # Somebody else's code: anything can happen at its import.
    except (Exception, SystemExit) as error:
        raise BackboneError(f"{what} cannot be loaded: {type(error).__name__}: {error}") from error
    methods = ("build", "list_names", "own_weights_digest", "reproducible")
    if missing := [name for name in methods if not callable(getattr(provider, name, None))]:
        raise BackboneError(f"{what} is no provider: it has no {missing[0]}()")
    return provider  # type: ignore[no-any-return]


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an unknown distribution"
