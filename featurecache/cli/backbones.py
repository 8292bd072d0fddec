"""``featurecache backbones``: names that ``--backbone`` takes."""

from __future__ import annotations

import argparse
from typing import Any

from featurecache.cli.options import verb_parser
from featurecache.cli.output import print_json, print_line
from featurecache.wording import counted


def add_parser(verbs: Any) -> None:
    """Describe the verb."""
    parser = verb_parser(
        verbs,
        "backbones",
        help="list the backbones that can be built here",
        example="  featurecache backbones '*vit_tiny*'",
    )
    parser.add_argument("pattern", nargs="?", metavar="PATTERN", help="part of a name, or a pattern with * and ?")


def run(args: argparse.Namespace) -> int:
    """List; an unknown pattern is status 1."""
    from featurecache.backbones.registry import list_backbones

    # Only what can be built here: libraries that are not installed list nothing.
    names = list_backbones(args.pattern)
    if args.json:
        print_json({"backbones": names})
    else:
        for name in names:
            print_line(name)
        print_line(f"{counted(len(names), 'backbone')}; also python:package.module:factory for your own code")
    return 0 if names else 1
