"""What a model loses on each row, by what is said of rows.

Axes: B batch, K classes or other outputs; any others may stand before them, such as those of models side by side.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from featurecache.specs import TaskKind


def losses_of_rows(outputs: Tensor, y: Tensor, outcome: TaskKind) -> Tensor:
    """Return the loss of each row, (..., B).

    Parameters
    ----------
    outputs
        (..., B, K): logits of classes, logits of labels, or numbers.
    y
        Class indices (B,); labels or numbers (B, K).
    outcome
        What ``y`` says. Labels below 0, and numbers that are NaN, are not known, and lose nothing.
    """
    if outcome == "classification":
        rows = outputs.shape[:-1]
        return cross_entropy(outputs.flatten(0, -2), y.expand(rows).flatten(), reduction="none").view(rows)
    if outcome == "multilabel":
        wanted = y.to(outputs.dtype).expand_as(outputs)
        losses = binary_cross_entropy_with_logits(outputs, wanted.clamp(min=0.0), reduction="none")
        return losses.masked_fill(wanted < 0, 0.0).sum(-1)
    # Not known: the difference is taken from the output itself, so that no NaN reaches a gradient.
    return (outputs - torch.where(y.isnan(), outputs.detach(), y)).square().mean(-1)
