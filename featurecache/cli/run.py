"""``featurecache run``: from inputs to a table of heads, a report and a predictor, in one command."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.cli.extract import exit_status, extract, print_summary
from featurecache.cli.options import (
    add_backbone_options,
    add_extraction_options,
    add_table_options,
    verb_parser,
    views_of,
)
from featurecache.cli.output import print_json, print_line, print_warnings
from featurecache.cli.outputs import Outputs
from featurecache.cli.task import (
    add_label_options,
    add_missing_option,
    add_weight_option,
    label_columns,
    label_readings,
    print_task,
)
from featurecache.cli.train import add_training_options, predict_command, print_results, save_best, train
from featurecache.errors import RequestError, unique_warnings
from featurecache.specs import TASK_NOUN, check_takes_views

if TYPE_CHECKING:
    from featurecache.evaluation.training import TrainingReport
    from featurecache.extraction.run import ExtractionReport
    from featurecache.sources.source import Source
    from featurecache.store.labels import FolderLabels, TableLabels
    from featurecache.store.store import FeatureStore


def add_parser(verbs: Any) -> None:
    """Describe the verb."""
    parser = verb_parser(
        verbs,
        "run",
        help="do it all: extract, train the standard heads, write a report, keep the best head for new inputs",
        example="""
          featurecache run flowers/ --cache flowers.cache
              flowers/ holds one folder for each class, or train/, val/, test/ folders that hold them
          featurecache run photos/ --cache photos.cache --labels labels.csv --backbone torchvision:resnet50
          featurecache run mails.csv --text-column body --label-column is_spam --cache mails.cache \\
              --backbone all_minilm_l6_v2
        """,
        quiet=True,
    )
    parser.add_argument(
        "source", type=Path, metavar="SOURCE", help="folder of images, one folder below for each class; or a table"
    )
    add_table_options(parser)
    parser.add_argument("--cache", type=Path, required=True, metavar="DIR", help="folder of the cache")
    parser.add_argument("--labels", type=Path, metavar="CSV", help="labels from a table instead of the folders")
    add_label_options(parser)
    parser.add_argument("--group-column", metavar="NAME", help="inputs with the same entry here are never divided")
    parser.add_argument(
        "--task", default="run", metavar="NAME", help="name of the task and of the kept head (default: run)"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="where to (default: DIR/report.html)")
    add_weight_option(parser)
    add_missing_option(parser)
    add_backbone_options(parser)
    add_extraction_options(parser)
    add_training_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Extract, add the task, train, report."""
    from featurecache.heads.registry import make_head
    from featurecache.sources.source import open_source
    from featurecache.store.joining import check_labels
    from featurecache.store.labels import FolderLabels
    from featurecache.store.store import check_name

    check_name("task", args.task)
    for head in args.head or []:
        _ = head == "all" or make_head(head, kind=args.kind)  # an unknown name must not cost an extraction
    source = open_source(args.source, text_column=args.text_column, id_column=args.id_column)
    if args.tta:
        check_takes_views(source.modality, f"the source {source.root}", option="--tta")
    if views_of(args) is None and args.tta:
        raise RequestError("--tta judges heads on views of each image; add --views K")
    labels = _labels(args, source)
    # What files, folders and tables say is known now: a mistake in it must not cost an extraction.
    listed = labels.of(source.find().paths) if isinstance(labels, FolderLabels) else labels.labels
    check_labels(listed, labels)
    check_report_place(args.report)
    extraction = extract(args)
    store = extraction.store
    if not args.json:
        print_summary(extraction)
    _refuse_other_labels(store, args.task, labels.origin)
    task = store.add_task(
        args.task, labels, allow_missing=args.allow_missing, replace=True, random_state=args.random_state
    )
    if not args.json:
        print_task(store, task, with_warnings=False)  # they stand at the end, with all others
    # Heads on plain features and on views stand in one table: whether views help is for validation data to say.
    training = train(store, task, extraction.sets, args)
    # What concerns features stands in both reports, and is printed once.
    training.warnings = unique_warnings([*extraction.warnings, *training.warnings])
    outputs = Outputs(debug=args.debug)
    saved = outputs.write("the head", lambda: save_best(store, args.task, training))
    document = training.to_json()
    command = None if saved is None else _predict_command(saved, training, args)
    report = outputs.write("the report", lambda: _write_report(args, source, extraction, training, document, command))
    if args.json:
        paths = {"report": None if report is None else str(report), "saved": saved, "failed_outputs": outputs.failures}
        print_json({"extraction": extraction.to_json(), **document, **paths})
    else:
        print_results(document)
        print_warnings(document["warnings"])
        if report is not None:
            print_line(f"report: {report}")
        if command is not None:
            print_line(f"label new {source.modality}s with: {command}")
    return outputs.report() or exit_status(extraction, args.max_bad)


def _predict_command(saved: str, training: TrainingReport, args: argparse.Namespace) -> str:
    return predict_command(saved, training.best, args.weights, weights_key=args.weights_key, backbone=args.backbone)


def check_report_place(path: Path | None) -> None:
    """Refuse a place where no report can be written before the work is done."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise RequestError(f"cannot write a report at {path}: name a file in a folder that exists")


def _refuse_other_labels(store: FeatureStore, name: str, origin: str) -> None:
    """A task that was made otherwise is somebody's work: `run` replaces only its own."""
    from featurecache.errors import TaskError

    if name in store.task_names() and (before := store.task(name).about["origin"]) != origin:
        raise TaskError(
            f"task {name!r} has its labels from {before}, not from {origin}; choose another name with --task"
        )


def _labels(args: argparse.Namespace, source: Source) -> FolderLabels | TableLabels:
    """Read the labels: of texts they stand in the table itself, unless another one is named."""
    from featurecache.store.labels import labels_from_csv, labels_from_folders

    if not args.labels and not args.text_column:
        if args.kind != "classes":
            raise RequestError(f"folders say classes, not {args.kind}; give a CSV with --labels and --kind {args.kind}")
        for word in ("group", "weight"):
            if getattr(args, f"{word}_column"):
                raise RequestError(f"folders say no {word}s; give a CSV with --labels and --{word}-column")
        return labels_from_folders(source.root)
    # Another table may name its rows by id instead of holding the texts again.
    text_column = None if args.labels and args.id_column else args.text_column
    table = args.labels or args.source
    return labels_from_csv(
        table,
        label_column=label_columns(args),
        kind=args.kind,
        text_column=text_column,
        group_column=args.group_column,
        weight_column=args.weight_column,
        root=source.root,
        **label_readings(args),
    )


def _with_text(source: Source, name: str) -> str:
    from featurecache.errors import shortened

    (item,) = source.inputs([name], [""])
    return f"{name}: {shortened(item.read().decode(errors='replace'))}"


def _write_report(
    args: argparse.Namespace,
    source: Source,
    extraction: ExtractionReport,
    training: TrainingReport,
    document: dict[str, Any],
    command: str | None,
) -> Path:
    from featurecache.evaluation.training import reported_rows
    from featurecache.reporting.report import LastLook, ReportData, write_report
    from featurecache.store.overview import describe_features
    from featurecache.store.tasks import class_counts

    best, look = training.best, document["last_look"]
    rows, y_true = reported_rows(best)
    listing = extraction.store.listings.load(source.root)
    assert listing is not None, "the source was just extracted"
    uris = extraction.store.samples.uris_of(rows)
    held = set(listing.unique_rows.tolist())
    names = [listing.paths_of([row])[0] if row in held else uri for row, uri in zip(rows.tolist(), uris, strict=True)]
    if source.modality == "text":  # the number of a row tells a reader nothing
        names = [
            _with_text(source, name) if row in held else name for row, name in zip(rows.tolist(), names, strict=True)
        ]
    data = ReportData(
        title=args.source.resolve().name,
        command=shlex.join(["featurecache", *sys.argv[1:]]),
        cache=str(args.cache),
        feature_sets=[describe_features(feature_set) for feature_set in extraction.sets],
        training=document,
        class_counts=class_counts(training.task),
        last_look=LastLook(
            part=best.result.reported,
            y_true=y_true,
            y_pred=best.result.y_pred,
            probabilities=best.result.proba,
            names=names,
            outputs=look[f"per_{TASK_NOUN[document['kind']]}"],
            confusion=look.get("confusion"),
            calibration=look.get("calibration"),
        ),
        bad_inputs=extraction.to_json()["bad"],
        predict_command=command,
    )
    path: Path = args.report or args.cache / "report.html"
    here = set(listing.paths)
    pictures = source.modality == "image"
    write_report(path, data, find=lambda name: args.source / name if pictures and name in here else None)
    return path
