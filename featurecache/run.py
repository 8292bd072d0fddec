"""The main job as a function: features, a task, trained heads, a report, and the best head kept for new inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.errors import OutputFailure, RequestError, TaskError, command_line, try_output, unique_warnings
from featurecache.progress import shows_progress
from featurecache.run_report import RunReport, write_run_report
from featurecache.specs import DEFAULT_BACKBONE, BackboneRequest, check_takes_views
from featurecache.train import TrainingSettings, train

if TYPE_CHECKING:
    from torch import nn

    from featurecache.advice.finding import Finding
    from featurecache.evaluation.trained_head import TrainedHead
    from featurecache.evaluation.training import TrainingReport
    from featurecache.extraction.report import ExtractionReport
    from featurecache.progress import Progress
    from featurecache.sources.source import Source
    from featurecache.specs import ExtractionSettings, ViewSpec
    from featurecache.store.labels import FolderLabels, TableLabels


@shows_progress
def run(
    source: Any,
    *,
    cache: str | Path | None = None,
    labels: Any = None,
    task: str = "run",
    allow_missing: bool = False,
    backbone: str | nn.Module | BackboneRequest | Sequence[str | nn.Module | BackboneRequest] = DEFAULT_BACKBONE,
    taps: str | Sequence[str] = ("default",),
    views: ViewSpec | int | None = None,
    text_column: str | None = None,
    id_column: str | None = None,
    settings: ExtractionSettings | None = None,
    engine: str = "local",
    source_name: str = "memory",
    training: TrainingSettings | None = None,
    report: str | Path | None = None,
    command: str | None = None,
    progress: Progress | None = None,
) -> RunReport:
    """Extract features, train the standard heads on them, write a report and keep the best head.

    What is cached is not computed again, so a second call after adding ten images computes ten.

    Parameters
    ----------
    source : path, str, or samples in memory
        Folder of images, one folder below for each class; with ``text_column``, a table of texts; or what else
        `extract` takes: tar files, a zip, a URL, a list of paths or pictures, a data frame, a data set.
    cache : path, optional
        Folder of the cache, made when it does not exist; ``<source>.cache`` next to the source when left out, which a
        URL and samples in memory have not.
    labels : path, mapping, DataFrame, FolderLabels, TableLabels or LabelTable, optional
        A table that names the samples and says their classes, as a file or as a data frame; a mapping of names to
        classes; or what `labels_from_csv`, `labels_from_frame` or `labels_from_folders` gives. When left out, folders
        are classes; tables, tar files and data sets have labels of their own.
    task : str
        Name under which the labels, and the kept head, stand in the cache. A task that was made from other labels is
        not replaced.
    allow_missing : bool
        Skip labels of files that are not in the cache instead of refusing them.
    backbone : str, nn.Module, BackboneRequest, or a sequence of them
        Name of the network, a network in memory, or the request that also names its weights and changes to its
        preprocess. The heads of several stand in one table, and the best head of all is kept.
    taps : sequence of str
        Layers to keep, as for `extract`.
    views : ViewSpec or int, optional
        Augmented views of each image to train on too, as for `extract`.
    text_column, id_column : str, optional
        Of a table, the columns that hold and that name the texts.
    settings : ExtractionSettings, optional
        How extraction runs.
    engine : str
        Where it runs.
    source_name : str
        Names samples in memory in the cache.
    training : TrainingSettings, optional
        Which heads are trained, and how.
    report : path, optional
        Where the HTML report is written; ``report.html`` in the cache when left out.
    command : str, optional
        What the report shows as the way to make it again.
    progress : Progress, optional
        Told how far the run is.

    Returns
    -------
    RunReport
        Extraction, trained heads and what was written.

    Raises
    ------
    RequestError
        Settings that exclude each other, or a report that could not be written where it should go.
    TaskError
        Labels that make no task, found before anything is extracted wherever possible.
    """
    from featurecache.extraction.extract import make_requests, run_extraction
    from featurecache.extraction.report import merge_reports
    from featurecache.progress import Silent
    from featurecache.sources.opening import open_source
    from featurecache.sources.source import check_source
    from featurecache.store.naming import check_name

    training, progress = training or TrainingSettings(), progress or Silent()
    requests = make_requests(backbone)
    opened = open_source(source, text_column=text_column, id_column=id_column, name=source_name)
    check_source(opened)
    named = getattr(source, "url", None) or (str(source) if isinstance(source, str | Path) else None)
    cache = default_cache(named) if cache is None else cache
    # A mistake in a name, an option or a label must not cost an extraction.
    check_name("task", task)
    _check_options(training, opened, views, report)
    found = _checked_labels(labels, source, opened, text_column, id_column, training, allow_missing=allow_missing)
    # A path is opened once more for each backbone, as the greatest file may differ by its preprocess.
    extractions = [
        run_extraction(
            source if named is not None else opened,
            cache,
            request,
            taps=taps,
            text_column=text_column,
            id_column=id_column,
            views=views,
            settings=settings,
            engine=engine,
            progress=progress,
        )
        for request in requests
    ]
    extraction = merge_reports(extractions)
    trained = _train(extraction, task, found, training, allow_missing=allow_missing, progress=progress)
    report_path = extraction.store.path / "report.html" if report is None else Path(report)
    command = command or f"featurecache.run({named or opened.key!r}, cache={str(extraction.store.path)!r}, ...)"
    # By the fingerprint: two requests may name one backbone, with other weights.
    kept = trained.best.feature_set.fingerprint
    request = next(r for r, e in zip(requests, extractions, strict=True) if kept in {s.fingerprint for s in e.sets})
    return _finished(extraction, trained, opened, named, request, training, report_path, command)


def default_cache(named: str | None) -> Path:
    """Return where the cache of a source goes where nobody says it: beside the source.

    Parameters
    ----------
    named : str or None
        The source, as somebody named it; None for samples in memory.

    Raises
    ------
    RequestError
        It is no path of this machine.
    """
    if named is None or "://" in named or any(mark in named for mark in "*?{"):
        raise RequestError(f"say where the cache of {named or 'samples in memory'} goes: --cache DIR")
    path = Path(named).absolute()
    return path.with_name(f"{path.stem if path.is_file() else path.name}.cache")


def _train(
    extraction: ExtractionReport,
    name: str,
    labels: FolderLabels | TableLabels,
    training: TrainingSettings,
    *,
    allow_missing: bool,
    progress: Progress,
) -> TrainingReport:
    """Make a task of the labels, whose samples have features by now, and train heads on it."""
    store = extraction.store
    # A task that was made from other labels is somebody's work; only one from these is replaced.
    if name in store.task_names() and (before := store.task(name).about["origin"]) != labels.origin:
        raise TaskError(
            f"task {name!r} has its labels from {before}, not from {labels.origin}; choose another name with --task"
        )
    task = store.add_task(name, labels, allow_missing=allow_missing, replace=True, random_state=training.random_state)
    # Heads on plain features and on views stand in one table: validation data tell whether views help.
    trained = train(store, task, extraction.sets, training, progress=progress)
    # What concerns features stands in both reports, and is shown once.
    trained.warnings = unique_warnings([*extraction.warnings, *trained.warnings])
    return trained


def _finished(
    extraction: ExtractionReport,
    trained: TrainingReport,
    source: Source,
    named: str | None,
    request: BackboneRequest,
    training: TrainingSettings,
    report_path: Path,
    command: str,
) -> RunReport:
    """Compare with the training before, advise, keep the best head and write the report."""
    from featurecache.deployment.kept import keep_head
    from featurecache.evaluation.history import remember_training
    from featurecache.sources.opening import table_options

    store, failures = extraction.store, list[OutputFailure]()
    trained.changes = remember_training(store, trained)
    # From here on a failure is reported, and takes neither the heads away nor what else is written.
    options = table_options(source)
    advice = try_output(
        "the advice", lambda: _advise(extraction, trained, named, options, training.random_state), failures
    )
    keep, memory, name = training.keep, training.memory, trained.task.name
    saved = try_output("the head", lambda: keep_head(store, name, trained.best, keep=keep, memory=memory), failures)
    done = RunReport(
        extraction=extraction,
        training=trained,
        saved=saved,
        predict_command=None if saved is None else predict_command(saved, trained.best, request, options),
        advice=tuple(advice or ()),
    )
    written = try_output(
        "the report", lambda: write_run_report(report_path, done, source, named, command, keep), failures
    )
    return replace(done, report=written, failures=tuple(failures))


def predict_command(
    saved: Path, head: TrainedHead, request: BackboneRequest | None = None, source_options: Sequence[str] = ()
) -> str:
    """Return the command that labels new inputs with a kept head, in the way in which it was scored.

    Parameters
    ----------
    saved : Path
        Folder of the kept head.
    head : TrainedHead
        What is kept there.
    request : BackboneRequest, optional
        What the features were asked for with; where it is not known, the user has to fill in the weights file.
    source_options : sequence of str
        With which a table of texts was opened: a new one is taken to be like it.
    """
    feature_set = head.feature_set
    text = feature_set.identity.preprocess.modality == "text"
    weights = None if request is None else request.weights
    table = ["NEW.csv", *(source_options or ("--text-column", "NAME"))]
    command = ["predict", str(saved), *(table if text else ["NEW_IMAGES"])]
    if weights is not None or feature_set.about.weights_source.startswith("file "):
        command += ["--weights", str(weights or "FILE")]
    if request is not None and request.weights_key is not None:
        command += ["--weights-key", request.weights_key]
    # What only the caller may decide to open has to be named again.
    if feature_set.identity.backbone.startswith(("python:", "hub:", "file:", "hf:")):
        command += ["--backbone", feature_set.identity.backbone if request is None else request.name]
    if head.result.head.startswith("python:"):
        command += ["--layers", head.result.head]
    if head.evaluated_on == "views":
        command += ["--tta", str(head.eval_set.num_views)]
    return command_line(*command)


def _check_options(
    training: TrainingSettings, source: Source, views: ViewSpec | int | None, report: str | Path | None
) -> None:
    """Refuse a report where none can be written, and test-time views of what has none."""
    if report is not None and (Path(report).is_dir() or not Path(report).absolute().parent.is_dir()):
        raise RequestError(f"cannot write a report at {report}: name a file in a folder that exists")
    if training.tta:
        check_takes_views(source.modality, f"the source {source.key}", option="--tta")
        if views is None:
            raise RequestError("--tta evaluates heads on views of each image; add --views K")


def _read_labels(
    labels: Any, source: Any, opened: Source, text_column: str | None, id_column: str | None, names: Sequence[str]
) -> FolderLabels | TableLabels:
    """Return the labels of a source: what is given, else what the source carries, else its folders.

    Of a folder without one for each class, a metadata.csv, .jsonl or .parquet beside the images says them.
    """
    from featurecache.interop.dataset_labels import labels_in_source
    from featurecache.sources.folder import FolderSource
    from featurecache.store.label_metadata import are_labels_beside
    from featurecache.store.label_tables import LabelTable, labels_from_csv, labels_from_frame, labels_from_mapping
    from featurecache.store.labels import FolderLabels, TableLabels, labels_from_folders

    root = opened.key
    if labels is None:
        if isinstance(opened, FolderSource) and are_labels_beside(root, names):
            return labels_from_csv(root, root=root, names=names)
        return labels_in_source(source, opened, text_column) or labels_from_folders(root)
    if isinstance(labels, str | Path):
        # A table of labels may name texts by their id instead of holding them again.
        return labels_from_csv(labels, text_column=None if id_column else text_column, root=root, names=names)
    if isinstance(labels, LabelTable):
        return labels.read(root=root, names=names)
    if isinstance(labels, FolderLabels | TableLabels):
        return replace(labels, root=root) if labels.root is None else labels
    if isinstance(labels, Mapping):
        return labels_from_mapping(labels, root=root)
    if hasattr(labels, "columns"):
        return labels_from_frame(labels, root=root, names=names)
    raise RequestError(f"labels are a path, a mapping, a data frame or what labels_from_csv gives; got {labels!r:.100}")


def _checked_labels(
    labels: Any,
    source: Any,
    opened: Source,
    text_column: str | None,
    id_column: str | None,
    training: TrainingSettings,
    *,
    allow_missing: bool,
) -> FolderLabels | TableLabels:
    """Return the labels of a source; they make a task, and heads and metrics are for tasks of their kind."""
    from featurecache.evaluation.configuring import resolve
    from featurecache.evaluation.metrics import metric_of
    from featurecache.heads.thresholds import threshold_rule
    from featurecache.sources.entries import Entries
    from featurecache.store.label_folders import label_of_path
    from featurecache.store.label_join import check_names
    from featurecache.store.labels import FolderLabels
    from featurecache.store.task_builder import check_labels

    # Not held after this: of many millions they take gigabytes.
    names = Entries.of(opened).names
    found = _read_labels(labels, source, opened, text_column, id_column, names)
    if isinstance(found, FolderLabels):
        of_folders = [label_of_path(path, found.class_folder) for path in names]
        check_labels([label for label in of_folders if label is not None], found)
    else:
        check_names(found, names, allow_missing=allow_missing)
        check_labels(found.labels, found)
    kind = "classification" if isinstance(found, FolderLabels) else found.kind
    # Found and thrown away: an unknown name must not cost an extraction.
    metric_of(kind, training.metric)
    threshold_rule(training.threshold)
    for head in training.heads:
        resolve(head, kind)
    return found


def _advise(
    extraction: ExtractionReport,
    training: TrainingReport,
    source: str | None,
    source_options: Sequence[str],
    random_state: int,
) -> list[Finding]:
    """Return what to do next; nothing where features are not of a pretrained network, or labels too few to compare."""
    from featurecache.advice.advise import advise

    # Advice compares plain features; views of one image are no samples of their own.
    plain = [found for found in extraction.sets if found.num_views is None]
    try:
        name, options = training.task.name, source_options
        return advise(
            extraction.store, name, source=source, source_options=options, sets=plain, random_state=random_state
        )
    except (RequestError, TaskError):
        return []
