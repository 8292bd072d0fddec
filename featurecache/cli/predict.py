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
    add_engine_options,
    add_head_options,
    add_runtime_options,
    add_table_options,
    named_source,
    settings_of,
    source_argument,
    verb_parser,
)
from featurecache.cli.output import dumped, print_line, print_table, print_warnings, progress_on_stderr, warn
from featurecache.cli.output_files import add_raw_cells_option, check_outputs, write_table_at
from featurecache.cli.prediction_tables import (
    LikeTable,
    PredictionTable,
    Value,
    like_table,
    named_table,
    once_each,
    whole_table,
    with_quoted_counted,
)
from featurecache.errors import RequestError
from featurecache.wording import counted

if TYPE_CHECKING:
    from featurecache.deployment.prediction import Prediction
    from featurecache.deployment.saved import SavedHead
    from featurecache.errors import ReportWarning


# One in twenty of inputs like those that the head was fitted on is named too, as the help says.
_OUTLIERS = 0.05


def add_parser(verbs: Any) -> None:
    """Describe the verb."""
    parser = verb_parser(
        verbs,
        "predict",
        common=("--csv", "--out", "--proba", "--top-k", "--like", "--columns", "--weights", "--device", "--json"),
        help="label new images or texts with a saved head",
        example="""
          featurecache predict flowers.cache/heads/run new_photos/ one_more.jpg
          featurecache predict flowers.cache/heads/run new_photos/ --out labels.parquet
          featurecache predict flowers.cache/heads/run test/ --out submission.csv --like sample_submission.csv
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
    parser.add_argument(
        "--columns",
        metavar="NAMES",
        help="of the table, with commas between them, such as image_id,label: names of files (without suffix as an "
        "id), label, probability, or a class for its probability",
    )
    parser.add_argument(
        "--like", type=Path, metavar="TABLE", help="columns, rows and names of a table, such as sample_submission.csv"
    )
    parser.add_argument("--proba", action="store_true", help="the probability of every class, in a column of its name")
    parser.add_argument("--top-k", type=int, metavar="K", help="the K most probable classes and their probabilities")
    add_raw_cells_option(parser)
    parser.add_argument("--replace", action="store_true", help="replace FILE if it is there")
    parser.add_argument("--tta", type=int, metavar="K", help="answer with the mean over K seeded views of each input")
    parser.add_argument(
        "--outliers",
        action="store_true",
        help="name inputs that are unlike all that the head was fitted on; of inputs like those one in twenty is named",
    )
    add_engine_options(
        parser.add_argument_group("several workers"),
        default=None,
        help="processes, rank, ray or local: keep finished parts beside the --out, so that a run which is killed goes "
        "on when it is begun again (default: this process, and no parts)",
    )
    add_runtime_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Predict and print; status 1 when an input is bad."""
    with without_collection():
        from featurecache.deployment.parts import End, PartsFolder
        from featurecache.deployment.predict import make_job, predict_alone, predict_shared
        from featurecache.deployment.shared_run import run_shared
        from featurecache.table_output import TABLE_SUFFIXES

    _check_table_options(args)
    # Before a network is loaded. A rank may begin when the others have written the table.
    check_outputs({"--out": (args.out, TABLE_SUFFIXES)}, replace=args.replace or args.engine == "rank")
    warnings: list[ReportWarning] = []
    job = make_job(
        args.head,
        [named_source(args, name) for name in args.inputs],
        backbone=args.backbone,
        weights=args.weights,
        weights_key=args.weights_key,
        layers=args.layers,
        text_column=args.text_column,
        id_column=args.id_column,
        tta=args.tta,
        outliers=_OUTLIERS if args.outliers else None,
        settings=settings_of(args),
        parts=parts_of(args.out) if args.engine else None,
    )
    # Columns that the head does not know must not be found out after hours of work.
    like = like_table(args.like, [item.name for item in job.listed[0]], job.saved.classes) if args.like else None
    table, tally, shared = _table_of(args, job.saved, like), _Tally(), None
    warnings += like.warnings if like else ()
    with progress_on_stderr(quiet=args.quiet) as progress:
        if args.engine:
            shared = run_shared(job, args.engine, progress, out=args.out, replace=args.replace)
        if isinstance(shared, End):
            tally = _Tally(shared.num_inputs, shared.num_bad, shared.first_bad)
        else:
            predictions = (
                predict_alone(job, progress, warnings)
                if shared is None
                else predict_shared(shared, warnings, removes=False)
            )
            # Threads that decode end with it, also where the output cannot be written.
            with closing(predictions):
                _write(args, tally.counted(predictions), table, like, predictions.numbers, warnings)
                if shared is not None:  # only now: what was predicted must not be lost with the table
                    shared.finish(args.out, End(tally.num_inputs, tally.num_bad, tally.first_bad))
                elif args.out:  # of a run that was killed
                    PartsFolder(parts_of(args.out)).remove()
    if args.out and not args.json:
        by_another = ", by another process" if isinstance(shared, End) else ""
        print_line(f"{tally.num_inputs - tally.num_bad} of {tally.num_inputs} labelled, in {args.out}{by_another}")
    if not args.json:
        print_warnings(warnings, to_stderr=args.csv)  # a table on stdout is for programs
    if tally.first_bad is not None:
        bad, (first, reason) = (
            counted(tally.num_bad, "row" if args.text_column else "file", of=tally.num_inputs),
            tally.first_bad,
        )
        warn(f"{bad} could not be labelled, first {first}: {reason}")
    return 1 if tally.num_bad else 0


def parts_of(out: Path) -> Path:
    """Return where finished parts of a table wait for the others."""
    return out.with_name(f".{out.name}.parts")


@dataclass
class _Tally:
    """Counts predictions on their way, which are too many to be kept."""

    num_inputs: int = 0
    num_bad: int = 0
    first_bad: list[str] | None = None
    """Its name, and the reason."""

    def counted(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        for item in predictions:
            self.num_inputs += 1
            if item.status != "ok":
                self.num_bad += 1
                self.first_bad = self.first_bad or [item.path, item.reason]
            yield item


def _check_table_options(args: argparse.Namespace) -> None:
    """Refuse what does not go together, before a network is loaded."""
    if args.csv and args.out:
        raise RequestError("--csv prints a table, and --out writes one; leave one of them out")
    if args.engine and not args.out:
        raise RequestError("--engine keeps finished parts beside a table; add --out FILE, or leave --engine out")
    if args.engine == "rank" and args.json:
        raise RequestError("with --engine rank several processes write one table; leave --json out")
    if args.processes is not None and not args.engine:
        raise RequestError("--processes is for engines that start several workers; add --engine processes")
    if args.columns is not None and not args.columns.strip(" ,"):
        raise RequestError("--columns names no column; say which, such as image_id,label")
    if args.columns and args.like:
        raise RequestError("--columns and --like both say which columns a table has; leave one of them out")
    named = args.columns or args.like
    for option, value in (("--columns", args.columns), ("--like", args.like), ("--proba", args.proba)):
        # JSON has all that is known, and the table for people has columns of its own.
        if value and not (args.csv or args.out):
            raise RequestError(f"{option} is about a table; add --out FILE or --csv")
    for option, value in (("--proba", args.proba), ("--top-k", args.top_k)):
        if value and named:
            raise RequestError(f"{option} adds columns, and {'--columns' if args.columns else '--like'} names all")
    if args.top_k is not None and args.top_k < 1:
        raise RequestError(f"--top-k is a number of classes from 1 up; got {args.top_k}")


def _table_of(args: argparse.Namespace, saved: SavedHead, like: LikeTable | None) -> PredictionTable:
    names, is_regression = list(saved.classes), saved.kind == "regression"
    classes, numbers = ([], names) if is_regression else (names, [])
    if like is not None:
        return named_table(like.columns, classes, numbers, key=like.key)
    if args.columns:
        return named_table([name.strip() for name in args.columns.split(",")], classes, numbers)
    for option, value in (("--proba", args.proba), ("--top-k", args.top_k)):
        if value and numbers:
            raise RequestError(f"{option} is about classes, and this head predicts numbers; leave it out")
    return whole_table(classes, numbers, outliers=args.outliers, proba=args.proba, top_k=args.top_k)


def _rows_of(
    args: argparse.Namespace, table: PredictionTable, like: LikeTable | None, warnings: list[ReportWarning]
) -> Callable[[Iterator[Prediction]], Iterator[dict[str, Value]]]:
    """Return what turns predictions into rows of the table that the options name."""
    with_quoted = partial(with_quoted_counted, warnings=warnings, raw=args.raw_cells)
    if like is not None:
        # A sample of a submission has an order of its own, so all predictions are awaited.
        return lambda items: with_quoted(like.rows(items, table))
    if args.columns:
        return lambda items: with_quoted(once_each(map(table.row, items), table.key))
    return lambda items: with_quoted(map(table.row, items))


def _write(
    args: argparse.Namespace,
    counted: Iterator[Prediction],
    table: PredictionTable,
    like: LikeTable | None,
    names: list[str],
    warnings: list[ReportWarning],
) -> None:
    """Write or print predictions as they come; only a table for people is laid out as a whole, and one like another."""
    from featurecache.table_output import safe_row

    as_rows = _rows_of(args, table, like, warnings)
    write_out = partial(
        write_table_at,
        "--out",
        args.out,
        table.columns,
        replace=args.replace,
        numbers=table.numbers,
        raw=args.raw_cells,
    )
    if args.json:
        with _json_document(args.head, warnings) as write_json:
            kept = map(write_json, counted)
            if args.out:
                write_out(as_rows(kept))
            else:
                # Runs through all of them and keeps none.
                deque(kept, maxlen=0)
    elif args.out:
        write_out(as_rows(counted))
    elif args.csv:
        writer = csv.DictWriter(sys.stdout, table.columns)
        as_cells = dict if args.raw_cells else safe_row
        writer.writerow(as_cells({name: name for name in table.columns}))
        writer.writerows(map(as_cells, as_rows(counted)))
    else:
        what = "row" if args.text_column else "file"
        # For people: all rows are held, because a table's columns are as wide as their widest cell.
        titles = names or ["label", "probability", *(f"{rank}." for rank in range(2, (args.top_k or 0) + 1))]
        rows = [_shown(item, names, args.top_k or 0) for item in counted]
        print_table([what, *titles, "problem"], rows, numbers=names or ["probability"])


@contextmanager
def _json_document(head: Path, warnings: list[ReportWarning]) -> Iterator[Callable[[Prediction], Prediction]]:
    """Print one document, whole or not at all: it waits in a file until the last prediction is there.

    Yields what takes a prediction into it, and returns that. Warnings are read at the end, when all are known.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="surrogatepass") as file:
        # By hand: `json` writes a list only once it is whole, and predictions may be too many for memory.
        file.write(f'{{\n "head": {dumped(str(head))},\n "predictions": [')
        separators = chain([""], repeat(","))

        def write(item: Prediction) -> Prediction:
            file.write(f"{next(separators)}\n  {dumped(item.to_json())}")
            return item

        yield write
        values = dumped([warning.to_json() for warning in warnings])
        file.write(f'\n ],\n "warnings": {values}\n}}\n')
        file.seek(0)
        # Only now: a run that is killed has printed no half of a document.
        shutil.copyfileobj(file, sys.stdout)


def _shown(item: Prediction, names: list[str], top_k: int) -> list[str]:
    """Return a row of a table for people."""
    values = [f"{item.numbers[name]:.6g}" if item.numbers else "-" for name in names]
    if not names:
        values = [item.label or "-", "" if item.probability is None else f"{item.probability:.4f}"]
        # The most probable one stands in the columns before.
        others = sorted(item.probabilities.items(), key=lambda pair: -pair[1])[1:top_k]
        values += [f"{name} {probability:.4f}" for name, probability in others]
        values += [""] * (max(top_k, 1) - 1 - len(others))
    problem = f"{item.status}: {item.reason}" if item.status != "ok" else "outlier" if item.is_outlier else ""
    return [item.path, *values, problem]
