"""Arms without transfer that are not cached yet: what each would take, and making those that a budget allows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featurecache.advice.evidence import Role, role_of
from featurecache.errors import InputError
from featurecache.extraction.reproduction import opened_by_name
from featurecache.machine import num_cores
from featurecache.sources.inputs import Input, inputs_of
from featurecache.sources.opening import SourceSpec, open_source
from featurecache.specs import BackboneRequest
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.store import FeatureStore

if TYPE_CHECKING:
    from featurecache.backbones.backbone import Backbone
    from featurecache.progress import Progress
    from featurecache.sources.source import Source

PIXELS = 32
_TRIED = 12
"""Samples by which the time of all is told."""


@dataclass(frozen=True, slots=True)
class ArmSource:
    """Where the samples of a cache come from.

    Attributes
    ----------
    path : path or SourceSpec
    text_column, id_column : str or None
        Of a table that is named by its path.
    """

    path: str | Path | SourceSpec
    text_column: str | None = None
    id_column: str | None = None

    def open(self) -> Source:
        """Open it."""
        return open_source(self.path, text_column=self.text_column, id_column=self.id_column)

    def extract(self, store: FeatureStore, request: BackboneRequest, tap: str, progress: Progress | None) -> None:
        """Cache the features of a network at a tap, or at all of a group."""
        from featurecache.extraction.extract import run_extraction

        columns: dict[str, Any] = {"text_column": self.text_column, "id_column": self.id_column}
        run_extraction(self.path, store.path, request, taps=[tap], **columns, progress=progress)


@dataclass(frozen=True, slots=True)
class MissingArm:
    """What a pretrained network is compared with, and is not cached.

    Attributes
    ----------
    role : str
    request : BackboneRequest
    tap : str
    seconds : float
        That making it would take, as told by a few samples.
    """

    role: Role
    request: BackboneRequest
    tap: str
    seconds: float


def missing_arms(store: FeatureStore, feature_set: FeatureSet, source: ArmSource) -> list[MissingArm]:
    """Return what a pretrained network could be compared with and is not cached, the quickest first.

    Parameters
    ----------
    store : FeatureStore
    feature_set : FeatureSet
        Of the pretrained network.
    source : ArmSource
    """
    identity = feature_set.identity
    arms: dict[Role, tuple[BackboneRequest, str]] = {"words": (BackboneRequest(name="words"), "default")}
    if identity.preprocess.modality == "image":
        arms = {
            "colours": (BackboneRequest(name="colours"), "default"),
            "pixels": (BackboneRequest(name=f"pixels:{PIXELS}"), "default"),
        }
        # A record never decides whose code is run: of other names the command says what to type.
        if opened_by_name(identity.backbone) is not None:
            choices = tuple(sorted(identity.preprocess.choices().items()))
            request = BackboneRequest(name=identity.backbone, init="random", preprocess=choices)
            arms["untrained"] = request, feature_set.tap
    # An untrained network of another architecture is no comparison for this one.
    there = {
        role_of(found)
        for found in store.feature_sets()
        if found.is_baseline or found.identity.architecture == feature_set.identity.architecture
    }
    if not arms.keys() - there:
        return []
    # Only now: a source may be large, or far away.
    inputs = list(inputs_of(source.open()))
    found = [
        MissingArm(role, request, tap, _predicted_seconds(request, inputs))
        for role, (request, tap) in arms.items()
        if role not in there
    ]
    # The quickest first: a budget then allows as many as it can.
    return sorted(found, key=lambda arm: arm.seconds)


def make_arms(
    store: FeatureStore, arms: Sequence[MissingArm], source: ArmSource, minutes: float, progress: Progress | None = None
) -> dict[str, float]:
    """Make the arms that a budget allows, and return the predicted seconds of the others by role.

    Parameters
    ----------
    store : FeatureStore
    arms : sequence of MissingArm
        The quickest first.
    source : ArmSource
    minutes : float
    progress : Progress, optional
    """
    deadline, left = time.monotonic() + 60 * minutes, {}
    for arm in arms:
        # By the clock, not by a sum of predictions: arms before this one may have taken longer than was predicted.
        if time.monotonic() + arm.seconds > deadline:
            left[str(arm.role)] = round(arm.seconds, 3)
            continue
        source.extract(store, arm.request, arm.tap, progress)
    return left


def _predicted_seconds(request: BackboneRequest, inputs: Sequence[Input]) -> float:
    """Return how long a network takes for all inputs, told by a few of them spread over the source."""
    from featurecache.backbones.providers.hub_access import no_network
    from featurecache.backbones.registry import load_backbone
    from featurecache.extraction.modality import modality_of

    started = time.perf_counter()
    # A budget of minutes is no consent to a download.
    with no_network():
        network = load_backbone(request)
    modality = modality_of(network.preprocess, network.tokenizer)
    start_up = time.perf_counter() - started
    # Spread over the source: the files of one folder may all be small.
    some = [inputs[int(index)] for index in np.unique(np.linspace(0, len(inputs) - 1, _TRIED).astype(int))]
    started, arrays = time.perf_counter(), list[NDArray[np.generic]]()
    with modality.undisturbed():
        for item in some:
            try:
                arrays.append(modality.load(item.read(modality.max_bytes)).arrays)
            # The run that makes an arm reports them; here they take next to no time.
            except InputError:
                continue
    if not arrays:
        return start_up
    _run(network, np.concatenate(arrays))
    return start_up + (time.perf_counter() - started) / len(some) * len(inputs) / num_cores()


def _run(network: Backbone, batch: NDArray[np.generic]) -> None:
    import torch

    from featurecache.backbones.input_kinds import input_kind_of

    kind = input_kind_of(network.preprocess)
    with torch.inference_mode():
        kind.call(network.module.eval(), kind.prepare(network.preprocess)(torch.from_numpy(batch)))
