"""How layers are trained: settings that the command line takes as options, declared here once for both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, get_args

from featurecache.errors import RequestError
from featurecache.specs import BatchNormPolicy, TrainingAugmentation, TrainingPrecision

_SEARCHED = ("learning_rate", "pretrained_factor", "start")


def _option(help: str, **option: Any) -> dict[str, Any]:
    """Return what `argparse` is told of the option of a field."""
    return {"help": help, **option}


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """How layers are trained; what has several values is chosen among them, as a head's settings are.

    See `featurecache.heads.gradient.tuner.FineTuned` for what each means.
    """

    learning_rate: Sequence[float] = field(
        default=(1e-3,), metadata=_option("of new layers; repeat to choose", type=float, metavar="R")
    )
    pretrained_factor: Sequence[float] = field(
        default=(0.1,),
        metadata=_option(
            "learning rate of pretrained layers, as part of that; repeat to choose", type=float, metavar="F"
        ),
    )
    start: Sequence[str] = field(
        default=("fresh",),
        metadata=_option(
            "output layer at first: drawn, or a linear head; repeat to choose", choices=("fresh", "probe")
        ),
    )
    augment: Sequence[TrainingAugmentation | None] = field(
        default=(None,),
        metadata=_option(
            "of activations; views: random parts of images, with --from-images; repeat to choose",
            choices=("none", *get_args(TrainingAugmentation)),
        ),
    )
    layer_decay: float = field(
        default=1.0, metadata=_option("rate of a layer as part of the next one's", type=float, metavar="F")
    )
    weight_decay: float = field(default=0.05, metadata=_option("of AdamW", type=float, metavar="D"))
    batch_size: int = field(default=32, metadata=_option("rows in a step", type=int, metavar="N"))
    epochs: int | None = field(
        default=None, metadata=_option("default: 10, and at least 100 steps", type=int, metavar="N")
    )
    warmup: float = field(default=0.1, metadata=_option("share of the steps", type=float, metavar="S"))
    clip: float = field(default=1.0, metadata=_option("longest gradient; 0: any", type=float, metavar="L"))
    batch_norm: BatchNormPolicy = field(
        default="frozen", metadata=_option("statistics of norms", choices=get_args(BatchNormPolicy))
    )
    precision: TrainingPrecision = field(
        default="float32", metadata=_option("of the steps", choices=get_args(TrainingPrecision))
    )
    patience: int = field(default=5, metadata=_option("epochs without progress", type=int, metavar="N"))
    device: str = field(default="auto", metadata=_option("cpu, cuda, cuda:1, mps; auto: the GPU that is there"))
    checkpoint_seconds: float = field(default=30.0, metadata=_option("between keeping", type=float, metavar="S"))
    resume: bool = field(default=False, metadata=_option("go on with a training that was killed", action="store_true"))

    def __post_init__(self) -> None:
        from featurecache.backbones.torch_runtime import checked_device
        from featurecache.heads.gradient.finetuned import FineTunedClassifier

        # What a killed training is known by says on which device it was.
        object.__setattr__(self, "device", str(checked_device(self.device)))
        if not (math.isfinite(self.checkpoint_seconds) and self.checkpoint_seconds >= 0):
            raise RequestError(f"checkpoint_seconds must be 0 or more, got {self.checkpoint_seconds}")
        for setting in self.grid():
            try:
                FineTunedClassifier(**{**self.fixed(), **setting}).check_settings()
            except ValueError as error:
                raise RequestError(str(error)) from None

    def grid(self) -> list[dict[str, Any]]:
        """Return all settings to choose among."""
        varying = [name for name in _SEARCHED if name == "learning_rate" or len(getattr(self, name)) > 1]
        values = product(*(getattr(self, name) for name in varying))
        # Said of each head, as heads with and without augmentation stand in one table.
        always = {} if self.augment == (None,) else {"augment": self.augment[0]}
        return [dict(zip(varying, each, strict=True)) | always for each in values]

    def fixed(self) -> dict[str, Any]:
        """Return what all settings have in common, or what a setting may say otherwise."""
        several = (*_SEARCHED, "augment")
        return {name: value[0] if name in several else value for name, value in vars(self).items()}
