"""``featurecache task add`` and ``task ls``: labels and splits, apart from the features."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from featurecache.cli.options import (
    add_form_options,
    add_renamed_option,
    called,
    delimiter_of,
    option_name,
    verb_parser,
)
from featurecache.cli.output import print_json, print_line, print_table, print_warnings
from featurecache.errors import RequestError
from featurecache.specs import EARLIER_KINDS, TASK_NOUN, TASK_NOUNS
from featurecache.store.labels import ClassFolder
from featurecache.wording import counted

if TYPE_CHECKING:
    from featurecache.sources.opening import SourceSpec
    from featurecache.store.label_tables import LabelTable
    from featurecache.store.labels import FolderLabels, TableLabels
    from featurecache.store.store import FeatureStore
    from featurecache.store.tasks import Task

_OF_TABLES = (
    *(f"{word}_column" for word in ("label", "group", "weight", "domain", "split", "text")),
    *("delimiter", "no_header", "keep_na", "class_folder"),
)
"""Options that say how a table is read, which are refused rather than ignored where there is none."""
_USED = {
    "tars": ("class_folder",),
    "parquet": ("label_column",),
    "parquet_texts": ("label_column", "text_column"),
}
"""Of these options, those of each kind of source that may carry labels beside its samples."""
_MOST_CLASSES = 50
"""In a table on a terminal."""


def add_parser(verbs: Any) -> None:
    """Describe the verb and the two below it."""
    parser = verbs.add_parser("task", help="add or list the tasks (labels and splits) of a cache")
    below = parser.add_subparsers(dest="task_verb", metavar="VERB", required=True)
    add = verb_parser(
        below,
        "add",
        common="--from-folders --label-column --path-column --kind --group-column --split-column --group-near-copies "
        "--replace --json",
        help="add a task: from the folders that the images lie in, or from a CSV",
        example="""
          featurecache task add flowers.cache species --from-folders
          featurecache task add flowers.cache blurred quality.csv --label-column is_blurred
          featurecache task add mails.cache spam mails.csv --text-column body --label-column is_spam
          featurecache task add flowers.cache seen tags.csv --kind multilabel --label-column tags
          featurecache task add flowers.cache size sizes.csv --kind regression --label-column height
        """,
    )
    add.add_argument("cache", type=Path, metavar="DIR", help="folder of the cache")
    add.add_argument("name", metavar="NAME", help="what the task is called")
    add.add_argument(
        "labels",
        nargs="?",
        metavar="LABELS.csv",
        help="a table that names the samples and says their label, maybe their split too; columns are found by name; a "
        "folder with metadata.csv or metadata.jsonl beside images; tar or Parquet files that carry labels",
    )
    add.add_argument("--from-folders", action="store_true", help="the class is the file's folder")
    add_label_options(add)
    add.add_argument("--text-column", metavar="NAME", help="what is labelled stands in this column")
    add.add_argument("--source", metavar="SOURCE", help="label only this source of the cache")
    add.add_argument(
        "--group-near-copies",
        action="store_true",
        help="keep samples that are nearly the same (re-encoded, cropped, of one burst) in one split and one fold; the "
        "cached features tell",
    )
    add.add_argument("--replace", action="store_true", help="replace a task of the same name")
    add_renamed_option(
        add,
        "--random-state",
        "--seed",
        type=int,
        default=0,
        metavar="SEED",
        help="of the split that is made where the labels bring none (default 0)",
    )
    ls = verb_parser(below, "ls", help="list the tasks of a cache", example="  featurecache task ls flowers.cache")
    ls.add_argument("cache", type=Path, metavar="DIR", help="folder of the cache")


def add_label_options(parser: argparse.ArgumentParser) -> None:
    """Add how a table says what the inputs are."""
    parser.add_argument(
        "--label-column",
        action="append",
        metavar="NAME",
        help="what an input is (default: label, class, target, ... or the only column that is left); may repeat",
    )
    parser.add_argument(
        "--path-column",
        metavar="NAME",
        help="names the inputs: paths, or names with or without suffix (default: path, file, image, id, ...)",
    )
    add_form_options(parser)
    parser.add_argument(
        "--class-folder",
        choices=get_args(ClassFolder),
        help="which folder is the class of a file that lies in several (default: innermost)",
    )
    parser.add_argument(
        "--keep-na", action="store_true", help="NA, NaN, None and null are names of classes, and no empty labels"
    )
    parser.add_argument(
        "--merge-spellings", action="store_true", help="take classes that differ only in case or spaces for one"
    )
    parser.add_argument(
        "--kind",
        # Names of release 0.1 are taken, and stand in no help.
        type=lambda text: EARLIER_KINDS.get(text, text),
        choices=tuple(TASK_NOUN),
        default="classification",
        help="one class each (default); multilabel: any of several labels, in one column with ; between them, or in a "
        "column of 1 and 0 for each; regression: numbers, one column or several",
    )
    readings = ("missing", "negative", "positive")
    parser.add_argument(
        "--blank",
        choices=readings,
        help="what an empty cell says of a label (default: missing, not known; in a column of all labels: negative)",
    )
    parser.add_argument(
        "--uncertain", choices=readings, default="missing", help="what -1, u or ? says of a label (default: missing)"
    )
    parser.add_argument(
        "--separator", default=";|", metavar="CHARS", help="what stands between labels (default: ; or |)"
    )
    parser.add_argument(
        "--group-column", metavar="NAME", help="inputs with the same entry here are never divided: photo, patient"
    )
    parser.add_argument(
        "--weight-column", metavar="NAME", help="how much an input counts in fitting, above 0; scores count all alike"
    )
    parser.add_argument(
        "--domain-column", metavar="NAME", help="where an input comes from (camera, site), which --target-domain names"
    )
    parser.add_argument(
        "--split-column",
        metavar="NAME",
        help="says train, validation or test (default: split, or a column that holds nothing else)",
    )
    parser.add_argument("--allow-missing", action="store_true", help="skip labels of files that are not in the cache")


def labels_of(
    args: argparse.Namespace, table: Path | None, *, text_column: str | None, root: str | None = None
) -> FolderLabels | LabelTable:
    """Return the labels that the options name: those of a table, not read yet, or of the folders where there is none.

    Parameters
    ----------
    args
        Of a parser with `add_label_options`.
    table
        The table of labels.
    text_column
        Its column that holds the texts, where it does not name them.
    root
        The source whose folders are classes; any of the cache where left out.
    """
    from featurecache.store.label_tables import LabelOptions, LabelTable
    from featurecache.store.labels import labels_from_folders

    if table is not None:
        if args.class_folder:
            raise RequestError("--class-folder is about folders, and a table says the labels; leave one of them out")
        options = called(args, LabelOptions, text_column=text_column)
        return LabelTable(table, options, delimiter_of(args), not args.no_header)
    # `task add` takes the table as an argument, `run` as an option.
    advice = "give a CSV with " + ("--labels and " if args.verb == "run" else "")
    if args.kind != "classification":
        raise RequestError(f"folders say classes, not {args.kind}; {advice}--kind {args.kind}")
    for word in ("group", "weight", "domain", "split"):
        if vars(args)[f"{word}_column"]:
            raise RequestError(f"folders say no {word}s; {advice}--{word}-column")
    # Refused rather than ignored: folders would be taken for what somebody said of a table.
    for option in ("path_column", "label_column", "delimiter", "no_header", "keep_na"):
        if getattr(args, option):
            raise RequestError(f"{option_name(option)} is about a table, and folders say the labels; {advice}it")
    return labels_from_folders(
        root, merge_spellings=args.merge_spellings, class_folder=args.class_folder or "innermost"
    )


def run(args: argparse.Namespace) -> int:
    """Do what the verb below says."""
    return {"add": run_add, "ls": run_ls}[args.task_verb](args)


def run_add(args: argparse.Namespace) -> int:
    """Add a task and say what is in it."""
    from featurecache.sources.opening import open_source
    from featurecache.store.label_tables import LabelTable
    from featurecache.store.overview import describe_task
    from featurecache.store.store import FeatureStore

    # Both, or neither.
    if args.from_folders == (args.labels is not None):
        raise RequestError(
            "say where the labels come from: --from-folders, a table, or the tar or Parquet files that carry them"
        )
    # By its key, under which the cache has listed it.
    root = None if args.source is None else open_source(args.source, text_column=args.text_column).key
    named: FolderLabels | LabelTable | TableLabels | None
    if (spec := carrying_spec(args, args.labels)) is None:
        table = None if args.labels is None else Path(args.labels)
        named = labels_of(args, table, text_column=args.text_column, root=root)
    elif (named := carried_labels(args, spec)) is None:
        raise RequestError(f"{args.labels} carries no labels; give a table, or --from-folders")
    store = FeatureStore.open(args.cache)
    labels = named.read(root=root, names=store.listings.names(root) or None) if isinstance(named, LabelTable) else named
    alike = None
    if args.group_near_copies:
        # Only where it is asked for: features of all samples are compared with each other.
        from featurecache.advice.unlabelled import near_copy_groups

        alike = near_copy_groups(store)
    task = called(args, store.add_task, labels=labels, alike=alike)
    if args.json:
        print_json(describe_task(store, task))
    else:
        print_task(store, task)
    return 0


def carrying_spec(args: argparse.Namespace, named: str | None) -> SourceSpec | None:
    """Return the source of tar or Parquet files that hold samples, where somebody has named such files.

    Parameters
    ----------
    args
        Of a parser with `add_label_options`.
    named
        What may be such files.

    Raises
    ------
    RequestError
        Options say of a table what these files do not have.
    """
    from featurecache.sources.opening import source_spec
    from featurecache.sources.parquet_files import PARQUET_SUFFIX
    from featurecache.sources.tars import TAR_SUFFIXES

    # By its name first: another table need not be opened twice.
    if named is None or not named.lower().endswith((*TAR_SUFFIXES, PARQUET_SUFFIX)):
        return None
    spec = source_spec(named, path_column=args.path_column, text_column=args.text_column)
    if spec.kind not in _USED:
        return None
    used = _USED[spec.kind]
    given = ["kind"] if args.kind != "classification" else []
    given += [option for option in _OF_TABLES if getattr(args, option) and option not in used]
    if given or len(args.label_column or []) > 1:
        noun, option = "text" if spec.kind == "parquet_texts" else "image", option_name((given or ["label_column"])[0])
        raise RequestError(f"{named} carries one class for each {noun}; leave {option} out, or give a table")
    return spec


def carried_labels(args: argparse.Namespace, spec: SourceSpec) -> TableLabels | None:
    """Return the labels that tar or Parquet files carry beside their samples, if they do.

    Parameters
    ----------
    args
        Of a parser with `add_label_options`.
    spec
        Of the files.
    """
    from featurecache.interop.dataset_labels import labels_in_source
    from featurecache.sources.opening import open_spec

    found = labels_in_source(spec, open_spec(spec), label_column=args.label_column and args.label_column[0])
    if found is not None and args.class_folder:
        raise RequestError(f"{spec.url} carries one class for each image; leave --class-folder out, or give a table")
    return found and replace(found, merge_spellings=args.merge_spellings)


def print_task(store: FeatureStore, task: Task, *, with_warnings: bool = True) -> None:
    """Print what a task holds and what was left out of it.

    Parameters
    ----------
    store
        The cache, for the samples that have no target.
    task
        What to print.
    with_warnings
        Print what is doubtful, too; else the caller does, with other warnings.
    """
    from featurecache.store.overview import count_without_target
    from featurecache.store.tasks import class_counts

    counts = ", ".join(f"{count} {split}" for split, count in task.counts().items())
    # As the record of the task has it.
    about = task.about
    groups = "" if task.groups is None else f" in {counted(task.groups.max() + 1, 'group')}"
    weights = "" if task.weights is None else f", weights {task.weights.min():.4g} to {task.weights.max():.4g}"
    content = f"{counted(len(task.classes), TASK_NOUN[task.kind])}, {counts}{groups}{weights}"
    print_line(f"task {task.name}: {content} (splits {about['splits']})")
    if task.domains is not None:
        of_domain = Counter(task.domains.tolist())
        print_line("domains: " + ", ".join(f"{of_domain[k]} {name}" for k, name in enumerate(task.domain_names)))
    unknown = task.num_unknown()
    # A column only where something is unknown.
    more = ["not known"] if any(unknown.values()) else []
    rows: list[list[Any]]
    if task.kind == "regression":
        columns = [(name, c[c == c]) for name, c in zip(task.classes, task.labels.T, strict=True)]
        rows = [[name, *(f"{value:.4g}" for value in (c.mean(), c.min(), c.max()))] for name, c in columns]
        titles = ["mean", "least", "greatest"]
    else:
        rows, titles = [[name, count] for name, count in class_counts(task).items()], ["samples"]
    shown = [[*row, *([unknown[row[0]]] if more else [])] for row in rows[:_MOST_CLASSES]]
    print_table([TASK_NOUN[task.kind], *titles, *more], shown, numbers=[*titles, *more])
    if len(rows) > _MOST_CLASSES:
        print_line(f"and {counted(len(rows) - _MOST_CLASSES, f'more {TASK_NOUN[task.kind]}')}, which --json lists")
    if about["num_conflicts"]:
        first = ", ".join(f"{path} is {label}" for path, label in about["conflicts"][0].items())
        print_line(f"{counted(about['num_conflicts'], 'sample', verb='has')} two labels, left out, first: {first}")
    if about["num_moved"]:
        print_line(
            f"{counted(about['num_moved'], 'sample')} had copies in several splits, and stays in the last split only"
        )
    if about["num_missing"]:
        print_line(f"{counted(about['num_missing'], 'label', verb='is')} for files that are not in the cache")
    if num_without := count_without_target(store, task):
        print_line(f"no label in this task for {counted(num_without, 'sample')} of the cache")
    if with_warnings:
        print_warnings(task.warnings())


def run_ls(args: argparse.Namespace) -> int:
    """List the tasks."""
    from featurecache.store.overview import describe_tasks
    from featurecache.store.store import FeatureStore

    tasks = describe_tasks(FeatureStore.open(args.cache))
    if args.json:
        print_json({"tasks": tasks})
        return 0
    print_table(
        ["task", "says", "train", "validation", "test", "labels from", "splits"],
        [
            [
                task["task"],
                f"{len(task['classes'])} {TASK_NOUNS[task['kind']]}",
                *(task["counts"].get(split, "") for split in ("train", "validation", "test")),
                task["about"]["origin"],
                task["about"]["splits"],
            ]
            for task in tasks
        ],
        numbers=["train", "validation", "test"],
    )
    return 0
