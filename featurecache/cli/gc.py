"""``featurecache gc``: remove what nobody needs; a dry run unless told otherwise."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from featurecache.cli.options import verb_parser
from featurecache.cli.output import print_json, print_line
from featurecache.wording import counted


def add_parser(verbs: Any) -> None:
    """Describe the verb."""
    parser = verb_parser(
        verbs,
        "gc",
        help="find leftovers of interrupted writers and, with --unused, features of files that are gone",
        example="""
          featurecache gc flowers.cache
          featurecache gc flowers.cache --unused --remove
        """,
    )
    parser.add_argument("cache", type=Path, metavar="DIR", help="folder of the cache")
    parser.add_argument("--remove", action="store_true", help="remove; otherwise only say what would be")
    parser.add_argument("--unused", action="store_true", help="also features of samples that no source holds any more")
    parser.add_argument(
        # A week: whoever still writes has touched his files within it.
        "--older-than",
        type=float,
        default=168.0,
        metavar="HOURS",
        help="leave younger leftovers alone (default 168)",
    )


def run(args: argparse.Namespace) -> int:
    """Collect and print."""
    from featurecache.store.gc import collect_garbage
    from featurecache.store.store import FeatureStore

    found = collect_garbage(
        FeatureStore.open(args.cache), remove=args.remove, unused=args.unused, older_than_hours=args.older_than
    )
    if args.json:
        print_json(found.to_json())
        return 0
    for name in found.leftovers:
        print_line(name)
    verb = "removed" if found.removed else "would be removed with --remove"
    print_line(
        f"{counted(len(found.leftovers), 'leftover')}, {found.num_bytes} bytes {verb}; {len(found.young)} too "
        "young to be sure"
    )
    if args.unused:
        print_line(f"{counted(found.unused_rows, 'row')} of features that no source needs {verb}")
    return 0
