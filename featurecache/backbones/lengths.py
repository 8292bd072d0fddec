"""Padded lengths: texts of about one length share batches, so that less of what a network computes is padding.

Lengths are few and fixed, not that of the longest text of a batch: a batch of another shape changes the last bits of
the features, and a text must not have other features because of the texts beside it. Each length is at most half as
long again as the one before, so about a fifth of a batch is padding.

Axes: B batch, T tokens.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.dry_run import example_inputs
from featurecache.backbones.input_kinds import input_kind_of, is_text
from featurecache.backbones.tapped import Tap, TappedBackbone
from featurecache.errors import first_line

_log = logging.getLogger(__name__)

# Shorter ones save nothing: calls, not numbers, are what a batch of eight tokens costs.
_SHORTEST = 16
# Of the largest value. Padding that is hidden changes roundings, 1e-6 in MiniLM; what is seen changes whole digits.
_SAME = 1e-4
# Of a record, which may be a stranger's.
_MOST_LENGTHS = 64


def candidate_lengths(max_tokens: int) -> tuple[int, ...]:
    """Return the lengths that texts of at most ``max_tokens`` tokens may be padded to, shortest first."""
    lengths, power = [], _SHORTEST
    while power < max_tokens:
        lengths += [length for length in (power, power * 3 // 2) if length < max_tokens]
        power *= 2
    return (*lengths, max_tokens)


def lengths_for(backbone: Backbone, taps: Sequence[Tap], *, recorded: Sequence[int] | None = None) -> tuple[int, ...]:
    """Return the lengths at which a backbone gives a text the features that it has at the greatest; of images none.

    Parameters
    ----------
    backbone : Backbone
    taps : sequence of Tap
        A tap that keeps the tokens has another shape at another length, and so takes the greatest alone.
    recorded : sequence of int, optional
        Those that earlier features were made with.
    """
    if not (full := full_length(backbone)):
        return ()
    (longest,) = full
    lengths = tuple(recorded or ())
    is_usable = lengths == tuple(sorted(set(lengths))) and lengths[:1] > (0,) and lengths[-1:] == (longest,)
    if not is_usable or len(lengths) > _MOST_LENGTHS:
        lengths = candidate_lengths(longest)
    return lengths if len(lengths) == 1 or _is_padding_hidden(backbone, taps, lengths) else full


def full_length(backbone: Backbone) -> tuple[int, ...]:
    """Return the greatest length alone; of images none."""
    return input_kind_of(backbone.preprocess).shape(backbone.preprocess) if is_text(backbone.preprocess) else ()


def padded_length(num_tokens: int, lengths: Sequence[int]) -> int:
    """Return the least length that holds so many tokens; of more than the greatest, the greatest."""
    return lengths[min(bisect_left(lengths, num_tokens), len(lengths) - 1)]


def count_tokens(batch_BT: NDArray[np.int32]) -> NDArray[np.int64]:
    """Count the tokens of each text (B,), without padding."""
    return (batch_BT >= 0).sum(axis=1)


def _is_padding_hidden(backbone: Backbone, taps: Sequence[Tap], lengths: Sequence[int]) -> bool:
    """Tell whether a short text has the same features at several lengths."""
    # The two shortest, of which one is no power of two, and one in the middle: all of them would take as long as four
    # texts of the greatest, and a network to which padding or a length matters shows it at the shortest.
    tried = sorted({*lengths[:2], lengths[len(lengths) // 2]} - {lengths[-1]})
    tapped, whole_BT = TappedBackbone(backbone, taps), example_inputs(backbone, 1)
    whole_BT[:, max(1, lengths[0] * 3 // 4) :] = -1
    try:
        with torch.inference_mode():
            expected = tapped(whole_BT)
            return all(_agree(tapped(whole_BT[:, :length].contiguous()), expected) for length in tried)
    # A network may object to a length with any exception at all.
    except Exception as error:
        _log.info("%s: texts are padded to %d tokens (%s)", backbone.name, lengths[-1], first_line(error))
        return False


def _agree(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return all(
        found[tap].shape == values.shape
        # Written so that a NaN counts as a difference.
        and bool((found[tap] - values).abs().max() <= _SAME * values.abs().max())
        for tap, values in expected.items()
    )
