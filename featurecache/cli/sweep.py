"""``featurecache sweep``: many heads on many taps and tasks, with several seeds and few labels."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.cli.imports import without_collection
from featurecache.cli.options import (
    add_jobs_option,
    add_memory_option,
    add_metric_option,
    called,
    features_of,
    heads_of,
    memory_of,
    verb_parser,
)
from featurecache.cli.output import (
    print_json,
    print_line,
    print_table,
    print_warnings,
    progress_on_stderr,
    report_failures,
    warn,
)
from featurecache.cli.output_files import add_raw_cells_option, check_outputs, write_table_at
from featurecache.errors import OutputFailure, RequestError, try_output
from featurecache.store.naming import distinct_names
from featurecache.wording import counted

if TYPE_CHECKING:
    from featurecache.evaluation.plan import Plan
    from featurecache.evaluation.summary import SweepLine
    from featurecache.evaluation.sweep import SweepReport
    from featurecache.store.feature_sets import FeatureSet


def add_parser(verbs: Any) -> None:
    """Describe the verb."""
    parser = verb_parser(
        verbs,
        "sweep",
        common="--task --head --tap --seeds --shots --folds --metric --out --picture --json",
        help="train heads over taps, tasks, seeds and numbers of labels; keep every result",
        example="""
          featurecache sweep flowers.cache --task species --picture layers.svg
          featurecache sweep flowers.cache --task species --head logistic --shots 1 --shots 5 --shots 10 --seeds 10
          featurecache sweep flowers.cache --task species --head logistic --head knn --folds 5 --out results.csv
        """,
        quiet=True,
    )
    parser.add_argument("cache", type=Path, metavar="DIR", help="folder of the cache")
    parser.add_argument("--task", action="append", metavar="T", help="repeat for several (default: all)")
    parser.add_argument(
        "--tap", action="append", metavar="T", help="cached tap, repeat for several (default: all pooled ones)"
    )
    parser.add_argument("--backbone", metavar="B", help="only features of this backbone")
    parser.add_argument("--fingerprint", metavar="F", help="only features with this fingerprint")
    parser.add_argument("--dtype", metavar="D", help="only features stored as this type")
    parser.add_argument("--views", type=int, metavar="K", help="K cached views of each sample; 0 (default): plain")
    parser.add_argument(
        "--head",
        action="append",
        metavar="H",
        help="head, or 'all' for the kind of task (default); python:MODULE:FACTORY for a scikit-learn estimator of "
        "your own, whose results are not kept; repeat for several",
    )
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds 0 to N - 1 (default 1)")
    parser.add_argument(
        "--shots", action="append", type=int, metavar="N", help="fit on N samples of each class (tasks with classes)"
    )
    parser.add_argument(
        "--share", action="append", type=float, metavar="S", help="fit on this share of the samples: 0.1, 0.5, 1"
    )
    parser.add_argument(
        "--folds", type=int, metavar="K", help="evaluate on each of K folds of train and validation (nested)"
    )
    parser.add_argument(
        "--look-at-test",
        action="store_true",
        help="evaluate on the test split, which is for the end, after all choices",
    )
    parser.add_argument("--balanced", action="store_true", help="classes count alike in choosing and fitting")
    parser.add_argument(
        "--tta", action="store_true", help="evaluate on the mean over the cached views of a sample; train on --views"
    )
    add_metric_option(parser)
    add_jobs_option(parser)
    add_memory_option(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all rows: .csv, .tsv or .parquet")
    add_raw_cells_option(parser)
    parser.add_argument("--picture", type=Path, metavar="FILE.svg", help="draw scores by layer, labels and time")
    parser.add_argument("--replace", action="store_true", help="replace the files of --out and --picture")


def run(args: argparse.Namespace) -> int:
    """Compute, keep, print; status 1 when a head could not be fitted."""
    with without_collection():
        from featurecache.evaluation.choosing import sets_to_sweep
        from featurecache.evaluation.summary import COLUMNS
        from featurecache.evaluation.sweep import run_sweep
        from featurecache.store.store import FeatureStore
        from featurecache.table_output import TABLE_SUFFIXES

    # All options are checked before the cache is read.
    plan, memory = _plan(args), memory_of(args)
    check_outputs({"--out": (args.out, TABLE_SUFFIXES), "--picture": (args.picture, (".svg",))}, replace=args.replace)
    store = FeatureStore.open(args.cache)
    # A task that is named twice is swept once.
    tasks = [store.task(name) for name in dict.fromkeys(args.task or store.task_names())]
    if not tasks:
        raise RequestError(f"{store.path} has no tasks; add one with `featurecache task add`")
    sets = sets_to_sweep(store, args.tap, args.head or (), **features_of(args))
    with progress_on_stderr(quiet=args.quiet) as progress:
        report = run_sweep(store, tasks, sets, plan, n_jobs=args.jobs, memory=memory, progress=progress)
    # Whatever fails from here on must not cost hours of fits.
    lines, failures = report.lines(), list[OutputFailure]()
    if args.out:
        rows = [row.to_json() for row in report.rows]
        # Without ``numbers``: columns of a sweep's rows have the types that their values have.
        table = partial(write_table_at, "--out", args.out, COLUMNS, rows, replace=args.replace, raw=args.raw_cells)
        try_output("--out", table, failures)
    if args.picture:
        try_output("--picture", lambda: _draw(args, lines), failures)
    if args.json:
        print_json({**report.to_json(), "failed_outputs": [failure.text for failure in failures]})
    else:
        _print(report, lines, sets)
    # A fit that failed is a finding, as is a file that could not be written.
    return report_failures(failures, debug=args.debug) or int(bool(report.failed))


def _plan(args: argparse.Namespace) -> Plan:
    from featurecache.evaluation.plan import Plan

    if args.seeds < 1:
        raise RequestError(f"--seeds must be 1 or more, got {args.seeds}")
    heads, shots, shares = heads_of(args.head), args.shots or (), args.share or ()
    # Never on test by default: a sweep is for choosing, and a split that was chosen on is no test any more.
    choice = {"seeds": range(args.seeds), "num_folds": args.folds, "on_test": args.look_at_test}
    return called(args, Plan, heads=heads, shots=shots, shares=shares, **choice)


def _draw(args: argparse.Namespace, lines: list[SweepLine]) -> None:
    """Write the picture; what came to be there during the fits stays without ``--replace``."""
    from featurecache.atomic import publish_bytes
    from featurecache.reporting.sweep import draw_sweep

    try:
        publish_bytes(args.picture, draw_sweep(lines).encode(), replace=args.replace)
    except FileExistsError:
        message = f"--picture {args.picture}: it is there by now; pass --replace, or name another place"
        raise RequestError(message) from None


def _print(report: SweepReport, lines: list[SweepLine], sets: list[FeatureSet]) -> None:
    """Print one table for each score, and what was left out, doubtful or refused."""
    from featurecache.evaluation.summary import uncompared

    names_of_sets = distinct_names([feature_set.to_json() for feature_set in sets])
    named = dict(zip((feature_set.key for feature_set in sets), names_of_sets, strict=True))
    for head in report.left_out:
        row = head.row
        warn(f"head {row.head} is left out on {named[row.set_key]}, task {row.task}: it {head.reason}")
    names = distinct_names([line.to_json() for line in lines])
    # One table each: scores of different measures must not be compared.
    for measure in dict.fromkeys(line.measure for line in lines):
        numeric = ["labels", measure.replace("_", " "), "95 % interval", "divisions", "seconds"]
        print_table(
            ["task", "head", "tap", *numeric, "evaluated on", "against the best"],
            [_row(line, name) for line, name in zip(lines, names, strict=True) if line.measure == measure],
            numbers=numeric,
        )
    # A dash would look like a verdict.
    if uncompared(lines):
        print_line(
            "against the best: - where a line has no two divisions in common with the best; ask for --folds or more "
            "--seeds, or compare sample by sample with `featurecache train`"
        )
    # Said each time: a table of many test scores invites choosing the best.
    if any(line.split == "test" for line in lines):
        print_line("these are scores on the test split: choosing by them makes the best of them too good")
    print_line(f"{counted(len(report.rows), 'result')}, {report.num_kept} of them from earlier sweeps")
    print_warnings(report.warnings)
    # The rest stands in the rows.
    for row in report.failed[:5]:
        warn(f"{row.head} on {named[row.set_key]}, task {row.task}: {row.error}")


def _row(line: SweepLine, name: str) -> list[str]:
    failed = line.score is None or line.seconds is None
    return [
        line.task,
        line.head,
        name,
        _labels(line),
        "-" if failed else f"{line.score:.3f}",
        "-" if failed else "no interval" if line.low is None else f"{line.low:.3f} to {line.high:.3f}",
        str(line.num_resamplings),
        "-" if failed else f"{line.seconds:.2f}",
        line.split,
        line.against_best or "-",
    ]


def _labels(line: SweepLine) -> str:
    if line.n_train is None:
        return "-" if line.shots is None else f"{line.shots} a class"
    count = f"{line.n_train:.0f}"
    if line.shots is None:
        return count
    return f"all ({count})" if line.n_train == line.n_available else f"{line.shots} a class ({count})"
