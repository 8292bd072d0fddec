"""Frozen settings of how images are prepared; part of a fingerprint, like all in specs.py, where others import them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from math import isfinite
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from featurecache.errors import RequestError
from featurecache.view_specs import pair_of_numbers

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Orientation = Literal["exif", "stored"]
JpegDecoding = Literal["scaled", "full"]
PixelRange = Literal["full", "image"] | tuple[float, float]
ResizeMode = Literal["shortest", "longest", "squash"]
Padding = Literal["none", "center", "corner"]
Rounding = Literal["nearest", "down"]
ChannelOrder = Literal["rgb", "bgr"]
Alignment = Literal["edges", "corners"]
ResizeOn = Literal["cpu", "device"]

MAX_FILE_BYTES = 500_000_000
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LEFT_OUT = {
    "jpeg_decoding": "full",
    "range": "full",
    "resize_mode": "shortest",
    "resize_rounding": "down",
    "crop_rounding": "nearest",
    "padding": "none",
    "fill_color": (0, 0, 0),
    "channel_order": "rgb",
    "trim_margin": False,
    "first_resize": 0,
    "first_interpolation": "bilinear",
    "crop_first": False,
    "alignment": "edges",
    "resize_on": "cpu",
}
"""Fields that came later, with the value that stands for how it was before; with it they are no part of an identity."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreprocessSpec:
    """How an image file becomes the numbers that a backbone sees; belongs to the weights.

    The order is: decode, orient, convert to RGB, trim, resize a first time, resize, crop the centre or pad, divide by
    255, put the channels in order, subtract the mean, divide by the standard deviation. Trimming and the first resizing
    are off by default. The rules of decoding are in store/FORMAT.md.
    """

    modality: ClassVar[str] = "image"

    resize: int | tuple[int, int] = 256
    """Side before cropping, in pixels: the shorter one, unless ``resize_mode`` says another; height and width where
    they differ."""
    crop: int | tuple[int, int] = 224
    """Side of the centre crop, in pixels; height and width where they differ."""
    resize_mode: ResizeMode = "shortest"
    """``shortest``: an image just covers ``resize``; ``longest``: it just fits into it; ``squash``: it is made that."""
    resize_rounding: Rounding = "down"
    """Of the side that follows from the other one."""
    crop_rounding: Rounding = "nearest"
    """Of half a pixel before the crop: ``nearest``, to even, as torchvision does; ``down``, as transformers does."""
    padding: Padding = "none"
    """Where an image that is smaller than the crop goes, and the rest is filled: the centre, or the top left corner."""
    fill_color: tuple[int, int, int] = (0, 0, 0)
    """Colour of padding."""
    crop_first: bool = False
    """Crop before resizing: the centre that would be left after ``resize`` is cut out first, and made ``crop``."""
    trim_margin: bool = False
    """Cut off rows and columns at the edges that are light all along, as the margins of a page are."""
    first_resize: int = 0
    """Shorter side to which images are resized before they are resized; 0: they are not."""
    first_interpolation: Interpolation = "bilinear"
    """Of the first resizing."""
    channel_order: ChannelOrder = "rgb"
    """Order of the channels that the network sees, and of ``mean`` and ``std``."""
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    """Low-pass filter before making an image smaller."""
    alignment: Alignment = "edges"
    """What stays where it is when an image is resized: its edges, or the centres of the pixels in its corners."""
    resize_on: ResizeOn = "cpu"
    """``cpu``: Pillow resizes; ``device``: torch does, with another rounding, on the GPU where there is one."""
    orientation: Orientation = "exif"
    """Turn the image as its EXIF tag says, or leave it as stored."""
    jpeg_decoding: JpegDecoding = "scaled"
    """``scaled``: JPEG files are decoded at 1/2, 1/4 or 1/8 where the shorter side stays at least twice ``resize``."""
    range: PixelRange = "full"
    """Of images of more than 8 bits, the values that become black and white: ``full``, those of their file type;
    ``image``, of each image its own least and greatest; or two numbers. Other images are left as they are."""
    background: tuple[int, int, int] = (255, 255, 255)
    """Colour behind transparent pixels."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    max_pixels: int = 100_000_000
    """Larger images are bad inputs, refused before they are decoded."""
    max_bytes: int = MAX_FILE_BYTES
    """Larger files are bad inputs, refused before they are decoded."""
    decoding_rules: int = 1
    """Edition of the decoding rules."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "resize", _side_or_sides("resize", self.resize))
        object.__setattr__(self, "crop", _side_or_sides("crop", self.crop))
        for name, limit in (("max_pixels", self.max_pixels), ("max_bytes", self.max_bytes)):
            if limit < 1:
                raise RequestError(f"preprocess {name} must be at least 1, got {limit}")
        check_choices(self)
        self._check_sizes()
        self._check_filters()
        object.__setattr__(self, "range", _pixel_range(self.range))
        if self.decoding_rules != 1:
            raise RequestError(
                f"decoding rules {self.decoding_rules} are not known to this release; upgrade featurecache"
            )
        colours = {"mean": self.mean, "std": self.std, "background": self.background, "fill_color": self.fill_color}
        for name, given in colours.items():
            value = tuple(given)
            if len(value) != 3:
                raise RequestError(f"preprocess {name} needs three numbers (red, green, blue), got {value}")
            object.__setattr__(self, name, value)  # JSON gives lists
        if not all(type(number) is int and 0 <= number <= 255 for number in self.fill_color):
            raise RequestError(f"preprocess fill_color must be whole numbers from 0 to 255, got {self.fill_color}")
        if not all(isfinite(number) for number in (*self.mean, *self.std)):
            raise RequestError(f"preprocess mean and std must be finite, got {self.mean} and {self.std}")
        if min(self.std) <= 0:
            raise RequestError(f"preprocess std must be positive, got {self.std}")

    def _check_sizes(self) -> None:
        if self.crop_first and (self.resize_mode != "shortest" or self.padding != "none"):
            raise RequestError("preprocess crop_first needs resize mode 'shortest', and no padding")
        if self.padding != "none":
            return
        if self.resize_mode == "longest":
            raise RequestError("preprocess resize mode 'longest' needs padding: 'center' or 'corner'")
        if any(crop > resize for crop, resize in zip(self.crop_shape, self.resize_shape, strict=True)):
            raise RequestError(f"preprocess crop ({self.crop} px) must not exceed resize ({self.resize} px)")

    def _check_filters(self) -> None:
        # A true that is written as 1 would be another fingerprint of the same images.
        flags = {"antialias": self.antialias, "crop_first": self.crop_first, "trim_margin": self.trim_margin}
        for name, flag in flags.items():
            if type(flag) is not bool:
                raise RequestError(f"preprocess {name} must be true or false, got {flag!r:.80}")
        if type(self.first_resize) is not int or self.first_resize < 0:
            raise RequestError(f"preprocess first_resize must be 0 or a side in pixels, got {self.first_resize!r:.80}")
        if self.first_interpolation != "bilinear" and not self.first_resize:
            raise RequestError("preprocess first_interpolation is of no effect without first_resize")
        # Pillow's `transform`, which resizes without a filter, has no Lanczos.
        if not self.antialias and "lanczos" in (self.interpolation, self.first_interpolation):
            raise RequestError("preprocess interpolation 'lanczos' always filters; set antialias, or choose another")
        kinds = {self.interpolation, self.first_interpolation}
        if self.resize_on == "device" and not (self.antialias and kinds <= {"bilinear", "bicubic"}):
            raise RequestError("preprocess resize_on 'device' needs antialias, and interpolation bilinear or bicubic")
        if self.alignment == "corners" and self.antialias:
            raise RequestError("preprocess alignment 'corners' does not filter; set antialias to false")

    @property
    def crop_shape(self) -> tuple[int, int]:
        """Height and width of what the network sees."""
        return self.crop if isinstance(self.crop, tuple) else (self.crop, self.crop)

    @property
    def resize_shape(self) -> tuple[int, int]:
        """Height and width before cropping; twice the side, where only one is given."""
        return self.resize if isinstance(self.resize, tuple) else (self.resize, self.resize)

    def override(self, **changes: Any) -> PreprocessSpec:
        """Return a copy with some fields changed; ``None`` means unchanged."""
        changes = known_changes(self, changes)
        given = [changes[name] for name in ("crop", "resize") if name in changes]
        # Who asks for a crop of 384 means a larger image, not an error; what is no size is refused later.
        if len(given) == 1 and changes.get("padding", self.padding) == "none":
            sizes = (changes.get("crop", self.crop), changes.get("resize", self.resize))
            crops, sides = ((size, size) if isinstance(size, int) else tuple(size) for size in sizes)
            if any(crop > side for crop, side in zip(crops, sides, strict=True)):
                changes |= {"crop": given[0], "resize": given[0]}
        return replace(self, **changes)

    def choices(self) -> dict[str, Any]:
        """Return everything that `override` can change."""
        return asdict(self)


@cache
def _choices_of(kind: type) -> dict[str, tuple[str, ...]]:
    hints = get_type_hints(kind)
    return {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}


def check_choices(settings: Any) -> None:
    """Raise `RequestError` for a field that is none of the choices which its type names."""
    for name, choices in _choices_of(settings.__class__).items():
        if (value := getattr(settings, name)) not in choices:
            raise RequestError(f"unknown {name.replace('_', ' ')} {value!r}; known: {', '.join(choices)}")


def known_changes(spec: Any, changes: Mapping[str, Any], *, fixed: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the changes that are given; raise `RequestError` for those of settings that there are not.

    Parameters
    ----------
    spec : dataclass
        A preprocess.
    changes : mapping
        Values by field; None is no change.
    fixed : tuple of str
        Fields that cannot be changed.
    """
    changes = {name: value for name, value in changes.items() if value is not None}
    known = [field.name for field in fields(spec) if field.name not in fixed]
    if unknown := sorted(set(changes) - set(known)):
        raise RequestError(
            f"unknown preprocess setting {unknown[0]!r}; for {spec.modality} inputs there are: {', '.join(known)}"
        )
    return changes


def _side_or_sides(name: str, value: Any) -> int | tuple[int, int]:
    """Return a side in pixels, or height and width if they differ: one setting must have one fingerprint."""
    sides = tuple(value) if isinstance(value, list | tuple) else (value,)
    if len(sides) not in (1, 2) or not all(type(side) is int for side in sides):
        raise RequestError(f"preprocess {name} must be a whole number, or height and width, got {value!r:.80}")
    if min(sides) < 1:
        raise RequestError(f"preprocess {name} must be at least 1, got {value}")
    return sides[0] if len(set(sides)) == 1 else (sides[0], sides[1])


def _pixel_range(value: Any) -> PixelRange:
    if value in ("full", "image"):
        return value  # type: ignore[no-any-return]
    low, high = pair_of_numbers("preprocess range", value)
    if low >= high:
        raise RequestError(f"preprocess range needs two numbers, the lesser first, got {low:g},{high:g}")
    return low, high
