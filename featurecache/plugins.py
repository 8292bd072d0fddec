"""What other distributions offer by entry point: engines and sources, each under its own group.

Nothing is loaded before its name is asked for, and a name of ours cannot be taken over: a package that happens to be
installed must not decide where an extraction runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from featurecache.errors import RequestError, UnknownNameError


def load_named(kind: str, name: str, own: Mapping[str, Any], *, group: str) -> Any:
    """Return what a name stands for: one of ours, or what an installed distribution offers by entry point.

    Parameters
    ----------
    kind : str
        What is looked for, in the words of messages: ``engine``.
    name : str
        Its name.
    own : mapping of str to object
        Ours; they come first.
    group : str
        Of the entry points: ``featurecache.engines``.

    Raises
    ------
    UnknownNameError
        Nobody offers it.
    RequestError
        Two distributions offer it, or the one that does cannot be loaded.
    """
    if name in own:
        return own[name]
    found = list(entry_points(group=group, name=name))
    if not found:
        raise UnknownNameError(kind, name, [*own, *entry_points(group=group).names])
    if len({point.value for point in found}) > 1:
        offers = ", ".join(sorted(f"{point.value} ({_distribution(point)})" for point in found))
        raise RequestError(f"{kind} {name!r} is offered more than once: {offers}; uninstall all but one")
    try:
        return found[0].load()
    # Somebody else's code: anything can happen at its import.
    except (Exception, SystemExit) as error:
        raise RequestError(
            f"{kind} {name!r} of {_distribution(found[0])} ({found[0].value}) cannot be loaded: "
            f"{type(error).__name__}: {error}; reinstall it, or choose another {kind}"
        ) from error


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an unknown distribution"
