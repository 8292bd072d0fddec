"""Networks for the tests: small, with random weights in a file, so that nothing is downloaded."""

from __future__ import annotations

import copy
import os
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from featurecache.backbones.registry import load_backbone
from featurecache.specs import BackboneRequest


@pytest.fixture(scope="session")
def material() -> Path:
    """Return the folder of real weights, or skip."""
    default = Path(__file__).parents[3] / "shared" / "material"
    folder = Path(os.environ.get("FEATURECACHE_MATERIAL", default))
    if not folder.is_dir():
        pytest.skip(f"no real weights at {folder}")
    return folder


@pytest.fixture(scope="session")
def weights_of(tmp_path_factory):
    """Return a function that writes random weights of a named network to a file, once."""
    import torch
    from safetensors.torch import save_file

    from featurecache.backbones.torchvision_compat import import_torchvision

    torchvision = import_torchvision()
    timm = pytest.importorskip("timm")
    folder = tmp_path_factory.mktemp("weights")

    def write(name: str) -> Path:
        path = folder / f"{name.replace(':', '_')}.safetensors"
        if not path.exists():
            provider, _, short = name.partition(":")
            torch.manual_seed(0)
            create = torchvision.models.get_model if provider == "torchvision" else timm.create_model
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module = create(short)
            for buffer_name, buffer in module.named_buffers():
                if buffer_name.endswith("running_var"):
                    buffer.uniform_(0.5, 1.5)  # batch norm that does something
            save_file({key: tensor.contiguous() for key, tensor in module.state_dict().items()}, path)
        return path

    return write


@pytest.fixture(scope="session")
def random_backbone(weights_of):
    """Return a function that gives a copy of a named network with random weights; ``crop`` makes it quick."""

    @cache
    def loaded(name: str, crop: int | None, keep_classifier: bool):
        changes = (("crop", crop), ("resize", crop)) if crop else ()
        request = BackboneRequest(name=name, weights=weights_of(name), preprocess=changes)
        return load_backbone(request, keep_classifier=keep_classifier)

    def load(name: str, *, crop: int | None = None, keep_classifier: bool = False):
        backbone = loaded(name, crop, keep_classifier)
        return replace(backbone, module=copy.deepcopy(backbone.module))

    return load
