"""What providers of features by a rule have in common: they have no weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from featurecache.backbones.provider import PinnedProvider
from featurecache.errors import BackboneError
from featurecache.hashing import digest_json


class WeightlessProvider(PinnedProvider):
    """Builds networks that compute their features by a rule.

    Attributes
    ----------
    kind : str
        Name of the rule.
    settings : mapping
        Numbers in it that the features depend on.
    """

    kind: ClassVar[str]
    settings: ClassVar[Mapping[str, object]] = {}

    def own_weights_digest(self, name: str) -> str | None:
        """Digest the rule, as there is no file of weights."""
        return digest_json(self.kind, 1, self.settings)

    def check_pretrained(self, name: str, *, pretrained: bool) -> None:
        """Refuse random weights and those of a file.

        Parameters
        ----------
        name
            Of the backbone, for the message.
        pretrained
            The provider's own weights are asked for, which is to say none.
        """
        if not pretrained:
            raise BackboneError(f"{name} has no weights; leave --init and --weights out")
