"""A backbone and the layers that were trained on its activations as one network, for any runtime to execute.

Run one after the other, the layers would compute in plain torch, and hold up everything else; as one network they have
all that a runtime brings: the faster of two, requests in flight, batches of the size that fits the device.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.dry_run import PRE_LOGITS
from featurecache.backbones.taps import Tap, TappedBackbone
from featurecache.deployment.rounding import round_as
from featurecache.deployment.saved import SavedHead
from featurecache.heads.gradient.finetuned import FineTuned
from featurecache.heads.gradient.trainable import TrainableLayers
from featurecache.store.dtypes import LARGEST

# B batch, D features, K classes or other outputs


class _Whole(nn.Module):
    """Normalised images (B, C, H, W) to the outputs of the trained layers, (B, K)."""

    def __init__(self, backbone: Backbone, tap: Tap, layers: TrainableLayers, rounded_to: str) -> None:
        super().__init__()
        self.frozen = TappedBackbone(backbone, [tap])
        self.layers, self._rounded_to = layers, rounded_to
        self._limit = LARGEST.get(rounded_to, float("inf"))

    def forward(self, images: Tensor) -> Tensor:
        """Compute the activations, round them as the cache does, and apply the layers."""
        (activations,) = self.frozen(images).values()
        outputs_BK: Tensor = self.layers(round_as(activations, self._rounded_to))
        # Where the cache would have no features of an input, there is no prediction either.
        largest_B1 = activations.flatten(1).abs().amax(dim=1, keepdim=True)
        return torch.where(largest_B1 <= self._limit, outputs_BK, torch.nan)


def can_be_one_network(saved: SavedHead) -> bool:
    """Tell whether a head is layers that may run with their backbone: on images, and in the same arithmetic."""
    identity = saved.identity
    return (
        isinstance(saved.estimator, FineTuned)
        and not saved.estimator.fitted_layers.is_own  # which may decide by what they see; a trace would not
        and identity.preprocess.modality == "image"
        and identity.precision == "float32"
    )


def as_one_network(saved: SavedHead, network: Backbone, tap: Tap) -> tuple[SavedHead, Backbone, Tap]:
    """Return a head that has nothing left to compute, a backbone that computes the outputs of the layers, and its tap.

    Parameters
    ----------
    saved
        Trained layers, attached.
    network, tap
        What made the activations that they were trained on.
    """
    estimator = saved.estimator
    whole = _Whole(network, tap, estimator.fitted_layers, saved.rounded_to).eval().requires_grad_(False)
    rest = copy.copy(estimator)
    rest.shape, rest.n_features_in_ = (estimator.num_outputs,), estimator.num_outputs
    rest._layers = TrainableLayers(nn.Identity(), None)
    backbone = replace(network, module=whole, classifier=None, output_layers=())
    outputs = Tap(node=PRE_LOGITS, pooling="none", shape=rest.shape)
    meta = {**saved.meta, "probe": None}  # that is of the activations before the layers
    return replace(saved, estimator=rest, tap=outputs.name, dtype="float32", meta=meta), backbone, outputs
