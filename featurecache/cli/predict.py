"""``featurecache predict``: new images or texts to labels."""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.cli.options import add_head_options, add_runtime_options, add_table_options, settings_of, verb_parser
from featurecache.cli.output import print_json, print_table, progress_on_stderr, warn

if TYPE_CHECKING:
    from featurecache.deployment.predict import Prediction


def add_parser(verbs: Any) -> None:
    """Describe the verb."""
    parser = verb_parser(
        verbs,
        "predict",
        help="label new images or texts with a saved head",
        example="""
          featurecache predict flowers.cache/heads/run new_photos/ one_more.jpg
          featurecache predict flowers.cache/heads/run new_photos/ --csv > labels.csv
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
    parser.add_argument("--tta", type=int, metavar="K", help="answer with the mean over K seeded views of each input")
    add_runtime_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Predict and print; status 1 when an input is bad."""
    from featurecache.deployment.predict import predict

    with progress_on_stderr(quiet=args.quiet) as progress:
        predictions = predict(
            args.head,
            args.inputs,
            backbone=args.backbone,
            weights=args.weights,
            layers=args.layers,
            text_column=args.text_column,
            id_column=args.id_column,
            tta=args.tta,
            settings=settings_of(args),
            progress=progress,
        )
        results = list(predictions)
    if args.json:
        print_json({"head": str(args.head), "predictions": [item.to_json() for item in results]})
    elif args.csv:
        _print_csv(results)
    else:
        _print_table(results, "row" if args.text_column else "file")
    bad = [item for item in results if item.status != "ok"]
    if bad:
        noun = "rows" if args.text_column else "files"
        warn(f"{len(bad)} of {len(results)} {noun} could not be labelled, first {bad[0].path}: {bad[0].reason}")
    return 1 if bad else 0


def _print_csv(results: list[Prediction]) -> None:
    writer = csv.writer(sys.stdout)
    if names := _numbers(results):
        writer.writerow(["path", *names, "status", "reason"])
        for item in results:
            writer.writerow([item.path, *(item.numbers.get(name, "") for name in names), item.status, item.reason])
        return
    writer.writerow(["path", "label", "probability", "status", "reason"])
    for item in results:
        writer.writerow([item.path, item.label or "", _probability(item), item.status, item.reason])


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
