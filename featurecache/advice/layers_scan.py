"""All blocks of a network on a sample of inputs, in one pass of which nothing is kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featurecache.advice.arms import ArmSource
from featurecache.advice.evidence import Evidence, sampled
from featurecache.errors import RequestError
from featurecache.sources.inputs import Input
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.store import FeatureStore
from featurecache.wording import counted

if TYPE_CHECKING:
    from featurecache.progress import Progress

MAX_INPUTS = 2000
"""More are sampled."""


@dataclass(frozen=True, slots=True)
class LayersScan:
    """Which network is scanned, and what its record cannot decide.

    Attributes
    ----------
    source : ArmSource
        Where the samples come from.
    backbone : str, optional
        Agrees to run the code, to open the path or to download the weights of that name; see `reproduce_backbone`.
    weights : path, optional
        The file that the cached features were made with, if it is not the provider's own.
    """

    source: ArmSource
    backbone: str | None = None
    weights: str | Path | None = None

    def network_of(self, feature_set: FeatureSet) -> dict[str, Any]:
        """Return what `reproduce_backbone` and `agreed_request` take to make the network of a feature set."""
        found: dict[str, Any] = {
            "identity": feature_set.identity.plain,
            "weights_source": feature_set.about.weights_source,
        }
        return found | {"needed_by": "the scan of layers", "backbone": self.backbone, "weights": self.weights}


@dataclass(frozen=True, slots=True, eq=False)
class ScannedLayers:
    """Features of all blocks.

    Attributes
    ----------
    index : ndarray of int64 (n,)
        Which rows of the evidence they are of.
    features : dict of str to ndarray (n, d) float32
        By tap, in the order of the network.
    """

    index: NDArray[np.int64]
    features: dict[str, NDArray[np.float32]]


def scan_layers(
    store: FeatureStore,
    evidence: Evidence,
    feature_set: FeatureSet,
    scan: LayersScan,
    *,
    random_state: int = 0,
    progress: Progress | None = None,
) -> ScannedLayers:
    """Compute all blocks of the network of a feature set, on up to 2,000 inputs of the evidence.

    Parameters
    ----------
    store : FeatureStore
    evidence : Evidence
    feature_set : FeatureSet
        Of the network, plain.
    scan : LayersScan
    random_state : int
        Of which inputs are taken, groups of them whole.
    progress : Progress, optional

    Raises
    ------
    RequestError
        The source is none of the cache, or lacks the inputs.
    NotAgreedError, BackboneMismatchError
        As `reproduce_backbone`.
    """
    from featurecache.backbones.runtimes import open_runtime
    from featurecache.backbones.taps import resolve_taps
    from featurecache.extraction.modality import modality_of
    from featurecache.extraction.pipeline import run_pipeline
    from featurecache.extraction.reproduction import reproduce_backbone

    index = sampled(len(evidence.rows), evidence.groups, MAX_INPUTS, random_state)
    inputs = _inputs(store, evidence, index, scan.source)
    network = reproduce_backbone(**scan.network_of(feature_set))
    taps = resolve_taps(network, ["blocks"])
    modality = modality_of(network.preprocess, network.tokenizer)
    if progress is not None:
        progress.start("scanning layers", len(inputs))
    found: dict[str, list[NDArray[np.float32]]] = {tap.name: [] for tap in taps}
    good: list[bool] = []
    runtime = open_runtime(network, taps, device="auto", num_inputs=len(inputs))
    try:
        with modality.undisturbed():
            for outcome in run_pipeline(inputs, runtime, modality):
                # A bad input has no features at any layer: its row is left out of all.
                mine = [problem is None for problem in outcome.problems]
                good += mine
                for name, batches in found.items():
                    features = outcome.features[name]
                    batches.append(features.reshape(len(features), -1)[mine])
                if progress is not None:
                    progress.advance(len(mine), bad=mine.count(False))
    finally:
        runtime.close()
    return ScannedLayers(index[good], {name: np.concatenate(batches) for name, batches in found.items()})


def keep_layers(
    store: FeatureStore, feature_set: FeatureSet, scan: LayersScan, progress: Progress | None = None
) -> None:
    """Cache all blocks of the network of a feature set, of all inputs of the source.

    Parameters
    ----------
    store : FeatureStore
    feature_set : FeatureSet
        Of the network, plain.
    scan : LayersScan
    progress : Progress, optional

    Raises
    ------
    NotAgreedError, BackboneMismatchError
        As `reproduce_backbone`.
    """
    from featurecache.extraction.reproduction import agreed_request

    # A record names code and weights; whether they are run or fetched is for the caller to say.
    request = agreed_request(**scan.network_of(feature_set))
    scan.source.extract(store, request, "blocks", progress)


def _inputs(store: FeatureStore, evidence: Evidence, index: NDArray[np.int64], source: ArmSource) -> list[Input]:
    opened = source.open()
    if (listing := store.listings.load(opened.key)) is None:
        raise RequestError(f"{store.path} holds no samples from {opened.key}; name the source that it was made of")
    rows = evidence.rows[index]
    # Layers are compared with the default tap on the same samples, or not at all.
    if not (held := np.isin(rows, listing.unique_rows)).all():
        raise RequestError(
            f"{opened.key} lacks {counted(int(np.count_nonzero(~held)), 'sample', of=len(rows))} to be scanned; "
            "name the "
            "source that holds all of the task, or leave --layers-scan out"
        )
    ids, names = store.samples.ids[rows], listing.paths_of(rows)
    # By their ids: a file that was edited since is another sample than the one with the label.
    return [Input(opened, name, id=sample.tobytes().hex()) for name, sample in zip(names, ids, strict=True)]
