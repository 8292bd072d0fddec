"""Factories of what can be trained on cached activations, by the name of the head.

===========================  ======================================================================================
``tail``                     the rest of the pretrained network after the tap, and a new output layer
``layers:NAME``              new layers of the library instead, and a new output layer
``python:MODULE:FACTORY``    ``FACTORY(shape, num_outputs)`` returns a module from (B, *shape) to (B, num_outputs)
===========================  ======================================================================================
"""

from __future__ import annotations

import copy
import math
import shlex
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.cutting import cut
from featurecache.backbones.providers.python_factory import import_factory
from featurecache.backbones.taps import DEFAULT, resolve_taps
from featurecache.errors import HeadError, NotAgreedError, first_line
from featurecache.finetuning import library
from featurecache.heads.gradient.trainable import LayerFactory, TrainableLayers

TAIL = "tail"
PYTHON = "python:"


def is_layers(head: str) -> bool:
    """Tell whether a head of this name is trained layers."""
    return head == TAIL or head.startswith((PYTHON, library.PREFIX))


def layer_factory(
    head: str, tap: str, shape: tuple[int, ...], backbone: Backbone | None, *, joined: bool = True
) -> LayerFactory:
    """Return what makes the layers of a head.

    Parameters
    ----------
    head : str
        As in the table at the top.
    tap : str
        Whose activations the layers see.
    shape : tuple of int
        Of one sample's activations.
    backbone : Backbone or None
        Of a tail.
    joined : bool
        As for `featurecache.backbones.cutting.cut`.

    Raises
    ------
    BackboneError
        The network cannot be cut there.
    HeadError, UnknownNameError
        Layers that cannot be made.
    """
    if head == TAIL:
        assert backbone is not None
        return _tail_factory(backbone, tap, joined=joined)
    if head.startswith(PYTHON):
        return _python_factory(head, shape)
    name = head.removeprefix(library.PREFIX)
    # On no device: errors come now, and layers for large activations would take seconds and gigabytes.
    with torch.device("meta"):
        library.make_body(name, shape)

    def make(num_outputs: int) -> TrainableLayers:
        body, width = library.make_body(name, shape)
        return TrainableLayers(body, nn.Linear(width, num_outputs))

    return make


def _tail_factory(backbone: Backbone, tap: str, *, joined: bool) -> LayerFactory:
    cutting = cut(backbone, tap, joined=joined)
    (features,) = resolve_taps(backbone, [DEFAULT])  # pooled as heads on the last layer have them
    shape, pool = (cutting.shape, None) if cutting.joined else (features.shape, features.pool)
    width = math.prod(shape)

    def make(num_outputs: int) -> TrainableLayers:
        # A copy each time: several settings and folds start from the same pretrained weights.
        body, output = copy.deepcopy(cutting.tail), nn.Linear(width, num_outputs)
        return TrainableLayers(body, output, cutting.trainable, pool=pool, joined=cutting.joined)

    return make


def _python_factory(head: str, shape: tuple[int, ...]) -> LayerFactory:
    factory: Callable[..., Any] = import_factory(head, head.removeprefix(PYTHON))

    def make(num_outputs: int) -> TrainableLayers:
        try:
            module = factory(shape, num_outputs)
        # A user's own code may fail in any way.
        except Exception as error:
            raise HeadError(
                f"{head} failed for activations of shape {shape} and {num_outputs} outputs: {first_line(error)}"
            ) from error
        if not isinstance(module, nn.Module):
            raise HeadError(f"{head} returned a {type(module).__name__}; it must return a torch.nn.Module")
        if not any(p.requires_grad for p in module.parameters()):
            raise HeadError(f"{head} returned a module that has nothing to train")
        return TrainableLayers(copy.deepcopy(module), None)  # a factory may return the same one twice

    return make


def check_agreed(head: str, agreed: str | None) -> None:
    """Refuse to run code that a record names and the caller does not."""
    # Before anything of it is imported: importing runs code.
    if options := options_to_agree(head, agreed):
        raise NotAgreedError(
            f"this head is {head!r}, which is code on this machine; if you trust it, pass {shlex.join(options)}",
            options,
        )


def options_to_agree(head: str, agreed: str | None) -> tuple[str, ...]:
    """Return the options that agree to run code which a record names; none where there is no code, or it is agreed."""
    return ("--layers", head) if head.startswith(PYTHON) and agreed != head else ()
