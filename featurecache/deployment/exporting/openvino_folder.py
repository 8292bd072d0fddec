"""A folder with ``model.xml`` and ``model.bin`` for OpenVINO.

Some CPUs compute in bfloat16 unless the caller forbids it, and a model cannot do so by itself: the caller passes the
hint that `run` does to get the outputs of `predict`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from featurecache.backbones.openvino_runtime import logging_kept
from featurecache.backbones.telemetry import without_telemetry
from featurecache.deployment.exporting.format import KEY, Exported

# Importing it sends a first report already.
with without_telemetry():
    import openvino

_MODEL = "model.xml"


def write(exported: Exported, folder: Path) -> None:
    """Write the model, and what is known of it as ``rt_info``."""
    with warnings.catch_warnings(action="ignore"), without_telemetry(), logging_kept():
        model = openvino.convert_model(exported.program)
    model.reshape([-1, *exported.about["input"]["shape"][1:]])
    model.input(0).set_names({exported.about["input"]["name"]})
    model.output(0).set_names({exported.about["output"]["name"]})
    model.set_rt_info(json.dumps(exported.about), KEY)
    # By default it halves the weights, and outputs differ from those of `predict`.
    openvino.save_model(model, folder / _MODEL, compress_to_fp16=False)


def run(exported: Exported, folder: Path, batches: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """Run the model in float32."""
    compiled = openvino.Core().compile_model(folder / _MODEL, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [compiled(batch)[0] for batch in batches]
