"""A network as it was before any training: the honest baseline for what its weights are worth."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from featurecache.errors import BackboneError

if TYPE_CHECKING:
    from torch import nn

_SOURCE = re.compile(r"random initialisation, seed (\d+)$")


def random_source(seed: int) -> str:
    """Say where random weights came from; `seed_of` reads it back."""
    return f"random initialisation, seed {seed}"


def seed_of(weights_source: str) -> int | None:
    """Return the seed of random weights, ``None`` for weights that were trained."""
    found = _SOURCE.match(weights_source)
    return int(found[1]) if found else None


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Make every generator that a constructor may draw from start at a seed, and put them back afterwards."""
    import numpy as np
    import torch

    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        # The weights are made on the CPU: generators of devices are left alone.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def reinitialise(name: str, module: nn.Module) -> None:
    """Draw every parameter anew, in place; a layer that does not say how is refused."""
    # Before anything is drawn, so that a refusal leaves the network as it was.
    unknown = [
        path or "the network itself"
        for path, layer in module.named_modules()
        if any(True for _ in layer.parameters(recurse=False)) and not hasattr(layer, "reset_parameters")
    ]
    if unknown:
        raise BackboneError(
            f"{name} cannot be initialised at random: {unknown[0]} has no reset_parameters; give the factory an "
            "argument `pretrained`"
        )
    for layer in module.modules():
        reset: Any = getattr(layer, "reset_parameters", None)
        if reset is not None:
            reset()
