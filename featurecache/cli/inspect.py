"""``featurecache inspect``: the layers of a backbone as possible taps."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from featurecache.cli.backbone_options import add_preprocess_options, add_weights_options, requests_of
from featurecache.cli.options import verb_parser
from featurecache.cli.output import print_json, print_line, print_table, print_warnings
from featurecache.errors import command_line

if TYPE_CHECKING:
    from featurecache.backbones.backbone import Backbone
    from featurecache.backbones.cutting import CutInfo
    from featurecache.backbones.description import Description
    from featurecache.backbones.inspection import NodeInfo


def add_parser(verbs: Any) -> None:
    """Describe the verb."""
    parser = verb_parser(
        verbs,
        "inspect",
        common="--tap --tails --depth --weights --init --json",
        help="show the layers of a backbone as possible taps, with shapes, cost and bytes",
        example="  featurecache inspect torchvision:squeezenet1_1 --weights squeezenet1_1.pth --depth 2",
    )
    parser.add_argument("backbone", metavar="BACKBONE", help="as for extract --backbone")
    add_weights_options(parser)
    parser.add_argument("--depth", type=int, default=3, metavar="N", help="levels of modules to print (default 3)")
    parser.add_argument(
        "--tap", action="append", metavar="T", help="also show this tap, or all of: stages, blocks; repeat for several"
    )
    parser.add_argument(
        "--tails", action="store_true", help="also try where the network can be cut, to train the rest of it on a cache"
    )
    add_preprocess_options(parser)


def run(args: argparse.Namespace) -> int:
    """Describe a backbone."""
    from featurecache.backbones.description import describe_backbone

    # Its BACKBONE is one name, so one request comes of it.
    (request,) = requests_of(args)
    description = describe_backbone(request, taps=args.tap or [], tails=args.tails)
    if args.json:
        print_json(description.to_json())
        return 0
    _print_tree(description.nodes, depth=args.depth)
    _print_summary(description)
    if description.cuts is not None:
        _print_tails(description.backbone, description.cuts)
    return 0


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
            # Transformers have hundreds of modules below the third level.
            if node.name.count(".") < depth
        ],
        numbers=columns,
    )


def _print_summary(description: Description) -> None:
    from featurecache.backbones.input_kinds import input_kind_of
    from featurecache.backbones.inspection import bytes_per_sample, suggested_taps
    from featurecache.backbones.taps import choices

    backbone = description.backbone
    inputs = input_kind_of(backbone.preprocess).sized(backbone.preprocess)
    print_line(f"{backbone.name}: {backbone.num_parameters:,} parameters in all, {inputs}")
    print_line("trainable parameters: " + str(backbone.num_trainable))
    print_line(f"output layer removed: {', '.join(backbone.output_layers) or 'none was found'}")
    if backbone.default.tap is None:
        print_line(f"default tap: none, {backbone.default.doubt}; choose with --tap: {', '.join(choices(backbone))}")
    for index, tap in enumerate(description.taps):
        what = f"{tap.name}, {'x'.join(map(str, tap.shape))} numbers per sample"
        title = "default tap" if index == 0 and backbone.default.tap else "tap"
        print_line(f"{title}: {what}, {bytes_per_sample(tap) / 1000:.2f} kB on disk")
    for group, names in suggested_taps(description.nodes).items():
        # The default tap has a line of its own above.
        if group != "default" and names:
            print_line(f"--tap {group}: {len(names)} taps, {names[0]} to {names[-1]}")
    # Said each time: other tools count a multiply-add as one operation.
    print_line("kB/sample: on disk in float16, id included; GFLOP: two operations for each multiply-add")
    print_line(f"weights: {backbone.weights_source}; fingerprint {backbone.identity.fingerprint[:12]}")
    for note in backbone.notes:
        print_line(f"note: {note}")
    print_warnings(backbone.warnings)


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
    tap = cuts[-1].tap
    extract = command_line("extract", "SOURCE", "--cache", "DIR", "--backbone", backbone.name, "--tap", tap)
    print_line(f"cache one of them: {extract}")
    print_line(f"then train what comes after: featurecache train DIR --task T --head tail --from-tap {tap}")
