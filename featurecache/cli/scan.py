"""``featurecache scan``: read and hash a source once, before workers come."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from featurecache.cli.extract import has_too_many_bad
from featurecache.cli.imports import without_collection
from featurecache.cli.options import add_max_bad_option, add_source_options, named_source, option_name, verb_parser
from featurecache.cli.output import print_json, print_line, print_warnings, progress_on_stderr
from featurecache.errors import command_line
from featurecache.ignored import by_suffix
from featurecache.specs import DEFAULT_BACKBONE, DEFAULT_ENCODER
from featurecache.wording import counted

if TYPE_CHECKING:
    from featurecache.extraction.source_scan import ScanReport

_MOST_SHOWN = 10


def add_parser(verbs: Any) -> None:
    """Describe the verb."""
    parser = verb_parser(
        verbs,
        "scan",
        common="--cache --path-column --text-column --json",
        help="read and hash a source once and keep its listing in a cache, for workers that come later",
        example="""
          featurecache scan flowers/ --cache flowers.cache
          featurecache scan photos.csv --path-column file --cache photos.cache
          featurecache scan mails.csv --text-column body --cache mails.cache
        """,
        quiet=True,
    )
    add_source_options(parser)
    add_max_bad_option(parser)


def run(args: argparse.Namespace) -> int:
    """Scan, then say what is there and what comes next."""
    with without_collection():
        from featurecache.extraction.source_scan import scan
        from featurecache.run import default_cache

    source = named_source(args, args.source)
    cache = default_cache(str(args.source)) if args.cache is None else args.cache
    with progress_on_stderr(quiet=args.quiet) as progress:
        report = scan(source, cache, text_column=args.text_column, id_column=args.id_column, progress=progress)
    following = _next_commands(args, report)
    if args.json:
        print_json({**report.to_json(), "next": list(following)})
    else:
        _print_summary(report)
        for command, where in following.items():
            print_line(f"next, {where}: {command}")
        # After all else: people look at the end.
        print_warnings(report.warnings)
    return int(has_too_many_bad(len(report.listing.problems), report.num_files, args.max_bad, report.store.path))


def _print_summary(report: ScanReport) -> None:
    copies = f" ({counted(report.num_copies, 'copy')})" if report.num_copies else ""
    print_line(f"{counted(report.num_files, report.noun)}, {counted(report.num_samples, 'sample')}{copies}")
    print_line(
        f"{report.num_read} read, {counted(report.num_new, 'sample', verb='is')} new to the cache "
        f"({report.seconds:.1f} s)"
    )
    if others := report.listing.ignored.others:
        print_line(f"{counted(sum(others.values()), 'other file')} left out by name: {by_suffix(others)}")
    if problems := report.listing.problems:
        print_line(f"{len(problems)} cannot be read, and will have no features:")
        for path, reason in list(problems.items())[:_MOST_SHOWN]:
            print_line(f"  {path}: {reason}")
        if len(problems) > _MOST_SHOWN:
            print_line(f"  and {len(problems) - _MOST_SHOWN} more: {command_line('info', report.store.path)}")
    print_line(f"in {report.store.path}")


def _next_commands(args: argparse.Namespace, report: ScanReport) -> dict[str, str]:
    """Return the commands that extract the source, and where each runs."""
    words: list[object] = ["extract", args.source, "--cache", report.store.path]
    for option in ("text_column", "id_column", "path_column"):
        if (column := getattr(args, option)) is not None:
            words += [option_name(option), column]
    words += ["--allow-local-urls"] if args.allow_local_urls else []
    words += ["--backbone", DEFAULT_BACKBONE if args.text_column is None else DEFAULT_ENCODER]
    return {
        command_line(*words): "in one process",
        command_line(*words, "--engine", "processes", "--device", "cuda:all"): "on all GPUs of a machine",
        command_line(*words, "--engine", "rank"): "in each process that torchrun, srun or a job array starts",
    }
