"""``featurecache run``: from inputs to a table of heads, a report and a predictor, in one command."""

from __future__ import annotations

import argparse
import shlex
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.cli.backbone_options import add_backbone_options, requests_of
from featurecache.cli.extract import exit_status, print_summary
from featurecache.cli.imports import without_collection
from featurecache.cli.options import (
    add_extraction_options,
    add_table_options,
    called,
    extraction_of,
    named_source,
    source_argument,
    verb_parser,
)
from featurecache.cli.output import print_json, print_line, print_warnings, progress_on_stderr, report_failures
from featurecache.cli.task import add_label_options, carried_labels, carrying_spec, labels_of, print_task
from featurecache.cli.train import add_training_options, print_results, training_of
from featurecache.tables import is_table_name

if TYPE_CHECKING:
    from featurecache.run_report import RunReport


def add_parser(verbs: Any) -> None:
    """Describe the verb."""
    parser = verb_parser(
        verbs,
        "run",
        common="--cache --backbone --labels --label-column --path-column --head --metric --device --weights --open "
        "--json",
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
        "source",
        type=source_argument,
        metavar="SOURCE",
        help="folder of images, one folder below for each class; or a table, tar files, a zip, a URL of a folder",
    )
    add_table_options(parser, paths=False)
    parser.add_argument("--cache", type=Path, metavar="DIR", help="folder of the cache (default: SOURCE.cache)")
    parser.add_argument("--labels", type=Path, metavar="CSV", help="labels from a table instead of the folders")
    add_label_options(parser)
    parser.add_argument(
        "--task", default="run", metavar="NAME", help="name of the task and of the kept head (default: run)"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="where to (default: DIR/report.html)")
    parser.add_argument("--open", action="store_true", help="open the report in the browser")
    add_backbone_options(parser)
    add_extraction_options(parser)
    add_training_options(parser)


def run(args: argparse.Namespace) -> int:
    """Do the main job and print what came of it."""
    with without_collection():
        from featurecache import run as do_main_job
        from featurecache.deployment import kept  # noqa: F401 - brings PyTorch and scikit-learn, which the job needs

    source, path, labels = named_source(args, args.source), Path(args.source), None
    # Tar and Parquet files may have labels beside their samples, which are read with them.
    spec = carrying_spec(args, str(args.source)) if args.labels is None else None
    if spec is not None and (args.label_column or args.merge_spellings or args.class_folder):
        labels = carried_labels(args, spec) or labels_of(args, None, text_column=None)
    if spec is None:
        # Tables have the labels too, unless another one is named, which may know texts by their id.
        is_table = is_table_name(path) and path.is_file()
        table = args.labels or (path if args.text_column is not None or is_table else None)
        by_id = args.labels is not None and args.id_column is not None
        # What options say of a table that is not there is no mistake: the missing table is, and opening it says so.
        if table is not None or path.is_dir() or not is_table_name(path):
            labels = labels_of(args, table, text_column=None if by_id else args.text_column)
        # What nobody has said anything of is for the job to find.
        if table is None and not (path.is_dir() and (args.class_folder or args.merge_spellings)):
            labels = None
    with progress_on_stderr(quiet=args.quiet) as progress:
        done = called(
            args,
            do_main_job,
            source=source,
            labels=labels,
            backbone=requests_of(args),
            training=training_of(args),
            command=shlex.join(["featurecache", *sys.argv[1:]]),
            progress=progress,
            **extraction_of(args),
        )
    if args.json:
        print_json(done.to_json())
    else:
        _print(done, args)
    # A report that could not be written does not take the heads away, but the command did not do all.
    return report_failures(done.failures, debug=args.debug) or exit_status(done.extraction, args.max_bad)


def _print(done: RunReport, args: argparse.Namespace) -> None:
    """Print what was extracted and trained, what to do next, and where everything is."""
    from featurecache.advice.finding import summary
    from featurecache.deployment.kept import describe_kept

    extraction, training = done.extraction, done.training
    print_summary(extraction)
    print_task(extraction.store, training.task, with_warnings=False)  # they stand at the end, with all others
    print_results(training, look_at_test=args.look_at_test, wide=args.wide)
    print_warnings(training.warnings)
    for line in summary(done.advice):
        print_line(f"next: {line}")
    if done.report is not None:
        print_line(f"report: {done.report}")
        if args.open and not webbrowser.open(done.report.absolute().as_uri()):
            print_line("no browser could be started; open the report by hand")
    if done.saved is not None:
        print_line(f"kept in {done.saved}: {describe_kept(training.best, args.keep)}")
    if done.predict_command is not None:
        modality = extraction.sets[0].identity.preprocess.modality
        print_line(f"label new {modality}s with: {done.predict_command}")
