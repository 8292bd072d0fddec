"""Options that name a backbone, its weights and its preprocess, and the requests that they turn into."""

from __future__ import annotations

import argparse
import re
from functools import partial
from typing import Any, get_args

from featurecache.cli.options import add_renamed_option, add_weights_file_options, called
from featurecache.specs import (
    DEFAULT_BACKBONE,
    DEFAULT_ENCODER,
    BackboneRequest,
    InitName,
    Interpolation,
    JpegDecoding,
    Orientation,
    PrecisionName,
    PreprocessSpec,
    ResizeOn,
    TextPreprocessSpec,
)


def add_backbone_options(parser: argparse.ArgumentParser) -> None:
    """Add what names a backbone, or several, its weights and its preprocess."""
    group = parser.add_argument_group("backbone")
    group.add_argument(
        "--backbone",
        action="append",
        metavar="B",
        help="efficientnet_lite0, all_minilm_l6_v2 (texts), torchvision:NAME, timm:NAME, hf:NAME or FOLDER, "
        "open_clip:NAME/WEIGHTS, file:PROGRAM.pt2 (torch.export), "
        f"hub:FOLDER:entrypoint or python:package.module:factory (default {DEFAULT_BACKBONE}, of texts "
        f"{DEFAULT_ENCODER}); repeat for several",
    )
    add_weights_options(group)
    add_preprocess_options(parser)


def add_weights_options(parser: Any) -> None:
    """Add where the weights come from."""
    add_weights_file_options(parser, help="safetensors or .pth; else the provider's own")
    parser.add_argument(
        "--init", choices=get_args(InitName), default="pretrained", help="random: the same network before any training"
    )
    add_renamed_option(
        parser, "--weights-seed", "--seed", type=int, default=0, metavar="S", help="of random weights (default 0)"
    )
    parser.add_argument(
        "--precision",
        choices=get_args(PrecisionName),
        default="float32",
        help="arithmetic of the network: tf32 is for CUDA GPUs, the half ones for GPUs, and slow on most CPUs",
    )


def add_preprocess_options(parser: argparse.ArgumentParser) -> None:
    """Add changes to the preprocess that belongs to the weights."""
    group = parser.add_argument_group("preprocess", "belongs to the weights; change it only if you know better")
    group.add_argument("--resize", type=int, metavar="PX", help="shorter side before cropping")
    group.add_argument("--crop", type=int, metavar="PX", help="side of the centre crop")
    group.add_argument("--interpolation", choices=get_args(Interpolation), help="how pixels are resized")
    group.add_argument(
        "--resize-on",
        choices=get_args(ResizeOn),
        help="device: torch resizes, on the GPU if there is one (default cpu)",
    )
    group.add_argument("--orientation", choices=get_args(Orientation), help="apply the EXIF orientation or not")
    group.add_argument(
        "--jpeg-decoding", choices=get_args(JpegDecoding), help="scaled: large JPEGs no finer than needed (default)"
    )
    group.add_argument(
        "--range",
        type=_pixel_range,
        metavar="full|image|LOW,HIGH",
        help="of 16-bit, 32-bit and floating-point images, the values that become black and white: those of the file "
        "type (default), of each image its least and greatest, or two numbers, e.g. 0,4095",
    )
    # A range such as -1000,400 begins like an option.
    parser._negative_number_matcher = re.compile(r"^-\d[\d.,eE+-]*$|^-\.\d+.*$")
    group.add_argument("--max-tokens", type=int, metavar="N", help="tokens of a text that count; the rest is cut off")
    # Both belong to the weights, so no default stands here.
    three = partial(_numbers, count=3, needed="three numbers like 0.5,0.5,0.5")
    group.add_argument("--mean", type=three, metavar="R,G,B", help="is taken off pixels from 0 to 1")
    group.add_argument("--std", type=three, metavar="R,G,B", help="divides them then")


def requests_of(args: argparse.Namespace) -> list[BackboneRequest]:
    """Return the backbones that the options name."""
    from featurecache.extraction.extract import make_requests

    pixels = ("resize", "crop", "interpolation", "resize_on", "orientation", "jpeg_decoding", "range", "mean", "std")
    names = (*pixels, "max_tokens")
    changes = {name: value for name, value in vars(args).items() if name in names and value is not None}
    # Impossible numbers must fail before a network is loaded.
    if "max_tokens" in changes:
        TextPreprocessSpec(tokenizer="").override(**changes)
    else:
        PreprocessSpec().override(**changes)
    # What comes with its weights from pip.
    default = DEFAULT_BACKBONE if getattr(args, "text_column", None) is None else DEFAULT_ENCODER
    choice = {"preprocess": changes, "init": args.init, "seed": args.weights_seed, "precision": args.precision}
    return called(args, make_requests, backbones=args.backbone or default, **choice)


def _pixel_range(text: str) -> str | tuple[float, ...]:
    return text if text in ("full", "image") else _numbers(text, 2, "full, image, or two numbers like 0,4095")


def _numbers(text: str, count: int, needed: str) -> tuple[float, ...]:
    try:
        values = tuple(map(float, text.split(",")))
    except ValueError:
        values = ()
    if len(values) != count:
        raise argparse.ArgumentTypeError(f"needs {needed}, got {text!r}")
    return values
