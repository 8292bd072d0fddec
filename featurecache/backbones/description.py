"""A backbone described for people and programs: its layers as possible taps, its cost, and where it can be cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.cutting import CutInfo, valid_cuts
from featurecache.backbones.dry_run import dry_run
from featurecache.backbones.inspection import NodeInfo, bytes_per_sample, list_nodes, suggested_taps
from featurecache.backbones.registry import load_backbone
from featurecache.backbones.tapped import Tap
from featurecache.backbones.taps import resolve_taps, with_default_warning
from featurecache.specs import BackboneRequest


@dataclass(frozen=True, kw_only=True)
class Description:
    """What `describe_backbone` found.

    Attributes
    ----------
    backbone : Backbone
        The network, without its output layer.
    nodes : list of NodeInfo
        Its layers, as far as they run.
    taps : tuple of Tap
        The default tap first, where there is one, then those that were asked for.
    cuts : list of CutInfo or None
        Layers after which the network can be cut in two; None where nobody asked.
    """

    backbone: Backbone
    nodes: list[NodeInfo]
    taps: tuple[Tap, ...]
    cuts: list[CutInfo] | None

    @property
    def default_tap(self) -> Tap | None:
        """The tap called ``default``, where the network has one."""
        return self.taps[0] if self.backbone.default.tap else None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        backbone, default = self.backbone, self.default_tap
        document = {
            "backbone": backbone.name,
            "num_parameters": backbone.num_parameters,
            "num_trainable": backbone.num_trainable,
            "output_layer_removed": backbone.classifier,
            "output_layers": list(backbone.output_layers),
            "default_tap": None if default is None else default.name,
            "default_shape": None if default is None else list(default.shape),
            "default_candidates": [tap for tap, _ in backbone.default.candidates],
            "taps": [
                {"name": tap.name, "shape": list(tap.shape), "bytes_per_sample": bytes_per_sample(tap)}
                for tap in self.taps
            ],
            "suggested_taps": suggested_taps(self.nodes),
            "fingerprint": backbone.identity.fingerprint,
            "weights_source": backbone.weights_source,
            "license": backbone.license,
            "notes": list(backbone.notes),
            "warnings": [warning.to_json() for warning in backbone.warnings],
            "preprocess": asdict(backbone.preprocess),
            "nodes": [asdict(node) for node in self.nodes],
        }
        return document if self.cuts is None else {**document, "tails": [asdict(cut) for cut in self.cuts]}


def describe_backbone(request: BackboneRequest, *, taps: Sequence[str] = (), tails: bool = False) -> Description:
    """Load a backbone, run it once and describe it.

    Parameters
    ----------
    request : BackboneRequest
        Which network, with which weights and preprocess.
    taps : sequence of str
        Taps to describe besides the default one.
    tails : bool
        Try where the network can be cut, too, which runs it many times.

    Returns
    -------
    Description
    """
    backbone = load_backbone(request)
    seen = dry_run(backbone, with_costs=True)
    # A network without a default tap is described all the same: that is how one is chosen.
    default = [] if backbone.default.tap is None else ["default"]
    backbone = with_default_warning(backbone, ["default"])
    return Description(
        backbone=backbone,
        nodes=list_nodes(backbone, seen),
        taps=resolve_taps(backbone, [*default, *taps], seen=seen),
        cuts=valid_cuts(backbone, seen) if tails else None,
    )
