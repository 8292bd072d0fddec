"""Mini-batches that all models share: read once, standardised once for each fold, one step of every bank.

Axes: F folds, n rows, B batch, D features, S settings, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featurecache.heads.fold_blocks import NO_FOLD, FoldBlocks, Moments
from featurecache.heads.gradient.bank import Bank, Layers, Setting, Sizes
from featurecache.heads.preparation import balanced_weights, rows_to_stop_by
from featurecache.specs import TaskKind

_ROWS_TO_LOOK_AT = 4096
_EPOCHS, _LEAST_STEPS, _LEAST_STEPS_OF_A_ROUND = 20, 300, 25


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long, and in what portions.

    Attributes
    ----------
    batch_size : int
    epochs : int or None
        None: 20, but at least 300 steps.
    patience : int
        Rounds (an epoch, or 25 steps where that is more) without a lower loss on held-out rows after which a model
        leaves.
    validation_fraction : float
        Of the rows of each class, held out to stop by; none where there are fewer than 1,000 rows, or ten of a class.
    seed : int
        Of first weights, held-out rows and batches.
    """

    batch_size: int
    epochs: int | None
    patience: int
    validation_fraction: float
    seed: int

    def num_steps(self, num_rows: int) -> tuple[int, int]:
        """Return steps in all, and steps of a round."""
        of_an_epoch = math.ceil(num_rows / self.batch_size)
        total = of_an_epoch * (self.epochs or _EPOCHS)
        if self.epochs is None:
            total = max(total, _LEAST_STEPS)
        return total, min(max(of_an_epoch, _LEAST_STEPS_OF_A_ROUND), total)


@dataclass(frozen=True, kw_only=True, eq=False)
class Weighting:
    """What rows count in the loss, beside their own weights.

    Attributes
    ----------
    balanced : bool
        All classes have the same total weight.
    of_class : ndarray (n_classes,) or None
    """

    balanced: bool = False
    of_class: NDArray[np.float64] | None = None

    def of_rows(self, rows: FoldBlocks, counts_C: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the weight of each row, given the total weight of each class among those that are fitted on."""
        weight = np.ones(len(rows.y)) if rows.weight is None else rows.weight.copy()
        if self.balanced:
            weight *= balanced_weights(counts_C)[rows.y]
        return weight if self.of_class is None else weight * self.of_class[rows.y]


class Trained(NamedTuple):
    """One model at the end."""

    layers: Layers
    """For features as they come, not standardised."""
    num_steps: int
    """After which these were the weights; 0 if training diverged from the start, and these are the first weights."""


def train(
    rows: FoldBlocks,
    settings: Sequence[Setting],
    left_out: Sequence[int],
    schedule: Schedule,
    weighting: Weighting,
    *,
    bank: type[Bank],
    num_tokens: int = 1,
    outcome: TaskKind = "classification",
) -> list[list[Trained]]:
    """Train every setting without each fold.

    Parameters
    ----------
    rows : FoldBlocks
        Features are read by the batch.
    settings : sequence of Setting
    left_out : sequence of int
        The fold that each group of models is not fitted on; `NO_FOLD` leaves out nothing.
    schedule : Schedule
    weighting : Weighting
    bank : type
        What is trained.
    num_tokens : int
        Tokens in a row, which are standardised alike.
    outcome : str
        What ``rows.y`` says.

    Returns
    -------
    trained
        By setting, then by fold.
    """
    trainer = _Trainer(rows, settings, left_out, schedule, weighting, bank, num_tokens, outcome)
    total, of_a_round = schedule.num_steps(len(rows.y))
    for number, places in enumerate(_batches(len(rows.y), schedule, total), start=1):
        trainer.step(places, part=0.5 * (1 + math.cos(math.pi * (number - 1) / total)), number=number)
        if number % of_a_round == 0 or number == total:
            trainer.look(number, last=number == total)
            if not trainer.banks:
                break
    return [[trainer.trained[fold, number] for fold in range(len(left_out))] for number in range(len(settings))]


class _Trainer:
    """All models, by fold and setting."""

    def __init__(
        self,
        rows: FoldBlocks,
        settings: Sequence[Setting],
        left_out: Sequence[int],
        schedule: Schedule,
        weighting: Weighting,
        kind: type[Bank],
        num_tokens: int,
        outcome: TaskKind,
    ) -> None:
        self._rows, self._schedule = rows, schedule
        self._y = torch.from_numpy(rows.y) if outcome == "classification" else torch.from_numpy(rows.y).to(rows.dtype)
        moments = Moments.of(rows)
        _, means, scales, counts = zip(*(moments.without(fold) for fold in left_out), strict=True)
        if num_tokens > 1:
            means, scales = zip(
                *(_of_all_tokens(*each, num_tokens) for each in zip(means, scales, strict=True)), strict=True
            )
        self._mean_F1D, self._scale_F1D = (torch.stack(each).unsqueeze(1).to(rows.dtype) for each in (means, scales))
        seen_Fn = np.stack([(rows.fold != fold) | (rows.fold == NO_FOLD) for fold in left_out])
        weight_Fn = np.stack([weighting.of_rows(rows, each.cpu().numpy()) for each in counts]) * seen_Fn
        self._to_stop_by = rows_to_stop_by(
            rows.y, seen_Fn, rows.group, fraction=schedule.validation_fraction, random_state=schedule.seed
        )
        self._weight_Fn = torch.from_numpy(weight_Fn).to(rows.dtype)
        self._fitted_weight_Fn = self._weight_Fn.clone()
        self._fitted_weight_Fn[:, torch.from_numpy(self._to_stop_by)] = 0.0
        self._best = {(fold, number): (math.inf, 0) for fold in range(len(left_out)) for number in range(len(settings))}
        """Least loss of each model on the rows to stop by, and rounds since then."""
        shapes: dict[tuple[int, ...], list[tuple[int, Setting]]] = {}
        for number, setting in enumerate(settings):
            shapes.setdefault(setting.shape, []).append((number, setting))
        sizes = Sizes(len(left_out), rows.num_features, rows.num_classes, num_tokens, outcome)
        self.banks = [
            kind(
                alike,
                sizes,
                generator=torch.Generator().manual_seed(schedule.seed),
                dtype=rows.dtype,
                device=rows.device,
            )
            for alike in shapes.values()
        ]
        self.trained: dict[tuple[int, int], Trained] = {}
        """By fold and setting."""
        for bank in self.banks:
            for place, number in enumerate(bank.numbers):
                for fold in range(len(left_out)):
                    self.trained[fold, number] = self._as_it_is(bank, fold, place, 0)

    def step(self, places: NDArray[np.int64], *, part: float, number: int) -> None:
        """Let all models take one step."""
        X_FBD, y_B = self._read(places)
        weight_FB = self._fitted_weight_Fn[:, torch.from_numpy(places)].to(self._rows.device)
        for bank in self.banks:
            bank.step(X_FBD, y_B, weight_FB, part=part, number=number)

    def look(self, number: int, *, last: bool) -> None:
        """Keep the best weights of each model so far, and let the settings leave that are done in every fold."""
        for bank in self.banks:
            losses_FS = self._losses(bank)
            stay = []
            for place in range(len(bank.numbers)):
                going_on = [
                    self._judge(bank, fold, place, loss, number, last=last)
                    for fold, loss in enumerate(losses_FS[:, place].tolist())
                ]
                if any(going_on):
                    stay.append(place)
            if len(stay) < len(bank.numbers):
                bank.keep(stay)
        self.banks = [bank for bank in self.banks if bank.numbers]

    def _judge(self, bank: Bank, fold: int, place: int, loss: float, number: int, *, last: bool) -> bool:
        """Note how a model does; tell whether it may still get better."""
        model = fold, bank.numbers[place]
        least, rounds = self._best[model]
        by_rows = len(self._to_stop_by) > 0
        if by_rows and rounds >= self._schedule.patience:  # done; others of its setting are not
            return False
        if loss < least or (last and not by_rows and math.isfinite(loss)):
            self._best[model] = (loss, 0)
            self.trained[model] = self._as_it_is(bank, fold, place, number)
            return True
        self._best[model] = (least, rounds + 1)
        return math.isfinite(loss) and (not by_rows or rounds + 1 < self._schedule.patience)

    def _losses(self, bank: Bank) -> Tensor:
        """Return each model's loss (F, S) on the rows to stop by; without such rows, on some that it is fitted on."""
        places = self._to_stop_by if len(self._to_stop_by) else np.arange(min(len(self._rows.y), _ROWS_TO_LOOK_AT))
        total, weight_F1 = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        with torch.inference_mode():
            for start in range(0, len(places), _ROWS_TO_LOOK_AT):
                part = places[start : start + _ROWS_TO_LOOK_AT]
                X_FBD, y_B = self._read(part)
                weight_FB = self._weight_Fn[:, torch.from_numpy(part)]
                share_F1 = weight_FB.sum(1, keepdim=True).double()
                losses_FS = bank.losses(X_FBD, y_B, weight_FB.to(self._rows.device)).double().cpu()
                total, weight_F1 = total + losses_FS * share_F1, weight_F1 + share_F1
        return total / weight_F1

    def _read(self, places: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Read rows, standardised for each fold (F, B, D), and classes (B,); places in increasing order."""
        X = np.asarray(self._rows.X[places])
        X_BD = torch.from_numpy(np.require(X, requirements=["C", "W"])).to(self._rows.device, self._rows.dtype)
        return (X_BD - self._mean_F1D) / self._scale_F1D, self._y[torch.from_numpy(places)].to(self._rows.device)

    def _as_it_is(self, bank: Bank, fold: int, place: int, number: int) -> Trained:
        mean_D, scale_D = self._mean_F1D[fold, 0].double(), self._scale_F1D[fold, 0].double()
        return Trained(bank.layers(fold, place, mean_D, scale_D), number)


def _of_all_tokens(mean: Tensor, scale: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Return mean and scale of the features of a token, whichever it is, repeated for each token.

    A feature that does not vary at a token has the scale one there, which is nothing of its own.
    """
    means_TD, scales_TD = mean.view(num_tokens, -1), scale.view(num_tokens, -1)
    mean_D = means_TD.mean(0)
    scale_D = (scales_TD.square() + (means_TD - mean_D).square()).mean(0).sqrt()
    return mean_D.repeat(num_tokens), scale_D.repeat(num_tokens)


def _batches(num_rows: int, schedule: Schedule, num_steps: int) -> Iterator[NDArray[np.int64]]:
    generator, given = np.random.default_rng(schedule.seed + 1), 0
    while True:
        order = generator.permutation(num_rows)
        for start in range(0, num_rows, schedule.batch_size):
            yield np.sort(order[start : start + schedule.batch_size])
            given += 1
            if given == num_steps:
                return
