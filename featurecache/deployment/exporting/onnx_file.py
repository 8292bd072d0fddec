"""An ONNX file: runs in onnxruntime, on any machine it has, without torch."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from numpy.typing import NDArray

from featurecache.deployment.exporting.format import KEY, Exported
from featurecache.errors import RequestError


def write(exported: Exported, path: Path) -> None:
    """Write the program, and what is known of it as ``metadata_props``."""
    with warnings.catch_warnings(action="ignore"), _quiet("onnxscript"):
        converted = torch.onnx.export(
            exported.program,
            input_names=[exported.about["input"]["name"]],
            output_names=[exported.about["output"]["name"]],
            opset_version=exported.about["opset"],
            dynamo=True,
            verbose=False,
        )
    assert converted is not None
    # The converter may write another opset than it was asked for, without an error.
    asked, written = exported.about["opset"], converted.model.opset_imports[""]
    if written != asked:
        raise RequestError(f"--opset {asked}: this network can be written with opset {written} only; leave --opset out")
    converted.model.metadata_props[KEY] = json.dumps(exported.about)
    # One file: weights beside it get lost.
    converted.save(path, external_data=False)


def run(exported: Exported, path: Path, batches: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """Run the file in onnxruntime, on the CPU: every machine that exports has one."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = exported.about["input"]["name"]
    return [session.run(None, {name: batch})[0] for batch in batches]


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Hear nothing of constants that a translator tried to compute beforehand and could not."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
