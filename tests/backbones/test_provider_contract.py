"""Every provider whose package is here keeps the contract."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
from conftest import TINY, need
from tiny_backbones import TinyNet
from tiny_texts import write_encoder

from featurecache.specs import BackboneRequest
from featurecache.testing import ProviderContract


def small(name: str, side: int, **options: object) -> BackboneRequest:
    return BackboneRequest(name=name, preprocess=(("crop", side), ("resize", side)), **options)  # type: ignore[arg-type]


class TestTorchvision(ProviderContract):
    def make_request(self, folder: Path) -> BackboneRequest:
        need("torchvision")
        return small("torchvision:squeezenet1_1", 64, init="random")


class TestTimm(ProviderContract):
    def make_request(self, folder: Path) -> BackboneRequest:
        need("timm")
        return small("timm:resnet10t", 64, init="random")


class TestTimmTokens(ProviderContract):
    def make_request(self, folder: Path) -> BackboneRequest:
        need("timm")
        return BackboneRequest(name="timm:test_vit", init="random")


class TestPixels(ProviderContract):
    draws_weights = False

    def make_request(self, folder: Path) -> BackboneRequest:
        return BackboneRequest(name="pixels:16")


class TestColours(ProviderContract):
    draws_weights = False

    def make_request(self, folder: Path) -> BackboneRequest:
        return BackboneRequest(name="colours")


class TestWords(ProviderContract):
    draws_weights = False

    def make_request(self, folder: Path) -> BackboneRequest:
        need("tokenizers")
        return BackboneRequest(name="words")


class TestPythonFactory(ProviderContract):
    def make_request(self, folder: Path) -> BackboneRequest:
        return BackboneRequest(name=TINY)


class TestExportedProgram(ProviderContract):
    draws_weights = False

    def make_request(self, folder: Path) -> BackboneRequest:
        images, sizes = torch.zeros(2, 3, 32, 32), ({0: torch.export.Dim("batch")},)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(TinyNet().eval(), (images,), dynamic_shapes=sizes)
            torch.export.save(program, folder / "tiny.pt2")
        return BackboneRequest(name=f"file:{folder / 'tiny.pt2'}")


class TestHubCheckout(ProviderContract):
    def make_request(self, folder: Path) -> BackboneRequest:
        (folder / "hubconf.py").write_text(
            "from torch import nn\n\ndef tiny(pretrained=True):\n"
            "    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))\n"
            "    if pretrained:\n        [nn.init.constant_(p, 0.1) for p in network.parameters()]\n"
            "    return network\n\ntiny.preprocess = {'resize': 32, 'crop': 32}\n"
        )
        return BackboneRequest(name=f"hub:{folder}:tiny")


class TestTextsOfHuggingFace(ProviderContract):
    def make_request(self, folder: Path) -> BackboneRequest:
        return BackboneRequest(name=f"hf:{write_encoder(folder / 'encoder')}")


class TestImagesOfHuggingFace(ProviderContract):
    def make_request(self, folder: Path) -> BackboneRequest:
        need("transformers")
        from featurecache.backbones.torchvision_compat import import_torchvision

        import_torchvision()
        from transformers import ViTConfig, ViTForImageClassification

        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        with torch.random.fork_rng():
            ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, **sizes)).save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 32, "width": 32}}))
        return BackboneRequest(name=f"hf:{folder}")
