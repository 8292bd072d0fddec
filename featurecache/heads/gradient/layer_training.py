"""Training of layers of any kind, step by step, so that a killed training goes on as if nothing had happened.

A step depends on the seed and its number alone: the rows, the learning rates, and what dropout and augmentation draw.
So the weights, the optimiser's moments and that number are all that a checkpoint needs.

Axes: B batch, K classes or other outputs.

Augmentation of cached activations.

Brightness and noise follow Baer, Houlsby, Dehghani & Kumar, "Frozen Feature Augmentation for Few-Shot Image
Classification", CVPR 2024, in the variant that draws for each channel; mixup is Zhang, Cisse, Dauphin & Lopez-Paz,
"mixup: Beyond Empirical Risk Minimization", ICLR 2018.

Axes: B batch; channels are the second axis of (B, C, H, W), and the last of (B, T, C) and (B, C).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featurecache.devices import copied_to, exact_float32
from featurecache.errors import first_line
from featurecache.heads.gradient.budget import Deadline
from featurecache.heads.gradient.checkpoints import Checkpoint, TrainingState
from featurecache.heads.gradient.datasets import Dataset, Draw, read_ahead
from featurecache.heads.gradient.options import LayerSetting
from featurecache.heads.gradient.trainable import TrainableLayers, parameter_groups
from featurecache.heads.gradient.training import EarlyStopping, Schedule, Trainer, row_losses
from featurecache.specs import TaskKind

Augment = Callable[[Tensor], tuple[Tensor, tuple[Tensor, Tensor] | None]]
"""Activations to others; where rows are mixed, also the share (B,) that is left of each, and the index (B,) of the
other row."""

# A Beta(0.2, 0.2) leaves most rows nearly as they were.
_BRIGHTNESS, _NOISE, _MIXUP = 0.1, 0.1, 0.2


def brightness(x: Tensor) -> tuple[Tensor, None]:
    """Shift each channel of each row by up to a tenth of the row's range."""
    low, high = x.flatten(1).amin(1), x.flatten(1).amax(1)
    shape = [len(x)] + [1] * (x.ndim - 1)
    channels = [len(x), x.shape[1], 1, 1] if x.ndim == 4 else [len(x), *[1] * (x.ndim - 2), x.shape[-1]]
    shift = (2 * torch.rand(channels, device=x.device) - 1) * _BRIGHTNESS * (high - low).view(shape)
    return (x + shift).clamp(low.view(shape), high.view(shape)), None


def noise(x: Tensor) -> tuple[Tensor, None]:
    """Add normal noise of a tenth of the row's standard deviation."""
    scale = x.flatten(1).std(1).view([len(x)] + [1] * (x.ndim - 1))
    return x + _NOISE * scale * torch.randn_like(x), None


def mixup(x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Mix each row with another, in a share drawn from Beta(0.2, 0.2)."""
    alpha = torch.full((len(x),), _MIXUP)
    share = torch.distributions.Beta(alpha, alpha).sample().to(x.device)  # type: ignore[no-untyped-call]
    others = torch.randperm(len(x)).to(x.device)
    wide = share.view([len(x)] + [1] * (x.ndim - 1))
    return wide * x + (1 - wide) * x[others], (share, others)


AUGMENTATIONS: dict[str | None, Augment] = {"brightness": brightness, "noise": noise, "mixup": mixup}


class DivergedError(ValueError):
    """A loss, a gradient or a weight is no finite number any more."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingData:
    """Samples and targets of one training."""

    dataset: Dataset
    y: Tensor
    """Class indices (n,); labels or numbers (n, K)."""
    weight: Tensor
    """(n,) float32, one on average."""
    fitted: NDArray[np.int64]
    """Indices of samples that are fitted on."""
    held_out: NDArray[np.int64]
    """Indices of samples to stop by."""
    kind: TaskKind
    """Of the task."""


Batch = tuple[NDArray[np.int64], Tensor]
"""Indices of samples, and the samples."""


class LayerTrainer(Trainer[Batch]):
    """Trains layers in place, and leaves them in eval mode, with the best weights where rows are held out to stop by.

    Parameters
    ----------
    layers : TrainableLayers
        Parameters that require gradients are trained, others stay as they are.
    data : TrainingData
    setting : LayerSetting
    checkpoint : Checkpoint, optional
        Where to keep how far the training is, and to go on from.
    deadline : Deadline, optional
        Asked before each step. When it has passed, the weights stay as they are then, or those of the best epoch where
        rows are held out and an epoch has been evaluated.

    Attributes
    ----------
    losses : list of float
        Of each step, on its batch before it.
    """

    def __init__(
        self,
        layers: TrainableLayers,
        data: TrainingData,
        setting: LayerSetting,
        checkpoint: Checkpoint | None = None,
        deadline: Deadline | None = None,
    ) -> None:
        steps, epochs = setting.num_steps(len(data.fitted))
        schedule = Schedule(num_steps=steps * epochs, steps_per_round=steps, warmup=setting.warmup)
        super().__init__(schedule, deadline)
        self.layers, self.losses = layers.to(setting.device), list[float]()
        self._data, self._setting, self._checkpoint = data, setting, checkpoint
        self._seed = setting.random_state or 0
        self._trained = {name: p for name, p in layers.named_parameters() if p.requires_grad}
        groups = list(parameter_groups(layers, setting))
        self._rates = [group["lr"] for group in groups]
        self._optimizer = torch.optim.AdamW(groups)
        # Frozen statistics are those of the pretrained weights, which need not be kept.
        moving = setting.batch_norm == "train" or layers.is_own
        self._kept = self._trained | (dict(layers.named_buffers()) if moving else {})
        self._best: dict[str, Tensor] = {}
        self._stopping = EarlyStopping(setting.patience)

    def resume(self) -> bool:
        """Go on from the checkpoint, and tell whether there is one."""
        if self._checkpoint is None or (found := self._checkpoint.read()) is None or not self._fits(*found):
            return False
        tensors, progress = found
        with torch.no_grad():
            for name, tensor in self._kept.items():
                tensor.copy_(tensors[f"layers.{name}"])
        # Of a training that is done, the best weights are all that is kept.
        best = "layers" if progress.done else "best"
        self._best = {name: tensors[f"{best}.{name}"].to(self._setting.device) for name in self._kept}
        for number, p in enumerate(self._trained.values()):
            state = {key: tensors.get(f"optimizer.{number}.{key}") for key in ("exp_avg", "exp_avg_sq", "step")}
            if state["step"] is not None:  # else it never had a gradient
                self._optimizer.state[p] = {
                    key: tensor if key == "step" or tensor is None else tensor.to(p.device)
                    for key, tensor in state.items()
                }
        self.step, self.is_done, self.losses = progress.step, progress.done, progress.losses
        self._stopping.best = math.inf if progress.best is None else progress.best
        self._stopping.rounds = progress.rounds
        return True

    def run(self) -> None:
        """Train until the training is done, or its time is over.

        Raises
        ------
        DivergedError
            A loss or a gradient that is not finite; no step is taken then.
        """
        self._best = self._best or {name: tensor.detach().clone() for name, tensor in self._kept.items()}
        device = self._setting.device
        # Steps seed torch; what the caller draws is to stay the same.
        with (
            torch.random.fork_rng(devices=[torch.device(device)] if device.startswith("cuda") else []),
            self.arithmetic(),
        ):
            super().run()
        # Stopped in the first epoch, the weights have not been compared with any others yet.
        if len(self._data.held_out) and self.step >= self.schedule.steps_per_round:
            with torch.no_grad():
                for name, tensor in self._kept.items():
                    tensor.copy_(self._best[name])
        # The last step may have spoiled the weights after a good loss.
        if not all(bool(p.isfinite().all()) for p in self._trained.values()):
            rate = self._setting.learning_rate
            raise DivergedError(
                f"training diverges at the last step with the learning rate {rate:g}; use a smaller one"
            )
        self.layers.eval()

    def arithmetic(self) -> AbstractContextManager[None]:
        """Return the context of steps: what is called float32 is not rounded to TF32."""
        return exact_float32(self._setting.device) if self._setting.precision == "float32" else nullcontext()

    def take_step(self, batch: Batch, factor: float) -> None:
        """Take one step; see `Trainer.take_step`."""
        setting, number = self._setting, self.step
        # Each step has a seed of its own: a training that is gone on with draws what it would have drawn.
        torch.manual_seed(int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0]))
        activations, y, weight = self._on_device(*batch)
        augment = AUGMENTATIONS.get(setting.augment)
        activations, pairs = (activations, None) if augment is None else augment(activations)
        self.layers.set_training(statistics=setting.batch_norm == "train")
        loss = self._loss(activations, y, weight, pairs) / len(y)
        self._optimizer.zero_grad(set_to_none=True)
        with self._naming_the_step(activations):
            loss.backward()  # type: ignore[no-untyped-call]
        # Without a limit too: the length shows gradients that are no numbers.
        length = nn.utils.clip_grad_norm_(self._trained.values(), setting.clip or math.inf)
        value = float(loss.detach())
        # Before the step: the weights, and a checkpoint of them, stay good.
        if not (math.isfinite(value) and math.isfinite(float(length))):
            kept = self._checkpoint
            raise DivergedError(
                f"training diverges at step {number + 1} of {self.schedule.num_steps} with the learning rate "
                f"{setting.learning_rate:g}; use a smaller one"
                + (f" (how far it was is kept in {kept.path})" if kept is not None and kept.is_written else "")
            )
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self._optimizer.step()
        self.losses.append(value)

    def _batches(self) -> Iterator[Batch]:
        """Yield batches whose sizes differ by one at most: a last one of a single row would upset batch norm."""
        data, steps_per_epoch = self._data, self.schedule.steps_per_round
        while True:
            epoch, first = divmod(self.step, steps_per_epoch)
            order = np.random.default_rng([self._seed, epoch]).permutation(len(data.fitted))
            # Sorted, as activations may be in a file, which is faster read forwards.
            batches = [data.fitted[np.sort(some)] for some in np.array_split(order, steps_per_epoch)][first:]
            draw = Draw(self._seed, epoch) if self._setting.augment == "views" else None
            yield from zip(batches, read_ahead(partial(data.dataset.read, draw=draw), batches), strict=True)

    def _evaluate(self) -> None:
        """Keep the weights if their loss on held-out rows is the best so far."""
        data = self._data
        if not len(data.held_out):
            return
        self.layers.eval()
        total, weights = 0.0, 0.0
        # As large as those of steps, which fit the device.
        size = self._setting.batch_size
        batches = [data.held_out[start : start + size] for start in range(0, len(data.held_out), size)]
        with torch.no_grad():
            for batch in zip(batches, read_ahead(data.dataset.read, batches), strict=True):
                activations, y, weight = self._on_device(*batch)
                total += float(self._loss(activations, y, weight, None))
                weights += float(weight.sum())
        if self._stopping.improves(total / weights):
            self._best = {name: tensor.detach().clone() for name, tensor in self._kept.items()}
        self.is_done |= self._stopping.is_over

    def _after_step(self) -> None:
        """Write a checkpoint, if it is time to."""
        checkpoint = self._checkpoint
        if checkpoint is None or not (self.is_done or time.monotonic() - checkpoint.last >= checkpoint.every):
            return
        # Where rows are held out, the best weights are the result.
        kept = self._best if self.is_done and len(self._data.held_out) else self._kept
        tensors = {f"layers.{name}": tensor for name, tensor in kept.items()}
        if not self.is_done:  # else nothing goes on from there
            tensors |= {f"best.{name}": tensor for name, tensor in self._best.items()}
            for number, p in enumerate(self._trained.values()):
                state = self._optimizer.state.get(p, {})
                tensors |= {f"optimizer.{number}.{key}": value for key, value in state.items()}
        stopping = self._stopping
        progress = TrainingState(
            step=self.step,
            losses=self.losses,
            best=stopping.best if math.isfinite(stopping.best) else None,
            rounds=stopping.rounds,
            done=self.is_done,
        )
        checkpoint.write(tensors, progress)

    def _loss(self, activations: Tensor, y: Tensor, weight: Tensor, pairs: tuple[Tensor, Tensor] | None) -> Tensor:
        """Return the sum of the weighted losses of the rows."""
        kind_of_device, mixed = self._setting.device.partition(":")[0], self._setting.precision == "bfloat16"
        with (
            self._naming_the_step(activations),
            torch.autocast(kind_of_device, dtype=torch.bfloat16 if mixed else None, enabled=mixed),
        ):
            outputs = self.layers(activations)
        # In float32, whatever the layers compute in: sums of exponentials lose digits in bfloat16.
        losses = row_losses(outputs.float(), y, self._data.kind) * weight
        if pairs is None:
            return losses.sum()
        share, others = pairs  # every row is a mixture of itself and of another
        of_others = row_losses(outputs.float(), y[others], self._data.kind) * weight[others]
        return (share * losses + (1 - share) * of_others).sum()

    @contextmanager
    def _naming_the_step(self, activations: Tensor) -> Iterator[None]:
        """Name the step at which a user's own layers fail; they may do so in any way, and in training alone."""
        try:
            yield
        except Exception as error:
            advice = "; use a smaller batch size" if isinstance(error, torch.OutOfMemoryError | MemoryError) else ""
            raise ValueError(
                f"the layers fail at step {self.step + 1}, on activations of shape "
                f"{tuple(activations.shape)}: {first_line(error)}{advice}"
            ) from error

    def _on_device(self, indices: NDArray[np.int64], samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return samples, targets and weights on the device."""
        index, device = torch.from_numpy(indices), self._setting.device
        tensors = samples, self._data.y[index], self._data.weight[index]
        samples, y, weight = (copied_to(tensor, device) for tensor in tensors)
        return samples, y, weight

    def _fits(self, tensors: dict[str, Tensor], progress: TrainingState) -> bool:
        """Tell whether a checkpoint is of this training: a file may be damaged, or another training's."""
        kinds = ("layers",) if progress.done else ("layers", "best")
        return all(
            (found := tensors.get(f"{kind}.{name}")) is not None and found.shape == tensor.shape
            for kind in kinds
            for name, tensor in self._kept.items()
        )
