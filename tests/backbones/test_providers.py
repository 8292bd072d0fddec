"""Where networks come from: random weights, plug-ins, checkouts, transformers, open_clip, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import need

from featurecache import plugins
from featurecache.backbones import registry
from featurecache.backbones.provider import Provided
from featurecache.backbones.registry import list_backbones, load_backbone, request_digest
from featurecache.backbones.taps import TappedBackbone, resolve_taps
from featurecache.backbones.weights.random_weights import random_source, seed_of
from featurecache.errors import BackboneError, RequestError, UnknownNameError, WeightsError
from featurecache.specs import BackboneRequest, PreprocessSpec

NETWORKS = "python:tests.backbones.networks:"
REPOSITORY = Path(__file__).parents[2]


def untrained(name: str, seed: int = 0) -> BackboneRequest:
    return BackboneRequest(name=name, init="random", seed=seed)


def test_the_seed_of_random_weights_stands_in_their_source():
    source = load_backbone(untrained(NETWORKS + "small", 3)).weights_source
    assert (source, seed_of(source)) == (random_source(3), 3)


def test_random_weights_are_the_same_in_every_process_and_leave_the_generators_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    here = load_backbone(untrained("torchvision:shufflenet_v2_x0_5", 7)).identity.weights
    assert torch.rand(1) == expected
    code = (
        "import torch; torch.manual_seed(99); from featurecache.backbones.registry import load_backbone; "
        "from featurecache.specs import BackboneRequest as R; "
        "print(load_backbone(R(name='torchvision:shufflenet_v2_x0_5', init='random', seed=7)).identity.weights)"
    )
    there = subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY, capture_output=True, text=True)
    assert there.stdout.strip() == here


def test_the_request_for_random_weights_is_known_without_loading_and_others_are_as_they_were():
    name = "torchvision:resnet18"
    digests = {request_digest(untrained(name, seed)) for seed in (0, 1)}
    assert len(digests) == 2
    assert None not in digests


def test_random_weights_exclude_others(tmp_path):
    with pytest.raises(RequestError, match="exclude each other"):
        BackboneRequest(name="timm:resnet18", init="random", weights=tmp_path / "w.pth")
    with pytest.raises(RequestError, match="add --init random"):
        BackboneRequest(name="timm:resnet18", seed=1)
    with pytest.raises(RequestError, match="unknown init 'zeros'"):
        BackboneRequest(name="timm:resnet18", init="zeros")  # type: ignore[arg-type]


def test_a_factory_may_take_pretrained_and_layers_must_know_how():
    assert load_backbone(untrained(NETWORKS + "switchable")).module.pretrained is False
    assert load_backbone(BackboneRequest(name=NETWORKS + "switchable")).module.pretrained is True
    with pytest.raises(BackboneError, match="the network itself has no reset_parameters"):
        load_backbone(untrained(NETWORKS + "own_parameter"))


class MineProvider:
    packages = ()

    def list_names(self):
        return ["mine:small"]

    def build(self, name, *, pretrained, weights, keep_classifier):
        return Provided(module=torch.nn.Conv2d(3, 4, 3), preprocess=PreprocessSpec(resize=32, crop=32))

    def own_weights_digest(self, name):
        return None

    def reproducible(self, name):
        return False


class NoProvider:
    pass


@pytest.fixture
def offered(monkeypatch):
    """Return a function that installs entry points."""

    def offer(**values: str) -> None:
        points = [EntryPoint(name, value, registry.ENTRY_POINTS) for name, value in values.items()]
        monkeypatch.setattr(
            plugins, "entry_points", lambda group, name=None: [p for p in points if name in (None, p.name)]
        )

    return offer


def test_plug_ins_are_loaded_when_asked_for(offered):
    offered(mine=f"{__name__}:MineProvider", broken="no_such_package:Provider", timm="no_such_package:Provider")
    assert load_backbone(BackboneRequest(name="mine:small")).name == "mine:small"
    assert "timm:resnet18" in list_backbones("timm:resnet18")  # not taken over
    assert list_backbones("mine:*") == ["mine:small"]  # whatever is broken beside it
    with pytest.raises(RequestError, match=r"backbone provider 'broken' of .* cannot be used: ModuleNotFoundError"):
        load_backbone(BackboneRequest(name="broken:small"))
    with pytest.raises(UnknownNameError, match="'mine:'"):
        load_backbone(BackboneRequest(name="mina:small"))


def test_plug_ins_that_are_none(offered):
    offered(empty=f"{__name__}:NoProvider")
    with pytest.raises(RequestError, match=r"it is no provider, which has build\(\); repair or uninstall it"):
        load_backbone(BackboneRequest(name="empty:x"))


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "nets"
    folder.mkdir()
    (folder / "blocks.py").write_text("from torch import nn\n\ndef body():\n    return nn.Conv2d(3, 4, 3)\n")
    (folder / "hubconf.py").write_text(
        "dependencies = ['torch']\nfrom blocks import body as _body\nfrom torch import nn\n\n"
        "def tiny(pretrained=True, **kwargs):\n"
        "    network = nn.Sequential(_body(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))\n"
        "    if pretrained:\n        [nn.init.ones_(p) for p in network.parameters()]\n    return network\n\n"
        "tiny.preprocess = {'resize': 32, 'crop': 32}\n\n"
        "def fetching():\n    raise OSError('no route to host')\n"
    )
    yield folder
    sys.modules.pop("blocks", None)


def test_a_checkout_for_torch_hub(checkout, tmp_path):
    backbone = load_backbone(BackboneRequest(name=f"hub:{checkout}:tiny"))
    assert (backbone.classifier, backbone.identity.backbone) == ("3", "hub:nets:tiny")
    assert bool((backbone.module[0].weight == 1).all())
    assert str(checkout) not in sys.path
    random = load_backbone(untrained(f"hub:{checkout}:tiny"))
    assert not bool((random.module[0].weight == 1).all())
    (tmp_path / "elsewhere").mkdir()
    moved = checkout.rename(tmp_path / "elsewhere" / "nets")
    assert load_backbone(BackboneRequest(name=f"hub:{moved}:tiny")).identity == backbone.identity


@pytest.mark.parametrize(
    ("entry", "error", "message"),
    [
        ("tny", UnknownNameError, "unknown entry point 'tny'; did you mean 'tiny'"),
        ("fetching", BackboneError, "failed: OSError: no route to host"),
        ("", BackboneError, "should read hub:FOLDER:entrypoint"),
    ],
)
def test_entry_points_of_a_checkout_that_fail(entry, error, message, checkout):
    with pytest.raises(error, match=message):
        load_backbone(BackboneRequest(name=f"hub:{checkout}:{entry}"))


def test_a_folder_that_is_no_checkout(tmp_path):
    with pytest.raises(BackboneError, match=r"has no hubconf.py"):
        load_backbone(BackboneRequest(name=f"hub:{tmp_path}:tiny"))


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory):
    """A folder as a page of the hub would fill it."""
    need("transformers")
    from featurecache.backbones.torchvision_compat import import_torchvision

    import_torchvision()
    from transformers import ViTConfig, ViTForImageClassification

    folder = tmp_path_factory.mktemp("hub") / "tiny-vit"
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(11)
    module = ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, num_labels=5, **sizes))
    module.save_pretrained(folder)
    settings = {"size": {"height": 32, "width": 32}, "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder, module.eval()


def test_a_transformers_folder(vit_folder):
    folder, module = vit_folder
    backbone = load_backbone(BackboneRequest(name=f"hf:{folder}"))
    assert (backbone.identity.backbone, backbone.classifier) == ("hf:tiny-vit", "classifier")
    assert (backbone.preprocess.crop, backbone.preprocess.interpolation) == (32, "bicubic")
    assert (backbone.preprocess.resize_mode, backbone.notes) == ("squash", ())
    taps = resolve_taps(backbone, ["default", "blocks", "vit.layers.2:mean"])
    assert [tap.name for tap in taps[1:5]] == [f"vit.layers.{number}:cls" for number in range(4)]
    images_BCHW = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        features = TappedBackbone(backbone, taps)(images_BCHW)
        states = module(images_BCHW, output_hidden_states=True).hidden_states
        torch.testing.assert_close(features["vit.layers.2:mean"], states[3][:, 1:].mean(1))
        torch.testing.assert_close(module.classifier(features["pre_logits:none"]), module(images_BCHW).logits)


def test_stages_are_found_deep_inside_and_a_missing_pooler_is_left_out(tmp_path):
    need("transformers")
    from featurecache.backbones.torchvision_compat import import_torchvision

    import_torchvision()
    from transformers import SwinConfig, SwinForImageClassification, ViTConfig, ViTModel

    swin = SwinConfig(image_size=56, patch_size=2, embed_dim=12, depths=[1, 2], num_heads=[2, 2], window_size=7)
    SwinForImageClassification(swin).save_pretrained(tmp_path / "swin")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    vit = ViTConfig(image_size=32, patch_size=8, **sizes)
    ViTModel(vit, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    for name, side in (("swin", 56), ("vit", 32)):
        (tmp_path / name / "preprocessor_config.json").write_text(json.dumps({"size": {"height": side, "width": side}}))
    backbone = load_backbone(BackboneRequest(name=f"hf:{tmp_path / 'swin'}"))
    assert [len(resolve_taps(backbone, [group])) for group in ("stages", "blocks")] == [2, 3]
    first, again = (load_backbone(BackboneRequest(name=f"hf:{tmp_path / 'vit'}")) for _ in range(2))
    assert first.module.pooler is None
    assert first.identity == again.identity
    assert [tap.name for tap in resolve_taps(first, ["default"])] == ["pre_logits:cls"]


def test_a_transformers_folder_untrained_and_its_digest(vit_folder):
    folder, _ = vit_folder
    trained = BackboneRequest(name=f"hf:{folder}")
    assert load_backbone(untrained(trained.name)).identity.weights != load_backbone(trained).identity.weights
    assert request_digest(trained) is not None
    # Published names are older than those of the network.
    again = BackboneRequest(name=f"hf:{folder}", weights=folder / "model.safetensors")
    assert load_backbone(again).identity == load_backbone(trained).identity


def test_transformers_without_a_hub_says_which_files_to_bring(tmp_path, monkeypatch):
    need("transformers")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=r"bring config.json, model.safetensors, preprocessor_config.json") as caught:
        load_backbone(BackboneRequest(name="hf:somebody/some-model"))
    assert "\n" not in str(caught.value)


def test_transformers_weights_that_lack_a_layer_are_refused(vit_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder, _ = vit_folder
    copy = tmp_path / "cut"
    copy.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (copy / name).write_bytes((folder / name).read_bytes())
    state = load_file(folder / "model.safetensors")
    state = {key: tensor for key, tensor in state.items() if "layernorm" not in key}
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"do not fit ViTForImageClassification: 18 missing"):
        load_backbone(BackboneRequest(name=f"hf:{copy}"))


def test_second_output_layer_that_timm_does_not_declare_goes_too():
    need("timm")
    backbone = load_backbone(untrained("timm:levit_384_s8"))
    assert backbone.output_layers == ("head.linear", "head_dist.linear")
    with torch.inference_mode():
        assert backbone.module(torch.zeros(1, 3, 224, 224)).shape == (1, 768)


def test_open_clip_towers(tmp_path):
    need("open_clip")
    backbone = load_backbone(untrained("open_clip:ViT-S-32-alt"))
    assert backbone.preprocess.mean == (0.48145466, 0.4578275, 0.40821073)
    taps = resolve_taps(backbone, ["default", "stages"])
    assert taps[0].shape == (256,)
    assert [tap.pooling for tap in taps[1:]] == ["cls"] * 4
    # A file of both towers fits the image tower by its prefix.
    both = {f"visual.{name}": tensor for name, tensor in backbone.module.state_dict().items()}
    torch.save({**both, "logit_scale": torch.ones(1)}, tmp_path / "both.pth")
    loaded = load_backbone(BackboneRequest(name="open_clip:ViT-S-32-alt", weights=tmp_path / "both.pth"))
    assert loaded.identity.weights == backbone.identity.weights
    assert "'visual.' taken off, 1 other tensor left out" in loaded.notes[0]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("ViT-B-33", UnknownNameError, "did you mean .*open_clip:ViT-B-32'"),
        ("ViT-B-32", BackboneError, "has several weights: name one"),
        ("ViT-B-32/laion3b", UnknownNameError, "open_clip:ViT-B-32/laion"),
        ("ViT-M-32-alt", BackboneError, "pass --weights FILE"),
    ],
)
def test_open_clip_names(name, error, message):
    need("open_clip")
    with pytest.raises(error, match=message):
        load_backbone(BackboneRequest(name=f"open_clip:{name}"))


def test_open_clip_without_a_hub_says_which_file_to_bring(tmp_path, monkeypatch):
    need("open_clip")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=r"bring open_clip_model.safetensors from .* pass --weights FILE"):
        load_backbone(BackboneRequest(name="open_clip:ViT-B-32/laion2b_s34b_b79k"))


def test_every_built_in_prefix_is_known():
    assert {"hf:", "hub:", "open_clip:", "python:", "timm:", "torchvision:", "file:"} <= set(registry._PROVIDERS)


def test_a_vision_transformer_is_built_for_the_size_that_its_weights_want():
    file = Path("vit_b_16_swag-9ac1b537.pth")  # by its name alone: the file is loaded elsewhere
    options = {"pretrained": False, "weights": file, "keep_classifier": False}
    provided = registry._PROVIDERS["torchvision:"].build("vit_b_16", **options)
    assert provided.module.image_size == provided.preprocess.crop == 384


def test_pixels_and_colours_are_what_they_are_called() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, 3, 8, 8, generator=generator)
    flat = load_backbone(BackboneRequest(name="pixels:8"))
    torch.testing.assert_close(flat.module(pixels), pixels.flatten(1))
    assert flat.preprocess.resize_mode == "squash"
    histogram = load_backbone(BackboneRequest(name="colours")).module(pixels)
    assert histogram.shape == (2, 64 + 48)
    for image, shares in zip(pixels, histogram, strict=True):
        values = image.flatten(1).T.numpy()
        joint, _ = np.histogramdd(values, bins=4, range=[(0, 1)] * 3)
        np.testing.assert_allclose(shares[:64].numpy(), joint.flatten() / 64, atol=1e-6)
        channels = [np.histogram(channel, bins=16, range=(0, 1))[0] / 64 for channel in values.T]
        np.testing.assert_allclose(shares[64:].numpy(), np.concatenate(channels), atol=1e-6)


@pytest.mark.parametrize("name", ["pixels:0", "pixels:big", "pixels:1000"])
def test_a_side_that_is_none_is_one_line(name: str) -> None:
    with pytest.raises(UnknownNameError, match="give a side from 1 to 224"):
        load_backbone(BackboneRequest(name=name))
