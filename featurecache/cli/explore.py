"""``featurecache explore``: look around in the samples of a cache, in a browser."""

from __future__ import annotations

import argparse
import sys
import tempfile
import webbrowser
from dataclasses import asdict
from pathlib import Path
from typing import Any

from featurecache.cli.options import add_table_options, features_of, named_source, source_argument, verb_parser
from featurecache.cli.output import print_json, print_line, warn
from featurecache.cli.output_files import check_outputs
from featurecache.wording import counted


def add_parser(verbs: Any) -> None:
    """Describe the verb."""
    parser = verb_parser(
        verbs,
        "explore",
        help="look at samples, labels, predictions and mistakes on a map, in a browser (extra: explore)",
        example="""
          featurecache explore flowers.cache --task species --source photos
          featurecache explore flowers.cache --source photos --map umap --out flowers-map.parquet
        """,
    )
    parser.add_argument("cache", type=Path, metavar="DIR", help="folder of the cache")
    parser.add_argument("--task", metavar="T", help="only its samples, with labels, splits and predictions")
    parser.add_argument(
        "--source", type=source_argument, metavar="SOURCE", help="folder or table of the images, for thumbnails"
    )
    parser.add_argument("--tap", metavar="T", help="cached tap, where there are several")
    parser.add_argument("--backbone", metavar="B", help="only features of this backbone")
    parser.add_argument("--fingerprint", metavar="F", help="only features with this fingerprint")
    parser.add_argument("--map", choices=("pca", "umap"), default="pca", help="how samples are laid out in the plane")
    parser.add_argument("--port", type=int, default=5055, metavar="N", help="port on this machine (default 5055)")
    parser.add_argument("--open", action="store_true", help="open it in the browser")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table (.parquet) and open nothing")
    parser.add_argument("--replace", action="store_true", help="replace FILE if it is there")
    add_table_options(parser)
    parser.set_defaults(run=run, dtype=None, views=0)


def run(args: argparse.Namespace) -> int:
    """Write the table, and show it unless only the table was asked for."""
    from featurecache.explorer import explorer_command, serve

    if args.out is not None:
        check_outputs({"--out": (args.out, (".parquet",))}, replace=args.replace)
        _write(args, args.out)
        return 0
    # Before the map is computed, which may take a minute: what shows it must be there.
    explorer_command(Path(), (), args.port)
    with tempfile.TemporaryDirectory(prefix="featurecache-explore-") as folder:
        table = Path(folder) / f"{args.task or 'samples'}.parquet"
        columns = _write(args, table)

        def say_address(address: str) -> None:
            # On stdout is one document where that was asked for.
            (warn if args.json else print_line)(f"open {address} in a browser on this machine; Ctrl-C ends it")
            sys.stdout.flush()
            if args.open and not webbrowser.open(address):
                warn("no browser could be started; open the address by hand")

        return serve(explorer_command(table, columns, args.port), say_address)


def _write(args: argparse.Namespace, path: Path) -> list[str]:
    """Write the table, say what is in it, and return its columns."""
    from featurecache.explorer import write_explorer_table
    from featurecache.sources.opening import open_source
    from featurecache.store.store import FeatureStore

    store = FeatureStore.open(args.cache)
    feature_set = store.find(tap=args.tap, **features_of(args))
    source = None
    if args.source is not None:
        source = open_source(named_source(args, args.source), text_column=args.text_column, id_column=args.id_column)
    done = write_explorer_table(
        path, store, feature_set, task=args.task, source=source, map_by=args.map, replace=args.replace
    )
    if args.json:
        print_json({"out": str(path), **asdict(done)})
        return list(done.columns)
    print_line(
        f"{counted(done.num_samples, 'sample')} of {feature_set.tap}, {done.num_pictures} with a picture, in {path}"
    )
    if done.num_left_out:
        print_line(
            f"{counted(done.num_left_out, 'sample', verb='is')} not shown: {done.num_samples:,} were drawn at random"
        )
    if args.source is None:
        print_line("no pictures: name the folder that was extracted by --source, and they are shown")
    return list(done.columns)
