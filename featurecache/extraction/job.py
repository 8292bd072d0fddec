"""What an extraction was asked to do, in plain values that travel to other processes and machines."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from featurecache.backbones.providers.module_in_memory import PREFIX as MODULE_PREFIX
from featurecache.backbones.registry import request_digest
from featurecache.errors import RequestError
from featurecache.hashing import digest_json
from featurecache.sources.opening import SourceSpec, open_spec
from featurecache.sources.source import Source, check_modality
from featurecache.specs import BackboneRequest, ExtractionSettings, ViewSpec
from featurecache.spill import Spill

if TYPE_CHECKING:
    from featurecache.backbones.backbone import Backbone
    from featurecache.backbones.taps import Tap


@dataclass(frozen=True, kw_only=True)
class ExtractionJob:
    """What was asked for. Nothing here is loaded or open, so a job pickles and means the same anywhere.

    What a process derives from it (the open source, the loaded network) is kept with the job in that process, because
    a scan and the worker after it need the same; it does not travel, and goes when the job goes.

    Attributes
    ----------
    source : SourceSpec or Source
        Where the samples come from; a source itself lives in this process, and so does its job.
    cache : Path
        Folder of the cache; all processes that work on the job see it there.
    backbone : BackboneRequest
        Name, weights, changes to the preprocess.
    taps : tuple of str
        As they were asked for: ``default`` and groups of layers are resolved by each worker.
    settings : ExtractionSettings
        How to run.
    views : ViewSpec, optional
        Views to keep besides the plain features: heads that are trained on views are scored on plain features.
    """

    source: SourceSpec | Source
    cache: Path
    backbone: BackboneRequest
    taps: tuple[str, ...] = ("default",)
    settings: ExtractionSettings = field(default_factory=ExtractionSettings)
    views: ViewSpec | None = None

    def __getstate__(self) -> dict[str, object]:
        """Leave behind what this process has derived.

        Raises
        ------
        RequestError
            The samples or the network are in the memory of this process.
        """
        if not isinstance(self.source, SourceSpec):
            raise RequestError(
                f"the samples of {self.source.key} are in the memory of this process, where the engine local runs; "
                "write them to files for another one"
            )
        if self.backbone.name.startswith(MODULE_PREFIX):
            raise RequestError(
                f"{self.backbone.name} is in the memory of this process, where the engine local runs; give other "
                "engines a factory, python:MODULE:FACTORY"
            )
        names = {field.name for field in fields(self)}
        return {name: value for name, value in vars(self).items() if name in names}

    @property
    def variants(self) -> tuple[ViewSpec | None, ...]:
        """Plain features, and those of views where they were asked for."""
        return (None,) if self.views is None else (None, self.views)

    @cached_property
    def opened_source(self) -> Source:
        """The source, opened in this process."""
        return open_spec(self.source) if isinstance(self.source, SourceSpec) else self.source

    @cached_property
    def kept(self) -> Spill:
        """Bytes that the scan of a source that is far away has read, for the worker of this process."""
        return Spill()

    @cached_property
    def network(self) -> LoadedNetwork:
        """The backbone and the taps that were asked for, loaded in this process.

        Raises
        ------
        FeatureCacheError
            The request is wrong: an unknown backbone or tap, or one that takes another kind of sample.
        """
        started = perf_counter()
        # Late: an unchanged source is recognised without torch.
        from featurecache.backbones.taps import with_default_warning
        from featurecache.extraction.earlier_defaults import load_or_continue
        from featurecache.extraction.modality import modality_of

        import_module("h5py")  # here, where people wait for the network anyhow, and not before the first shard
        backbone, taps = load_or_continue(self.cache, self.backbone, self.taps)
        check_modality(self.opened_source, backbone.preprocess, backbone.name)
        modality_of(backbone.preprocess, backbone.tokenizer)  # impossible settings show here
        return LoadedNetwork(with_default_warning(backbone, self.taps), taps, perf_counter() - started)

    @cached_property
    def digests(self) -> dict[ViewSpec | None, str]:
        """What each variant is remembered by; none where the same words may mean something else tomorrow."""
        backbone = request_digest(self.backbone)  # of a weights file it reads every byte
        if backbone is None:
            return {}
        plain: dict[str, object] = {"backbone": backbone, "taps": list(self.taps)}
        requests = {views: plain if views is None else {**plain, "views": asdict(views)} for views in self.variants}
        # Notes of edition 1 were made when other defaults held.
        return {views: digest_json("request", 2, request) for views, request in requests.items()}


@dataclass(frozen=True)
class LoadedNetwork:
    """A backbone in this process, the taps of the job, and how long loading took."""

    backbone: Backbone
    taps: tuple[Tap, ...]
    seconds: float
