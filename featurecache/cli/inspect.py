"""``featurecache inspect``: the layers of a backbone as possible taps."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from featurecache.cli.options import add_preprocess_options, add_weights_options, request_of, verb_parser
from featurecache.cli.output import print_json, print_line, print_table, print_warnings

if TYPE_CHECKING:
    from featurecache.backbones.backbone import Backbone
    from featurecache.backbones.cutting import CutInfo
    from featurecache.backbones.inspection import NodeInfo
    from featurecache.backbones.tapped import Tap


def add_parser(verbs: Any) -> None:
    """Describe the verb."""
    parser = verb_parser(
        verbs,
        "inspect",
        help="show the layers of a backbone as possible taps, with shapes, cost and bytes",
        example="  featurecache inspect torchvision:squeezenet1_1 --weights squeezenet1_1.pth --depth 2",
    )
    parser.add_argument("backbone", metavar="BACKBONE")
    add_weights_options(parser)
    parser.add_argument("--depth", type=int, default=3, metavar="N", help="levels of modules to print (default 3)")
    parser.add_argument(
        "--tap", action="append", metavar="T", help="also show this tap, or all of: stages, blocks; repeat for several"
    )
    parser.add_argument(
        "--tails", action="store_true", help="also try where the network can be cut, to train the rest of it on a cache"
    )
    add_preprocess_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load, run once, print."""
    from featurecache.backbones.cutting import valid_cuts
    from featurecache.backbones.inspection import dry_run_with_costs, list_nodes
    from featurecache.backbones.registry import load_backbone
    from featurecache.backbones.taps import resolve_taps, with_default_warning

    backbone = load_backbone(request_of(args))
    costed = dry_run_with_costs(backbone)
    nodes = list_nodes(backbone, costed)
    # A network without a default tap is shown all the same: that is how one is chosen.
    default = [] if backbone.default.tap is None else ["default"]
    backbone = with_default_warning(backbone, ["default"])
    taps = resolve_taps(backbone, [*default, *(args.tap or [])], seen=costed.seen)
    cuts = valid_cuts(backbone, costed) if args.tails else None
    if args.json:
        print_json(_document(backbone, nodes, taps, cuts))
    else:
        _print_tree(nodes, depth=args.depth)
        _print_summary(backbone, nodes, taps)
        if cuts is not None:
            _print_tails(backbone, cuts)
    return 0


def _document(
    backbone: Backbone, nodes: list[NodeInfo], taps: tuple[Tap, ...], cuts: list[CutInfo] | None
) -> dict[str, Any]:
    from dataclasses import asdict

    from featurecache.backbones.inspection import bytes_per_sample, suggested_taps

    return {
        "backbone": backbone.name,
        "num_parameters": backbone.num_parameters,
        "num_trainable": backbone.num_trainable,
        "output_layer_removed": backbone.classifier,
        "output_layers": list(backbone.output_layers),
        "default_tap": taps[0].name if backbone.default.tap else None,
        "default_shape": list(taps[0].shape) if backbone.default.tap else None,
        "default_candidates": [tap for tap, _ in backbone.default.candidates],
        "taps": [{"name": t.name, "shape": list(t.shape), "bytes_per_sample": bytes_per_sample(t)} for t in taps],
        "suggested_taps": suggested_taps(nodes),
        "fingerprint": backbone.identity.fingerprint,
        "weights_source": backbone.weights_source,
        "license": backbone.license,
        "notes": list(backbone.notes),
        "warnings": [warning.to_json() for warning in backbone.warnings],
        "preprocess": asdict(backbone.preprocess),
        "nodes": [asdict(node) for node in nodes],
        **({} if cuts is None else {"tails": [asdict(cut) for cut in cuts]}),
    }


def _print_tree(nodes: list[NodeInfo], *, depth: int) -> None:
    columns = ["output shape", "parameters", "GFLOP until here", "kB/sample"]
    print_table(
        ["node", "layer", *columns, "usual pooling", "suggested by"],
        [
            [
                node.name,
                node.class_name,
                "x".join(map(str, node.output_shape or ())) or "-",
                f"{node.num_parameters:,}",
                "-" if node.flops is None else f"{node.flops / 1e9:.3f}",
                "-" if node.bytes_per_sample is None else f"{node.bytes_per_sample / 1000:.2f}",
                node.tap.rpartition(":")[2] if node.tap else "-",
                ", ".join(node.suggested),
            ]
            for node in nodes
            if node.name.count(".") < depth
        ],
        numbers=columns,
    )


def _print_summary(backbone: Backbone, nodes: list[NodeInfo], taps: tuple[Tap, ...]) -> None:
    from featurecache.backbones.input_kinds import input_kind_of
    from featurecache.backbones.inspection import bytes_per_sample, suggested_taps
    from featurecache.backbones.taps import choices

    inputs = input_kind_of(backbone.preprocess).sized(backbone.preprocess)
    print_line(f"{backbone.name}: {backbone.num_parameters:,} parameters in all, {inputs}")
    print_line("trainable parameters: " + str(backbone.num_trainable))
    print_line(f"output layer removed: {', '.join(backbone.output_layers) or 'none was found'}")
    if backbone.default.tap is None:
        print_line(f"default tap: none, {backbone.default.doubt}; choose with --tap: {', '.join(choices(backbone))}")
    for index, tap in enumerate(taps):
        what = f"{tap.name}, {'x'.join(map(str, tap.shape))} numbers per sample"
        title = "default tap" if index == 0 and backbone.default.tap else "tap"
        print_line(f"{title}: {what}, {bytes_per_sample(tap) / 1000:.2f} kB on disk")
    for group, names in suggested_taps(nodes).items():
        if group != "default" and names:
            print_line(f"--tap {group}: {len(names)} taps, {names[0]} to {names[-1]}")
    print_line("kB/sample: on disk in float16, id included; GFLOP: two operations for each multiply-add")
    print_line(f"weights: {backbone.weights_source}; fingerprint {backbone.identity.fingerprint[:12]}")
    for note in backbone.notes:
        print_line(f"note: {note}")
    print_warnings([warning.to_json() for warning in backbone.warnings])


def _print_tails(backbone: Backbone, cuts: list[CutInfo]) -> None:
    if not cuts:
        print_line(f"tails: {backbone.name} cannot be cut after any of its stages and blocks")
        return
    columns = ["trainable after", "kB float16", "kB float32", "GFLOP before", "GFLOP after", "speed-up"]
    print_table(
        ["cut after", "output shape", *columns],
        [
            [
                cut.tap,
                "x".join(map(str, cut.shape)),
                f"{cut.num_trainable:,}",
                f"{cut.bytes_float16 / 1000:.2f}",
                f"{cut.bytes_float32 / 1000:.2f}",
                f"{cut.flops_before / 1e9:.3f}",
                f"{cut.flops_after / 1e9:.3f}",
                "-" if cut.speedup is None else f"{cut.speedup:.1f}x",
            ]
            for cut in cuts
        ],
        numbers=columns,
    )
    print_line(
        "speed-up: predicted, an epoch that recomputes the frozen layers / one from the cache, by operations: "
        "(before + 3 after) / (3 after); decoding, reading and the output layer are left out"
    )
    print_line(
        f"cache one of them: featurecache extract SOURCE --cache DIR --backbone {backbone.name} --tap {cuts[-1].tap}"
    )
    print_line(f"then train what comes after: featurecache train DIR --task T --head tail --from-tap {cuts[-1].tap}")
