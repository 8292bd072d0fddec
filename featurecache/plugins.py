"""What installed packages offer by entry point: sources, backbones, engines and heads, each in a group of its own.

A name of ours cannot be taken over: a package that happens to be installed must not decide where an extraction runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any

from featurecache.errors import MissingExtraError, RequestError, UnknownNameError


def plugin_names(group: str) -> list[str]:
    """Return the names that installed packages offer in a group, without importing any of them."""
    return sorted({point.name for point in entry_points(group=group)})


def load_plugin(kind: str, name: str, *, group: str, check: Callable[[Any], Any] = lambda loaded: loaded) -> Any | None:
    """Import what an installed package offers under a name; None where no package does.

    Parameters
    ----------
    kind : str
        What it is, in the words of messages: ``engine``.
    name : str
    group : str
        Of the entry points: ``featurecache.engines``.
    check : callable
        Takes what was imported, and returns what is used instead; raises `TypeError` where that is of another kind.

    Raises
    ------
    RequestError
        Two packages offer it, or the one that does cannot be used.
    """
    found = list(entry_points(group=group, name=name))
    if not found:
        return None
    origins = {
        f"{point.value} ({'an unknown package' if point.dist is None else point.dist.name})": point for point in found
    }
    # The same value twice is one package that is on the path twice, as with an editable install.
    if len({point.value for point in found}) > 1:
        raise RequestError(
            f"{kind} {name!r} is offered more than once: {', '.join(sorted(origins))}; uninstall all but one"
        )
    try:
        return check(found[0].load())
    # Somebody else's code: anything can happen at its import.
    except (Exception, SystemExit) as error:
        reason = str(error) if isinstance(error, TypeError) else f"{type(error).__name__}: {error}"
        raise RequestError(
            f"{kind} {name!r} of {next(iter(origins))} cannot be used: {reason}; repair or uninstall it"
        ) from error


def load_named(kind: str, name: str, own: Mapping[str, Any], *, group: str) -> Any:
    """Return what a name stands for: one of ours, or what an installed package offers.

    Parameters
    ----------
    kind, name, group
        As for `load_plugin`, and errors as there.
    own : mapping of str to object
        Ours; they come first.

    Raises
    ------
    UnknownNameError
        Nobody offers it.
    """
    # Ours first, whatever is installed.
    loaded = own.get(name) or load_plugin(kind, name, group=group)
    if loaded is None:
        raise UnknownNameError(kind, name, [*own, *plugin_names(group)])
    return loaded


def import_extra(package: str, extra: str) -> Any:
    """Import an optional package, or raise `MissingExtraError`, which names the extra that brings it."""
    if find_spec(package) is None:
        raise MissingExtraError(package, extra)
    return import_module(package)
