"""The default tap is what goes into the output layer, however a network is written; what is not certain is said."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from featurecache.backbones.cutting import cut
from featurecache.backbones.input_kinds import input_kind_of
from featurecache.backbones.registry import load_backbone
from featurecache.backbones.taps import TappedBackbone, resolve_taps, with_default_warning
from featurecache.cli import main
from featurecache.errors import BackboneError, nearest_layers
from featurecache.extraction.extract import make_request, run_extraction
from featurecache.specs import BackboneRequest, ExtractionSettings
from tests.backbones import output_layers
from tests.backbones.output_layers import CERTAIN, DOUBTFUL, REFUSED, Network

# TorchScript is on its way out, and still there.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
HERE = "python:tests.backbones.output_layers:"


def load(network: type[Network]):
    return load_backbone(BackboneRequest(name=HERE + network.__name__))


def check_features(network: type[Network], backbone) -> None:
    """Compare the default features with those that the network itself says."""
    images_BCHW = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    taps = resolve_taps(backbone, ["default"])
    whole = network().eval()
    with torch.inference_mode():
        whole(images_BCHW.clone())  # lazy layers
        expected = whole.features(images_BCHW)
        (features,) = TappedBackbone(backbone, taps)(images_BCHW).values()
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("network", CERTAIN, ids=lambda network: network.__name__)
def test_features_are_what_goes_into_the_output_layer(network: type[Network]) -> None:
    backbone = load(network)
    assert with_default_warning(backbone, ["default"]).warnings == ()
    check_features(network, backbone)


@pytest.mark.parametrize("network", DOUBTFUL, ids=lambda network: network.__name__)
def test_what_is_not_certain_is_said_with_the_candidates(network: type[Network]) -> None:
    backbone = with_default_warning(load(network), ["default"])
    check_features(network, backbone)
    (warning,) = backbone.warnings
    assert warning.kind == "default_tap"
    assert backbone.default.candidates
    assert with_default_warning(load(network), ["trunk"]).warnings == ()


@pytest.mark.parametrize("network", REFUSED, ids=lambda network: network.__name__)
def test_of_two_good_taps_none_is_chosen(network: type[Network]) -> None:
    backbone = load(network)
    with pytest.raises(BackboneError, match=rf"no default tap.* --tap: .*\b{REFUSED[network]}\b"):
        resolve_taps(backbone, ["default"])


@pytest.mark.parametrize("network", [*DOUBTFUL, *REFUSED], ids=lambda network: network.__name__)
def test_every_candidate_is_a_tap_of_the_size_that_is_said(network: type[Network]) -> None:
    backbone = load(network)
    for name, size in backbone.default.candidates:
        (tap,) = resolve_taps(backbone, [name])
        assert tap.shape == (size,)


def test_a_layer_that_runs_twice_stays() -> None:
    backbone = load(output_layers.SharedLayer)
    assert isinstance(backbone.module.fc, nn.Linear)
    assert backbone.output_layers == ()
    assert "fc, the output layer, is not removed: it runs more than once" in backbone.notes[0]


def test_output_layers_that_nothing_needs_are_removed() -> None:
    assert load(output_layers.TwoTasks).output_layers == ("age", "sex")
    assert load(output_layers.Cosine).output_layers == ("fc",)
    assert load(output_layers.ConvolutionThenMean).output_layers == ("fc",)
    assert load(output_layers.LooksAtItsLayer).output_layers == ()


def test_the_input_of_any_layer_is_a_node() -> None:
    backbone = load(output_layers.HiddenLayer)
    images_BCHW = torch.randn(2, 3, 32, 32)
    (tap,) = resolve_taps(backbone, ["fc.input"])
    with torch.inference_mode():
        features = TappedBackbone(backbone, [tap])(images_BCHW)[tap.name]
        torch.testing.assert_close(features, backbone.module.trunk(images_BCHW))


def test_a_tail_ends_where_the_default_tap_is() -> None:
    backbone = load(output_layers.SharedLayer)
    found = cut(backbone, "trunk.1")
    images_BCHW = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        maps_BCHW = backbone.module.trunk[:2](images_BCHW)
        torch.testing.assert_close(found.tail(maps_BCHW), output_layers.SharedLayer().eval().features(images_BCHW))


def test_networks_are_tried_at_the_size_that_is_asked_for() -> None:
    request = BackboneRequest(name=HERE + "FixedSize", preprocess=(("crop", 48), ("resize", 48)))
    assert load_backbone(request).output_layers == ("2",)
    with pytest.raises(BackboneError, match="rejects images of 32x32 pixels.*--crop and --resize set another size"):
        load_backbone(BackboneRequest(name=HERE + "FixedSize"))


@pytest.fixture
def as_before() -> Iterator[type[Network]]:
    """A network whose output layer was not found by earlier releases."""
    network = output_layers.Sigmoid
    network.classifier = None  # type: ignore[attr-defined]
    yield network
    if "classifier" in vars(network):
        del network.classifier


@pytest.mark.parametrize("taps", [("default",), ("default", "trunk"), ("trunk",)])
def test_a_cache_of_outputs_is_continued_and_says_what_the_default_is_now(
    as_before, taps: tuple[str, ...], make_folder, tmp_path: Path
) -> None:
    source, cache = make_folder(per_class=2), tmp_path / "cache"
    settings = ExtractionSettings(runtime="torch")
    request = make_request(HERE + as_before.__name__)
    begun = run_extraction(source, cache, request, taps=taps, settings=settings)
    del as_before.classifier
    make_folder(per_class=3)
    report = run_extraction(source, cache, request, taps=taps, settings=settings)
    assert [s.key for s in report.sets] == [s.key for s in begun.sets]
    assert 0 < report.num_extracted < report.num_samples
    assert ["what goes into fc now" in warning.text for warning in report.warnings] == [True]
    fresh = run_extraction(source, tmp_path / "other", request, settings=settings)
    assert [s.tap for s in fresh.sets] == ["pre_logits:none"]
    assert fresh.sets[0].fingerprint != begun.sets[0].fingerprint


def test_extract_prints_the_doubt_and_train_repeats_it(make_folder, tmp_path: Path, capsys) -> None:
    cache = str(tmp_path / "cache")
    command = ["extract", str(make_folder(per_class=2)), "--cache", cache, "--backbone", HERE + "Pyramid", "--quiet"]
    assert main(command) == 0
    assert "warning: the default tap of" in capsys.readouterr().out
    assert main(["info", cache]) == 0
    assert "number 2 (1) is taken; --tap takes another: trunk.2 (16 numbers)" in capsys.readouterr().out


def test_a_refusal_writes_nothing(make_folder, tmp_path: Path, capsys) -> None:
    cache, folder = tmp_path / "cache", str(make_folder(per_class=2))
    for name in ("Embedding", "Diverged", "Logarithm", "scripted"):
        assert main(["extract", folder, "--cache", str(cache), "--backbone", HERE + name, "--quiet"]) == 2
        assert not cache.exists()
    errors = capsys.readouterr().err
    assert "hold NaN or infinity in 1 of 6 tensors (trunk.0.weight)" in errors
    assert "NaN or infinity on every image (tap 'pre_logits:none'): the first layer to put it out is fc" in errors
    assert "returned TorchScript, whose layers cannot be tapped" in errors
    assert len(errors.splitlines()) == 4


def test_inspect_shows_a_network_without_a_default_tap(capsys) -> None:
    assert main(["inspect", HERE + "Embedding"]) == 0
    assert "default tap: none, it puts out vectors of one length" in capsys.readouterr().out


def test_a_network_gets_its_own_copy_of_a_batch() -> None:
    backbone = load(output_layers.WritesIntoItsInput)
    images_BCHW = torch.randn(2, 3, 32, 32)
    before = images_BCHW.clone()
    (tap,) = resolve_taps(backbone, ["input:none"])
    with torch.inference_mode():
        input_kind_of(backbone.preprocess).call(backbone.module, images_BCHW)
        features = TappedBackbone(backbone, [tap])(images_BCHW)[tap.name]
    assert np.array_equal(images_BCHW, before)
    assert np.array_equal(features, before)


@pytest.mark.slow  # torch takes ten seconds to import its compiler
def test_what_torch_compile_wraps_is_taken_out_of_it() -> None:
    backbone = load_backbone(BackboneRequest(name=HERE + "compiled"))
    assert type(backbone.module) is output_layers.Plain


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("layr3", "layer3:avg"),
        ("layer3:max", "layer3:avg"),
        ("model.layer3", "layer3:avg"),
        ("blocks.12", "encoder.blocks.11:cls"),
        ("Pre_Logit", "pre_logits:none"),
    ],
)
def test_the_nearest_tap_is_suggested_whatever_its_pooling_and_what_it_is_wrapped_in(asked: str, meant: str) -> None:
    assert nearest_layers(asked, ["layer3:avg", "encoder.blocks.11:cls", "pre_logits:none"])[0] == meant
    assert nearest_layers("zzz", ["layer3:avg"]) == []


def test_the_output_of_a_network_is_called_that() -> None:
    """Where nothing was removed, pre_logits is no input of an output layer, and whoever names it is told."""
    backbone = load(output_layers.Gated)
    (warning,) = with_default_warning(backbone, ["pre_logits"]).warnings
    assert "pre_logits of" in warning.text
    assert "is the network's output, as no output layer was removed" in warning.text
    assert with_default_warning(load(output_layers.Plain), ["pre_logits"]).warnings == ()
    assert with_default_warning(backbone, ["trunk"]).warnings == ()
