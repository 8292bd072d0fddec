"""``featurecache verify``: is a cache what it says it is?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.cli.options import add_input_options, inputs_of, verb_parser
from featurecache.cli.output import counting, print_json, print_line, print_table, print_warnings, progress_on_stderr
from featurecache.errors import RequestError

if TYPE_CHECKING:
    from featurecache.extraction.deep_verification import DeepVerification
    from featurecache.progress import Progress
    from featurecache.store.store import FeatureStore

LEVELS = ("structure", "blocks", "digest", "hdf5")


def add_parser(verbs: Any) -> None:
    """Describe the verb."""
    parser = verb_parser(
        verbs,
        "verify",
        help="check a cache without changing it: records, checksums, digests, and that rows belong to their samples",
        example="""
          featurecache verify flowers.cache
          featurecache verify strangers.cache --level hdf5
          featurecache verify flowers.cache --deep --source flowers/
        """,
        quiet=True,
    )
    parser.add_argument("cache", type=Path, metavar="DIR")
    parser.add_argument("--level", choices=LEVELS, default="digest", help="how much to check (default: digest)")
    parser.add_argument("--sample", type=float, default=1.0, metavar="SHARE", help="share of the shards to read")
    parser.add_argument(
        "--deep", action="store_true", help="also compute sampled rows again from their inputs and compare them"
    )
    parser.add_argument("--rows", type=int, metavar="N", help="rows of each fingerprint for --deep (default 64)")
    add_input_options(parser, purpose="for --deep")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check; status 1 when something is wrong."""
    from dataclasses import replace

    from featurecache.store.soundness import feature_warnings
    from featurecache.store.store import FeatureStore
    from featurecache.store.verify import verify

    store = FeatureStore.open(args.cache, strange=True)
    if args.deep and args.source is None:
        roots = ", ".join(listing.root for listing in store.listings.all())
        # A stranger's cache names folders of another machine, or of this one.
        seen = f" (the cache says it was made from {roots}, and is not believed)" if roots else ""
        raise RequestError(
            f"--deep needs the inputs: name their folder, or their table and its --text-column, with --source{seen}"
        )
    with progress_on_stderr(quiet=args.quiet) as progress:
        on_shard = counting(progress, "verifying shards")
        found = verify(store, level=args.level, sample=args.sample, on_shard=on_shard)
        # Heads are read by what the cache says: it has to be whole before.
        if not found.problems and store.head_names():
            from featurecache.deployment.saved import verify_heads

            found = replace(found, problems=tuple(verify_heads(store)))
        deep = _verify_deep(store, args, progress) if args.deep and not found.problems else None
    problems = [*found.problems, *(deep.problems if deep else ())]
    # A cache can be whole, and its features worth nothing.
    warnings = [] if found.problems else feature_warnings(store.feature_sets())
    if args.json:
        documents = [warning.to_json() for warning in warnings]
        print_json({**found.to_json(), "deep": deep and deep.to_json(), "warnings": documents})
        return 1 if problems else 0
    if problems:
        print_table(["where", "what", "next"], [[problem.where, problem.what, problem.advice] for problem in problems])
    print_line(f"{len(found.problems)} problems in {found.num_shards} shards, {found.num_bytes} bytes ({found.level})")
    if deep:
        print_line(
            f"{deep.num_rows} rows computed again: {deep.num_identical} identical, {deep.num_close} within tolerance, "
            f"{deep.num_rows - deep.num_identical - deep.num_close} different"
        )
    elif args.deep:
        print_line("nothing was computed again: mend these problems first")
    print_warnings(warnings)
    return 1 if problems else 0


def _verify_deep(store: FeatureStore, args: argparse.Namespace, progress: Progress) -> DeepVerification:
    from featurecache.extraction.deep_verification import DEFAULT_ROWS, verify_deep

    rows = DEFAULT_ROWS if args.rows is None else args.rows
    return verify_deep(store, inputs_of(args), num_rows=rows, progress=progress)
