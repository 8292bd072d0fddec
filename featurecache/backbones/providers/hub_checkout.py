"""A checkout of a repository made for ``torch.hub``, on this machine: ``hub:FOLDER:entrypoint``.

What ``torch.hub.load(FOLDER, entrypoint, source="local")`` does: ``hubconf.py`` is imported with the folder on the
path, and the entry point is called. It is code and runs, as with any ``python:`` backbone. Nothing is cloned.
"""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from featurecache.backbones.provider import Provided, Provider
from featurecache.backbones.providers.python_factory import provide
from featurecache.backbones.torchvision_compat import retry_with_torchvision
from featurecache.code_notice import notice_code_of_others
from featurecache.errors import BackboneError, UnknownNameError, first_line

PREFIX = "hub:"


class HubCheckoutProvider(Provider):
    """Calls an entry point of a local ``hubconf.py``."""

    def build(self, name: str, *, pretrained: bool, weights: Path | None, keep_classifier: bool) -> Provided:
        """Call the entry point; its argument ``pretrained`` is set if it has one.

        Parameters
        ----------
        name, pretrained, weights, keep_classifier
            See `Provider.build`.
        """
        folder, entry = _parse(name)
        notice_code_of_others(PREFIX + name, "imports hubconf.py of that folder and runs its code")
        sys.path.insert(0, str(folder))  # as torch.hub does: hubconf.py imports its neighbours
        try:
            function = _entry_point(folder, entry)
            untrained = not pretrained and weights is None
            provided = provide(PREFIX + name, function, untrained=untrained, pretrained=pretrained)
        finally:
            sys.path.remove(str(folder))
        provided.weights_source = f"checkout {folder.name}, entry point {entry}"
        # Where the checkout lies says nothing about the features.
        provided.identity_name = f"{PREFIX}{folder.name}:{entry}"
        return provided


def _parse(name: str) -> tuple[Path, str]:
    path, _, entry = name.rpartition(":")
    if not path or not entry:
        raise BackboneError(f"{PREFIX}{name} should read {PREFIX}FOLDER:entrypoint")
    folder = Path(path).expanduser().resolve()
    if not (folder / "hubconf.py").is_file():
        raise BackboneError(f"{PREFIX}{name}: {folder} has no hubconf.py; clone the repository there")
    return folder, entry


def _entry_point(folder: Path, entry: str) -> Any:
    """Import ``hubconf.py`` and return one of its functions."""
    spec = spec_from_file_location("hubconf", folder / "hubconf.py")
    assert spec is not None
    assert spec.loader is not None
    loader, hubconf = spec.loader, module_from_spec(spec)
    try:
        retry_with_torchvision(lambda: loader.exec_module(hubconf))
    # Somebody else's code: anything can happen at its import.
    except (Exception, SystemExit) as error:
        problem = f"{type(error).__name__}: {first_line(error)}"
        raise BackboneError(f"hubconf.py of {folder} cannot be loaded: {problem}") from error
    # As torch.hub has it: what begins with an underscore is no entry point.
    known = {name: value for name, value in vars(hubconf).items() if callable(value) and not name.startswith("_")}
    if entry not in known:
        raise UnknownNameError("entry point", entry, list(known))
    return known[entry]
