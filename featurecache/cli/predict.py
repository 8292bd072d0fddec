"""``featurecache predict``: new images or texts to labels."""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.cli.imports import without_collection
from featurecache.cli.options import (
    add_head_options,
    add_runtime_options,
    add_table_options,
    settings_of,
    source_argument,
    verb_parser,
)
from featurecache.cli.output import dumped, print_line, print_table, print_warnings, progress_on_stderr, warn
from featurecache.cli.output_files import add_raw_cells_option, check_outputs, write_table_at
from featurecache.errors import RequestError

if TYPE_CHECKING:
    from featurecache.deployment.predict import Prediction
    from featurecache.errors import ReportWarning


_OUTLIERS = 0.05


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
        "inputs", type=source_argument, nargs="+", metavar="INPUT", help="image files and folders, or tables of texts"
    )
    add_table_options(parser)
    parser.add_argument("--csv", action="store_true", help="print CSV: path, label, probability, status, reason")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write them to a .csv, .tsv or .parquet instead")
    add_raw_cells_option(parser)
    parser.add_argument("--replace", action="store_true", help="replace FILE if it is there")
    parser.add_argument("--tta", type=int, metavar="K", help="answer with the mean over K seeded views of each input")
    parser.add_argument(
        "--outliers",
        action="store_true",
        help="name inputs that are unlike all that the head was fitted on; of inputs like those one in twenty is named",
    )
    add_runtime_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Predict and print; status 1 when an input is bad."""
    with without_collection():
        from featurecache.deployment.predict import predict
        from featurecache.tables import TABLE_SUFFIXES

    if args.csv and args.out:
        raise RequestError("--csv prints a table, and --out writes one; leave one of them out")
    # Before a network is loaded.
    check_outputs({"--out": (args.out, TABLE_SUFFIXES)}, replace=args.replace)
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
            outliers=_OUTLIERS if args.outliers else None,
            settings=settings_of(args),
            progress=progress,
            warnings=warnings,
        )
        tally = _Tally()
        # Threads that decode end with it, also where the output cannot be written.
        with closing(predictions):
            _write(args, tally.counted(predictions), predictions.numbers, warnings)
    if args.out and not args.json:
        print_line(f"{tally.num_inputs - tally.num_bad} of {tally.num_inputs} labelled, in {args.out}")
    if not args.json:
        print_warnings(warnings, to_stderr=args.csv)  # a table on stdout is for programs
    if tally.first_bad is not None:
        noun, first = "rows" if args.text_column else "files", tally.first_bad
        warn(f"{tally.num_bad} of {tally.num_inputs} {noun} could not be labelled, first {first.path}: {first.reason}")
    return 1 if tally.num_bad else 0


@dataclass
class _Tally:
    """Counts predictions on their way, which are too many to be kept."""

    num_inputs: int = 0
    num_bad: int = 0
    first_bad: Prediction | None = None

    def counted(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        for item in predictions:
            self.num_inputs += 1
            if item.status != "ok":
                self.num_bad += 1
                self.first_bad = self.first_bad or item
            yield item


def _write(
    args: argparse.Namespace, predictions: Iterator[Prediction], names: list[str], warnings: list[ReportWarning]
) -> None:
    """Write or print predictions as they come; only a table for people is laid out as a whole."""
    from featurecache.tables import safe_row

    values = names or ["label", "probability"]
    flags = ["outlier"] if args.outliers else []
    columns, numbers = ["path", *values, *flags, "status", "reason"], names or ["probability"]
    as_row = partial(_row, names=names, flags=bool(flags))
    write_out = partial(
        write_table_at, "--out", args.out, columns, replace=args.replace, numbers=numbers, raw=args.raw_cells
    )
    if args.json:
        with _json_document(args.head, warnings) as write_json:
            kept = map(write_json, predictions)
            if args.out:
                write_out(as_row(item) for item in kept)
            else:
                deque(kept, maxlen=0)
    elif args.out:
        write_out(as_row(item) for item in predictions)
    elif args.csv:
        writer = csv.DictWriter(sys.stdout, columns)
        as_cells = dict if args.raw_cells else safe_row
        writer.writerow(as_cells(dict(zip(columns, columns, strict=True))))
        writer.writerows(as_cells(as_row(item)) for item in predictions)
    else:
        what = "row" if args.text_column else "file"
        print_table([what, *values, "problem"], [_shown(item, names) for item in predictions], numbers=numbers)


@contextmanager
def _json_document(head: Path, warnings: list[ReportWarning]) -> Iterator[Callable[[Prediction], Prediction]]:
    """Print one document, whole or not at all: it waits in a file until the last prediction is there.

    Yields what takes a prediction into it, and returns that. Warnings are read at the end, when all are known.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="surrogatepass") as file:
        file.write(f'{{\n "head": {dumped(str(head))},\n "predictions": [')
        separators = chain([""], repeat(","))

        def write(item: Prediction) -> Prediction:
            file.write(f"{next(separators)}\n  {dumped(item.to_json())}")
            return item

        yield write
        values = dumped([warning.to_json() for warning in warnings])
        file.write(f'\n ],\n "warnings": {values}\n}}\n')
        file.seek(0)
        shutil.copyfileobj(file, sys.stdout)


def _row(item: Prediction, names: list[str], *, flags: bool) -> dict[str, str | float | None]:
    """Return a row of a table for programs."""
    values: dict[str, str | float | None] = {name: item.numbers.get(name) for name in names}
    values = values or {"label": item.label, "probability": item.probability}
    if flags:
        values["outlier"] = {True: "yes", False: "no", None: None}[item.is_outlier]
    return {"path": item.path, **values, "status": item.status, "reason": item.reason}


def _shown(item: Prediction, names: list[str]) -> list[str]:
    """Return a row of a table for people."""
    values = [f"{item.numbers[name]:.6g}" if item.numbers else "-" for name in names]
    values = values or [item.label or "-", "" if item.probability is None else f"{item.probability:.4f}"]
    problem = f"{item.status}: {item.reason}" if item.status != "ok" else "outlier" if item.is_outlier else ""
    return [item.path, *values, problem]
