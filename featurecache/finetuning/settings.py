"""How layers are trained: settings that the command line takes as options."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, get_args

from featurecache.errors import RequestError
from featurecache.heads.gradient.options import LayerOptions, LayerSetting, option
from featurecache.specs import TrainingAugmentation

if TYPE_CHECKING:
    from featurecache.heads.head import Setting


@dataclass(kw_only=True)
class FineTuning(LayerOptions):
    """How layers are trained; of several values the best is chosen, as among a head's settings.

    See `LayerOptions` for the options that have one value, and `featurecache.heads.gradient.finetuned.FineTuned`.
    """

    learning_rate: Sequence[float] = option(
        (LayerSetting.learning_rate,), "of new layers; repeat to choose", type=float, metavar="R"
    )
    pretrained_factor: Sequence[float] = option(
        (LayerSetting.pretrained_factor,),
        "learning rate of pretrained layers, as part of that; repeat to choose",
        type=float,
        metavar="F",
    )
    start: Sequence[str] = option(
        (),
        "output layer at first: drawn, or a linear head; repeat to choose (default: a linear head for a tail)",
        choices=("fresh", "probe"),
    )
    augment: Sequence[TrainingAugmentation | None] = option(
        (None,),
        "of activations; views: random parts of images, with --from-images; repeat to choose",
        choices=("none", *get_args(TrainingAugmentation)),
    )
    device: str = option("auto", "cpu, cuda, cuda:1, mps; auto: the GPU that is there")

    def __post_init__(self) -> None:
        from featurecache.backbones.torch_runtime import checked_device
        from featurecache.heads.gradient.finetuned import FineTunedClassifier

        # The device itself, not "auto": it belongs to the identity of a training that is gone on with.
        self.device = str(checked_device(self.device))
        if not (math.isfinite(self.checkpoint_seconds) and self.checkpoint_seconds >= 0):
            raise RequestError(f"checkpoint_seconds must be 0 or more, got {self.checkpoint_seconds}")
        for setting in self.grid():
            try:
                FineTunedClassifier(**{**self.params(), **setting}).check_options()
            except ValueError as error:
                raise RequestError(str(error)) from None

    def started(self, *, pretrained: bool) -> FineTuning:
        """Return these settings with a start, if none was chosen.

        A linear head for pretrained layers, which a drawn output layer would first pull away from what they are good
        for; on the features of new layers it would be of no use.

        Parameters
        ----------
        pretrained : bool
            What is trained is the rest of a pretrained network.
        """
        return self if self.start else replace(self, start=("probe" if pretrained else "fresh",))

    def grid(self, n_samples: int = 0) -> list[Setting]:
        """Return all settings to choose among, the same for any number of samples."""
        searched: dict[str, Sequence[Any]] = {"learning_rate": self.learning_rate}
        searched |= {"pretrained_factor": self.pretrained_factor} if len(self.pretrained_factor) > 1 else {}
        searched |= {"start": self.start} if len(self.start) > 1 else {}
        # In the setting of each head, as heads with and without augmentation stand in one table.
        always = {} if self.augment == (None,) else {"augment": self.augment[0]}
        return [dict(zip(searched, values, strict=True)) | always for values in product(*searched.values())]

    def params(self) -> Setting:
        """Return the parameters of an estimator: of options with several values the first."""
        first = {
            "learning_rate": self.learning_rate[0],
            "pretrained_factor": self.pretrained_factor[0],
            "start": self.start[0] if self.start else "fresh",
            "augment": self.augment[0],
        }
        return vars(self) | first
