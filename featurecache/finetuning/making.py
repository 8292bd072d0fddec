"""What can be trained on cached activations, by name, and how it is made.

===========================  ======================================================================================
``tail``                     the rest of the pretrained network after the tap, and a new output layer
``layers:NAME``              new layers of the library in its place, and a new output layer
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
from featurecache.heads.gradient.trainable import TrainableLayers
from featurecache.heads.gradient.tuner import MakeLayers

TAIL = "tail"
PYTHON = "python:"


def is_layers(head: str) -> bool:
    """Tell whether a head of this name is trained layers."""
    return head == TAIL or head.startswith((PYTHON, library.PREFIX))


def needs_backbone(head: str) -> bool:
    """Tell whether the layers are a part of the pretrained network."""
    return head == TAIL


def maker(head: str, tap: str, shape: tuple[int, ...], backbone: Backbone | None, *, joined: bool = True) -> MakeLayers:
    """Return what makes the layers of a head.

    Parameters
    ----------
    head
        As in the table at the top.
    tap
        Whose activations the layers see.
    shape
        Of one sample's.
    backbone
        Of a tail.
    joined
        As for `featurecache.backbones.cutting.cut`.

    Raises
    ------
    BackboneError
        The network cannot be cut there.
    HeadError, UnknownNameError
        TrainableLayers that cannot be made.
    """
    if head == TAIL:
        assert backbone is not None
        return _of_tail(backbone, tap, joined=joined)
    if head.startswith(PYTHON):
        return _of_factory(head, shape)
    name = head.removeprefix(library.PREFIX)
    with torch.device("meta"):
        library.make_body(name, shape)  # errors come now

    def make(num_outputs: int) -> TrainableLayers:
        body, width = library.make_body(name, shape)
        return TrainableLayers(body, nn.Linear(width, num_outputs))

    return make


def _of_tail(backbone: Backbone, tap: str, *, joined: bool) -> MakeLayers:
    found = cut(backbone, tap, joined=joined)
    (features,) = resolve_taps(backbone, [DEFAULT])  # pooled as heads on the last layer have them
    shape, pool = (found.shape, None) if found.joined else (features.shape, features.pool)
    width = math.prod(shape)

    def make(num_outputs: int) -> TrainableLayers:
        body, output = copy.deepcopy(found.tail), nn.Linear(width, num_outputs)
        return TrainableLayers(body, output, found.trainable, pool=pool, joined=found.joined)

    return make


def _of_factory(head: str, shape: tuple[int, ...]) -> MakeLayers:
    factory: Callable[..., Any] = import_factory(head, head.removeprefix(PYTHON))

    def make(num_outputs: int) -> TrainableLayers:
        try:
            module = factory(shape, num_outputs)
        # Somebody's own code may fail in any way.
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
    if options := options_to_agree(head, agreed):
        raise NotAgreedError(
            f"this head is {head!r}, which is code on this machine; if you trust it, pass {shlex.join(options)}",
            options,
        )


def options_to_agree(head: str, agreed: str | None) -> tuple[str, ...]:
    """Return the options that agree to run code which a record names; none where there is no code, or it is agreed."""
    return ("--layers", head) if head.startswith(PYTHON) and agreed != head else ()
