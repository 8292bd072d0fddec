"""Losses of rows, by kind of task.

Axes: B batch, K classes or other outputs; other axes may stand before them, such as those of stacked models.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from featurecache.specs import TaskKind


def row_losses(outputs: Tensor, y: Tensor, kind: TaskKind) -> Tensor:
    """Return the loss of each row, (..., B).

    Parameters
    ----------
    outputs : Tensor (..., B, K)
        Logits of classes, logits of labels, or numbers.
    y : Tensor (B,) or (B, K)
        Class indices; labels or numbers.
    kind : str
        Of the task. Labels below 0, and numbers that are NaN, are not known, and lose nothing.
    """
    if kind == "classification":
        rows = outputs.shape[:-1]
        return cross_entropy(outputs.flatten(0, -2), y.expand(rows).flatten(), reduction="none").view(rows)
    if kind == "multilabel":
        labels = y.to(outputs.dtype).expand_as(outputs)
        losses = binary_cross_entropy_with_logits(outputs, labels.clamp(min=0.0), reduction="none")
        return losses.masked_fill(labels < 0, 0.0).sum(-1)
    # Where NaN, the difference is taken from the output itself, so that no NaN reaches a gradient.
    return (outputs - torch.where(y.isnan(), outputs.detach(), y)).square().mean(-1)
