"""A backbone must say the same about an input whenever it is asked: checked before anything is cached.

Features that change with the other inputs of a batch (statistics taken over the batch) or from run to run (dropout that
eval mode does not stop) would depend on the order of the files, unnoticed.

Axes: B batch.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.dry_run import INPUT, PRE_LOGITS, example_inputs, first_tensor, node_modules, watching
from featurecache.backbones.input_kinds import input_kind_of, is_text
from featurecache.backbones.tapped import Tap, TappedBackbone
from featurecache.errors import BackboneError, first_line

# Of the largest value. A batch of another size may take other kernels, whose roundings grow in a deep network;
# statistics over the batch are far beyond that.
_SAME_RUN, _SAME_IMAGE = 1e-5, 1e-3


def check_determinism(backbone: Backbone, taps: tuple[Tap, ...]) -> None:
    """Refuse a backbone whose features for an input are not the same alone, in company, and again."""
    tapped, inputs = TappedBackbone(backbone, taps), example_inputs(backbone)
    kind = input_kind_of(backbone.preprocess)
    one, many = kind.one, kind.noun
    with torch.inference_mode():
        together = tapped(inputs)
        _check_finite(backbone, tapped, together)
        # The second of the batch: whatever runs along the batch has passed the first by then.
        alone = _run_alone(backbone, tapped, inputs[1:])
        again = tapped(inputs[1:])
    if (tap := _differing(alone, again, _SAME_RUN)) is not None:
        raise BackboneError(
            f"{backbone.name} gives other features each time it sees {one} (tap {tap!r}): it draws random numbers "
            "even in eval mode, or keeps something from one call to the next, so its features cannot be cached"
        )
    if (tap := _differing({name: values[1:] for name, values in together.items()}, alone, _SAME_IMAGE)) is not None:
        rounding = _agree_in_double(backbone, taps, inputs)
        raise BackboneError(
            f"{backbone.name} gives {one} other features when other {many} are in its batch (tap {tap!r}): "
            + (
                "the same in double precision, so it enlarges the roundings of float32 until nothing else is left; "
                "bring trained weights, or draw others with --weights-seed"
                if rounding
                else f"it mixes the {many} of a batch even in eval mode, so its features cannot be cached"
            )
        )


def _check_finite(backbone: Backbone, tapped: TappedBackbone, features: Mapping[str, Tensor]) -> None:
    """Refuse a network that gives NaN or infinity for whatever it is shown; weights that hold it do not load."""
    broken = [tap for tap, values in features.items() if not values.isfinite().flatten(1).all(1).any()]
    if not broken:
        return
    # Made-up inputs are of unit variance; a network that takes roots of pixels is right to object to those.
    pixels = tapped(_example_pixels(backbone)) if not is_text(backbone.preprocess) else features
    broken = [tap for tap in broken if not pixels[tap].isfinite().flatten(1).all(1).any()]
    if broken:
        every = input_kind_of(backbone.preprocess).one.partition(" ")[2]
        layer = _first_layer_not_finite(backbone)
        where = f"the first layer to put it out is {layer}" if layer else "it comes from its own code"
        raise BackboneError(f"{backbone.name} gives NaN or infinity on every {every} (tap {broken[0]!r}): {where}")


def _example_pixels(backbone: Backbone) -> Tensor:
    kind = input_kind_of(backbone.preprocess)
    shape = (2, *kind.shape(backbone.preprocess))
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    prepared: Tensor = kind.prepare(backbone.preprocess)(pixels)
    return prepared.to(example_inputs(backbone, 1).device)


def _first_layer_not_finite(backbone: Backbone) -> str | None:
    found: list[str] = []

    def record(node: str, output: Any) -> None:
        tensor = first_tensor(output)
        if tensor is not None and tensor.is_floating_point() and not tensor.isfinite().all():
            found.append(node)

    modules = {node: module for node, module in node_modules(backbone).items() if node not in (INPUT, PRE_LOGITS)}
    with watching(backbone, modules, record):
        input_kind_of(backbone.preprocess).call(backbone.module, example_inputs(backbone))
    return found[0] if found else None


def _agree_in_double(backbone: Backbone, taps: tuple[Tap, ...], inputs: Tensor) -> bool:
    """Tell whether an input has the same features alone and in company where roundings are out of sight."""
    if not inputs.is_floating_point():
        return False
    double = TappedBackbone(replace(backbone, module=copy.deepcopy(backbone.module).double()), taps)
    try:
        with torch.inference_mode():
            together, alone = double(inputs.double()), double(inputs[1:].double())
    # What has no kernel in double precision, or says .float() itself, objects with any exception at all.
    except Exception:
        return False
    return _differing({name: values[1:] for name, values in together.items()}, alone, _SAME_RUN) is None


def _run_alone(backbone: Backbone, tapped: TappedBackbone, one_input: Tensor) -> dict[str, Tensor]:
    try:
        return tapped(one_input)
    # A network may object with any exception at all.
    except Exception as error:
        kind = input_kind_of(backbone.preprocess)
        one, many = kind.one, kind.noun
        raise BackboneError(
            f"{backbone.name} takes two {many} but not one ({first_line(error)}): the features of {one} must not "
            f"need other {many}"
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
