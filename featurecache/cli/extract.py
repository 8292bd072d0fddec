"""``featurecache extract``: make a cache hold the features of everything in a folder or a table."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.cli.backbone_options import add_backbone_options, requests_of
from featurecache.cli.imports import without_collection
from featurecache.cli.options import (
    add_extraction_options,
    add_source_options,
    extraction_of,
    named_source,
    verb_parser,
)
from featurecache.cli.output import print_json, print_line, print_warnings, progress_on_stderr, warn
from featurecache.errors import command_line
from featurecache.ignored import by_suffix
from featurecache.wording import counted

if TYPE_CHECKING:
    from featurecache.extraction.report import ExtractionReport


def add_parser(verbs: Any) -> None:
    """Describe the verb."""
    parser = verb_parser(
        verbs,
        "extract",
        common="--cache --backbone --tap --weights --device --path-column --text-column --views --json",
        help="run a frozen backbone over a folder of images, or a table of texts, and keep its features",
        example="""
          featurecache extract flowers/ --cache flowers.cache --backbone torchvision:resnet50 --tap layer3:avg
          featurecache extract flowers/ --cache flowers.cache --backbone timm:vit_tiny_patch16_224 --weights vit.pth
          featurecache extract mails.csv --text-column body --cache mails.cache --backbone all_minilm_l6_v2
          featurecache extract photos.csv --path-column file --cache photos.cache --backbone efficientnet_lite0
          featurecache extract 'shards/photos-{0000..0099}.tar' --cache photos.cache --backbone efficientnet_lite0
        """,
        quiet=True,
    )
    add_source_options(parser)
    add_backbone_options(parser)
    add_extraction_options(parser)


def run(args: argparse.Namespace) -> int:
    """Extract, then say what was done."""
    report = extract(args)
    if args.json:
        print_json(report.to_json())
    else:
        print_summary(report)
        if args.cache is None:
            print_line(f"in {report.store.path}")
        # After the summary: people look at the end.
        print_warnings(report.warnings)
    return exit_status(report, args.max_bad)


def extract(args: argparse.Namespace) -> ExtractionReport:
    """Run the extraction that the options ask for."""
    # First: a wrong option must be told before anything is opened.
    requests, options = requests_of(args), extraction_of(args)
    with without_collection():
        from featurecache.extraction.extract import run_extraction
        from featurecache.extraction.report import merge_reports
        from featurecache.run import default_cache

    source = named_source(args, args.source)
    cache = default_cache(str(args.source)) if args.cache is None else args.cache
    with progress_on_stderr(quiet=args.quiet) as progress:
        reports = [run_extraction(source, cache, request, **options, progress=progress) for request in requests]
    return merge_reports(reports)


def print_summary(report: ExtractionReport) -> None:
    """Say what the source holds, what was computed, and what was bad."""
    unreadable = sum(status == "unreadable" for status, _ in report.bad.values())
    # A file that could not be read has no sample, and is no copy of another.
    copies = report.num_files - report.num_samples - unreadable
    runtime = f" with {report.runtime}" if report.runtime else ""
    rate = f", {report.num_extracted / report.seconds:.0f} samples/s" if report.num_extracted else ""
    print_line(
        f"{counted(report.num_files, report.noun)}, {counted(report.num_samples, 'sample')}"
        + (f" ({counted(copies, 'copy')})" if copies else "")
    )
    print_line(
        f"{report.num_extracted} extracted{runtime}, {report.num_cached} "
        f"{'was' if report.num_cached == 1 else 'were'} cached ({report.seconds:.1f} s{rate})"
    )
    if report.trial:
        tried = ", ".join(f"{name} {rate:.3g}/s" for name, rate in report.trial.items())
        print_line(f"runtimes tried: {tried}; the cache remembers which made its features (--runtime)")
    for usage in report.usage:
        print_line(usage.summary())
    for feature_set in report.sets:
        print_line(f"cached: {feature_set}")
    if others := report.ignored.others:
        print_line(f"{counted(sum(others.values()), 'other file')} left out by name: {by_suffix(others)}")
    if report.num_cut:
        print_line(
            f"{counted(report.num_cut, 'sample', verb='is')} longer than the network takes: only the beginning counts"
        )
    if report.bad:
        print_line(f"{counted(len(report.bad), 'bad input', verb='has')} a row, and will not be trained on:")
        # A folder of wrong files must not scroll the summary away; `info` lists all.
        for path, (status, reason) in list(report.bad.items())[:10]:
            print_line(f"  {path}: {status} ({reason})")
        if len(report.bad) > 10:
            print_line(f"  and {len(report.bad) - 10} more: {command_line('info', report.store.path)}")


def exit_status(report: ExtractionReport, max_bad: float) -> int:
    """Return 1, and say why, when too many inputs are bad or some were left for the next run."""
    if report.postponed:
        path, reason = next(iter(report.postponed.items()))
        warn(
            f"{counted(len(report.postponed), 'file', verb='was')} left for the next run, first {path}: {reason}; "
            "run extract again"
        )
    has_too_many = has_too_many_bad(len(report.bad), report.num_files, max_bad, report.store.path)
    # A script must be able to tell a cache that is complete from one that is not.
    return 1 if report.postponed or has_too_many else 0


def has_too_many_bad(num_bad: int, num_files: int, max_bad: float, cache: Path) -> bool:
    """Tell whether more than a share of the inputs is bad, and say it on stderr."""
    # Of a table without rows, nothing is bad.
    share = num_bad / max(num_files, 1)
    if share > max_bad:
        warn(
            f"{counted(num_bad, 'input', of=num_files, verb='is')} bad ({share:.1%}), the limit is {max_bad:.1%}; "
            f"see `{command_line('info', cache)}`, or raise --max-bad"
        )
    return share > max_bad
