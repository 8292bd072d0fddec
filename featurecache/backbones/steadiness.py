"""A backbone must say the same about an image whenever it is asked: checked before anything is cached.

Features that change with the other images of a batch (statistics taken over the batch) or from run to run (dropout that
eval mode does not stop) would depend on the order of the files, and nobody would ever see it.

Axes: B batch.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.probing import probe_images
from featurecache.backbones.tapped import Tap, TappedBackbone
from featurecache.errors import BackboneError, first_line

# Of the largest value. A batch of another size may take other kernels, whose roundings grow in a deep network;
# statistics over the batch are far beyond that.
_SAME_RUN, _SAME_IMAGE = 1e-5, 1e-3


def check_steadiness(backbone: Backbone, taps: tuple[Tap, ...]) -> None:
    """Refuse a backbone whose features for an image are not the same alone, in company, and again."""
    tapped, images_BCHW = TappedBackbone(backbone, taps), probe_images(backbone)
    with torch.inference_mode():
        together = tapped(images_BCHW)
        # The second of the batch: whatever runs along the batch has passed the first by then.
        alone = _run_alone(backbone, tapped, images_BCHW[1:])
        again = tapped(images_BCHW[1:])
    if (tap := _differing(alone, again, _SAME_RUN)) is not None:
        raise BackboneError(
            f"{backbone.name} gives other features each time it sees an image (tap {tap!r}): it draws random numbers "
            "even in eval mode, so its features cannot be cached"
        )
    if (tap := _differing({name: values[1:] for name, values in together.items()}, alone, _SAME_IMAGE)) is not None:
        raise BackboneError(
            f"{backbone.name} gives an image other features when other images are in its batch (tap {tap!r}): it mixes "
            "the images of a batch even in eval mode, so its features cannot be cached"
        )


def _run_alone(backbone: Backbone, tapped: TappedBackbone, image_BCHW: Tensor) -> dict[str, Tensor]:
    try:
        return tapped(image_BCHW)
    # A network may object with any exception at all.
    except Exception as error:
        raise BackboneError(
            f"{backbone.name} takes two images but not one ({first_line(error)}): the features of an image must not "
            "need other images"
        ) from error


def _differing(first: Mapping[str, Tensor], second: Mapping[str, Tensor], tolerance: float) -> str | None:
    """Return the first tap whose features differ. Values that are not finite are another matter: rows get a status."""
    for tap, values in first.items():
        others = second[tap]
        finite = values.isfinite() & others.isfinite()
        if not torch.equal(values.isfinite(), others.isfinite()):
            return tap
        if finite.any() and (values - others)[finite].abs().max() > tolerance * values[finite].abs().max():
            return tap
    return None
