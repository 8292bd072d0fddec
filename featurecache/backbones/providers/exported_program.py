"""``file:PROGRAM.pt2`` is refused, and this says why.

``torch.export.load`` reads the weights of a program with ``weights_only=True``, but when that fails it unpickles the
same bytes without any limit, so a stranger's file can run code on the machine that opens it. Besides, an exported
program has one flat graph (no nodes to tap) and often one batch size. Who trusts a file loads it in a factory of their
own, where the trust is visible: ``python:package.module:factory``.
"""

from __future__ import annotations

from pathlib import Path

from featurecache.backbones.provider import Provided
from featurecache.errors import BackboneError


class ExportedProgramProvider:
    """Gives the reason why programs saved by ``torch.export`` are not loaded, instead of an unknown name."""

    packages = ()

    def list_names(self) -> list[str]:
        """Return nothing."""
        return []

    def build(self, name: str, *, pretrained: bool, weights: Path | None, keep_classifier: bool) -> Provided:
        """Refuse."""
        raise BackboneError(
            f"file:{name} is not loaded: torch.export.load falls back to unpickling, which can run any code in the "
            "file; if you trust it, load it in a function of your own and name that: python:package.module:factory"
        )

    def own_weights_digest(self, name: str) -> str | None:
        """Return ``None``."""
        return None

    def reproducible(self, name: str) -> bool:
        """Nothing is promised."""
        return False
