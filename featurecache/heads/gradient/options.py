"""Options of training by gradient steps, declared once: parameters of estimators, and options of the command line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from featurecache.specs import BatchNormPolicy, TrainingAugmentation, TrainingPrecision

# Ten epochs of a hundred rows would be forty steps.
_EPOCHS, _MIN_STEPS = 10, 100

Numbers = Mapping[str, float]
_NONE: Numbers = {}
MAX_ROWS_EVALUATED = 4096
"""At a time, by stacked models in training: `memory_needed` of heads counts with them."""


def option(default: Any, help: str, **argument: Any) -> Any:
    """Return a field of a dataclass that is also an option of the command line.

    Parameters
    ----------
    default : object
    help : str
        What the option is; also the documentation of the field.
    **argument
        As `argparse.ArgumentParser.add_argument` takes it.
    """
    return field(default=default, metadata={"help": help, **argument})


# Not frozen: scikit-learn sets the parameters of an estimator one by one, and the estimators inherit these fields.
@dataclass(kw_only=True, eq=False, repr=False)
class TrainingOptions:
    """Options of everything that is trained by gradient steps; the help of each field describes it."""

    weight_decay: float = option(0.05, "of AdamW", type=float, metavar="D")
    batch_size: int = option(32, "rows in a step", type=int, metavar="N")
    epochs: int | None = option(None, "default: 10, and at least 100 steps", type=int, metavar="N")
    patience: int = option(5, "epochs without progress", type=int, metavar="N")
    device: str = option("cpu", "cpu, cuda, cuda:1, mps; auto: the GPU that is there")

    def check_options(self) -> None:
        """Raise `ValueError` for options that make no sense."""
        # Late: the command line reads these options without waiting for scikit-learn.
        from featurecache.heads.checks import check_whole_number

        check_whole_number("batch_size", self.batch_size, 1)
        check_whole_number("patience", self.patience, 1)
        if self.epochs is not None:
            check_whole_number("epochs", self.epochs, 1)
        check_numbers(not_negative={"weight_decay": self.weight_decay})


@dataclass(kw_only=True, eq=False, repr=False)
class StackedOptions(TrainingOptions):
    """Parameters of models of many settings and folds that are trained side by side.

    Parameters
    ----------
    learning_rate : float
        At its highest; it falls to zero along half a cosine.
    weight_decay : float
        Decoupled, as a rate: each step takes ``learning_rate * weight_decay`` of every weight away.
    batch_size : int
        Rows in a step.
    epochs : int, optional
        At most; None: 20, but at least 300 steps.
    patience : int
        Rounds without improvement on the held-out rows after which training ends; a round is an epoch, or 25 steps
        where that is more.
    validation_fraction : float
        Of the rows of each class, held out to stop by. None are where there are fewer than 1,000 rows, or ten of a
        class; then training goes on for all its steps.
    device : str
        Where to compute, e.g. ``cuda``.
    random_state : int
        Of first weights, held-out rows and batches.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 1.0
    validation_fraction: float = 0.1
    random_state: int = 0

    def check_options(self) -> None:
        """Raise `ValueError` for options that make no sense, before anything is trained."""
        super().check_options()
        check_numbers(
            positive={"learning_rate": self.learning_rate}, shares={"validation_fraction": self.validation_fraction}
        )


@dataclass(kw_only=True, eq=False, repr=False)
class LayerOptions(TrainingOptions):
    """Options of training layers of any kind, the same in all settings of a search."""

    # Clark et al., "ELECTRA", ICLR 2020.
    layer_decay: float = option(1.0, "rate of a layer as part of the next one's", type=float, metavar="F")
    warmup: float = option(0.1, "share of the steps", type=float, metavar="S")
    clip: float = option(1.0, "longest gradient; 0: any", type=float, metavar="L")
    # Small batches have no good statistics, and so those of the pretrained weights stay.
    batch_norm: BatchNormPolicy = option("frozen", "statistics of norms", choices=get_args(BatchNormPolicy))  # noqa: RUF009
    precision: TrainingPrecision = option("float32", "of the steps", choices=get_args(TrainingPrecision))  # noqa: RUF009
    checkpoint_seconds: float = option(30.0, "between keeping", type=float, metavar="S")
    resume: bool = option(False, "go on with a training that was killed", action="store_true")

    def num_steps(self, num_rows: int) -> tuple[int, int]:
        """Return the steps of an epoch of so many rows, and how many epochs there are at most."""
        steps, epochs = math.ceil(num_rows / self.batch_size), self.epochs
        if epochs is None:
            epochs = max(_EPOCHS, math.ceil(_MIN_STEPS / steps))
        return steps, epochs

    def check_options(self) -> None:
        """Raise `ValueError` for options that make no sense."""
        super().check_options()
        check_numbers(
            positive={"layer_decay": self.layer_decay}, not_negative={"clip": self.clip}, shares={"warmup": self.warmup}
        )
        check_choices(
            batch_norm=(self.batch_norm, get_args(BatchNormPolicy)),
            precision=(self.precision, get_args(TrainingPrecision)),
        )


@dataclass(kw_only=True, eq=False, repr=False)
class LayerSetting(LayerOptions):
    """One setting of a search: how layers are trained once.

    Parameters
    ----------
    learning_rate : float
        Of new layers, at its highest.
    pretrained_factor : float
        Times that, for layers that were trained before.
    augment : str or None
        ``brightness``, ``noise`` or ``mixup`` of activations; ``views``: another random view of each input in every
        epoch, where inputs are decoded when they are read.
    random_state : int
        Of new layers, order, dropout, augmentation and held-out rows.
    """

    learning_rate: float = 1e-3
    pretrained_factor: float = 0.1
    augment: TrainingAugmentation | None = None
    random_state: int = 0

    def check_options(self) -> None:
        """Raise `ValueError` for options that make no sense."""
        super().check_options()
        check_numbers(positive={"learning_rate": self.learning_rate, "pretrained_factor": self.pretrained_factor})
        check_choices(augment=(self.augment, (None, *get_args(TrainingAugmentation))))


def check_numbers(*, positive: Numbers = _NONE, not_negative: Numbers = _NONE, shares: Numbers = _NONE) -> None:
    """Raise `ValueError` for parameters that are out of range.

    Parameters
    ----------
    positive, not_negative, shares : mapping of str to float, optional
        Name and value of parameters that must be above 0, or 0 or more, both finite; or from 0 to below 1.
    """
    for name, value in positive.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, got {value!r}")
    for name, value in not_negative.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must not be negative, got {value!r}")
    for name, value in shares.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be from 0 to below 1, got {value!r}")


def check_choices(**params: tuple[Any, tuple[Any, ...]]) -> None:
    """Raise `ValueError` for parameters whose value is not among the known ones: each with its value, and these."""
    for name, (value, known) in params.items():
        if value not in known:
            raise ValueError(f"unknown {name} {value!r}; known: {', '.join(map(str, known))}")
