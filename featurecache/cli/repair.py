"""``featurecache repair``: set damaged shards aside so that the next extraction computes them again."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from featurecache.cli.options import add_input_options, inputs_of, verb_parser
from featurecache.cli.output import print_json, print_line, print_table, progress_on_stderr
from featurecache.wording import counted


def add_parser(verbs: Any) -> None:
    """Describe the verb."""
    parser = verb_parser(
        verbs,
        "repair",
        help="move damaged shards to quarantine/ (nothing is deleted), compute them again with --source, and compare",
        example="""
          featurecache repair flowers.cache --source flowers/
          featurecache repair flowers.cache       sets aside only; says whether new shards are identical to the old
        """,
        quiet=True,
    )
    parser.add_argument("cache", type=Path, metavar="DIR", help="folder of the cache")
    add_input_options(parser, purpose="to compute again what was set aside")


def run(args: argparse.Namespace) -> int:
    """Repair; status 1 when something is still missing or has come out different."""
    from featurecache.store.repair import compare_set_aside, repair
    from featurecache.store.store import FeatureStore

    store = FeatureStore.open(args.cache)
    repairs = repair(store)
    if args.source is not None:
        from featurecache.extraction.recomputation import recompute_set_aside

        with progress_on_stderr(quiet=args.quiet) as progress:
            # Opened anew: what was set aside is no longer there.
            recompute_set_aside(FeatureStore.open(args.cache), inputs_of(args), progress=progress)
    # In any case: shards that an earlier repair set aside may be there again by now.
    recomputed = compare_set_aside(store)
    if args.json:
        print_json({"repairs": list(map(asdict, repairs)), "recomputed": list(map(asdict, recomputed))})
    else:
        if repairs:
            print_table(["where", "what", "action"], [[r.where, r.what, r.action] for r in repairs])
        if recomputed:
            print_table(["set aside", "now"], [[r.where, r.state] for r in recomputed])
        print_line(f"{counted(len(repairs), 'problem')} found, {counted(len(recomputed), 'shard')} set aside so far")
    # Features are computed again from their inputs; nothing else is.
    left = [r for r in repairs if args.source is None or not r.where.startswith("features/")]
    return 1 if left or any(r.state in ("missing", "different") for r in recomputed) else 0
