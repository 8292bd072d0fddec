"""Classification networks of torchvision, ``torchvision:NAME``."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import Any

from featurecache.backbones.provider import PinnedProvider, Provided
from featurecache.backbones.providers.hub_access import check_network_allowed, socket_timeout
from featurecache.backbones.torchvision_compat import import_torchvision
from featurecache.errors import BackboneError, UnknownNameError, WeightsError, first_line
from featurecache.hashing import digest_file, digest_json
from featurecache.specs import PreprocessSpec

PREFIX = "torchvision:"
_TIMEOUT_S = 10.0
# torchvision's own loaders rename these keys of its DenseNet files, which are older than its DenseNet code.
_OLD_DENSENET_KEY = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")
# These two undo the normalisation inside the network, but only when the weights are known to need it.
_TRANSFORM_INPUT = {"googlenet", "inception_v3"}


class TorchvisionProvider(PinnedProvider):
    """Builds ``torchvision:NAME``."""

    packages = ("torchvision",)

    def list_names(self) -> list[str]:
        """Return the classification networks."""
        torchvision = import_torchvision()
        return [PREFIX + name for name in torchvision.models.list_models(module=torchvision.models)]

    def build(self, name: str, *, pretrained: bool, weights: Path | None, keep_classifier: bool) -> Provided:
        """Build the network; own weights come from the torch hub's folder or its server.

        Parameters
        ----------
        name, pretrained, weights, keep_classifier
            See `Provider.build`.
        """
        models = import_torchvision().models
        if PREFIX + name not in self.list_names():
            raise UnknownNameError("backbone", PREFIX + name, self.list_names())
        editions = models.get_model_weights(name)
        published = {edition.url.rsplit("/", 1)[-1]: edition for edition in editions}
        # By the name of the file that is given: the preprocess of those weights may differ from the default's.
        edition = published.get(weights.name if weights else "", editions.DEFAULT)
        module = models.get_model(name, weights=None, **_options(name, edition))
        rename_key = partial(_OLD_DENSENET_KEY.sub, r"\1\2.")
        provided = Provided(
            module=module,
            preprocess=_preprocess(edition),
            classifiers=(_classifier_path(module),),
            num_prefix_tokens=1 if isinstance(module, models.VisionTransformer) else 0,
            license=edition.meta.get("license"),
            rename_key=rename_key,
        )
        if pretrained:
            provided.own_file = _fetch(PREFIX + name, edition.url)
            provided.weights_source = f"torchvision {edition} ({provided.own_file.name})"
        return provided

    def own_weights_digest(self, name: str) -> str | None:
        """Digest every file of that network in the torch hub's folder: which one is used follows from the version."""
        files = sorted(_hub_folder().glob(f"{name}-*.pth"))
        if not files:
            return None
        return digest_json("torchvision-files", 1, {file.name: digest_file(file) for file in files})


def _options(name: str, edition: Any) -> dict[str, int]:
    """Return the arguments that torchvision itself derives from the weights."""
    if name in _TRANSFORM_INPUT:
        return {"transform_input": True, "init_weights": False}
    # A transformer is built for one size; some weights want a larger one than the network's default.
    return {"image_size": edition.meta["min_size"][0]} if name.startswith("vit_") else {}


def _fetch(backbone: str, url: str) -> Path:
    """Return the weights file in the torch hub's folder, downloading it once."""
    import torch

    file = _hub_folder() / url.rsplit("/", 1)[-1]
    if file.is_file():
        return file
    check_network_allowed(backbone)
    file.parent.mkdir(parents=True, exist_ok=True)
    # Publishers put the beginning of the SHA-256 into the name; torch.hub compares it while it downloads.
    promised = re.search(r"-([0-9a-f]{8,})\.", file.name)
    try:
        # The one switch that people know; torch.hub has none.
        if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
            raise OSError("HF_HUB_OFFLINE is set")
        with socket_timeout(_TIMEOUT_S):
            torch.hub.download_url_to_file(url, str(file), promised[1] if promised else None, progress=False)
    # urllib, http.client, ssl, socket and torch.hub each raise their own here.
    except Exception as error:
        raise WeightsError(
            f"weights of {backbone} cannot be downloaded ({first_line(error)}): bring {file.name} ({url}) to this "
            f"machine and pass --weights FILE, or put it in {file.parent}"
        ) from error
    return file


def _hub_folder() -> Path:
    """Return the torch hub's checkpoint folder by torch's rules, without importing torch."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME") or str(Path(cache) / "torch")
    return Path(os.path.expandvars(home)).expanduser() / "hub" / "checkpoints"


def _preprocess(edition: Any) -> PreprocessSpec:
    settings = edition.transforms()
    return PreprocessSpec(
        resize=int(settings.resize_size[0]),
        crop=int(settings.crop_size[0]),
        interpolation=settings.interpolation.value,
        mean=tuple(settings.mean),
        std=tuple(settings.std),
    )


def _classifier_path(module: Any) -> str:
    """Find the output layer: the last linear layer, or SqueezeNet's convolution."""
    from torch import nn

    # By class and not by name: fc, classifier.3, heads.head and head are all in use.
    linears = [path for path, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    if linears:
        return linears[-1]
    if isinstance(layer := getattr(module, "classifier", None), nn.Sequential):
        return next(f"classifier.{path}" for path, child in layer.named_children() if isinstance(child, nn.Conv2d))
    raise BackboneError(f"{type(module).__name__} has no output layer that is known here")
