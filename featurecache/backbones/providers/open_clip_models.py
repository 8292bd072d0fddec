"""Image towers of open_clip, ``open_clip:ARCHITECTURE/WEIGHTS``; the extra ``clip``.

The features are the image embedding (not normalised), or any layer of the tower. With ``--weights FILE`` or random
weights the name is the architecture alone.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from featurecache.backbones.provider import PinnedProvider, Provided, package_files
from featurecache.backbones.providers.hub_access import check_network_allowed, quick_hub
from featurecache.backbones.providers.reference_transform import changed_rules, check_own_transform
from featurecache.backbones.torchvision_compat import import_dependent
from featurecache.errors import BackboneError, UnknownNameError, WeightsError
from featurecache.specs import PreprocessSpec

PREFIX = "open_clip:"


class OpenClipProvider(PinnedProvider):
    """Builds ``open_clip:NAME``."""

    packages = ("open_clip_torch", "timm", "torchvision")

    def list_names(self) -> list[str]:
        """Return the architectures; their files are listed, because importing the package takes seconds."""
        return [PREFIX + file.stem for file in package_files("open_clip", "model_configs/*.json")]

    def build(self, name: str, *, pretrained: bool, weights: Path | None, keep_classifier: bool) -> Provided:
        """Build both towers and keep the image tower.

        Parameters
        ----------
        name, pretrained, weights, keep_classifier
            See `Provider.build`.
        """
        open_clip = import_dependent("open_clip", "clip")
        architecture, _, tag = name.partition("/")
        if PREFIX + architecture not in self.list_names():
            raise UnknownNameError("backbone", PREFIX + architecture, self.list_names())
        if pretrained:
            _check_tag(open_clip, architecture, tag)
        with _quiet():
            tower = _create(open_clip, architecture, tag if pretrained else None).visual
        settings = open_clip.get_model_preprocess_cfg(SimpleNamespace(visual=tower))  # reads nothing else of a model
        preprocess = _preprocess(name, settings)
        trunk = getattr(tower, "trunk", None)  # a network of timm within open_clip's own tower
        return Provided(
            module=tower,
            preprocess=preprocess,
            earlier=changed_rules(_preprocess_before(preprocess), preprocess, "open_clip's own transform"),
            num_prefix_tokens=int(
                hasattr(tower, "class_embedding") if trunk is None else getattr(trunk, "num_prefix_tokens", 0)
            ),
            weights_source=f"open_clip {tag}" if pretrained else "none",
        )


def _check_tag(open_clip: Any, architecture: str, tag: str) -> None:
    known = open_clip.list_pretrained_tags_by_model(architecture)
    if not tag:
        raise BackboneError(
            f"{PREFIX}{architecture} has several weights: name one ({PREFIX}{architecture}/{known[0]}, ...), or pass "
            "--weights FILE"
            if known
            else f"open_clip has no weights for {PREFIX}{architecture}: pass --weights FILE"
        )
    if tag not in known:
        names = [f"{PREFIX}{architecture}/{other}" for other in known]
        raise UnknownNameError("backbone", f"{PREFIX}{architecture}/{tag}", names)


def _create(open_clip: Any, architecture: str, tag: str | None) -> Any:
    if tag is not None and not open_clip.get_pretrained_cfg(architecture, tag).get("hf_hub"):
        # Its own server is asked whether or not the file is here.
        check_network_allowed(f"{PREFIX}{architecture}/{tag}")
    try:
        with quick_hub():
            return open_clip.create_model(architecture, pretrained=tag, require_pretrained=tag is not None)
    # The hub client, its HTTP library, urllib and torch each raise their own here.
    except Exception as error:
        if tag is None:
            raise BackboneError(f"open_clip cannot build {architecture} ({type(error).__name__}: {error})") from error
        check_network_allowed(f"{PREFIX}{architecture}/{tag}")
        source = open_clip.get_pretrained_cfg(architecture, tag)
        where = source.get("hf_hub") or source.get("url")
        raise WeightsError(
            f"weights of {PREFIX}{architecture}/{tag} cannot be downloaded ({type(error).__name__}): bring "
            f"open_clip_model.safetensors from {where} to this machine and pass --weights FILE"
        ) from error


def _preprocess(name: str, settings: Mapping[str, Any]) -> PreprocessSpec:
    """Return the preprocess that a ``PreprocessCfg`` describes."""
    size = settings["size"]
    height, width = (size, size) if isinstance(size, int) else (size[0], size[1])
    mode: Any = settings.get("resize_mode") or "shortest"
    is_padded = mode == "longest"
    # open_clip takes anything else for bicubic, too; and forgets it where it resizes the shorter side of what is not
    # square.
    is_bilinear = settings.get("interpolation") == "bilinear" and (mode != "shortest" or height == width)
    preprocess = PreprocessSpec(
        resize=(height, width),
        crop=(height, width),
        resize_mode=mode,
        resize_rounding="down" if height == width and not is_padded else "nearest",
        interpolation="bilinear" if is_bilinear else "bicubic",
        mean=_three(settings["mean"]),
        std=_three(settings["std"]),
        padding="center" if is_padded else "none",
        fill_color=_three(settings.get("fill_color") or 0) if is_padded else (0, 0, 0),
    )
    transforms = importlib.import_module("open_clip.transform")
    own = transforms.image_transform_v2(transforms.PreprocessCfg(**settings), is_train=False)
    check_own_transform(preprocess, own, PREFIX + name)
    return preprocess


def _preprocess_before(preprocess: PreprocessSpec) -> PreprocessSpec | None:
    """Return what releases that knew no resize mode but the shortest side took for it."""
    height, width = preprocess.crop_shape
    if height != width:
        return None
    return PreprocessSpec(
        resize=height, crop=height, interpolation=preprocess.interpolation, mean=preprocess.mean, std=preprocess.std
    )


def _three(value: Any) -> tuple[Any, Any, Any]:
    """Return a number for each channel; one stands for all."""
    red, green, blue = value if isinstance(value, list | tuple) else (value,) * 3
    return red, green, blue


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep open_clip from warning about weights that are to come from a file, or from nowhere."""
    # open_clip logs to the root logger, so that a level of its own cannot be set.
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
