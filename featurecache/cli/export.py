"""``featurecache export``: a saved head with its backbone as one file that runs without featurecache."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from featurecache.cli.options import add_head_options, called, verb_parser
from featurecache.cli.output import print_json, print_line


def add_parser(verbs: Any) -> None:
    """Describe the verb."""
    parser = verb_parser(
        verbs,
        "export",
        help="write preprocess, backbone and head as one network that runs without featurecache",
        example="""
          featurecache export flowers.cache/heads/run --out flowers.onnx
          featurecache export flowers.cache/heads/run --out flowers_openvino/ --format openvino
        """,
    )
    add_head_options(parser)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE|FOLDER",
        help="what to make; openvino and safetensors: a folder",
    )
    parser.add_argument(
        "--format",
        default="onnx",
        metavar="F",
        help="onnx (default); torch: a program of torch.export, .pt2; openvino; safetensors: weights and a description",
    )
    parser.add_argument("--opset", type=int, metavar="N", help="of ONNX (default: 20)")
    parser.add_argument("--replace", action="store_true", help="replace what is there")


def run(args: argparse.Namespace) -> int:
    """Export, and say what goes in and comes out."""
    from featurecache.deployment.export import export_head

    about = called(args, export_head)
    if args.json:
        print_json(about)
        return 0
    # Only ONNX has editions of its operators.
    kind = f"onnx (opset {about['opset']})" if "opset" in about else about["export_format"]
    print_line(f"{about['out']}: {kind}, {about['head']} on {about['tap']} of {about['backbone']}")
    # Names and shapes are what another program has to know of the file.
    for noun in ("input", "output"):
        shape = ", ".join(map(str, about[noun]["shape"]))
        print_line(f"{noun}: {about[noun]['name']}, {about[noun]['dtype']} ({shape})")
    print_line(
        f"compared with featurecache predict on its check inputs: they differ by {about['largest_difference']:.1e}"
    )
    return 0
