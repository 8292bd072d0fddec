"""Features computed again from their inputs: what `repair` set aside comes back, row for row as it was.

The backbone is built from what the cache records of it, and must come out with the same identity. Code of a stranger
(``python:``) runs only when the caller names it, and inputs are read only from the source that the caller names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.lengths import full_length
from featurecache.backbones.taps import resolve_taps
from featurecache.backbones.torch_runtime import checked_device
from featurecache.extraction import drift
from featurecache.extraction.inventory import take_inventory
from featurecache.extraction.reproduction import may_be, reproduce_backbone
from featurecache.extraction.worker import Worker
from featurecache.progress import Progress, Silent
from featurecache.sources.opening import open_source
from featurecache.sources.source import Source, check_modality
from featurecache.specs import ExtractionSettings
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.listings import Listing
from featurecache.store.repair import SetAside, shards_set_aside
from featurecache.store.schemas import Provenance
from featurecache.store.store import FeatureStore


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Where the inputs of a cache lie, and what its backbones need besides their names.

    Attributes
    ----------
    source : path or URL
        Folder of images, or a table of texts.
    text_column, id_column : str, optional
        Of a table, the columns that hold and that name the texts.
    backbone : str, optional
        Only this backbone's features; needed to agree to the code of a ``python:`` backbone.
    weights : Path, optional
        The weights file that the features were made with.
    weights_key : str, optional
        Dotted name of the section of that file, where the cache does not say which and several fit.
    settings : ExtractionSettings
        Device and decoding threads count; what may change bits (batch size, runtime) is the cache's own.
    """

    source: str | Path
    backbone: str | None = None
    weights: Path | None = None
    weights_key: str | None = None
    text_column: str | None = None
    id_column: str | None = None
    settings: ExtractionSettings = field(default_factory=ExtractionSettings)

    def find(
        self, store: FeatureStore, sets: Sequence[FeatureSet], progress: Progress | None
    ) -> tuple[Source, Listing, list[FeatureSet]]:
        """Open the source and list it, and keep the feature sets whose kind of input it holds.

        Parameters
        ----------
        store : FeatureStore
            The cache.
        sets : sequence of FeatureSet
            Those that are asked for.
        progress : Progress or None
            Told how much is read.

        Raises
        ------
        SourceError
            The source holds another kind of input than all of them take.
        """
        source = open_source(self.source, text_column=self.text_column, id_column=self.id_column)
        fitting = [s for s in sets if s.identity.preprocess.modality == source.modality]
        # Before the listing: that of millions of files takes a minute.
        if sets and not fitting:
            check_modality(source, sets[0].identity.preprocess, sets[0].identity.backbone)
        return source, take_inventory(store, source, progress).now, fitting

    def reproduce(self, feature_set: FeatureSet) -> Backbone:
        """Load the backbone of a feature set."""
        return reproduce_backbone(
            feature_set.identity,
            feature_set.about.weights_source,
            needed_by=f"{feature_set.identity.backbone} ({feature_set.fingerprint[:12]})",
            backbone=self.backbone,
            weights=self.weights,
            weights_key=self.weights_key,
        )


def recompute_set_aside(store: FeatureStore, inputs: Inputs, *, progress: Progress | None = None) -> int:
    """Compute the shards that `repair` set aside again and return how many rows that was.

    Shards that are there again, and rows that the source does not hold any more, are left alone. New files of the
    source are left to `extract`.

    Parameters
    ----------
    store : FeatureStore
    inputs : Inputs
        Where the inputs lie, and how the backbone is made again.
    progress : Progress, optional
        Told how far it is.

    Raises
    ------
    BackboneMismatchError
        The backbone here would make other features.
    DriftError
        This machine makes other features than those that are there.
    """
    lost = [s for s in shards_set_aside(store) if may_be(s.feature_set.identity.backbone, inputs.backbone)]
    if not lost:
        return 0
    progress = progress or Silent()
    source, listing, fitting = inputs.find(store, [shard.feature_set for shard in lost], progress)
    lost = [shard for shard in lost if shard.feature_set in fitting]
    return sum(_recompute(store, shard, source, listing, inputs, progress) for shard in lost)


def _recompute(
    store: FeatureStore, shards: SetAside, source: Source, listing: Listing, inputs: Inputs, progress: Progress
) -> int:
    feature_set, ran = shards.feature_set, msgspec.convert(shards.provenance, Provenance)
    backbone = inputs.reproduce(feature_set)
    (tap,) = resolve_taps(backbone, [feature_set.tap])
    # The same batch size and runtime, and one shard for all rows, so that equal work gives equal bytes.
    same_device = drift.is_same_device(ran, str(checked_device(inputs.settings.device)))
    same: dict[str, Any] = {
        "batch_size": ran.batch_size if same_device else None,
        "runtime": ran.runtime,
        "shard_rows": max(len(shards.rows), 1),
    }
    worker = Worker(
        store=store,
        sets=[feature_set],
        source=source,
        listing=listing,
        backbone=backbone,
        taps={tap.name: tap},
        settings=replace(inputs.settings, **same),
        progress=progress,
        # Earlier releases recorded none, and padded each text to the most tokens.
        lengths=ran.lengths or full_length(backbone) or None,
    )
    return worker.run(np.intersect1d(shards.rows, listing.unique_rows)).num_rows
