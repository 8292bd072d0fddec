"""``featurecache info``: everything about a cache: how features were made, what the sources hold, bad inputs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.cli.ls import print_features
from featurecache.cli.options import add_table_options, named_source, source_argument, verb_parser
from featurecache.cli.output import print_json, print_line, print_table, print_warnings, progress_on_stderr
from featurecache.errors import ReportWarning
from featurecache.specs import TASK_NOUN
from featurecache.wording import counted

if TYPE_CHECKING:
    from featurecache.store.store import FeatureStore

# The last trainings fit on a screen; ``--json`` has all.
_MAX_HISTORY = 10


def add_parser(verbs: Any) -> None:
    """Describe the verb."""
    parser = verb_parser(
        verbs,
        "info",
        help="say how the features of a cache were made, what its sources hold and which inputs are bad",
        example="""
          featurecache info flowers.cache
          featurecache info flowers.cache --source flowers/      also what the folder holds now
        """,
        quiet=True,
    )
    parser.add_argument("cache", type=Path, metavar="DIR", help="folder of the cache")
    parser.add_argument(
        "--source",
        type=source_argument,
        metavar="SOURCE",
        help="compare with this folder or table now: what was added, edited, renamed",
    )
    add_table_options(parser)


def run(args: argparse.Namespace) -> int:
    """Gather and print."""
    from featurecache.store.overview import describe_cache
    from featurecache.store.store import FeatureStore

    store = FeatureStore.open(args.cache)
    info = {
        **describe_cache(store),
        "cache": str(args.cache),
        "now": _describe_now(store, args) if args.source else None,
    }
    if args.json:
        print_json(info)
    else:
        _print(info)
    return 0


def _describe_now(store: FeatureStore, args: argparse.Namespace) -> dict[str, Any]:
    from featurecache.extraction.inventory import take_inventory
    from featurecache.sources.opening import open_source

    # With its columns, as extraction opened it: rows of a table have their names from them.
    source = open_source(named_source(args, args.source), text_column=args.text_column, id_column=args.id_column)
    with progress_on_stderr(quiet=args.quiet) as progress:
        return take_inventory(store, source, progress).describe(store)


def _print_now(now: dict[str, Any]) -> None:
    # Zeroes would hide what changed.
    changes = [f"{now[state]} {state}" for state in ("added", "edited", "renamed", "copied", "removed") if now[state]]
    print_line(
        f"{now['root']} now: {counted(now['files'], 'file')}; since it was extracted: "
        f"{', '.join(changes) or 'unchanged'}"
    )
    for item in now["cached"]:
        views = f" {counted(item['views'], 'view')}" if item["views"] else ""
        print_line(
            f"  {item['backbone']} {item['tap']} {item['dtype']}{views}: "
            f"{counted(item['samples'], 'sample', of=now['samples'])} cached"
        )
    _print_warnings(now["warnings"])
    if now["added"] or now["edited"]:
        print_line("  run the same `featurecache extract` again to add what is new")
    # Nothing is removed by itself: the files may only have been moved.
    if now["orphaned_samples"]:
        print_line(
            f"  no source holds {counted(now['orphaned_samples'], 'sample')} of the cache any more; "
            "the features stay until `featurecache gc --unused --remove` (extract first)"
        )


def _print(info: dict[str, Any]) -> None:
    orphaned = f", {info['orphaned_samples']} of them in no source any more" if info["orphaned_samples"] else ""
    print_line(f"{info['cache']}: {counted(info['samples'], 'sample')}{orphaned}")
    for source in info["sources"]:
        print_line(
            f"source {source['root']}: {counted(source['files'], 'file')}, {counted(source['samples'], 'sample')}, "
            f"{counted(source['copies'], 'copy')}, {source['unreadable']} unreadable"
        )
        # What is there now says it once.
        if not info["now"] or info["now"]["root"] != source["root"]:
            _print_warnings(source["warnings"])
    if info["now"]:
        _print_now(info["now"])
    print_features(info["features"])
    for item in info["features"]:
        _print_provenance(item)
    for task in info["tasks"]:
        counts = ", ".join(f"{count} {split}" for split, count in task["counts"].items())
        about = task["about"]
        print_line(
            f"task {task['task']}: {counted(len(task['classes']), TASK_NOUN[task['kind']])} ({counts}), from "
            f"{about['origin']}"
        )
        if about["num_conflicts"]:
            print_line(f"  {counted(about['num_conflicts'], 'sample', verb='has')} two labels, left out")
        _print_history(task)
    print_line(f"heads: {', '.join(info['heads']) or 'none'}")
    if info["bad"]:
        print_line(f"{counted(len(info['bad']), 'bad input')}:")
        print_table(["file", "status", "reason"], [[b["path"], b["status"], b["reason"]] for b in info["bad"]])


def _print_history(task: dict[str, Any]) -> None:
    """Print what the last trainings on a task chose."""
    if not (history := task["history"]):
        return
    last = f" (the last {_MAX_HISTORY})" if len(history) > _MAX_HISTORY else ""
    print_line(f"trainings of task {task['task']}{last}:")
    rows = []
    for training in history[-_MAX_HISTORY:]:
        scores, primary = training["figures"], training["primary"]
        value, n = scores.get(primary), scores.get("n")
        rows.append(
            [
                training["time"][:16].replace("T", " "),
                f"{training['head']} on {training['tap']}",
                ", ".join(f"{name}={value}" for name, value in training["params"].items()) or "-",
                str(training["n_fitted"]),
                f"{training['reported']} {primary.replace('_', ' ')}",
                "-" if value is None else f"{value:.3f}",
                "-" if n is None else f"{n:.0f}",
            ]
        )
    print_table(["UTC", "chosen", "setting", "fitted", "figure", "", "of"], rows, numbers=["fitted", "", "of"])


def _print_warnings(documents: list[dict[str, Any]]) -> None:
    print_warnings(ReportWarning(**document) for document in documents)


def _print_provenance(item: dict[str, Any]) -> None:
    preprocess, ran = item["preprocess"], item["provenance"]
    print_line(f"{item['backbone']} {item['tap']}: {item['num_parameters']:,} parameters in all")
    print_line(f"  trainable parameters: {item['num_trainable']}")
    print_line(f"  weights: {item['weights_source']} (digest {item['weights'][:12]})")
    print_line(f"  preprocess: {_preprocess_in_words(preprocess)}")
    model = f" ({ran['device_model']})" if ran.get("device_model") else ""
    folded = ", batch norms folded" if ran.get("norms_folded") else ""
    if views := item["views"]:
        print_line(f"  views: {_views_in_words(views)}")
    print_line(
        f"  ran on {ran['runtime']}/{ran['device']}{model}, torch {ran['versions'].get('torch')}, "
        f"{counted(item['shards'], 'shard')}{folded}"
    )
    if error := item["precision"]:
        print_line(
            f"  stored as {item['dtype']}: error {'at most ' if error.get('bound') else ''}"
            f"{error['relative_rms']:.1e} (root mean square), "
            f"{error['relative_largest']:.1e} (largest) of {error['against']}, on {counted(error['rows'], 'sample')}"
        )
    for note in item["notes"] or []:
        print_line(f"  note: {note}")
    _print_warnings(item["warnings"])


def _preprocess_in_words(preprocess: dict[str, Any]) -> str:
    # Records of images are older than the field.
    if preprocess.get("kind") == "text":
        return f"at most {preprocess['max_tokens']} tokens, tokenizer {preprocess['tokenizer'][:12]}"
    pixel_range = preprocess["range"]
    # Nine digits are enough to write any float32 apart from its neighbours.
    shown = pixel_range if isinstance(pixel_range, str) else ",".join(f"{value:.9g}" for value in pixel_range)
    return (
        f"resize {preprocess['resize']}{' on the device' if preprocess.get('resize_on') == 'device' else ''}, "
        f"crop {preprocess['crop']}, {preprocess['interpolation']}, "
        f"mean {_numbers(preprocess['mean'])}, std {_numbers(preprocess['std'])}, "
        f"orientation {preprocess['orientation']}, JPEG {preprocess['jpeg_decoding']}, "
        f"range {shown}"
    )


def _views_in_words(views: dict[str, Any]) -> str:
    colours = _numbers([views[name] for name in ("brightness", "contrast", "saturation", "hue")])
    return (
        f"{views['count']} of each sample (seed {views['seed']}), area {_numbers(views['scale'])}, "
        f"width over height {_numbers(views['ratio'])}, flip {views['flip']:.4g}, brightness, contrast, saturation, "
        f"hue {colours}"
    )


def _numbers(values: list[float]) -> str:
    return ",".join(f"{value:.4g}" for value in values)
