"""The command line: one short module for each verb. Heavy libraries are imported when a verb runs, not before."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import shlex
import sys
from collections.abc import Sequence
from typing import NoReturn

from featurecache.cli.output import plain_text
from featurecache.errors import CorruptError, DriftError, FeatureCacheError, NotAgreedError, shortened

VERBS = (
    *("run", "extract", "ls", "info", "task", "train", "sweep", "predict", "export"),
    *("backbones", "inspect", "verify", "repair", "gc", "convert", "doctor"),
)

_EXAMPLE = """\
example:
  featurecache run flowers/ --cache flowers.cache
      flowers/ holds one folder of images for each class; prints a table of heads, writes flowers.cache/report.html

exit status: 0 done; 1 it ran but found problems; 2 the request was wrong
"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"featurecache: error: {message}; see `{self.prog} --help`\n")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    from featurecache import __version__

    parser = _Parser(
        prog="featurecache",
        description="Run a frozen pretrained network over your images once, keep the features, train heads in seconds.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"featurecache {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)
    for name in VERBS:
        importlib.import_module(f"featurecache.cli.{name}").add_parser(verbs)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may be no text at all
            stream.reconfigure(errors="backslashreplace")
    args = build_parser().parse_args(argv)
    try:
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        kept = "finished shards are kept, run the same command to go on"
        if hasattr(args, "resume"):
            kept = "layers that were in training are kept, run the same command with --resume to go on"
        print(f"featurecache: stopped; {kept}", file=sys.stderr)
        return 130
    except (FeatureCacheError, OSError) as error:
        if args.debug:
            raise
        print(f"featurecache: error: {_one_line(error)}{_again(error, argv)}", file=sys.stderr)
        return 2 if isinstance(error, FeatureCacheError) and not isinstance(error, CorruptError | DriftError) else 1
    except Exception as error:
        if args.debug:
            raise
        what = f"{type(error).__name__}: {_one_line(error)}"
        print(f"featurecache: error: unexpected {what}; run again with --debug and report it", file=sys.stderr)
        return 1


def _again(error: BaseException, argv: Sequence[str] | None) -> str:
    """Return the command that agrees to what a record names, ready to paste."""
    if not isinstance(error, NotAgreedError):
        return ""
    given = sys.argv[1:] if argv is None else argv
    return f"; then the command is: {plain_text(shlex.join(['featurecache', *given, *error.options]))}"


def _one_line(error: BaseException) -> str:
    notes = "; ".join(getattr(error, "__notes__", []))
    return plain_text(shortened(f"{error}{'; ' + notes if notes else ''}", 4000))
