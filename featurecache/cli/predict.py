"""``featurecache predict``: new images or texts to labels."""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.cli.options import (
    add_head_options,
    add_runtime_options,
    add_table_options,
    check_places,
    settings_of,
    verb_parser,
    write_table_at,
)
from featurecache.cli.output import print_json, print_line, print_table, print_warnings, progress_on_stderr, warn
from featurecache.errors import RequestError

if TYPE_CHECKING:
    from featurecache.deployment.predict import Prediction
    from featurecache.errors import ReportWarning


def add_parser(verbs: Any) -> None:
    """Describe the verb."""
    parser = verb_parser(
        verbs,
        "predict",
        help="label new images or texts with a saved head",
        example="""
          featurecache predict flowers.cache/heads/run new_photos/ one_more.jpg
          featurecache predict flowers.cache/heads/run new_photos/ --out labels.parquet
          featurecache predict mails.cache/heads/run new.csv --text-column body
        """,
        quiet=True,
    )
    add_head_options(parser)
    parser.add_argument(
        "inputs", type=Path, nargs="+", metavar="INPUT", help="image files and folders, or tables of texts"
    )
    add_table_options(parser)
    parser.add_argument("--csv", action="store_true", help="print CSV: path, label, probability, status, reason")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write them to a .csv, .tsv or .parquet instead")
    parser.add_argument("--replace", action="store_true", help="replace FILE if it is there")
    parser.add_argument("--tta", type=int, metavar="K", help="answer with the mean over K seeded views of each input")
    add_runtime_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Predict and print; status 1 when an input is bad."""
    from featurecache.deployment.predict import predict
    from featurecache.tables import TABLE_SUFFIXES

    if args.csv and args.out:
        raise RequestError("--csv prints a table, and --out writes one; leave one of them out")
    check_places({"--out": (args.out, TABLE_SUFFIXES)}, replace=args.replace)
    warnings: list[ReportWarning] = []
    with progress_on_stderr(quiet=args.quiet) as progress:
        predictions = predict(
            args.head,
            args.inputs,
            backbone=args.backbone,
            weights=args.weights,
            weights_key=args.weights_key,
            layers=args.layers,
            text_column=args.text_column,
            id_column=args.id_column,
            tta=args.tta,
            settings=settings_of(args),
            progress=progress,
            warnings=warnings,
        )
        results = list(predictions)
    bad = [item for item in results if item.status != "ok"]
    if args.out:
        write_table_at("--out", args.out, *_table(results), replace=args.replace)
    if args.json:
        answers = [item.to_json() for item in results]
        print_json({"head": str(args.head), "predictions": answers, "warnings": [w.to_json() for w in warnings]})
    elif args.out:
        print_line(f"{len(results) - len(bad)} of {len(results)} labelled, in {args.out}")
    elif args.csv:
        columns, rows = _table(results)
        writer = csv.DictWriter(sys.stdout, columns)
        writer.writeheader()
        writer.writerows(rows)
    else:
        _print_table(results, "row" if args.text_column else "file")
    if not args.json:
        print_warnings([w.to_json() for w in warnings], to_stderr=args.csv)  # a table on stdout is for programs
    if bad:
        noun = "rows" if args.text_column else "files"
        warn(f"{len(bad)} of {len(results)} {noun} could not be labelled, first {bad[0].path}: {bad[0].reason}")
    return 1 if bad else 0


def _table(results: list[Prediction]) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the columns of a table, and its rows."""
    names = _numbers(results)
    said = names or ["label", "probability"]
    rows = [
        {"path": item.path, "label": item.label, "probability": item.probability}
        | {name: item.numbers.get(name) for name in names}
        | {"status": item.status, "reason": item.reason}
        for item in results
    ]
    columns = ["path", *said, "status", "reason"]
    return columns, [{column: row[column] for column in columns} for row in rows]


def _print_table(results: list[Prediction], what: str) -> None:
    names = _numbers(results)
    rows = []
    for item in results:
        said = [f"{item.numbers[name]:.6g}" if item.numbers else "-" for name in names]
        said = said or [item.label or "-", _probability(item)]
        rows.append([item.path, *said, "" if item.status == "ok" else f"{item.status}: {item.reason}"])
    print_table([what, *(names or ["label", "probability"]), "problem"], rows, numbers=names or ["probability"])


def _numbers(results: list[Prediction]) -> list[str]:
    """Names of the numbers that a head says, if it does."""
    return list(next((item.numbers for item in results if item.numbers), {}))


def _probability(item: Prediction) -> str:
    return "" if item.probability is None else f"{item.probability:.4f}"
