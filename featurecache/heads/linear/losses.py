"""What linear heads minimise: a loss of margins, and its slope, for many problems at once."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import softplus

# n rows, P problems, K outputs (classes, or one for two classes)


class Loss(Protocol):
    """A loss that is convex in the margins."""

    curvature: float
    """A typical second derivative, for a first guess at the step."""

    def num_outputs(self, num_classes: int) -> int:
        """Return the margins of each row."""
        ...

    def __call__(self, margins_PKn: Tensor, y_n: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each problem in each row (P, n), and its slope (P, K, n); ``margins_PKn`` is consumed."""
        ...


class Softmax:
    """Multinomial logistic regression: the negative log of the label's probability."""

    curvature = 0.05

    def num_outputs(self, num_classes: int) -> int:
        """One for each class; two classes need one only."""
        return num_classes if num_classes > 2 else 1

    def __call__(self, margins_PKn: Tensor, y_n: Tensor) -> tuple[Tensor, Tensor]:
        """See `Loss`."""
        num_problems, num_outputs, n = margins_PKn.shape
        if num_outputs == 1:
            sign = 2.0 * y_n.to(margins_PKn.dtype) - 1.0
            signed = margins_PKn * sign
            return softplus(-signed)[:, 0], torch.sigmoid(-signed).mul_(-sign)
        label = y_n.expand(num_problems, 1, n)
        log_total = torch.logsumexp(margins_PKn, 1, keepdim=True)
        loss = log_total - margins_PKn.gather(1, label)
        slope = margins_PKn.sub_(log_total).exp_()
        slope.scatter_add_(1, label, torch.full_like(slope[:, :1], -1.0))
        return loss[:, 0], slope


class Sigmoids:
    """Logistic regression of each label by itself, several of which may hold; ``y_n`` is (n, K): 0, 1, or not known.

    A label that is not known, below 0, has no loss: it is fitted on the rows where it is.
    """

    curvature = 0.1

    def num_outputs(self, num_classes: int) -> int:
        """One for each label."""
        return num_classes

    def __call__(self, margins_PKn: Tensor, y_n: Tensor) -> tuple[Tensor, Tensor]:
        """See `Loss`."""
        sign = (2.0 * y_n.to(margins_PKn.dtype) - 1.0).T
        unknown_Kn = y_n.T < 0
        signed = margins_PKn.mul_(sign)
        loss_PKn, slope_PKn = softplus(-signed), torch.sigmoid(-signed).mul_(-sign)
        if bool(unknown_Kn.any()):
            loss_PKn, slope_PKn = (each.masked_fill_(unknown_Kn, 0.0) for each in (loss_PKn, slope_PKn))
        return loss_PKn.sum(1), slope_PKn


class SquaredHinge:
    """Support vector machine, one class against the rest: the square of what a margin lacks to one."""

    curvature = 1.0

    def num_outputs(self, num_classes: int) -> int:
        """One for each class; two classes need one only."""
        return num_classes if num_classes > 2 else 1

    def __call__(self, margins_PKn: Tensor, y_n: Tensor) -> tuple[Tensor, Tensor]:
        """See `Loss`."""
        num_outputs = margins_PKn.shape[1]
        positive = y_n == (torch.arange(num_outputs, device=y_n.device)[:, None] if num_outputs > 1 else 1)
        sign = 2.0 * positive.to(margins_PKn.dtype) - 1.0
        lack = (1.0 - margins_PKn.mul_(sign)).clamp_(min=0.0)
        return (lack * lack).sum(1), (-2.0 * sign) * lack
