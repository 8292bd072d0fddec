"""A saved head with its backbone as one file that runs without featurecache."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from featurecache.atomic import published, published_folder
from featurecache.backbones.backbone import Backbone
from featurecache.backbones.input_kinds import input_kind_of
from featurecache.backbones.runtimes import open_runtime
from featurecache.backbones.taps import Tap, resolve_taps
from featurecache.deployment.exporting.format import FORMATS, Converter, Exported
from featurecache.deployment.exporting.network import ExportedNetwork, trace
from featurecache.deployment.predictor import check_features
from featurecache.deployment.saved import SavedHead, network_of, open_head
from featurecache.errors import MissingExtraError, RequestError, RuntimeMismatchError, UnknownNameError, first_line
from featurecache.extraction.modality import modality_of
from featurecache.extraction.pipeline import to_stored
from featurecache.resizing import draft_side
from featurecache.specs import AnyPreprocess, PreprocessSpec
from featurecache.store.dtypes import decode
from featurecache.versions import installed_versions

# Largest difference from `predict`: of probabilities, or of numbers relative to the largest (if above 1).
TOLERANCE = 1e-4
# Of the metadata; raised when a field changes its meaning.
EXPORT_VERSION = 1
# Of ONNX files; what runs them knows it since 2023.
OPSET = 20
_IS_THERE = "--out {} is there already; pass --replace, or name another place"


def export_head(
    head: str | Path,
    out: str | Path,
    *,
    format: str = "onnx",
    backbone: str | None = None,
    weights: str | Path | None = None,
    weights_key: str | None = None,
    layers: str | None = None,
    opset: int | None = None,
    replace: bool = False,
) -> dict[str, Any]:
    """Write preprocessed inputs, backbone, tap, pooling and head as one network.

    Of images, what goes in is uint8 ``(batch, height, width, 3)``, decoded, resized and cropped; normalisation is
    inside. Of texts, it is int32 ``(batch, max_tokens)`` token ids with -1 for padding. Out come probabilities, or
    numbers, ``(batch, n_outputs)`` float32. Before the file has its name, it is read back, run, and compared with
    `predict`.

    Parameters
    ----------
    head : path
        Folder of a saved head, ``DIR/heads/NAME``.
    out : path
        File (``onnx``, ``torch``) or folder (``openvino``, ``safetensors``) to make.
    format : str
        ``onnx``; ``torch``, a program of `torch.export`; ``openvino``; ``safetensors``, weights with a description.
    backbone, weights, weights_key, layers : str, path, str, str, optional
        As for `predict`.
    opset : int, optional
        Of ONNX; 20 by default.
    replace : bool
        Replace what is there.

    Returns
    -------
    dict
        Plain JSON values: the metadata of the file, and how far its outputs are from `predict`.

    Raises
    ------
    RequestError, UnknownNameError, MissingExtraError
        The path or the format cannot be used, or the head cannot be exported as it was trained.
    HeadError, BackboneError
        The head, or the backbone, does what a file of this kind cannot.
    RuntimeMismatchError
        The outputs of the file differ from `predict`. It is not kept.
    """
    if format not in FORMATS:
        raise UnknownNameError("export format", format, FORMATS)
    if opset is not None and format != "onnx":
        raise RequestError(f"--opset {opset} is for ONNX files, and the format is {format}; leave --opset out")
    out, kind = Path(out), FORMATS[format]
    _check_path(out, format, replace=replace)
    # Before the network is loaded, which may take a minute.
    for package in kind.packages:
        if find_spec(package) is None:
            raise MissingExtraError(package, kind.extra)
    saved = open_head(head, agreed=layers)
    _check_head(saved, head)
    network = network_of(saved, backbone=backbone, weights=weights, weights_key=weights_key, layers=layers)
    (tap,) = resolve_taps(network, [saved.tap])
    # The outputs of `predict` first: a machine that makes other features is refused before the long conversion.
    inputs, expected = _expected(saved, network, tap)
    whole = ExportedNetwork(network, tap, saved)
    program = trace(whole, torch.from_numpy(inputs), network.name)
    about = _about(saved, network, inputs) | ({"opset": opset or OPSET} if format == "onnx" else {})
    exported = Exported(network=whole, program=program, about=about)
    try:
        with (published_folder if kind.files else published)(out, replace=replace) as partial:
            # Batches of two sizes: a program may have taken the size of its example for the only one.
            found = _write_and_run(exported, format, partial, [inputs, inputs[:1]])
            difference = _difference(found, [expected, expected[:1]])
            # Not `>`: a NaN is no small difference.
            if not difference <= TOLERANCE:
                raise RuntimeMismatchError(
                    f"{out} is not kept: as {format}, the network answers differently than here, by {difference:.1e} "
                    f"(tolerance {TOLERANCE:.0e}); choose another --format"
                )
    except FileExistsError:  # somebody else was faster
        raise RequestError(_IS_THERE.format(out)) from None
    return {**exported.about, "out": str(out), "export_format": format, "largest_difference": difference}


def _write_and_run(exported: Exported, format: str, path: Path, batches: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """Write, read back what was written, and return its outputs for some batches."""
    try:
        converter = cast("Converter", import_module(f"featurecache.deployment.exporting.{FORMATS[format].module}"))
        converter.write(exported, path)
        return converter.run(exported, path, batches)
    # These say what to do already.
    except (MemoryError, RequestError):
        raise
    # Converters and runtimes fail in their own ways.
    except Exception as error:
        raise RuntimeMismatchError(
            f"{exported.about['backbone']} with this head cannot be written as {format} ({type(error).__name__}: "
            f"{first_line(error)}); choose another --format"
        ) from error


def _check_path(out: Path, format: str, *, replace: bool) -> None:
    kind = FORMATS[format]
    for other, known in FORMATS.items():
        if other != format and out.suffix.lower() == known.suffix:
            raise RequestError(
                f"{out} is named like {other}, and the format is {format}; pass --format {other}, or rename it"
            )
    if not out.parent.is_dir():
        raise RequestError(f"--out {out}: there is no folder {out.parent}; make it, or name another place")
    if not out.exists():
        return
    if not replace:
        raise RequestError(_IS_THERE.format(out))
    if out.is_dir() and not kind.files:
        raise RequestError(f"--out {out} is a folder; name a file")
    if kind.files and not out.is_dir():
        raise RequestError(f"--out {out} is a file; name a folder")
    # A folder is replaced whole: nothing of somebody else's may go with it.
    if kind.files and (others := sorted({path.name for path in out.iterdir()} - set(kind.files))):
        raise RequestError(f"--out {out} holds {others[0]!r}, which is no part of such an export; name another place")


def _check_head(saved: SavedHead, head: str | Path) -> None:
    if saved.meta.get("judged_on") == "views":
        raise RequestError(
            f"{head} was evaluated on the mean over views of each image, and an exported network sees one image once; "
            "train and save a head without --tta"
        )
    preprocess = saved.identity.preprocess
    if isinstance(preprocess, PreprocessSpec) and preprocess.resize_on == "device":
        raise RequestError(
            f"{head} was trained on features of images that torch resized (resize_on 'device'), and an exported "
            "network is fed images that Pillow has resized; extract with --resize-on cpu and train again"
        )
    if saved.identity.precision != "float32":
        raise RequestError(
            f"{head} was trained on features computed in {saved.identity.precision}, and an exported network computes "
            "in float32; extract with --precision float32 and train again"
        )


def _expected(saved: SavedHead, network: Backbone, tap: Tap) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return some inputs (3, ...) and the outputs of `predict`, after its own check of this machine's features."""
    modality = modality_of(network.preprocess, network.tokenizer)
    with modality.undisturbed():
        one, other = (modality.load(data).arrays for data in modality.reference_inputs)
        inputs = np.concatenate([one, other, one])
        runtime = open_runtime(
            network, [tap], runtime="torch", device="cpu", batch_size=len(inputs), num_inputs=len(inputs)
        )
        with closing(runtime):
            check_features(saved, tap, runtime, network)
            (features,) = runtime.map([inputs])
    stored, problems = to_stored(features[tap.name], [None] * len(inputs), saved.rounded_to)
    for problem in problems.values():
        raise problem
    return inputs, saved.probabilities(decode(stored, saved.rounded_to).astype(np.float32))


def _about(saved: SavedHead, network: Backbone, inputs: NDArray[Any]) -> dict[str, Any]:
    """Return all that is needed to prepare inputs and to read outputs, as JSON values."""
    name = input_kind_of(network.preprocess).noun
    output = "numbers" if saved.kind == "regression" else "probabilities"
    return {
        "format": "featurecache.export",
        "version": EXPORT_VERSION,
        "kind": saved.kind,
        "classes": saved.classes,
        **_thresholds(saved),
        "input": {"name": name, "dtype": str(inputs.dtype), "shape": ["batch", *inputs.shape[1:]]},
        "output": {"name": output, "dtype": "float32", "shape": ["batch", len(saved.classes)]},
        **_preprocess(network.preprocess, network.tokenizer),
        "backbone": network.name,
        "weights": saved.identity.weights,
        "architecture": saved.identity.architecture,
        "tap": saved.tap,
        "features_rounded_to": saved.rounded_to,
        "head": saved.meta.get("head"),
        "task": saved.meta.get("task"),
        "made_with": installed_versions(("featurecache", "torch", "timm", "torchvision", "transformers")),
    }


def _thresholds(saved: SavedHead) -> dict[str, Any]:
    """Return from which probability on a class or a label is predicted, where thresholds were chosen."""
    if saved.thresholds is None:
        return {}
    positive = saved.thresholds.positive
    names = saved.classes if positive is None else [saved.classes[positive]]
    return {"thresholds": dict(zip(names, saved.thresholds.values, strict=True))}


def _preprocess(preprocess: AnyPreprocess, tokenizer: str | None) -> dict[str, Any]:
    """Return how inputs are prepared: the settings, and of images the text of a script that follows them."""
    settings = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(preprocess).items()}
    if not isinstance(preprocess, PreprocessSpec):
        return {"preprocess": {**settings, "tokenizer_json": tokenizer}}
    script = Path(__file__).with_name("exporting").joinpath("prepare_images.py").read_text("utf-8")
    settings = {"kind": "image", **settings, "jpeg_draft": draft_side(preprocess)}
    return {"preprocess": settings, "prepare_images": script}


def _difference(found: list[NDArray[Any]], expected: list[NDArray[np.float64]]) -> float:
    # Else NumPy would broadcast one to the other.
    if any(one.shape != other.shape for one, other in zip(found, expected, strict=True)):
        return float("inf")
    scale = max(1.0, *(float(np.abs(output).max()) for output in expected))
    return max(float(np.abs(one - other).max()) for one, other in zip(found, expected, strict=True)) / scale
