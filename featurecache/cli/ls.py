"""``featurecache ls``: the feature sets, tasks and heads of a cache, a line each; or how far workers are with it."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.cli.options import verb_parser
from featurecache.cli.output import laid_out, print_json, print_line, print_table, warn
from featurecache.errors import RequestError
from featurecache.wording import counted, human_bytes

if TYPE_CHECKING:
    from featurecache.store.watch import CacheProgress, LiveWorker, SetProgress

# Between two looks. A log of a batch job should not fill with lines.
_SECONDS_ON_A_TERMINAL, _SECONDS_IN_A_LOG = 1.0, 5.0
# Without a lease or a commit for so long nobody is at work: a worker that died is known to be after two minutes, and
# one that begins holds no lease while it loads its network.
_IDLE_SECONDS = 300.0


def add_parser(verbs: Any) -> None:
    """Describe the verb."""
    parser = verb_parser(
        verbs,
        "ls",
        help="list the features, tasks and heads of a cache",
        example="""
          featurecache ls flowers.cache
          featurecache ls flowers.cache --watch      how far all workers are, until all is done
        """,
    )
    parser.add_argument("cache", type=Path, metavar="DIR", help="folder of the cache")
    parser.add_argument(
        "--watch",
        action="store_true",
        help="show how far all workers are, until nothing is missing or nobody is at work for five minutes",
    )
    parser.add_argument(
        "--interval",
        type=_seconds,
        metavar="SECONDS",
        help="between two looks of --watch (default 1; 5 where the output is no terminal)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """List."""
    from featurecache.store.overview import describe_features
    from featurecache.store.store import FeatureStore

    if args.interval is not None and not args.watch:
        raise RequestError("--interval is of --watch; add it, or leave --interval out")
    store = FeatureStore.open(args.cache)
    if args.watch:
        from featurecache.store.watch import Watch

        return _watch(Watch(store).update, args)
    features, heads = [describe_features(s) for s in store.feature_sets()], store.head_names()
    if args.json:
        print_json({"samples": len(store.samples), "features": features, "tasks": store.task_names(), "heads": heads})
        return 0
    print_line(f"{args.cache}: {counted(len(store.samples), 'sample')}")
    print_features(features)
    print_line(f"tasks: {', '.join(store.task_names()) or 'none'}")
    print_line(f"heads: {', '.join(heads) or 'none'}")
    return 0


def print_features(features: list[dict[str, Any]]) -> None:
    """Print feature sets as a table."""
    # A column for what most caches do not have would be empty.
    some_views = any(item["views"] for item in features)
    named = ["backbone", "tap", "views"] if some_views else ["backbone", "tap"]
    print_table(
        [*named, "dtype", "rows", "bad", "features", "on disk", "fingerprint"],
        [
            [
                item["backbone"],
                item["tap"],
                *([item["views"]["count"] if item["views"] else "-"] if some_views else []),
                item["dtype"],
                item["rows"],
                item["bad"],
                # Views have their own column; the rest is the shape of one.
                "x".join(map(str, item["shape"][1:] if item["views"] else item["shape"])),
                human_bytes(item["bytes"]),
                item["fingerprint"][:12],
            ]
            for item in features
        ],
        numbers=["views", "rows", "bad", "features", "on disk"],
    )


def _watch(update: Callable[[], CacheProgress], args: argparse.Namespace) -> int:
    """Show how far a cache is until nobody is at work; return 1 where something is missing then."""
    interval = args.interval or (_SECONDS_ON_A_TERMINAL if sys.stdout.isatty() else _SECONDS_IN_A_LOG)
    before, since, is_left = None, 0.0, False
    with _shown(as_json=args.json) as show:
        while True:
            found = update()
            show(found)
            seen = [(item.features, item.num_rows, item.num_listed) for item in found.sets], found.waiting
            if found.workers or seen != before:
                before, since = seen, time.monotonic()
            if found.is_done or (is_left := time.monotonic() - since >= _IDLE_SECONDS):
                break
            time.sleep(interval)
    if args.json:  # one document, so what was on the way is not printed
        print_json({"cache": str(args.cache), **found.to_json()})
    if is_left:
        warn(
            f"nobody has been at work for {_IDLE_SECONDS / 60:.0f} minutes, and {_missing_in_words(found)}; run the "
            "same `featurecache extract` again, or watch again once its workers have begun"
        )
    return int(is_left)


@contextmanager
def _shown(*, as_json: bool) -> Iterator[Callable[[CacheProgress], None]]:
    """Give what shows how far a cache is: in place on a terminal, else a line each time."""
    if as_json:
        yield lambda found: None
    elif sys.stdout.isatty():
        from rich.console import Console, Group
        from rich.live import Live
        from rich.text import Text

        with Live(console=Console(highlight=False), auto_refresh=False) as live:

            def draw(found: CacheProgress) -> None:
                rows = [[item.features, item.num_rows, item.num_listed, *_speed_and_rest(item)] for item in found.sets]
                columns = ["features", "rows", "of", "rows/s", "left"]
                table = laid_out(columns, rows, numbers=columns[1:])
                live.update(Group(table, Text(_workers_in_words(found))), refresh=True)

            yield draw
    else:
        yield _print_progress


def _print_progress(found: CacheProgress) -> None:
    sentences = []
    # What is done is said once, at the end.
    for item in [item for item in found.sets if found.is_done or item.num_rows < item.num_listed]:
        speed, rest = _speed_and_rest(item)
        more = f", {speed} rows/s, {rest} left" if rest else ""
        sentences.append(f"{item.features}: {item.num_rows} of {counted(item.num_listed, 'row')}{more}")
    print_line("; ".join([*sentences, _workers_in_words(found)]))
    sys.stdout.flush()  # whoever follows a file or a pipe wants it now


def _speed_and_rest(item: SetProgress) -> tuple[str, str]:
    """Return rows per second and the remaining time; of what is done, or was not committed lately, neither."""
    if item.rate is None or item.seconds_left is None or item.num_rows == item.num_listed:
        return "", ""
    minutes, seconds = divmod(math.ceil(item.seconds_left), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{item.rate:.1f}", f"{hours}:{minutes:02d}:{seconds:02d}"


def _workers_in_words(found: CacheProgress) -> str:
    """Say who is at work, or what is waited for."""
    if found.is_done:
        return "done: nothing is missing"
    words = [_worker_in_words(worker) for worker in found.workers]
    if not words:
        # Work may have been asked for elsewhere and not have begun.
        left = f"; no features yet of {', '.join(found.waiting)}" if found.waiting else ""
        return f"no worker{left}"
    return f"{counted(len(words), 'worker')}: {', '.join(words)}"


def _missing_in_words(found: CacheProgress) -> str:
    """Say what of a cache is not there."""
    lacks = [(item.features, item.num_listed - item.num_rows) for item in found.sets if item.num_rows < item.num_listed]
    words = [f"{name} lacks {counted(count, 'row')}" for name, count in lacks]
    words += [f"there are no features of {root}" for root in found.waiting]
    return ", ".join(words) or "there are no features"


def _worker_in_words(worker: LiveWorker) -> str:
    what = "scans" if worker.is_scanning else counted(worker.num_shards, "shard")
    return f"{worker.host} {worker.pid} ({what}, seen {worker.age:.0f} s ago)"


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    # Written so that NaN is refused too.
    if not 0 < value <= 86400:
        raise argparse.ArgumentTypeError(f"needs a number of seconds above 0, at most a day, got {text!r}")
    return value
