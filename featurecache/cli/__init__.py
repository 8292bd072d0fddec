"""The command line: one short module for each verb. Heavy libraries are imported when a verb runs, not before."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import logging
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from featurecache.code_notice import LOGGER
from featurecache.errors import CorruptError, DriftError, FeatureCacheError, NotAgreedError, plain_text, shortened
from featurecache.stopping import put_in_order, set_exit_message, stops_cleanly

# Monotonic, as the wall clock may be set while a command runs.
_STARTED = time.monotonic()

VERBS = (
    *("run", "scan", "extract", "ls", "info", "task", "train", "sweep", "advise", "predict", "export"),
    *("export-features", "similar", "explore", "rm"),
    *("backbones", "inspect", "verify", "repair", "gc", "convert", "doctor", "guide"),
)

_EXAMPLE = """\
example:
  featurecache run flowers/ --cache flowers.cache
      flowers/ holds one folder of images for each class; prints a table of heads, writes flowers.cache/report.html

exit status: 0 done; 1 it ran but found problems; 2 the request was wrong
"""


class _StoreOnce(argparse.Action):
    """Keeps the value of an option; a second one is an error, because one of the two would be lost in silence."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        """Take a value."""
        if option is not None and isinstance(parser, _Parser):
            if (first := parser.given.get(self.dest)) is not None:
                before = "" if first == option else f" (before as {first})"
                parser.error(f"{option} is given twice{before}, and counts once: leave one of them out")
            parser.given[self.dest] = option
        vars(namespace)[self.dest] = values


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and takes options once unless they say that they repeat."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.given: dict[str, str] = {}
        """Options that had a value, of the command line that is being parsed: what they set -> as it was written."""
        self.common: tuple[str, ...] = ()
        """Options that stand first in the help."""
        # `None` is what argparse looks up where `add_argument` names no action.
        self.register("action", None, _StoreOnce)
        self.register("action", "store", _StoreOnce)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse a command line."""
        # One parser may parse several command lines, as a program or a test does.
        self.given.clear()
        return super().parse_known_args(args, namespace)

    def format_help(self) -> str:
        """Return the help: what most people want on the first screen, all else under headings below."""
        groups = [(group.title, group.description, list(group._group_actions)) for group in self._action_groups]
        if not self.common:
            return super().format_help()
        # By name, in the order in which the verb gives them.
        by_name = {name: action for action in self._actions for name in action.option_strings}
        common = [by_name[name] for name in self.common]
        names = " ".join(str(action.metavar or action.dest) for action in groups[0][2])
        formatter = self._get_formatter()
        formatter.add_usage(f"{self.prog} {names} [options]", (), ())
        formatter.add_text(self.description)
        _, (_, _, own), *others = groups
        for title, text, actions in (groups[0], ("common options", None, common), *others, ("more options", None, own)):
            formatter.start_section(title)
            formatter.add_text(text)
            formatter.add_arguments([action for action in actions if action not in common or title == "common options"])
            formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()

    def error(self, message: str) -> NoReturn:
        # One line: argparse would print all options first, and hide it.
        self.exit(2, f"featurecache: error: {plain_text(message)}; see `{self.prog} --help`\n")


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
        module = importlib.import_module(f"featurecache.cli.{name.replace('-', '_')}")
        module.add_parser(verbs)
        verbs.choices[name].set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    try:
        with stops_cleanly():
            return run_command(argv)
    except KeyboardInterrupt as error:
        return put_in_order(error)


def _open_closed_streams() -> None:
    """Open what the caller has closed (``>&-``): else a file of the cache gets the number of a stream, and its text."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    # Python has None for a stream that was closed when it began.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115, PTH123
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115, PTH123


def _flush_quietly() -> None:
    """Say nothing where nobody reads: the interpreter would complain when it flushes at its end."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_command(argv: Sequence[str] | None = None) -> int:
    """Do what `main` does, but leave the end by a signal to the caller."""
    _open_closed_streams()
    try:
        return _parse_and_run(argv)
    finally:
        _flush_quietly()


def _parse_and_run(argv: Sequence[str] | None) -> int:
    # A name that is no UTF-8 must not end a command that has all results.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may be no text at all
            stream.reconfigure(errors="backslashreplace")
    args = build_parser().parse_args(argv)
    logging.getLogger(LOGGER).setLevel(logging.ERROR if getattr(args, "quiet", False) else logging.NOTSET)
    # Asked when the signal comes: what is kept by then is not known yet.
    set_exit_message(lambda: f"stopped; {_what_is_kept(args)}")
    try:
        # Flushed here, where a reader that is gone is no error; at the end of the interpreter it would be one.
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if args.debug:
            raise
        return _print_error(error, argv)


def _print_error(error: Exception, argv: Sequence[str] | None) -> int:
    """Print an error in one line, and return the exit status: 2 where the request was wrong, else 1."""
    # What was being done when it happened is added as notes, which `str` leaves out.
    notes = "; ".join(getattr(error, "__notes__", []))
    text = plain_text(shortened(f"{error}{'; ' + notes if notes else ''}", 4000))
    # A damaged cache and features that have drifted are findings about files, not wrong requests.
    is_request = isinstance(error, FeatureCacheError) and not isinstance(error, CorruptError | DriftError)
    if not isinstance(error, FeatureCacheError | OSError):
        text = f"unexpected {type(error).__name__}: {text}; run again with --debug and report it"
    if isinstance(error, NotAgreedError):
        # The command that agrees to what a record names, ready to paste.
        given = sys.argv[1:] if argv is None else argv
        text += f"; then the command is: {plain_text(shlex.join(['featurecache', *given, *error.options]))}"
    print(f"featurecache: error: {text}", file=sys.stderr)
    return 2 if is_request else 1


_KEPT = {
    "run": "features that are finished are kept, run the same command to go on",
    "scan": "the cache lists the source as before",
    "extract": "finished shards are kept, run the same command to go on",
    "sweep": "finished results are kept, run the same command to go on",
    "convert": "finished shards are kept, run the same command to go on",
    "repair": "what was set aside is kept in quarantine/, run the same command to go on",
    "gc": "what was removed is gone, nothing else was touched, run the same command to go on",
    "task": "tasks are as they were",
    "export": "nothing was exported",
    "export-features": "nothing was written",
    "rm": "what was removed is gone, run the same command to go on",
}


def _what_is_kept(args: argparse.Namespace) -> str:
    """Say what a command that was stopped has left."""
    if args.verb == "train":
        return _kept_of_training(args.cache / "training")
    if args.verb == "predict":
        # A table is published whole or not at all; what was printed cannot be taken back.
        if args.engine:
            return f"{args.out} was not written, finished parts are kept, run the same command to go on"
        return f"{args.out} was not written" if args.out else "what was not printed is lost"
    return _KEPT.get(args.verb, "nothing was changed")


def _kept_of_training(folder: Path) -> str:
    """Only layers keep how far they are, from time to time."""
    began = time.time() - time.monotonic() + _STARTED
    if any(path.stat().st_mtime >= began for path in folder.glob("*/*.safetensors")):
        return "layers that were in training are kept, run the same command with --resume to go on"
    return "nothing is kept of heads that were in training"
