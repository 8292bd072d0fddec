"""Frozen settings. What the numbers *are* is hashed into the fingerprint; how fast they came is not.

`PreprocessSpec`, `TextPreprocessSpec`, `ViewSpec` and `FeatureIdentity` say what the numbers are: every field counts,
defaults included.
`ExtractionSettings` says how they are made on this machine: none of its fields counts.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from featurecache.errors import RequestError
from featurecache.hashing import digest_json
from featurecache.view_specs import MAX_VIEWS as MAX_VIEWS
from featurecache.view_specs import ViewSpec as ViewSpec
from featurecache.view_specs import check_takes_views as check_takes_views
from featurecache.view_specs import num_views as num_views
from featurecache.view_specs import pair_of_numbers
from featurecache.view_specs import shape_of_row as shape_of_row

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Orientation = Literal["exif", "stored"]
JpegDecoding = Literal["scaled", "full"]
PixelRange = Literal["full", "image"] | tuple[float, float]
ResizeMode = Literal["shortest", "longest", "squash"]
Padding = Literal["none", "center", "corner"]
Rounding = Literal["nearest", "down"]
ChannelOrder = Literal["rgb", "bgr"]
StorageDtype = Literal["float16", "float32", "bfloat16", "int8"]
DtypeChoice = Literal["auto", "float16", "float32", "bfloat16", "int8"]
InitName = Literal["pretrained", "random"]
PrecisionName = Literal["float32", "bfloat16", "float16"]
RuntimeName = Literal["auto", "torch", "openvino"]
BatchNormPolicy = Literal["frozen", "train"]
"""Of norms that keep statistics, while layers are trained: leave these as they are, or learn them anew."""
FeatureAugmentation = Literal["brightness", "noise", "mixup"]
TrainingAugmentation = Literal[FeatureAugmentation, "views"]
"""Of cached activations; or, of images that are read anew each time, random parts with shifted colours."""
TrainingPrecision = Literal["float32", "bfloat16"]
TaskKind = Literal["classes", "labels", "numbers"]
"""What is said of a sample: one class, any of several labels, or one number or several."""
TASK_NOUN: dict[TaskKind, str] = {"classes": "class", "labels": "label", "numbers": "number"}
"""One of what a task has."""

MAX_FILE_BYTES = 500_000_000
MAX_SHARD_ROWS = 50_000  # the record of a shard whose inputs are all bad must stay readable
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True, slots=True)
class PreprocessSpec:
    """How an image file becomes the numbers that a backbone sees; belongs to the weights.

    The order is: decode, orient, convert to RGB, resize, crop the centre or pad, divide by 255, put the channels in
    order, subtract the mean, divide by the standard deviation. The rules of decoding are in store/FORMAT.md.
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
    channel_order: ChannelOrder = "rgb"
    """Order of the channels that the network sees, and of ``mean`` and ``std``."""
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    """Low-pass filter before making an image smaller."""
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
        for name in ("resize", "crop"):
            object.__setattr__(self, name, _side_or_sides(name, getattr(self, name)))
        for name in ("max_pixels", "max_bytes"):
            if getattr(self, name) < 1:
                raise RequestError(f"preprocess {name} must be at least 1, got {getattr(self, name)}")
        _check_choice("interpolation", self.interpolation, Interpolation)
        _check_choice("orientation", self.orientation, Orientation)
        _check_choice("jpeg decoding", self.jpeg_decoding, JpegDecoding)
        _check_choice("resize mode", self.resize_mode, ResizeMode)
        _check_choice("resize rounding", self.resize_rounding, Rounding)
        _check_choice("crop rounding", self.crop_rounding, Rounding)
        _check_choice("padding", self.padding, Padding)
        _check_choice("channel order", self.channel_order, ChannelOrder)
        self._check_sizes()
        if self.interpolation == "lanczos" and not self.antialias:
            raise RequestError("preprocess interpolation 'lanczos' always filters; set antialias, or choose another")
        object.__setattr__(self, "range", _pixel_range(self.range))
        if self.decoding_rules != 1:
            raise RequestError(
                f"decoding rules {self.decoding_rules} are not known to this release; upgrade featurecache"
            )
        for name in ("mean", "std", "background", "fill_color"):
            value = tuple(getattr(self, name))
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
        if self.padding != "none":
            return
        if self.resize_mode == "longest":
            raise RequestError("preprocess resize mode 'longest' needs padding: 'center' or 'corner'")
        if any(crop > resize for crop, resize in zip(self.crop_shape, self.resize_shape, strict=True)):
            raise RequestError(f"preprocess crop ({self.crop} px) must not exceed resize ({self.resize} px)")

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
        changes = _known_changes(self, changes)
        if changes.get("padding", self.padding) == "none":
            if "crop" in changes and "resize" not in changes and _exceeds(changes["crop"], self.resize):
                changes["resize"] = changes["crop"]
            if "resize" in changes and "crop" not in changes and _exceeds(self.crop, changes["resize"]):
                changes["crop"] = changes["resize"]
        return replace(self, **changes)

    def choices(self) -> dict[str, Any]:
        """Return everything that `override` can change."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class TextPreprocessSpec:
    """How a text becomes the token ids that a backbone sees; belongs to the weights, tokenizer included.

    The bytes are read as UTF-8 and given to the tokenizer as they are: nothing is stripped, and Unicode is not
    normalised but by the tokenizer's own rules. Where a text has more tokens, the first ``max_tokens`` count, special
    ones included.
    """

    modality: ClassVar[str] = "text"

    kind: Literal["text"] = "text"
    """Tells the records of these settings from those of images, which are older and have no such field."""
    tokenizer: str
    """SHA-256 of the tokenizer's definition, without its own settings of truncation and padding."""
    max_tokens: int = 256
    max_bytes: int = 10_000_000
    """Longer texts are bad inputs."""
    text_rules: int = 1
    """Edition of the rules."""

    def __post_init__(self) -> None:
        if self.kind != "text" or not isinstance(self.tokenizer, str):
            raise RequestError(f"a text preprocess needs the digest of its tokenizer, got {self.tokenizer!r:.80}")
        for name in ("max_tokens", "max_bytes"):
            if getattr(self, name) < 1:
                raise RequestError(f"preprocess {name} must be at least 1, got {getattr(self, name)}")
        if self.text_rules != 1:
            raise RequestError(f"text rules {self.text_rules} are not known to this release; upgrade featurecache")

    def override(self, **changes: Any) -> TextPreprocessSpec:
        """Return a copy with some fields changed; ``None`` means unchanged. The tokenizer belongs to the weights."""
        return replace(self, **_known_changes(self, changes, fixed=("kind", "tokenizer")))

    def choices(self) -> dict[str, Any]:
        """Return everything that `override` can change."""
        return {name: value for name, value in asdict(self).items() if name not in ("kind", "tokenizer")}


AnyPreprocess = PreprocessSpec | TextPreprocessSpec
_LEFT_OUT = {
    "jpeg_decoding": "full",
    "range": "full",
    "resize_mode": "shortest",
    "resize_rounding": "down",
    "crop_rounding": "nearest",
    "padding": "none",
    "fill_color": (0, 0, 0),
    "channel_order": "rgb",
}
"""Fields that came later, with the value that stands for how it was before; with it they are no part of an identity."""
_PREPROCESS_KINDS: dict[str | None, type[AnyPreprocess]] = {None: PreprocessSpec, "text": TextPreprocessSpec}


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureIdentity:
    """How features were made: equal identities mean interchangeable numbers."""

    backbone: str
    """Name under which the architecture is built, e.g. ``timm:vit_tiny_patch16_224``."""
    architecture: str
    """Digest of the module tree: names, classes and hyper-parameters of all layers."""
    weights: str
    """Digest of every parameter and buffer by content."""
    preprocess: AnyPreprocess
    precision: str = "float32"
    """Arithmetic of the forward pass."""
    views: ViewSpec | None = None
    """Augmented views of each sample instead of the plain image."""

    def __post_init__(self) -> None:
        for name in ("backbone", "architecture", "weights", "precision"):
            if not isinstance(getattr(self, name), str):
                raise RequestError(f"{name} of a feature identity must be text, got {getattr(self, name)!r:.80}")
        if self.views is not None:
            check_takes_views(self.preprocess.modality, f"the backbone {self.backbone}")

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all fields."""
        return digest_json("features", 1, self.to_json())

    @property
    def plain(self) -> FeatureIdentity:
        """The same features of plain images."""
        return replace(self, views=None)

    def with_views(self, views: ViewSpec | None) -> FeatureIdentity:
        """The same features of views."""
        return replace(self, views=views)

    def to_json(self) -> dict[str, Any]:
        """Return the identity as plain JSON values."""
        value = asdict(self)
        # What is as it was before there was a choice is left out: the fingerprints of old caches must not change.
        if self.views is None:
            del value["views"]
        for name, usual in _LEFT_OUT.items():
            if value["preprocess"].get(name) == usual:
                del value["preprocess"][name]
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> FeatureIdentity:
        """Rebuild an identity from :meth:`to_json`."""
        settings = value["preprocess"]
        if not isinstance(settings, dict) or not isinstance(value.get("views", {}), dict):
            raise RequestError("the preprocess and the views of a feature identity must be objects")
        if (kind := settings.get("kind")) not in _PREPROCESS_KINDS:
            raise RequestError(f"a preprocess of kind {kind!r:.80} is not known to this release; upgrade featurecache")
        if kind is None:
            settings = {"jpeg_decoding": "full", **settings}
        views = {"views": ViewSpec(**value["views"])} if "views" in value else {}
        return cls(**{**value, "preprocess": _PREPROCESS_KINDS[kind](**settings), **views})

    def differences(self, other: FeatureIdentity) -> list[str]:
        """Say in words which parts of two identities differ."""
        mine, theirs = _flat(self.to_json()), _flat(other.to_json())
        pairs = [(name, mine.get(name), theirs.get(name)) for name in mine | theirs]
        return [f"{name} {_short(before)} -> {_short(after)}" for name, before, after in pairs if before != after]


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneRequest:
    """What somebody asked for: a backbone by name, its weights, and changes to its preprocess."""

    name: str
    weights: Path | None = None
    """A weights file; ``None`` means the provider's own."""
    weights_key: str | None = None
    """Dotted name of the part of the weights file to load, where it holds several that fit."""
    preprocess: tuple[tuple[str, Any], ...] = ()
    """Overrides of preprocess fields, as sorted (name, value) pairs."""
    init: InitName = "pretrained"
    """``random``: the same architecture before any training, the honest baseline."""
    seed: int = 0
    """Of random weights."""
    precision: PrecisionName = "float32"
    """Arithmetic of the forward pass: ``bfloat16`` and ``float16`` are several times as fast on GPUs."""

    def __post_init__(self) -> None:
        _check_choice("init", self.init, InitName)
        _check_choice("precision", self.precision, PrecisionName)
        if not 0 <= self.seed < 2**63:
            raise RequestError(f"seed must be between 0 and 2**63 - 1, got {self.seed}")
        if self.init == "random" and self.weights is not None:
            raise RequestError(f"random weights and weights from {self.weights} exclude each other; choose one")
        if self.weights_key is not None and self.weights is None:
            raise RequestError(f"weights key {self.weights_key!r} names a part of a weights file; add --weights FILE")
        if self.weights_key is not None and not self.weights_key.strip():
            raise RequestError("the weights key is empty; name a part of the weights file, such as state_dict_ema")
        if self.init != "random" and self.seed:
            raise RequestError(f"seed {self.seed} is for random weights only; add --init random")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractionSettings:
    """How features are made on this machine; never part of the fingerprint."""

    batch_size: int | None = None
    """Inputs in a forward pass; ``None`` lets the runtime choose."""
    num_workers: int | None = None
    """Decoding threads; ``None`` means one per core."""
    device: str = "cpu"
    runtime: RuntimeName = "auto"
    shard_rows: int = 4096
    """Rows per shard: what a killed run loses at most."""
    dtype: DtypeChoice = "auto"
    """Type of the stored numbers. ``auto``: that of the features which are there; of new ones float16, or float32 where
    rounding to float16 would take more than 1 % of their spread."""

    def __post_init__(self) -> None:
        if self.shard_rows > MAX_SHARD_ROWS:
            raise RequestError(f"shard rows must be at most {MAX_SHARD_ROWS}, got {self.shard_rows}")
        for name in ("batch_size", "shard_rows"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise RequestError(f"{name.replace('_', ' ')} must be at least 1, got {getattr(self, name)}")
        if self.num_workers is not None and self.num_workers < 1:
            raise RequestError(f"num workers must be at least 1, got {self.num_workers}")
        _check_choice("dtype", self.dtype, DtypeChoice)
        _check_choice("runtime", self.runtime, RuntimeName)


def _known_changes(spec: Any, changes: dict[str, Any], *, fixed: tuple[str, ...] = ()) -> dict[str, Any]:
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


def _exceeds(crop: Any, resize: Any) -> bool:
    """Tell whether a crop is larger than an image in some direction; what is no size is refused later."""
    crops, sides = ((each, each) if isinstance(each, int) else tuple(each) for each in (crop, resize))
    return any(one > other for one, other in zip(crops, sides, strict=True))


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise RequestError(f"unknown {name} {value!r}; known: {', '.join(get_args(choices))}")


def _pixel_range(value: Any) -> PixelRange:
    if value in ("full", "image"):
        return value  # type: ignore[no-any-return]
    low, high = pair_of_numbers("preprocess range", value)
    if low >= high:
        raise RequestError(f"preprocess range needs two numbers, the lesser first, got {low:g},{high:g}")
    return low, high


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat |= _flat(item, f"{prefix}{name}.") if isinstance(item, dict) else {f"{prefix}{name}": item}
    return flat


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text
