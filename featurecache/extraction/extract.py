"""The main job: make a cache hold the features of everything that a source holds now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from featurecache.backbones.providers.module_in_memory import name_module
from featurecache.backbones.registry import full_name, request_digest
from featurecache.errors import RequestError
from featurecache.extraction.engines import make_engine
from featurecache.extraction.job import ExtractionJob
from featurecache.extraction.report import ExtractionReport, report_extraction
from featurecache.extraction.scan import scan
from featurecache.extraction.work import ExtractionWork
from featurecache.extraction.worker_report import WorkerReport
from featurecache.progress import Progress, Silent, shows_progress
from featurecache.sources.opening import SourceSpec, open_source, source_spec
from featurecache.specs import (
    MAX_FILE_BYTES,
    AnyPreprocess,
    BackboneRequest,
    ExtractionSettings,
    InitName,
    PrecisionName,
    PreprocessSpec,
    TextPreprocessSpec,
    ViewSpec,
    as_tuple,
)
from featurecache.store.store import FeatureStore

if TYPE_CHECKING:
    from torch import nn


@shows_progress
def extract(
    source: Any,
    cache: str | Path,
    *,
    backbone: str | nn.Module | Sequence[str | nn.Module],
    weights: str | Path | None = None,
    weights_key: str | None = None,
    init: InitName = "pretrained",
    seed: int = 0,
    precision: PrecisionName = "float32",
    taps: str | Sequence[str] = ("default",),
    preprocess: Mapping[str, Any] | AnyPreprocess | None = None,
    views: ViewSpec | int | None = None,
    text_column: str | None = None,
    id_column: str | None = None,
    settings: ExtractionSettings | None = None,
    engine: str = "local",
    source_name: str = "memory",
    progress: Progress | None = None,
) -> FeatureStore:
    """Run a frozen backbone over a folder of images or a table of texts, keep its features, and open the cache.

    What is cached is not computed again.

    Parameters
    ----------
    source : path, str, or samples in memory
        A folder of images; with ``text_column``, a table of texts; other files and URLs as `source_spec` takes them; a
        list of paths, arrays or PIL images, an array, a data frame or a data set.
    cache : path
        Folder of the cache; made when it does not exist.
    backbone, weights, weights_key, preprocess, init, seed, precision
        Which network, with which weights: see `make_request`.
    taps : sequence of str
        Layers to keep, each ``node:pooling``; ``default`` is the input of the removed output layer, ``stages`` and
        ``blocks`` are the taps suggested for the architecture.
    views : ViewSpec or int, optional
        Keep this many seeded, augmented views of each image too, to train heads on: ``(n_samples, n_views, ...)``.
    text_column, id_column : str, optional
        Of a table, the columns that hold and that name the texts.
    settings : ExtractionSettings, optional
        How to run; never changes what the numbers mean.
    engine : str
        Where to run: ``local``, or what another distribution offers under ``featurecache.engines``.
    source_name : str
        Names samples in memory in the cache: other samples under the same name take their place in its listing.
    progress : Progress, optional
        Told how far the run is.
    """
    requests = make_requests(
        backbone,
        weights=weights,
        weights_key=weights_key,
        preprocess=preprocess,
        init=init,
        seed=seed,
        precision=precision,
    )
    reports = [
        run_extraction(
            source,
            cache,
            request,
            taps=taps,
            views=views,
            text_column=text_column,
            id_column=id_column,
            settings=settings,
            engine=engine,
            source_name=source_name,
            progress=progress,
        )
        for request in requests
    ]
    return reports[-1].store


def make_requests(
    backbones: str | nn.Module | BackboneRequest | Sequence[str | nn.Module | BackboneRequest],
    *,
    weights: str | Path | None = None,
    weights_key: str | None = None,
    **options: Any,
) -> list[BackboneRequest]:
    """Bundle what identifies one backbone or several, each once.

    Parameters
    ----------
    backbones : str, nn.Module, BackboneRequest, or sequence of them
    weights, weights_key
        As for `make_request`, of one backbone alone.
    **options
        As for `make_request`, the same for all.

    Raises
    ------
    RequestError
        No backbone, or weights for several.
    UnknownNameError
        One of several is not known.
    """
    several = [backbones] if isinstance(backbones, str) or not isinstance(backbones, Sequence) else list(backbones)
    if not several:
        raise RequestError("no backbone is named; name one at least")
    options |= {"weights": weights, "weights_key": weights_key}
    requests = [one if isinstance(one, BackboneRequest) else make_request(one, **options) for one in several]
    requests = [request for number, request in enumerate(requests) if request not in requests[:number]]
    if len(requests) > 1 and not (weights is None and weights_key is None):
        raise RequestError(f"weights are of one backbone, and {len(requests)} are named; extract one after the other")
    if len(requests) > 1:  # a mistake in the last name must not cost what the others take
        for request in requests:
            request_digest(request)
    return requests


def make_request(
    backbone: str | nn.Module,
    *,
    weights: str | Path | None = None,
    weights_key: str | None = None,
    preprocess: Mapping[str, Any] | AnyPreprocess | None = None,
    init: InitName = "pretrained",
    seed: int = 0,
    precision: PrecisionName = "float32",
) -> BackboneRequest:
    """Bundle what identifies a backbone.

    Parameters
    ----------
    backbone : str or nn.Module
        Name of the network, e.g. ``timm:vit_tiny_patch16_224``, without ``timm:`` where no other provider has it; or a
        network in memory, which is called by its class unless `name_module` gave it another name.
    weights : path, optional
        A weights file; the provider's own when left out.
    weights_key : str, optional
        Dotted name of the section of the file to load, where several fit the network: ``state_dict_ema``.
    preprocess : mapping, optional
        Changes to the preprocess that belongs to the weights, e.g. ``{"crop": 192}``; None leaves a field as it is. Or
        the whole preprocess of another backbone.
    init, seed : str, int
        ``"random"``: the same architecture before any training, drawn from a seed.
    precision : str
        Arithmetic of the forward pass: ``float32``, or on GPUs ``tf32``, ``bfloat16`` or ``float16``; part of the
        fingerprint.
    """
    if not isinstance(backbone, str):
        backbone = name_module(backbone)
    if isinstance(preprocess, PreprocessSpec | TextPreprocessSpec):
        preprocess = preprocess.choices()
    # None stands for an option that was not given.
    changes = {name: value for name, value in (preprocess or {}).items() if value is not None}
    return BackboneRequest(
        name=full_name(backbone),
        weights=None if weights is None else Path(weights),
        weights_key=weights_key,
        preprocess=tuple(sorted(changes.items())),
        init=init,
        seed=seed,
        precision=precision,
    )


def run_extraction(
    source: Any,
    cache: str | Path,
    request: BackboneRequest,
    *,
    taps: str | Sequence[str] = ("default",),
    views: ViewSpec | int | None = None,
    text_column: str | None = None,
    id_column: str | None = None,
    settings: ExtractionSettings | None = None,
    engine: str = "local",
    source_name: str = "memory",
    progress: Progress | None = None,
) -> ExtractionReport:
    """Scan a source, have an engine work on what is missing, and report what was done.

    Parameters
    ----------
    source, cache, taps, views, text_column, id_column, settings, engine, source_name, progress
        As for `extract`.
    request : BackboneRequest
        As `make_request` returns it.

    Raises
    ------
    UnknownNameError
        There is no such engine, backbone or tap.
    """
    started, progress = perf_counter(), progress or Silent()
    if isinstance(source, str | Path):
        # A lower limit makes bad inputs of files that are identified all the same.
        most = max(dict(request.preprocess).get("max_bytes", 0), MAX_FILE_BYTES)
        source = source_spec(source, text_column=text_column, id_column=id_column, max_bytes=most)
    elif not isinstance(source, SourceSpec):
        source = open_source(source, text_column=text_column, id_column=id_column, name=source_name)
    job = ExtractionJob(
        source=source,
        cache=Path(cache),
        backbone=request,
        taps=as_tuple(taps),
        settings=settings or ExtractionSettings(),
        views=ViewSpec(count=views) if isinstance(views, int) else views,
    )
    # Before the scan: a wrong name must not cost the reading of a source.
    chosen = make_engine(engine, progress, settings=job.settings)
    with closing(job.kept):
        # Workers in other processes read by themselves.
        listing = scan(job, progress=progress, keeps=engine == "local")
        done = sum(chosen.run(ExtractionWork(job, is_listed=listing is not None)), WorkerReport())
        if listing is None:  # its workers have made it
            listing = FeatureStore(job.cache).listings.load(job.opened_source.key)
    if listing is None:
        raise RequestError(f"the engine {engine} has run no worker to its end, so {job.cache} lists nothing")
    return report_extraction(job, listing, done, seconds=perf_counter() - started)
