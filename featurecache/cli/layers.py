"""What ``featurecache train`` does with layers on cached activations: options, and the ladder of depths."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.cli.options import add_weights_file_options, called, features_of, memory_of, option_name
from featurecache.cli.output import print_line, print_table, progress_on_stderr, warn
from featurecache.errors import RequestError, command_line
from featurecache.finetuning.settings import FineTuning

if TYPE_CHECKING:
    from featurecache.finetuning.ladder import Ladder
    from featurecache.finetuning.training import LayerTraining
    from featurecache.store.feature_sets import FeatureSet
    from featurecache.store.store import FeatureStore
    from featurecache.store.tasks import Task
    from featurecache.train import LayersRequest

_SETTINGS = fields(FineTuning)
_NAMES = tuple(setting.name for setting in _SETTINGS)
_OF_LAYERS = ("from_tap", "from_images", *_NAMES, "weights", "weights_key")
"""Options that say nothing where no layers are trained."""


def add_layers_options(parser: argparse.ArgumentParser) -> None:
    """Add how layers are trained on cached activations."""
    group = parser.add_argument_group(
        "layers", "of --head tail, layers:linear, layers:conv, layers:transformer, layers:mlp or python:MODULE:FACTORY"
    )
    group.add_argument(
        "--from-tap", action="append", metavar="T", help="cached activations to train on; repeat for several"
    )
    group.add_argument(
        "--from-images",
        action="append",
        type=Path,
        metavar="FOLDER",
        help="train on the images themselves, decoded each time; repeat where the cache is of several folders",
    )
    add_weights_file_options(group)
    for setting in _SETTINGS:
        _add_setting(group, setting)
    group.add_argument(
        "--depths", choices=("auto",), help="a linear head, then tails from every cached layer, deeper and deeper"
    )
    group.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help="for all of --depths auto; what would take longer is left out, and stopped",
    )


def _add_setting(group: Any, setting: Field[Any]) -> None:
    """Add the option of a field of `FineTuning`: several values where the field holds several."""
    # Fields of `FineTuning` carry their own help and choices, so that each setting is declared once.
    option, default = dict(setting.metadata), setting.default
    # Each value makes a head of its own.
    if isinstance(default, tuple):
        option["action"], default = "append", (default[0] or "none") if default else None
    if default:
        option["help"] += f" (default: {default})"
    # None, whatever the default: an option that is given where no layers are trained is an error.
    group.add_argument(option_name(setting.name), default=None, **option)


def layers_request(store: FeatureStore, task: Task, args: argparse.Namespace) -> LayersRequest | None:
    """Return the layers that ``--head`` names, which are taken out of ``args.head``; None where it names none.

    Parameters
    ----------
    store, task
        What to train on.
    args
        Of a parser with `add_layers_options`.
    """
    from featurecache.finetuning.factories import PYTHON, is_layers
    from featurecache.train import LayersRequest

    if args.minutes is not None:
        raise RequestError("--minutes is how long --depths auto may take; leave it out, or add that")
    on_activations = bool(args.from_tap or args.from_images)
    # ``python:`` names layers or an estimator: what it is trained on says which.
    layers = [head for head in args.head or () if is_layers(head) and (on_activations or not head.startswith(PYTHON))]
    # What is left are heads on pooled features, which are trained beside the layers in one table.
    args.head = [head for head in args.head or () if head not in layers]
    if layers:
        sets = _layers_sets(store, task, args)
        _warn_of_rounding(sets)
        return LayersRequest(layers, sets, _training(store, task, args))
    if given := [name for name in _OF_LAYERS if vars(args)[name] is not None]:
        raise RequestError(
            f"{option_name(given[0])} is for layers that are trained; name them with --head tail, for example"
        )
    return None


def climb_depths(store: FeatureStore, task: Task, args: argparse.Namespace) -> Ladder:
    """Train deeper and deeper tails.

    Parameters
    ----------
    store, task, args
        As for `layers_request`.
    """
    from featurecache.finetuning.ladder import climb

    if args.head or args.tta:
        raise RequestError("--depths auto chooses what is trained; leave --head and --tta out")
    # Written so that NaN is refused too.
    if args.minutes is not None and not args.minutes > 0:
        raise RequestError(f"--minutes must be above 0, got {args.minutes:g}")
    if args.start is not None:
        raise RequestError("--depths auto starts every tail from a linear head; leave --start out")
    taps = [tap for tap in (*(args.tap or ()), *(args.from_tap or ())) if tap != "all"]
    sets = [feature_set for tap in taps or [None] for feature_set in store.select_sets(tap=tap, **features_of(args))]
    # The deepest rung: all layers, trained on the images themselves.
    sets += _images(store, task, args)
    _warn_of_rounding([feature_set for feature_set in sets if not feature_set.is_pooled])
    with progress_on_stderr(quiet=args.quiet) as progress:
        progress.start("climbing", len(sets))
        return climb(
            _training(store, task, args),
            sets,
            seconds=float("inf") if args.minutes is None else 60 * args.minutes,
            on_plan=lambda plan: None if args.json else print_line(f"after a linear head, {plan}"),
            on_rung=lambda rung: progress.advance(1),
        )


def _warn_of_rounding(sets: Sequence[FeatureSet]) -> None:
    for feature_set in sets:
        if feature_set.dtype == "int8":
            warn(f"{feature_set} is stored as int8: what rounding loses is lost to the layers; extract with float16")


def print_ladder(rungs: list[dict[str, Any]]) -> None:
    """Print a line for each depth, from what `Ladder.to_json` gives."""
    rows = [
        [
            rung["tap"],
            rung.get("head", "-"),
            "-" if rung["num_trainable"] is None else f"{rung['num_trainable']:,}",
            f"{rung['num_bytes'] / 1000:.3g}" if rung["num_bytes"] else "-",
            f"{rung['seconds']:.1f}" if "seconds" in rung else "-",
            f"{rung['selection_score']:.3f}" if "seconds" in rung else "-",
            rung.get("against_probe") or "-",
            _outcome(rung),
        ]
        for rung in rungs
    ]
    numbers = ["trained", "kB/sample", "seconds", "score"]
    print_table(["from", "head", *numbers, "against the linear head", "against the chosen"], rows, numbers=numbers)
    print_line(
        "the shallowest is chosen unless a deeper one is better by more than chance: of tables in which all are as "
        "good, at most 5 % choose a deeper one"
    )


def _outcome(rung: dict[str, Any]) -> str:
    """Say why a rung was not trained, or how it stands against the chosen one, and whether its time was over."""
    if rung["reason"]:
        return str(rung["reason"])
    stands = "chosen" if rung["chosen"] else rung.get("against_chosen") or "-"
    return f"{stands}, stopped at the deadline" if rung["num_stopped"] else stands


def _layers_sets(store: FeatureStore, task: Task, args: argparse.Namespace) -> list[FeatureSet]:
    images = _images(store, task, args)
    taps = args.from_tap or (() if images else args.tap)
    if "all" in (taps or ()) or not (taps or images):
        raise RequestError(
            "name the cached activations that layers are trained on with --from-tap, or the images with "
            f"--from-images; `{command_line('ls', store.path)}` lists what is cached, `featurecache inspect BACKBONE "
            "--tails` what can be"
        )
    # A tap that is named twice is trained on once.
    return [store.find(tap=tap, **features_of(args)) for tap in dict.fromkeys(taps)] + images


def _images(store: FeatureStore, task: Task, args: argparse.Namespace) -> list[FeatureSet]:
    """Return the images, as the one network sees them whose features are cached."""
    from featurecache.evaluation.choosing import set_of_images
    from featurecache.finetuning.images import images_of

    if not args.from_images:
        return []
    features = set_of_images(store, **features_of(args))
    with progress_on_stderr(quiet=args.quiet) as progress:
        return [images_of(store, task, features, args.from_images, progress=progress)]


def _training(store: FeatureStore, task: Task, args: argparse.Namespace) -> LayerTraining:
    from featurecache.finetuning.training import LayerTraining

    given = {name: value for name, value in vars(args).items() if value is not None and name in _NAMES}
    # A value that is given twice would be trained twice.
    given |= {name: tuple(dict.fromkeys(value)) for name, value in given.items() if isinstance(value, list)}
    if "augment" in given:
        given["augment"] = tuple(None if name == "none" else name for name in given["augment"])
    tuning, memory = FineTuning(**given), memory_of(args)
    return called(args, LayerTraining, store=store, task=task, tuning=tuning, memory=memory)
