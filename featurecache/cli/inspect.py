"""``featurecache inspect``: the layers of a backbone as possible taps."""

from __future__ import annotations

import argparse
from typing import Any

from featurecache.cli.options import add_preprocess_options, request_of, verb_parser
from featurecache.cli.output import print_json, print_line, print_table


def add_parser(verbs: Any) -> None:
    """Describe the verb."""
    from pathlib import Path

    parser = verb_parser(
        verbs,
        "inspect",
        help="show the layers of a backbone as possible taps, with shapes",
        example="  featurecache inspect torchvision:squeezenet1_1 --weights squeezenet1_1.pth --depth 2",
    )
    parser.add_argument("backbone", metavar="BACKBONE")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="safetensors or .pth; else the provider's own")
    parser.add_argument("--depth", type=int, default=3, metavar="N", help="levels of modules to print (default 3)")
    add_preprocess_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load, run once on zeros, print."""
    from dataclasses import asdict

    from featurecache.backbones.registry import load_backbone
    from featurecache.backbones.taps import list_nodes, resolve_taps

    backbone = load_backbone(request_of(args))
    nodes, (default,) = list_nodes(backbone), resolve_taps(backbone, ["default"])
    if args.json:
        print_json(
            {
                "backbone": backbone.name,
                "num_parameters": backbone.num_parameters,
                "num_trainable": backbone.num_trainable,
                "output_layer_removed": backbone.classifier,
                "default_tap": default.name,
                "default_shape": list(default.shape),
                "fingerprint": backbone.identity.fingerprint,
                "weights_source": backbone.weights_source,
                "license": backbone.license,
                "notes": list(backbone.notes),
                "preprocess": asdict(backbone.preprocess),
                "nodes": [asdict(node) for node in nodes],
            }
        )
        return 0
    print_table(
        ["node", "layer", "output shape", "parameters"],
        [
            [node.name, node.class_name, "x".join(map(str, node.output_shape or ())) or "-", f"{node.num_parameters:,}"]
            for node in nodes
            if node.name.count(".") < args.depth
        ],
        numbers=["output shape", "parameters"],
    )
    print_line(f"{backbone.name}: {backbone.num_parameters:,} parameters in all")
    print_line("trainable parameters: " + str(backbone.num_trainable))
    print_line(f"output layer removed: {backbone.classifier or 'none was found'}")
    print_line(f"default tap: {default.name}, {'x'.join(map(str, default.shape))} numbers per sample")
    print_line(f"weights: {backbone.weights_source}; fingerprint {backbone.identity.fingerprint[:12]}")
    for note in backbone.notes:
        print_line(f"note: {note}")
    return 0
