"""``featurecache verify``: is a cache what it says it is?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.cli.options import add_input_options, called, inputs_of, verb_parser
from featurecache.cli.output import counting, print_json, print_line, print_table, print_warnings, progress_on_stderr
from featurecache.errors import RequestError
from featurecache.wording import counted

if TYPE_CHECKING:
    from featurecache.verification import CacheVerification

# Written out: the module that checks them imports numpy, for which `--help` should not wait.
LEVELS = ("structure", "blocks", "digest", "hdf5")


def add_parser(verbs: Any) -> None:
    """Describe the verb."""
    parser = verb_parser(
        verbs,
        "verify",
        common="--deep --source --rows --level --json",
        help="check a cache without changing it: records, checksums, digests, and that rows belong to their samples",
        example="""
          featurecache verify flowers.cache
          featurecache verify strangers.cache --level hdf5
          featurecache verify flowers.cache --deep --source flowers/
        """,
        quiet=True,
    )
    parser.add_argument("cache", type=Path, metavar="DIR", help="folder of the cache")
    parser.add_argument("--level", choices=LEVELS, default="digest", help="how much to check (default: digest)")
    parser.add_argument("--sample", type=float, default=1.0, metavar="SHARE", help="share of the shards to read")
    parser.add_argument(
        "--deep", action="store_true", help="also compute sampled rows again from their inputs and compare them"
    )
    parser.add_argument("--rows", type=int, metavar="N", help="rows of each fingerprint for --deep (default 64)")
    add_input_options(parser, purpose="for --deep")


def run(args: argparse.Namespace) -> int:
    """Check; status 1 when something is wrong."""
    from featurecache.store.store import FeatureStore
    from featurecache.verification import verify_cache

    # A stranger's cache may be anything: what opening would refuse is what is to be reported.
    store = FeatureStore.open(args.cache, strange=True)
    if args.deep and args.source is None:
        roots = ", ".join(listing.root for listing in store.listings.all())
        # A stranger's cache names folders of another machine, or of this one.
        seen = f" (the cache says it was made from {roots}, and is not believed)" if roots else ""
        raise RequestError(
            f"--deep needs the inputs: name their folder, or their table and its --text-column, with --source{seen}"
        )
    with progress_on_stderr(quiet=args.quiet) as progress:
        inputs, on_shard = inputs_of(args) if args.deep else None, counting(progress, "verifying shards")
        choice = {"inputs": inputs, "num_rows": args.rows, "on_shard": on_shard, "progress": progress}
        found = called(args, verify_cache, store=store, **choice)
    if args.json:
        print_json(found.to_json())
    else:
        _print(found, asked_deep=args.deep)
    # Warnings are no problems: a cache can be whole, and its features worth little.
    return 1 if found.problems else 0


def _print(found: CacheVerification, *, asked_deep: bool) -> None:
    stored, deep = found.stored, found.deep
    if found.problems:
        print_table(
            ["where", "what", "next"], [[problem.where, problem.what, problem.advice] for problem in found.problems]
        )
    print_line(
        f"{counted(len(stored.problems), 'problem')} in {counted(stored.num_shards, 'shard')}, "
        f"{stored.num_bytes} bytes ({stored.level})"
    )
    if deep is not None:
        print_line(
            f"{counted(deep.num_rows, 'row')} computed again: {deep.num_identical} identical, {deep.num_close} "
            "within tolerance, "
            f"{deep.num_rows - deep.num_identical - deep.num_close} different"
        )
    # Rows that are compared with damaged ones would say nothing.
    elif asked_deep:
        print_line("nothing was computed again: mend these problems first")
    print_warnings(found.warnings)
