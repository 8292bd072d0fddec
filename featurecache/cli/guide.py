"""``featurecache guide``: pages about the program, without a network."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from featurecache.cli.options import verb_parser
from featurecache.cli.output import print_json, print_line, print_table


def add_parser(verbs: Any) -> None:
    """Describe the verb."""
    parser = verb_parser(
        verbs,
        "guide",
        help="read about heads, backbones, tables of labels and more; no network is needed",
        example="""
          featurecache guide
          featurecache guide heads
        """,
    )
    parser.add_argument("topic", nargs="?", metavar="TOPIC", help="which page; without one they are listed")


def run(args: argparse.Namespace) -> int:
    """Print a page, or the list of pages."""
    from featurecache.guide import TOPICS, page

    if args.topic is not None:
        text = page(args.topic)
        if args.json:
            print_json({"topic": args.topic, "text": text})
        elif sys.stdout.isatty():
            # A terminal shows headings, tables and code as such; a pipe gets the text as it is.
            from rich.console import Console
            from rich.markdown import Markdown

            Console(width=min(Console().width, 120)).print(Markdown(text))
        else:
            sys.stdout.write(text)
        return 0
    if args.json:
        print_json({"topics": TOPICS})
        return 0
    print_table(["topic", "is about"], [[topic, text] for topic, text in TOPICS.items()])
    print_line("read one with `featurecache guide TOPIC`")
    return 0
