"""``featurecache advise``: what to transfer, when, how, and whether more data would help."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featurecache.cli.options import add_jobs_option, verb_parser
from featurecache.cli.output import print_json, print_line, print_table, progress_on_stderr

_MOST_ROWS = 20
_TITLES = {
    "soundness": "Is it sound?",
    "when": "When: does transfer help here?",
    "what": "What: which features?",
    "how": "How deep?",
    "more_data": "Would more labels help?",
    "diagnosis": "What limits it?",
}


def add_parser(verbs: Any) -> None:
    """Describe the verb."""
    parser = verb_parser(
        verbs,
        "advise",
        help="say what to transfer, when, and whether more labels would help: each answer with its interval",
        example="""
          featurecache advise flowers.cache --task species
          featurecache advise flowers.cache --task species --only soundness
          featurecache advise products.cache --task kind --target-domain 'webcam/*'
        """,
        quiet=True,
    )
    parser.add_argument("cache", type=Path, metavar="DIR")
    parser.add_argument("--task", required=True, metavar="T")
    parser.add_argument(
        "--only",
        action="append",
        metavar="QUESTION",
        help="soundness, when, what, how, more_data, diagnosis; repeat for several",
    )
    parser.add_argument(
        "--target-domain",
        metavar="NAME",
        help="samples of the target (another camera, another place), to tell mismatch by: a split, or a pattern of "
        "paths such as 'webcam/*'",
    )
    parser.add_argument("--source", metavar="SOURCE", help="where the samples come from, for the commands it names")
    parser.add_argument("--random-state", type=int, default=0, metavar="SEED", help="of folds and samples (default 0)")
    parser.add_argument("--wide", action="store_true", help="also the tables that the answers rest on")
    add_jobs_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Ask and print."""
    from featurecache import advise

    with progress_on_stderr(quiet=args.quiet) as progress:
        findings = advise(
            args.cache,
            args.task,
            only=args.only or (),
            target_domain=args.target_domain,
            source=args.source,
            random_state=args.random_state,
            n_jobs=args.jobs or -1,
            progress=progress,
        )
    if args.json:
        print_json({"findings": [finding.to_json() for finding in findings]})
        return 0
    question = None
    for finding in findings:
        if finding.question != question:
            question = finding.question
            print_line(_TITLES[question])
        print_line(f"  {finding.text}")
        print_line(f"    n = {finding.n}; {finding.basis}")
        if args.wide:
            _print_details(finding.details)
        if finding.next_command:
            print_line(f"    next: {finding.next_command}")
    if any(finding.is_fatal for finding in findings):
        print_line("mend this first: whatever else is asked rests on it")
    return 0


def _print_details(details: Mapping[str, Any]) -> None:
    """Print the tables that an answer rests on."""
    if "ranking" in details:
        _print_ranking(details["ranking"])
    if pairs := details.get("pairs"):
        shown = [[pair["first"], pair["second"], f"{pair['similarity']:.3f}"] for pair in pairs[:_MOST_ROWS]]
        print_table(["near-copy", "of", "similarity"], shown, numbers=["similarity"])
    if labels := details.get("labels"):
        columns = ["sample", "label", "looks like", "probability of the label"]
        names = ("name", "label", "suggested", "probability_of_label")
        shown = [[str(label[name]) for name in names] for label in labels[:_MOST_ROWS]]
        print_table(columns, shown, numbers=columns[3:])


def _print_ranking(rows: list[dict[str, Any]]) -> None:
    shown = [
        [row["name"], f"{row['score']:.3f}", f"{row['difference']:+.3f}", row["verdict"], str(row["bytes_per_sample"])]
        for row in rows
    ]
    print_table(["features", "score", "less the best", "", "bytes"], shown, numbers=["score", "less the best", "bytes"])
