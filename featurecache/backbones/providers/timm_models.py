"""Networks of timm, ``timm:NAME``; the extra ``timm``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, get_args

from featurecache.backbones.provider import PinnedProvider, Provided
from featurecache.backbones.providers.hub_access import check_network_allowed, quick_hub
from featurecache.backbones.providers.reference_transform import changed_rules, check_own_transform
from featurecache.backbones.torchvision_compat import import_dependent
from featurecache.errors import BackboneError, UnknownNameError, WeightsError
from featurecache.specs import Interpolation, PreprocessSpec, ResizeMode

if TYPE_CHECKING:
    from torch import nn

PREFIX = "timm:"
_CROP_MODES: dict[str, ResizeMode] = {"center": "shortest", "squash": "squash", "border": "longest"}


class TimmProvider(PinnedProvider):
    """Builds ``timm:NAME``, with or without a pretrained tag."""

    packages = ("timm", "torchvision")

    def list_names(self) -> list[str]:
        """Return the architectures; nothing where timm is absent."""
        if find_spec("timm") is None:
            return []
        return [PREFIX + name for name in import_dependent("timm", "timm").list_models()]

    def build(self, name: str, *, pretrained: bool, weights: Path | None, keep_classifier: bool) -> Provided:
        """Build the network; own weights come from the Hugging Face hub or its local cache.

        Parameters
        ----------
        name, pretrained, weights, keep_classifier
            See `Provider.build`.
        """
        timm = import_dependent("timm", "timm")
        _check_name(timm, name)
        module: Any = _create_pretrained(timm, name) if pretrained else timm.create_model(name)
        if pretrained and keep_classifier and not module.num_classes:
            raise WeightsError(f"weights of {PREFIX}{name} have no output layer")
        classifiers = _classifier_paths(module)
        config: Mapping[str, Any] = module.pretrained_cfg
        hub_name = config.get("hf_hub_id") or config.get("url") or "own weights"
        data_config = timm.data.resolve_model_data_config(module)
        preprocess = preprocess_of(timm, data_config, PREFIX + name)
        num_prefix_tokens, has_class_token = _prefix_tokens(timm, module)
        return Provided(
            module=module,
            preprocess=preprocess,
            classifiers=classifiers,
            join=_join(module, classifiers),
            num_prefix_tokens=num_prefix_tokens,
            has_class_token=has_class_token,
            license=config.get("license"),
            weights_source=f"timm {hub_name}" if pretrained else "none",
            earlier=changed_rules(_preprocess_before(data_config), preprocess, "timm's own transform"),
        )


def _check_name(timm: ModuleType, name: str) -> None:
    if not timm.is_model(name):
        raise UnknownNameError("backbone", PREFIX + name, [PREFIX + known for known in timm.list_models()])
    # A bare name takes the default weights; a tag has to be one that timm lists.
    if "." in name:
        tagged = timm.list_pretrained(name.partition(".")[0])
        if name not in tagged:
            raise UnknownNameError("backbone", PREFIX + name, [PREFIX + known for known in tagged])


def _create_pretrained(timm: ModuleType, name: str) -> nn.Module:
    config = timm.get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url or config.file):
        raise WeightsError(f"timm has no weights for {PREFIX}{name}: pass --weights FILE")
    if not config.hf_hub_id and not config.file and not timm.models._hub.check_cached_file(config.url):
        check_network_allowed(PREFIX + name)
    try:
        with quick_hub():
            return timm.create_model(name, pretrained=True)
    # The hub client, its HTTP library, urllib and safetensors each raise their own here.
    except Exception as error:
        check_network_allowed(PREFIX + name)
        source = f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else config.url
        raise WeightsError(
            f"weights of {PREFIX}{name} cannot be downloaded ({type(error).__name__}): bring model.safetensors from "
            f"{source} to this machine and pass --weights FILE"
        ) from error


def preprocess_of(timm: ModuleType, config: Mapping[str, Any], name: str) -> PreprocessSpec:
    """Return the preprocess that a data config of timm describes.

    Parameters
    ----------
    timm
        The package.
    config
        As ``timm.data.resolve_model_data_config`` returns it.
    name
        Of the backbone, for messages.
    """
    channels, height, width = config["input_size"]
    if channels != 3:
        raise BackboneError(
            f"{name} has input_size {channels}x{height}x{width}, and images have 3 channels here; choose a network of "
            "RGB images"
        )
    if (mode := config["crop_mode"]) not in _CROP_MODES:
        raise BackboneError(f"{name} has crop_mode {mode!r}, which is not known here; upgrade featurecache")
    interpolation: Any = "bicubic" if config["interpolation"] == "random" else config["interpolation"]
    if interpolation not in get_args(Interpolation):
        raise BackboneError(f"{name} has interpolation {interpolation!r}, which is not known here")
    red, green, blue = (round(255 * mean) for mean in config["mean"])
    preprocess = PreprocessSpec(
        resize=(math.floor(height / config["crop_pct"]), math.floor(width / config["crop_pct"])),
        crop=(height, width),
        resize_mode=_CROP_MODES[mode],
        # Of square inputs torchvision resizes the shorter side, and leaves out a fraction of a pixel of the other.
        resize_rounding="down" if height == width and mode != "border" else "nearest",
        interpolation=interpolation,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        # torchvision fills a crop beyond the image with black.
        padding="center" if mode == "border" or config["crop_pct"] > 1 else "none",
        fill_color=(red, green, blue) if mode == "border" else (0, 0, 0),
    )
    own = timm.data.create_transform(**{**config, "interpolation": interpolation}, is_training=False)
    check_own_transform(preprocess, own, name)
    return preprocess


def _preprocess_before(config: Mapping[str, Any]) -> PreprocessSpec | None:
    """Return what releases that knew no crop mode but the centre took for it."""
    _, height, width = config["input_size"]
    if height != width:
        return None
    return PreprocessSpec(
        resize=max(height, math.floor(height / config["crop_pct"])),
        crop=height,
        interpolation="bicubic" if config["interpolation"] == "random" else config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def _classifier_paths(module: Any) -> tuple[str, ...]:
    """Return where timm says the output layers are; several for distilled networks."""
    declared = module.pretrained_cfg.get("classifier") or ()
    paths = (declared,) if isinstance(declared, str) else tuple(declared)
    # A distilled network puts out the mean of two output layers, and one architecture declares the first alone.
    twins = (f"{first}_dist{dot}{rest}" for first, dot, rest in (path.partition(".") for path in paths))
    present = dict(module.named_modules())
    return tuple(path for path in dict.fromkeys((*paths, *twins)) if path in present)


def _join(module: Any, classifiers: tuple[str, ...]) -> Callable[[], object] | None:
    """Return how branches with an output layer each (``head.0``, ``head.1``) are joined: CrossViT, EfficientViM."""
    branches = [path for path in classifiers if path.rpartition(".")[0] == classifiers[0].rpartition(".")[0]]
    # An Identity for each would put out the branches apart; timm's own reset joins them.
    in_a_list = len(branches) > 1 and all(path.rpartition(".")[2].isdigit() for path in branches)
    return partial(module.reset_classifier, 0) if in_a_list else None


def _prefix_tokens(timm: ModuleType, module: Any) -> tuple[int, bool]:
    """Count the tokens in front of the patches, and tell whether the first is a class token."""
    # In CLIP's ResNets the mean of all positions joins them as a token that asks the others.
    pools = (timm.layers.AttentionPool2d, timm.layers.RotAttentionPool2d)
    if any(isinstance(layer, pools) for layer in module.modules()):
        return 1, True
    class_token = getattr(module, "cls_token", None)
    if class_token is None:  # CoaT has one for each stage, numbered from 1
        class_token = getattr(module, "cls_token1", None)
    if (declared := getattr(module, "num_prefix_tokens", None)) is not None:
        return int(declared), class_token is not None
    # CaiT, XCiT and PiT join them without saying so: the tokens themselves are counted.
    tokens = [class_token, getattr(module, "dist_token", None), getattr(module, "reg_token", None)]
    return sum(token.shape[1] for token in tokens if token is not None), class_token is not None
