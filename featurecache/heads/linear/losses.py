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

    def __call__(self, margins_nPK: Tensor, y_n: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each row in each problem (n, P), and its slope (n, P, K); ``margins_nPK`` is consumed."""
        ...


class Softmax:
    """Multinomial logistic regression: the negative log of the label's probability."""

    curvature = 0.05

    def num_outputs(self, num_classes: int) -> int:
        """One for each class; two classes need one only."""
        return num_classes if num_classes > 2 else 1

    def __call__(self, margins_nPK: Tensor, y_n: Tensor) -> tuple[Tensor, Tensor]:
        """See `Loss`."""
        n, num_problems, num_outputs = margins_nPK.shape
        if num_outputs == 1:
            sign = 2.0 * y_n.to(margins_nPK.dtype) - 1.0
            signed = margins_nPK * sign[:, None, None]
            return softplus(-signed)[:, :, 0], torch.sigmoid(-signed).mul_(-sign[:, None, None])
        label = y_n[:, None, None].expand(n, num_problems, 1)
        log_total = torch.logsumexp(margins_nPK, 2)
        loss = log_total - margins_nPK.gather(2, label)[:, :, 0]
        slope = margins_nPK.sub_(log_total[:, :, None]).exp_()
        slope.scatter_add_(2, label, torch.full_like(slope[:, :, :1], -1.0))
        return loss, slope


class Sigmoids:
    """Logistic regression of each label by itself, several of which may hold; ``y_n`` is (n, K), 0 or 1."""

    curvature = 0.1

    def num_outputs(self, num_classes: int) -> int:
        """One for each label."""
        return num_classes

    def __call__(self, margins_nPK: Tensor, y_n: Tensor) -> tuple[Tensor, Tensor]:
        """See `Loss`."""
        sign = (2.0 * y_n.to(margins_nPK.dtype) - 1.0)[:, None, :]
        signed = margins_nPK.mul_(sign)
        return softplus(-signed).sum(2), torch.sigmoid(-signed).mul_(-sign)


class SquaredHinge:
    """Support vector machine, one class against the rest: the square of what a margin lacks to one."""

    curvature = 1.0

    def num_outputs(self, num_classes: int) -> int:
        """One for each class; two classes need one only."""
        return num_classes if num_classes > 2 else 1

    def __call__(self, margins_nPK: Tensor, y_n: Tensor) -> tuple[Tensor, Tensor]:
        """See `Loss`."""
        num_outputs = margins_nPK.shape[2]
        positive = y_n[:, None] == (torch.arange(num_outputs, device=y_n.device) if num_outputs > 1 else 1)
        sign = (2.0 * positive.to(margins_nPK.dtype) - 1.0)[:, None, :]
        lack = (1.0 - margins_nPK.mul_(sign)).clamp_(min=0.0)
        return (lack * lack).sum(2), (-2.0 * sign) * lack
