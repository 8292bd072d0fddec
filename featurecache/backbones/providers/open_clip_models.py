"""Image towers of open_clip, ``open_clip:ARCHITECTURE/WEIGHTS``; the extra ``clip``.

The features are the image embedding (not normalised), or any layer of the tower. With ``--weights FILE`` or random
weights the name is the architecture alone.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from featurecache.backbones.provider import Provided
from featurecache.backbones.providers.hub_access import check_network_allowed, quick_hub
from featurecache.backbones.torchvision_compat import import_torchvision
from featurecache.errors import BackboneError, MissingExtraError, UnknownNameError, WeightsError
from featurecache.specs import PreprocessSpec

PREFIX = "open_clip:"


class OpenClipProvider:
    """Builds ``open_clip:NAME``."""

    packages = ("open_clip_torch", "timm", "torchvision")

    def list_names(self) -> list[str]:
        """Return the architectures; their files are listed, because importing the package takes seconds."""
        spec = find_spec("open_clip")
        folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
        return [PREFIX + file.stem for folder in folders for file in sorted(folder.glob("model_configs/*.json"))]

    def build(self, name: str, *, pretrained: bool, weights: Path | None, keep_classifier: bool) -> Provided:
        """Build both towers and keep the image tower."""
        open_clip = _import_open_clip()
        architecture, _, tag = name.partition("/")
        if PREFIX + architecture not in self.list_names():
            raise UnknownNameError("backbone", PREFIX + architecture, self.list_names())
        if pretrained:
            _check_tag(open_clip, architecture, tag)
        with _quiet():
            tower = _create(open_clip, architecture, tag if pretrained else None).visual
        return Provided(
            module=tower,
            preprocess=_preprocess(name, open_clip.get_model_preprocess_cfg(_Holder(tower))),
            num_prefix_tokens=_num_prefix_tokens(tower),
            weights_source=f"open_clip {tag}" if pretrained else "none",
        )

    def own_weights_digest(self, name: str) -> str | None:
        """Return ``None``: which file is used is known to open_clip only."""
        return None

    def reproducible(self, name: str) -> bool:
        """The architecture is pinned by open_clip's version."""
        return True


class _Holder:
    """What ``get_model_preprocess_cfg`` looks at."""

    def __init__(self, tower: Any) -> None:
        self.visual = tower


def _import_open_clip() -> Any:
    if find_spec("open_clip") is None:
        raise MissingExtraError("open_clip", "clip")
    import_torchvision()
    return importlib.import_module("open_clip")


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
        check_network_allowed(
            f"{PREFIX}{architecture}/{tag}"
        )  # its own server is asked whether or not the file is here
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


def _preprocess(name: str, settings: dict[str, Any]) -> PreprocessSpec:
    size = settings["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise BackboneError(f"{PREFIX}{name} wants {height}x{width} inputs; only square images are fed here")
    interpolation = settings.get("interpolation", "bicubic")
    return PreprocessSpec(
        resize=height,
        crop=height,
        interpolation="bicubic" if interpolation == "random" else interpolation,
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
    )


def _num_prefix_tokens(tower: Any) -> int:
    if (trunk := getattr(tower, "trunk", None)) is not None:
        return int(getattr(trunk, "num_prefix_tokens", 0))
    return int(hasattr(tower, "class_embedding"))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep open_clip from warning about weights that are to come from a file, or from nowhere."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
