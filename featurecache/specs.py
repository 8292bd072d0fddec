"""Frozen settings. What the numbers *are* is hashed into the fingerprint; how fast they came is not.

`PreprocessSpec`, `TextPreprocessSpec`, `ViewSpec` and `FeatureIdentity` say what the numbers are: every field counts,
defaults included.
`ExtractionSettings` says how they are made on this machine: none of its fields counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from featurecache.errors import RequestError, UnknownNameError
from featurecache.hashing import digest_json
from featurecache.image_specs import IMAGENET_MEAN as IMAGENET_MEAN
from featurecache.image_specs import IMAGENET_STD as IMAGENET_STD
from featurecache.image_specs import LEFT_OUT, check_choices, known_changes
from featurecache.image_specs import MAX_FILE_BYTES as MAX_FILE_BYTES
from featurecache.image_specs import Alignment as Alignment
from featurecache.image_specs import ChannelOrder as ChannelOrder
from featurecache.image_specs import Interpolation as Interpolation
from featurecache.image_specs import JpegDecoding as JpegDecoding
from featurecache.image_specs import Orientation as Orientation
from featurecache.image_specs import Padding as Padding
from featurecache.image_specs import PixelRange as PixelRange
from featurecache.image_specs import PreprocessSpec as PreprocessSpec
from featurecache.image_specs import ResizeMode as ResizeMode
from featurecache.image_specs import ResizeOn as ResizeOn
from featurecache.image_specs import Rounding as Rounding
from featurecache.view_specs import MAX_VIEWS as MAX_VIEWS
from featurecache.view_specs import ViewSpec as ViewSpec
from featurecache.view_specs import check_takes_views as check_takes_views
from featurecache.view_specs import num_views as num_views
from featurecache.view_specs import shape_of_row as shape_of_row

DEFAULT_BACKBONE = "efficientnet_lite0"
"""Comes with its weights from pip, so that the first run needs no internet."""
DEFAULT_ENCODER = "all_minilm_l6_v2"
"""The same, of texts."""

StorageDtype = Literal["float16", "float32", "bfloat16", "int8"]
DtypeChoice = Literal["auto", "float16", "float32", "bfloat16", "int8"]
InitName = Literal["pretrained", "random"]
PrecisionName = Literal["float32", "tf32", "bfloat16", "float16"]
RuntimeName = Literal["auto", "torch", "openvino"]
BatchNormPolicy = Literal["frozen", "train"]
"""Of norms that keep statistics, while layers are trained: leave these as they are, or learn them anew."""
FeatureAugmentation = Literal["brightness", "noise", "mixup"]
TrainingAugmentation = Literal[FeatureAugmentation, "views"]
"""Of cached activations; or, of images that are read anew each time, random parts with shifted colours."""
TrainingPrecision = Literal["float32", "bfloat16"]
TaskKind = Literal["classification", "multilabel", "regression"]
"""What a task says of a sample: one class, any of several labels, or one number or several."""
EARLIER_KINDS: dict[str, TaskKind] = {"classes": "classification", "labels": "multilabel", "numbers": "regression"}
"""Names of kinds in caches and heads of release 0.1; they are taken wherever a kind is named, and written nowhere."""
TASK_NOUN: dict[TaskKind, str] = {"classification": "class", "multilabel": "label", "regression": "number"}
"""One of what a task has."""
TASK_NOUNS: dict[TaskKind, str] = {"classification": "classes", "multilabel": "labels", "regression": "numbers"}
"""Several of them."""

MAX_SHARD_ROWS = 50_000  # the record of a shard whose inputs are all bad must stay readable


def task_kind(name: str) -> TaskKind:
    """Return the kind of task of a name, or of one that release 0.1 had for it.

    Raises
    ------
    UnknownNameError
        There is no such kind.
    """
    kind = EARLIER_KINDS.get(name, name)
    if kind not in TASK_NOUN:
        raise UnknownNameError("kind of task", name, TASK_NOUN)
    return kind


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
        for name, value in (("max_tokens", self.max_tokens), ("max_bytes", self.max_bytes)):
            if value < 1:
                raise RequestError(f"preprocess {name} must be at least 1, got {value}")
        if self.text_rules != 1:
            raise RequestError(f"text rules {self.text_rules} are not known to this release; upgrade featurecache")

    def override(self, **changes: Any) -> TextPreprocessSpec:
        """Return a copy with some fields changed; ``None`` means unchanged. The tokenizer belongs to the weights."""
        return replace(self, **known_changes(self, changes, fixed=("kind", "tokenizer")))

    def choices(self) -> dict[str, Any]:
        """Return everything that `override` can change."""
        return {name: value for name, value in asdict(self).items() if name not in ("kind", "tokenizer")}


AnyPreprocess = PreprocessSpec | TextPreprocessSpec
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
        texts = {"backbone": self.backbone, "architecture": self.architecture, "weights": self.weights}
        for name, value in (texts | {"precision": self.precision}).items():
            if not isinstance(value, str):
                raise RequestError(f"{name} of a feature identity must be text, got {value!r:.80}")
        if self.views is not None:
            check_takes_views(self.preprocess.modality, f"the backbone {self.backbone}")

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all fields."""
        # The number is the edition: another one would make every cache one of other features.
        return digest_json("features", 1, self.to_json())

    @property
    def plain(self) -> FeatureIdentity:
        """The same features of plain images."""
        return replace(self, views=None)

    def to_json(self) -> dict[str, Any]:
        """Return the identity as plain JSON values."""
        value = asdict(self)
        # What is as it was before there was a choice is left out: the fingerprints of old caches must not change.
        if self.views is None:
            del value["views"]
        for name, usual in LEFT_OUT.items():
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
        # Caches of before there was a choice decoded in full.
        if kind is None:
            settings = {"jpeg_decoding": "full", **settings}
        views = {"views": ViewSpec(**value["views"])} if "views" in value else {}
        return cls(**{**value, "preprocess": _PREPROCESS_KINDS[kind](**settings), **views})

    def differences(self, other: FeatureIdentity) -> list[str]:
        """Say in words which parts of two identities differ."""
        mine, theirs = _flat(self.to_json()), _flat(other.to_json())
        changed = []
        for name in mine | theirs:
            # Fields that are left out at their old value are None on one side.
            before, after = mine.get(name), theirs.get(name)
            if before != after:
                # Of a digest, its beginning tells two apart.
                shown = [text[:12] if len(text) == 64 else text for text in (str(before), str(after))]
                changed.append(f"{name} {' -> '.join(shown)}")
        return changed


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
    """Arithmetic of the forward pass: ``bfloat16`` and ``float16`` are several times as fast on GPUs; ``tf32``, float32
    of which products round their factors to ten bits, is for CUDA GPUs from compute capability 8.0 on."""

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 <= self.seed < 2**63:
            raise RequestError(f"seed must be between 0 and 2**63 - 1, got {self.seed}")
        # Refused rather than ignored: one of the two would be lost in silence.
        if self.init == "random" and self.weights is not None:
            raise RequestError(f"random weights and weights from {self.weights} exclude each other; choose one")
        if self.weights_key is not None and self.weights is None:
            raise RequestError(f"weights key {self.weights_key!r} names a part of a weights file; add --weights FILE")
        if self.weights_key is not None and not self.weights_key.strip():
            raise RequestError("the weights key is empty; name a part of the weights file, such as state_dict_ema")
        if self.init != "random" and self.seed:
            raise RequestError(f"seed {self.seed} is for random weights only; add --init random")


ALL_GPUS = "cuda:all"
"""As a device: every GPU of the machine, each with a worker of its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractionSettings:
    """How features are made on this machine; never part of the fingerprint."""

    batch_size: int | None = None
    """Inputs in a forward pass; ``None`` lets the runtime choose."""
    num_workers: int | None = None
    """Decoding threads; ``None`` means one per core."""
    device: str = "auto"
    """``cpu``, ``cuda``, ``cuda:1`` or ``mps``; ``auto`` is the GPU that is there, else the CPU. ``cuda:all`` is for
    engines that start a worker for each GPU."""
    num_processes: int | None = None
    """Workers that an engine of several starts; ``None`` lets it choose."""
    runtime: RuntimeName = "auto"
    shard_rows: int | None = None
    """Rows per shard: what a killed run loses at most; ``None`` lets them follow from the number of samples."""
    dtype: DtypeChoice = "auto"
    """Type of the stored numbers. ``auto``: that of the features which are there; of new ones float16, or float32 where
    rounding to float16 would take more than 1 % of their spread."""

    def __post_init__(self) -> None:
        if self.shard_rows is not None and self.shard_rows > MAX_SHARD_ROWS:
            raise RequestError(f"shard rows must be at most {MAX_SHARD_ROWS}, got {self.shard_rows}")
        for name in ("batch_size", "shard_rows", "num_workers", "num_processes"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise RequestError(f"{name.replace('_', ' ')} must be at least 1, got {value}")
        check_choices(self)


def _flat(value: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, item in value.items():
        flat |= _flat(item, f"{prefix}{name}.") if isinstance(item, dict) else {f"{prefix}{name}": item}
    return flat


def as_tuple(names: Any) -> tuple[Any, ...]:
    """Return names as a tuple; a text is one name, and not its letters.

    Parameters
    ----------
    names : str or iterable
    """
    return (names,) if isinstance(names, str) else tuple(names)
