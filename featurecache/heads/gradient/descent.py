"""Training of layers of any kind, step by step, so that a killed training goes on as if nothing had happened.

What happens at a step depends on the seed and on the number of the step alone: the rows, the learning rates, and what
dropout and augmentation draw. So the weights, the optimiser's moments and that number are all there is to keep.

Axes: B batch, K classes or other outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featurecache.errors import first_line
from featurecache.heads.gradient.augmenting import Augment
from featurecache.heads.gradient.checkpoints import Checkpoint
from featurecache.heads.gradient.losses import losses_of_rows
from featurecache.heads.gradient.reading import ahead, blocks
from featurecache.heads.gradient.trainable import TrainableLayers, parameter_groups
from featurecache.specs import BatchNormPolicy, TaskKind

_RATES = ("learning_rate", "pretrained_factor", "layer_decay", "weight_decay")


class DivergedError(ValueError):
    """Training has left all bounds; says at which step."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """How layers are trained; see `featurecache.heads.gradient.tuner.FineTuned` for what each means."""

    learning_rate: float
    pretrained_factor: float
    layer_decay: float
    weight_decay: float
    batch_size: int
    epochs: int
    warmup: float
    clip: float
    patience: int
    batch_norm: BatchNormPolicy
    precision: str
    device: str
    seed: int
    augment: Augment | None = None

    def num_batches(self, num_rows: int) -> int:
        """Steps of an epoch."""
        return math.ceil(num_rows / self.batch_size)

    def part(self, step: int, total: int) -> float:
        """Part of the learning rate at a step, from 0: a linear warm-up, then half a cosine down to nothing."""
        warm = int(self.warmup * total)
        if step < warm:
            return (step + 1) / (warm + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(total - warm, 1)))

    def batches(self, num_rows: int, epoch: int) -> list[NDArray[np.int64]]:
        """Return the places of the rows of each step of an epoch, of sizes that differ by one at most."""
        order = np.random.default_rng([self.seed, epoch]).permutation(num_rows)
        return [np.sort(each) for each in np.array_split(order, self.num_batches(num_rows))]


@dataclass
class Progress:
    """How far a training is."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    """Of each step, on its batch before it."""
    held_out: list[float] = field(default_factory=list)
    """Of each epoch, on the rows to stop by."""
    best: float = math.inf
    rounds: int = 0
    """Epochs since the best."""
    done: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class RowsToTrain:
    """Rows that are read as they are needed."""

    read: Callable[[NDArray[np.int64], int | None], Tensor]
    """Places to activations (B, ...), float32, on the CPU: as they are trained on in an epoch, or (None) plain."""
    y: Tensor
    """Class indices (n,); labels or numbers (n, K)."""
    weight: Tensor
    """(n,) float32, one on average."""
    fitted: NDArray[np.int64]
    """Places of those that are fitted on."""
    to_stop_by: NDArray[np.int64]
    outcome: TaskKind


def descend(
    layers: TrainableLayers,
    rows: RowsToTrain,
    course: Course,
    checkpoint: Checkpoint | None = None,
    *,
    begin: Callable[[], None] = lambda: None,
    is_over: Callable[[], bool] = lambda: False,
) -> Progress:
    """Train layers in place, and leave them in eval mode, with the best weights where rows are held out to stop by.

    Parameters
    ----------
    layers
        Parameters that require gradients are trained, others stay as they are.
    rows, course
    checkpoint
        Where to keep how far it is, and to go on from.
    begin
        Called before the first step, to change the layers; not where an earlier training is gone on with.
    is_over
        Asked before each step whether time is over. The weights stay as they are then, or those of the best epoch where
        rows are held out to stop by and an epoch has been judged.

    Raises
    ------
    DivergedError
        A loss or a gradient that is not finite; no step is taken then.
    """
    return _Descent(layers, rows, course, checkpoint).run(begin, is_over)


class _Descent:
    def __init__(
        self, layers: TrainableLayers, rows: RowsToTrain, course: Course, checkpoint: Checkpoint | None
    ) -> None:
        self._layers, self._rows, self._course, self._checkpoint = layers.to(course.device), rows, course, checkpoint
        self._trained = {name: p for name, p in layers.named_parameters() if p.requires_grad}
        groups = list(parameter_groups(layers, **{name: getattr(course, name) for name in _RATES}))
        self._rates = [group["lr"] for group in groups]
        self._optimizer = torch.optim.AdamW(groups)
        moving = course.batch_norm == "train" or layers.is_own
        self._kept = self._trained | (dict(layers.named_buffers()) if moving else {})
        self._best: dict[str, Tensor] = {}
        self._progress = Progress()

    def run(self, begin: Callable[[], None], is_over: Callable[[], bool]) -> Progress:
        progress, course, count = self._progress, self._course, len(self._rows.fitted)
        if not self._go_on():
            begin()
            self._best = self._copies()
        of_an_epoch = course.num_batches(count)
        total = of_an_epoch * course.epochs
        with torch.random.fork_rng(devices=self._devices()):
            over = False
            while progress.step < total and not (progress.done or over):
                epoch, first = divmod(progress.step, of_an_epoch)
                batches = [self._rows.fitted[places] for places in course.batches(count, epoch)[first:]]
                for places, activations in zip(batches, self._ahead(batches, epoch), strict=True):
                    if over := is_over():
                        break
                    self._step(places, activations, course.part(progress.step, total), total)
                    progress.step += 1
                    if progress.step % of_an_epoch == 0:
                        self._look()
                    progress.done |= progress.step == total
                    if self._checkpoint and self._checkpoint.due(last=progress.done):
                        self._keep()
                    if progress.done:
                        break
        if len(self._rows.to_stop_by) and (progress.done or progress.held_out):
            self._restore(self._best)
        if not all(bool(p.isfinite().all()) for p in self._trained.values()):
            raise DivergedError(
                f"training diverges at the last step with the learning rate {course.learning_rate:g}; use a smaller one"
            )
        self._layers.eval()
        return progress

    def _step(self, places: NDArray[np.int64], read: Tensor, part: float, total: int) -> None:
        course, number = self._course, self._progress.step
        torch.manual_seed(int(np.random.SeedSequence([course.seed, number]).generate_state(1)[0]))
        activations, y, weight = self._labelled(places, read)
        activations, pairs = (activations, None) if course.augment is None else course.augment(activations)
        self._layers.set_training(statistics=course.batch_norm == "train")
        loss = self._loss(activations, y, weight, pairs) / len(places)
        self._optimizer.zero_grad(set_to_none=True)
        with self._told(activations):
            loss.backward()  # type: ignore[no-untyped-call]
        length = nn.utils.clip_grad_norm_(self._trained.values(), course.clip or math.inf)
        value = float(loss.detach())
        if not (math.isfinite(value) and math.isfinite(float(length))):
            raise DivergedError(
                f"training diverges at step {number + 1} of {total} with the learning rate {course.learning_rate:g}; "
                "use a smaller one" + (self._checkpoint.said() if self._checkpoint else "")
            )
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * part
        self._optimizer.step()
        self._progress.losses.append(value)

    def _look(self) -> None:
        """Judge an epoch by the rows that are held out, if there are any."""
        progress = self._progress
        if not len(self._rows.to_stop_by):
            return
        loss = self._held_out_loss()
        progress.held_out.append(loss)
        if loss < progress.best:
            progress.best, progress.rounds = loss, 0
            self._best = self._copies()
        else:
            progress.rounds += 1
            progress.done |= progress.rounds >= self._course.patience

    def _held_out_loss(self) -> float:
        self._layers.eval()
        total, weights, step = 0.0, 0.0, self._course.batch_size
        batches = blocks(self._rows.to_stop_by, step)
        with torch.no_grad():
            for places, read in zip(batches, self._ahead(batches, None), strict=True):
                activations, y, weight = self._labelled(places, read)
                total += float(self._loss(activations, y, weight, None))
                weights += float(weight.sum())
        return total / weights

    def _loss(self, activations: Tensor, y: Tensor, weight: Tensor, pairs: tuple[Tensor, Tensor] | None) -> Tensor:
        """Return the sum of the weighted losses of the rows."""
        with self._told(activations), self._mixed():
            outputs = self._layers(activations)
        losses = losses_of_rows(outputs.float(), y, self._rows.outcome) * weight
        if pairs is None:
            return losses.sum()
        share, others = pairs  # every row is a mixture of itself and of another
        of_others = losses_of_rows(outputs.float(), y[others], self._rows.outcome) * weight[others]
        return (share * losses + (1 - share) * of_others).sum()

    @contextmanager
    def _told(self, activations: Tensor) -> Iterator[None]:
        """Say where somebody's own layers object, which they may do in any way, and to batches in training alone."""
        try:
            yield
        except Exception as error:
            advice = "; use a smaller batch size" if isinstance(error, torch.OutOfMemoryError | MemoryError) else ""
            raise ValueError(
                f"the layers fail at step {self._progress.step + 1}, on activations of shape "
                f"{tuple(activations.shape)}: {first_line(error)}{advice}"
            ) from error

    def _mixed(self) -> Any:
        dtype = torch.bfloat16 if self._course.precision == "bfloat16" else None
        return torch.autocast(self._course.device.partition(":")[0], dtype=dtype, enabled=dtype is not None)

    def _ahead(self, batches: list[NDArray[np.int64]], epoch: int | None) -> Iterator[Tensor]:
        return ahead(lambda places: self._rows.read(places, epoch), batches)

    def _labelled(self, places: NDArray[np.int64], read: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Put activations, what is said of them and their weights on the device."""
        index = torch.from_numpy(places)
        arrays = read, self._rows.y[index], self._rows.weight[index]
        activations, y, weight = (each.to(self._course.device, non_blocking=True) for each in arrays)
        return activations, y, weight

    def _devices(self) -> list[Any]:
        return [torch.device(self._course.device)] if self._course.device.startswith("cuda") else []

    def _copies(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self._kept.items()}

    def _go_on(self) -> bool:
        """Take up what a checkpoint holds, and tell whether it holds anything."""
        if self._checkpoint is None or (found := self._checkpoint.read()) is None or not self._fits(*found):
            return False
        tensors, said = found
        self._restore({name: tensors[f"layers.{name}"] for name in self._kept})
        best = "best" if f"best.{next(iter(self._kept))}" in tensors else "layers"  # of a training that is done
        self._best = {name: tensors[f"{best}.{name}"].to(self._course.device) for name in self._kept}
        for number, p in enumerate(self._trained.values()):
            state = {key: tensors.get(f"optimizer.{number}.{key}") for key in ("exp_avg", "exp_avg_sq", "step")}
            if state["step"] is not None:  # else it never had a gradient
                self._optimizer.state[p] = {
                    key: tensor if key == "step" or tensor is None else tensor.to(p.device)
                    for key, tensor in state.items()
                }
        vars(self._progress).update({**said, "best": math.inf if said["best"] is None else said["best"]})
        return True

    def _fits(self, tensors: dict[str, Tensor], said: Any) -> bool:
        """Tell whether what was kept is of this training: a file may be damaged, or somebody else's."""
        if not isinstance(said, dict) or said.keys() != vars(Progress()).keys():
            return False
        kinds = ("layers",) if said["done"] else ("layers", "best")
        return all(
            (found := tensors.get(f"{kind}.{name}")) is not None and found.shape == tensor.shape
            for kind in kinds
            for name, tensor in self._kept.items()
        )

    def _keep(self) -> None:
        assert self._checkpoint is not None
        kept = self._best if self._progress.done and len(self._rows.to_stop_by) else self._kept
        tensors = {f"layers.{name}": tensor for name, tensor in kept.items()}
        if not self._progress.done:  # else nobody goes on from there
            tensors |= {f"best.{name}": tensor for name, tensor in self._best.items()}
            for number, p in enumerate(self._trained.values()):
                state = self._optimizer.state.get(p, {})
                tensors |= {f"optimizer.{number}.{key}": value for key, value in state.items()}
        best = self._progress.best
        self._checkpoint.write(tensors, {**vars(self._progress), "best": best if math.isfinite(best) else None})

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self._kept.items():
                tensor.copy_(tensors[name])
