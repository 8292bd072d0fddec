"""``featurecache advise``: what to transfer, when, how, and whether more data would help."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.cli.options import add_jobs_option, add_table_options, called, named_source, verb_parser
from featurecache.cli.output import print_json, print_line, print_table, progress_on_stderr
from featurecache.cli.output_files import add_raw_cells_option, write_table_at
from featurecache.errors import RequestError

if TYPE_CHECKING:
    from featurecache.advice.finding import Finding

# On a screen; ``--tables`` writes all rows.
_MOST_ROWS = 20
_TITLES = {
    "soundness": "Is it sound?",
    "when": "When: does transfer help here?",
    "what": "What: which features?",
    "how": "How deep?",
    "more_data": "Would more labels help?",
    "diagnosis": "What limits it?",
    "adaptation": "Adapt to the target?",
    "structure": "What is in it, without labels?",
}


def add_parser(verbs: Any) -> None:
    """Describe the verb."""
    parser = verb_parser(
        verbs,
        "advise",
        common="--task --only --source --minutes --target-domain --unlabelled --label-next --wide --json",
        help="say what to transfer, when, and whether more labels would help: each answer with its interval",
        example="""
          featurecache advise flowers.cache --task species
          featurecache advise flowers.cache --task species --only soundness
          featurecache advise products.cache --task kind --target-domain 'webcam/*'
          featurecache advise flowers.cache --task species --label-next 50
          featurecache advise new.cache --unlabelled
          featurecache advise flowers.cache --task species --only what --layers-scan --source flowers/
        """,
        quiet=True,
    )
    parser.add_argument("cache", type=Path, metavar="DIR", help="folder of the cache")
    parser.add_argument("--task", metavar="T", help="needed where the cache has several")
    parser.add_argument(
        "--only",
        action="append",
        metavar="QUESTION",
        help="soundness, when, what, how, more_data, diagnosis, adaptation; repeat for several",
    )
    parser.add_argument(
        "--label-next",
        type=int,
        metavar="N",
        help="name N cached samples without a label that are most worth labelling",
    )
    parser.add_argument(
        "--unlabelled", action="store_true", help="clusters, near-copies and outliers, without looking at labels"
    )
    parser.add_argument(
        "--target-domain",
        metavar="NAME",
        help="samples of the target (another camera, another place), to tell mismatch by: a domain or a split of the "
        "task, or a pattern of paths such as 'webcam/*'",
    )
    parser.add_argument("--source", metavar="SOURCE", help="where the samples come from, for the commands it names")
    add_table_options(parser)
    parser.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help="make what a pretrained network is to be compared with (pixels, colours, it untrained), as far as "
        "that takes no longer; 0 says how long",
    )
    parser.add_argument(
        "--layers-scan",
        action="store_true",
        help="compare all blocks of the network, computed for up to 2,000 inputs of --source and not kept",
    )
    parser.add_argument("--keep-layers", action="store_true", help="compute them for all inputs, and cache them")
    parser.add_argument("--backbone", metavar="NAME", help="for that, agrees to open a network of this name")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="for that, the file with its weights")
    parser.add_argument("--random-state", type=int, default=0, metavar="SEED", help="of folds and samples (default 0)")
    parser.add_argument(
        "--look-at-test",
        action="store_true",
        help="errors of the test split too; what is chosen after that is no longer tested by it",
    )
    parser.add_argument("--wide", action="store_true", help="also the tables that the answers rest on")
    parser.add_argument("--tables", type=Path, metavar="DIR", help="write these tables as CSV files, whole")
    parser.add_argument(
        "--map",
        choices=("pca", "umap"),
        default="pca",
        help="what --unlabelled lays its map out by: principal axes (default), or neighbours (umap, extra map)",
    )
    add_raw_cells_option(parser)
    add_jobs_option(parser)


def run(args: argparse.Namespace) -> int:
    """Ask and print."""
    from featurecache import advise

    _check_options(args)
    with progress_on_stderr(quiet=args.quiet) as progress:
        source, n_jobs, only = named_source(args, args.source), args.jobs or -1, args.only or ()
        findings = called(args, advise, only=only, source=source, map_by=args.map, n_jobs=n_jobs, progress=progress)
    if args.tables is not None:
        # Before anything is printed, so that a closed pipe does not cost the tables.
        write_tables(args.tables, findings, raw=args.raw_cells)
    if args.json:
        print_json({"findings": [finding.to_json() for finding in findings]})
    else:
        _print_findings(findings, wide=args.wide)
    return 0


def _check_options(args: argparse.Namespace) -> None:
    """Refuse what does not go together, and make the folder of ``--tables``: both before hours of work."""
    from featurecache.atomic import make_folder

    about_scan = {"--keep-layers": args.keep_layers, "--backbone": args.backbone, "--weights": args.weights}
    for option, value in about_scan.items():
        if value and not args.layers_scan:
            raise RequestError(f"{option} is about --layers-scan; add that, or leave {option} out")
    if args.map != "pca" and not args.unlabelled:
        raise RequestError("--map is about --unlabelled; add that, or leave --map out")
    if args.label_next is not None and args.label_next < 1:
        raise RequestError(f"--label-next must be at least 1, got {args.label_next}")
    if args.tables is not None:
        try:
            make_folder(args.tables)
        except OSError as error:
            raise RequestError(f"--tables {args.tables}: no folder can be made there ({error.strerror})") from None


def _print_findings(findings: Sequence[Finding], *, wide: bool) -> None:
    """Print the answers, each question once above all of its own."""
    question = None
    for finding in findings:
        if finding.question != question:
            question = finding.question
            print_line(_TITLES[question])
        print_line(f"  {finding.text}")
        print_line(f"    n = {finding.n}; {finding.basis}")
        if wide:
            _print_details(finding.details)
        if finding.next_command:
            print_line(f"    next: {finding.next_command}")
    # Last, where it is read: it makes everything above doubtful.
    if any(finding.is_fatal for finding in findings):
        print_line("mend this first: whatever else is asked rests on it")


def _print_details(details: Mapping[str, Any]) -> None:
    """Print the tables that an answer rests on."""
    if "ranking" in details:
        _print_ranking(details["ranking"])
        for name, choice in details.get("would_have_chosen", {}).items():
            stands = "not told from the best" if choice["right"] else "worse than the best"
            print_line(f"    by {_PROMISES[name]} alone: {choice['name']}, which is {stands}")
    if isinstance(errors := details.get("errors"), Mapping):
        _print_errors(errors)
    # Any finding may hold any of them: what is printed goes by the table's name, not by the question.
    for name, (columns, numbers) in _TABLES.items():
        if rows := details.get(name):
            rows = rows if isinstance(rows[0], dict) else [{"name": row} for row in rows]
            shown = [[str(row[column]) for column in columns] for row in rows[:_MOST_ROWS]]
            titles = list(columns.values())
            print_table(titles, shown, numbers=[columns[column] for column in numbers])


_TABLES: dict[str, tuple[dict[str, str], list[str]]] = {
    "pairs": ({"first": "near-copy", "second": "of", "similarity": "similarity"}, ["similarity"]),
    "labels": (
        {
            "name": "sample",
            "label": "label",
            "suggested": "looks like",
            "probability_of_label": "probability of the label",
        },
        ["probability_of_label"],
    ),
    "label_next": ({"name": "label next"}, []),
    "outliers": ({"name": "far from all others", "distance": "distance"}, ["distance"]),
    "map": ({"name": "sample", "x": "x", "y": "y", "cluster": "cluster"}, ["x", "y", "cluster"]),
}
"""By their names in `Finding.details`: columns with their titles, and which of them are numbers."""


def write_tables(folder: Path, findings: Sequence[Finding], *, raw: bool) -> None:
    """Write every table of the findings as a CSV file of its name.

    Parameters
    ----------
    folder : Path
    findings : sequence of Finding
    raw : bool
        Leave cells that a spreadsheet would run as they are.
    """
    for finding in findings:
        for name in ("ranking", *_TABLES):
            if not (rows := finding.details.get(name)):
                continue
            rows = rows if isinstance(rows[0], dict) else [{"name": row} for row in rows]
            columns = list(rows[0])
            numbers = [column for column in columns if isinstance(rows[0][column], int | float)]
            path = folder / f"{finding.question}_{name}.csv"
            write_table_at("--tables", path, columns, iter(rows), replace=True, numbers=numbers, raw=raw)


def _print_errors(errors: Mapping[str, Mapping[str, float]]) -> None:
    rows = []
    for name, found in errors.items():
        # Too few samples give no interval: its bounds are not finite.
        interval = f"{found['low']:.3f} to {found['high']:.3f}" if math.isfinite(found["low"]) else "none"
        rows.append([name, f"{found['error']:.3f}", interval, f"{found['n']:.0f}"])
    print_table(["errors", "mean", "95 % interval", "n"], rows, numbers=["mean", "n"])


_PROMISES = {"log_me": "LogME", "h_score": "H-score", "imagenet_accuracy": "ImageNet"}


def _print_ranking(rows: list[dict[str, Any]]) -> None:
    # Figures that no network here has would be empty columns.
    promises = [name for name in _PROMISES if any(row.get(name) is not None for row in rows)]
    shown = [
        [
            *(row["name"], f"{row['score']:.3f}", f"{row['difference']:+.3f}", row["verdict"]),
            str(row["bytes_per_sample"]),
            *("-" if row.get(name) is None else f"{row[name]:.3g}" for name in promises),
        ]
        for row in rows
    ]
    titles = [_PROMISES[name] for name in promises]
    columns = ["features", "score", "less the best", "", "bytes", *titles]
    print_table(columns, shown, numbers=["score", "less the best", "bytes", *titles])
