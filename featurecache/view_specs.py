"""Frozen settings of augmented views; part of a fingerprint, like all in specs.py, where everybody finds them."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any

from featurecache.errors import RequestError

MAX_VIEWS = 256
_GREATEST = {"flip": 1, "brightness": 10, "contrast": 10, "saturation": 10, "hue": 0.5}
"""Of the settings that are one number from 0 up, the greatest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewSpec:
    """How seeded, augmented views of an image are made, instead of resizing it and cropping its centre.

    Each view is a random part of the upright image, resized to the crop of the preprocess, perhaps flipped, with its
    colours shifted. The rules are in store/FORMAT.md.
    """

    count: int = 8
    """Views of each sample."""
    seed: int = 0
    scale: tuple[float, float] = (0.35, 1.0)
    """Least and greatest share of the image's area."""
    ratio: tuple[float, float] = (0.75, 1.333)
    """Least and greatest width over height of the part."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    brightness: float = 0.2
    """The factor lies between ``1 - brightness`` and ``1 + brightness``; so do those of contrast and saturation."""
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.0
    """Largest turn of the colour circle, at most 0.5. Not turned by default: the colour often is the label."""
    rules: int = 1
    """Edition of the rules by which views are drawn."""

    def __post_init__(self) -> None:
        for name, whole, least, most in (("count", self.count, 1, MAX_VIEWS), ("seed", self.seed, 0, 2**63 - 1)):
            if type(whole) is not int or not least <= whole <= most:
                raise RequestError(f"views {name} must be a whole number from {least} to {most}, got {whole!r:.80}")
        # A cache of a later release may name rules that draw other views from the same seed.
        if type(self.rules) is not int or self.rules != 1:
            raise RequestError(f"view rules {self.rules!r:.80} are not known to this release; upgrade featurecache")
        for name in _GREATEST:
            object.__setattr__(self, name, _finite(f"views {name}", getattr(self, name)))
        object.__setattr__(self, "scale", pair_of_numbers("views scale", self.scale))
        object.__setattr__(self, "ratio", pair_of_numbers("views ratio", self.ratio))
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise RequestError(f"views scale must be two shares with 0 < least <= greatest <= 1, got {self.scale}")
        # The part that is taken when none was found by chance would be empty for other ratios.
        if not 0 < self.ratio[0] <= 1 <= self.ratio[1]:
            raise RequestError(f"views ratio must be two numbers with 0 < least <= 1 <= greatest, got {self.ratio}")
        for name, greatest in _GREATEST.items():
            if not 0 <= (value := getattr(self, name)) <= greatest:
                raise RequestError(f"views {name} must be from 0 to {greatest:g}, got {value}")


def check_takes_views(modality: str, where: str, *, option: str = "--views") -> None:
    """Raise `RequestError` where views are asked of anything but images.

    Parameters
    ----------
    modality : str
    where : str
        What is of this modality, for the message.
    option : str
        That asks for views.
    """
    if modality != "image":
        raise RequestError(f"{option} is for images only, and {where} is of {modality}s; leave {option} out")


def num_views(views: ViewSpec | None) -> int:
    """Return how many arrays one sample gives: the plain input is one."""
    return 1 if views is None else views.count


def shape_of_row(sample_shape: tuple[int, ...], views: ViewSpec | None) -> tuple[int, ...]:
    """Return the shape of what is stored for one sample: with views, theirs comes first."""
    return sample_shape if views is None else (views.count, *sample_shape)


def _finite(name: str, value: Any) -> float:
    """Return a float: 1 and 1.0 are the same setting and must give the same fingerprint."""
    if type(value) not in (int, float) or not isfinite(value):
        raise RequestError(f"{name} must be a finite number, got {value!r:.80}")
    return float(value)


def pair_of_numbers(name: str, value: Any) -> tuple[float, float]:
    """Return two floats; JSON gives lists."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise RequestError(f"{name} needs two numbers (least, greatest), got {value!r:.80}")
    return _finite(name, value[0]), _finite(name, value[1])
