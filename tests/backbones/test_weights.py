"""Weights files: which of their tensors a network takes, and what is doubtful or refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from featurecache.backbones.registry import load_backbone, request_digest
from featurecache.backbones.torchvision_compat import import_torchvision, torchvision_state
from featurecache.backbones.weights.checkpoints import read_checkpoint
from featurecache.backbones.weights.loading import LoadedWeights, check_finite, key_of, load_weights
from featurecache.errors import RequestError, WeightsError
from featurecache.hashing import digest_file
from featurecache.specs import BackboneRequest

State = dict[str, torch.Tensor]


def network() -> nn.Module:
    """A body of two layers with a norm, and an output layer."""
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 5))


def state(number: float) -> State:
    """Weights of `network` that are all one number."""
    return {name: torch.full_like(tensor, number) for name, tensor in network().state_dict().items()}


def body(number: float) -> State:
    return {name: tensor for name, tensor in state(number).items() if not name.startswith("2.")}


def under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> State:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def load(folder: Path, content: Any, key: str | None = None, **options: Any) -> tuple[float, LoadedWeights]:
    """Load what a trainer saved; return the number that the network's weights are now, and what was said."""
    path = folder / "trained.pth"
    torch.save(content, path)
    module = network()
    loaded = load_weights(module, read_checkpoint(path, key), ["2"], **options)
    return module[0].weight[0, 0].item(), loaded


OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(4, 3), "step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}
ONE_CANDIDATE: dict[str, Any] = {
    "plain": state(1),
    "wrapped": {"state_dict": state(1), "epoch": 3, "best": torch.tensor(0.5)},
    "wrapped twice": {"model": {"state_dict": under("module.", state(1))}},
    "average alone": {"ema_state_dict": state(1)},
    "params": {"params": state(1)},
    "teacher alone": {"teacher": under("backbone.", body(1)), "dino_loss": {"center": torch.ones(1, 9)}},
    "compiled and parallel": {"net": under("_orig_mod.module.", state(1))},
    "backbone and head": {"backbone": body(1), "head": {"weight": torch.zeros(2, 2)}},
    "encoder and optimizer": {"encoder": body(1), "optimizer": OPTIMIZER},
    "Lightning": {
        "state_dict": under("model.", state(1)) | {"loss.weight": torch.ones(9)},
        "loops": {"n": torch.ones(1)},
    },
    "mmengine": {
        "meta": {},
        "state_dict": under("backbone.", body(1)) | under("head.", {"fc.weight": torch.ones(2, 4)}),
    },
    "detectron2": {"model": under("backbone.bottom_up.", body(1)), "matching_heuristics": True},
    "generator and discriminator": {"generator": state(1), "discriminator": {"0.weight": torch.ones(7, 7)}},
    "one in a list": [under("module.", state(1))],
    "deep": {"a": {"b": {"c": {"d": state(1)}}}},
    "the same object twice": (lambda one: {"model": one, "net": one})(state(1)),
    "equal copies": {"model": state(1), "model_ema": state(1)},
    "average of other layers": {"model": state(1), "ema": {"0.weight": torch.ones(9, 3)}},
}


@pytest.mark.parametrize("name", ONE_CANDIDATE)
def test_one_candidate_is_loaded_wherever_it_lies(name: str, tmp_path: Path) -> None:
    number, loaded = load(tmp_path, ONE_CANDIDATE[name])
    assert number == 1
    assert not loaded.warnings
    if name != "plain":
        assert loaded.notes[0].startswith("names in the weights file: prefix ")


SEVERAL: dict[str, tuple[Any, dict[str, float]]] = {
    "raw and average": ({"state_dict": state(1), "state_dict_ema": state(2)}, {"state_dict": 1, "state_dict_ema": 2}),
    "params and average": ({"params": state(1), "params_ema": state(2)}, {"params": 1, "params_ema": 2}),
    "student and teacher": (
        {"student": under("module.backbone.", body(1)), "teacher": under("backbone.", body(2)), "optimizer": OPTIMIZER},
        {"student": 1, "teacher": 2, "student.module": 1, "teacher.backbone": 2},
    ),
    "two encoders in one state dict": (
        {"state_dict": under("module.encoder_q.", body(1)) | under("module.encoder_k.", body(2))},
        {"state_dict.module.encoder_q": 1, "state_dict.module.encoder_k": 2},
    ),
    "a list of ensembles": ({"models": [state(1), state(2), state(3)]}, {"models.0": 1, "models.2": 3}),
    "a list at the top": ([state(1), state(2)], {"0": 1, "1": 2}),
    "top level and average": (state(1) | {"ema": state(2)}, {".": 1, "ema": 2}),
    "flat, average beside": (state(1) | under("ema.", state(2)), {".": 1, "ema": 2}),
    "keys with dots": ({"model.best": state(1), "model.last": state(2)}, {"model.best": 1, "model.last": 2}),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_several_candidates_are_refused_by_name_and_a_key_chooses(name: str, tmp_path: Path) -> None:
    content, choices = SEVERAL[name]
    with pytest.raises(WeightsError, match=r"ways: .*choose one with --weights-key KEY") as caught:
        load(tmp_path, content)
    assert "\n" not in str(caught.value)
    for key, expected in choices.items():
        assert key in str(caught.value) or key in ("student", "teacher", "student.module")
        number, loaded = load(tmp_path, content, key)
        assert number == expected
        assert not loaded.warnings


def test_the_refusal_names_what_earlier_releases_took(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="releases without that option took model.state_dict"):
        load(tmp_path, {"ema": state(2), "model": {"state_dict": state(1)}})


def test_candidates_that_have_a_part_of_the_tensors_are_a_warning(tmp_path: Path) -> None:
    """An average often lacks the statistics of batch norms: it cannot be loaded, and may be what was wanted."""
    average = {name: tensor for name, tensor in state(2).items() if "running" not in name}
    number, loaded = load(tmp_path, {"model": state(1), "ema": average})
    (warning,) = loaded.warnings
    assert number == 1
    assert (warning.kind, warning.count, warning.examples) == ("weights_choice", 1, ("ema",))
    assert not load(tmp_path, {"model": state(1), "ema": average}, "model")[1].warnings


def test_a_key_that_names_nothing(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no tensors under the key 'techer'; there is teacher"):
        load(tmp_path, {"teacher": state(1), "epoch": 3}, "techer")
    with pytest.raises(WeightsError, match="no tensors under the key 'x'; its tensors lie in no named part"):
        load(tmp_path, state(1), "x")
    with pytest.raises(RequestError, match="names a part of a weights file; add --weights"):
        BackboneRequest(name="torchvision:resnet18", weights_key="x")


def test_only_the_output_layer_may_be_absent_or_misfit(tmp_path: Path) -> None:
    assert "2 missing" in load(tmp_path, body(1))[1].notes[0]
    assert "another shape" in load(tmp_path, body(1) | {"2.weight": torch.ones(7, 4)})[1].notes[0]
    with pytest.raises(WeightsError, match=r"2 missing \(2.weight, 2.bias\)"):
        load(tmp_path, body(1), keep_classifier=True)
    bad = {name: tensor for name, tensor in body(1).items() if name != "0.bias"}
    bad |= {"0.weight": torch.ones(4, 9), "extra": torch.ones(1)}
    with pytest.raises(
        WeightsError, match=r"1 missing \(0.bias\); 1 unexpected \(extra\); 1 of another shape or type \(0.weight\)"
    ):
        load(tmp_path, bad)


def test_whole_numbers_are_not_loaded_for_fractions(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"of another shape or type \(0.weight"):
        load(tmp_path, {name: tensor.to(torch.int8) for name, tensor in state(1).items()})
    assert load(tmp_path, {name: tensor.half() for name, tensor in state(1).items()} | {"1.num_batches_tracked":
                torch.tensor(1)})[0] == 1  # fmt: skip


def test_prefixes_are_found_or_named() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    tensors = {name: tensor + 1 for name, tensor in module.state_dict().items() if "num_batches" not in name}

    def loaded(into: nn.Module, named: State) -> str:
        checkpoint = _checkpoint(named)
        return load_weights(into, checkpoint).notes[0]

    note = loaded(module, under("model.backbone.", tensors) | {"head.weight": torch.ones(2)})
    assert note == "names in the weights file: prefix 'model.backbone.' taken off, 1 other tensor left out"
    assert torch.equal(module[0].weight, tensors["0.weight"])
    wrapped = nn.ModuleDict({"encoder": module})
    assert "'encoder.' put in front" in loaded(wrapped, tensors)
    assert "prefix 'net.' taken off, prefix 'encoder.' put in front" in loaded(wrapped, under("net.", tensors))
    del tensors["0.bias"]
    with pytest.raises(WeightsError, match=r"prefixes tried: prefix 'a.' taken off \(5 of 6 fit\)"):
        loaded(module, under("a.", tensors))
    with pytest.raises(WeightsError, match="no name fits under any prefix"):
        loaded(module, {"x.y": torch.ones(1)})


def _checkpoint(tensors: State) -> Any:
    from featurecache.backbones.weights.checkpoints import Checkpoint

    return Checkpoint(path=Path("x.pth"), key="", tensors=tensors, sections=dict.fromkeys(tensors, ""), taken_before="")


def test_old_names_are_changed_behind_what_wraps_them(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    old = {name.replace("0.", "first.", 1) if name.startswith("0.") else name: t for name, t in state(1).items()}
    torch.save({"state_dict": under("module.", old)}, path)
    module = network()
    load_weights(module, read_checkpoint(path), ["2"], rename_key=lambda key: key.replace("first.", "0."))
    assert module[0].weight.min().item() == 1


def test_weights_that_hold_no_numbers_are_named() -> None:
    module = network()
    check_finite(module, "this network")
    with torch.no_grad():
        module[0].bias[2] = float("inf")
        module[1].running_var[0] = float("nan")
    with pytest.raises(WeightsError, match=r"in 2 of 8 tensors \(0.bias, 1.running_var\): the training .* diverged"):
        check_finite(module, "this network")


def test_an_infinity_may_mask_tokens() -> None:
    module = network()
    module.register_buffer("mask", torch.full((2, 2), float("-inf")).triu(1))
    check_finite(module, "this network")


def test_diverged_weights_are_refused_whoever_loads_them(weights_of, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights_of("torchvision:squeezenet1_1"))
    tensors["features.3.squeeze.weight"][0] = float("nan")
    save_file(tensors, tmp_path / "diverged.safetensors")
    request = BackboneRequest(name="torchvision:squeezenet1_1", weights=tmp_path / "diverged.safetensors")
    with pytest.raises(WeightsError, match=r"diverged.safetensors hold NaN .* \(features.3.squeeze.weight\)"):
        load_backbone(request)


def test_the_key_is_a_part_of_the_request_and_of_the_source(weights_of, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    tensors = load_file(weights_of("torchvision:squeezenet1_1"))
    others = {name: tensor + 0.01 for name, tensor in tensors.items()}
    torch.save({"raw": tensors, "average": others}, tmp_path / "both.pth")
    by_key = {
        key: BackboneRequest(name="torchvision:squeezenet1_1", weights=tmp_path / "both.pth", weights_key=key)
        for key in ("raw", "average", None)
    }
    assert len({request_digest(request) for request in by_key.values()}) == 3
    raw, average = load_backbone(by_key["raw"]), load_backbone(by_key["average"])
    alone = load_backbone(BackboneRequest(name=raw.name, weights=weights_of("torchvision:squeezenet1_1")))
    assert raw.identity == alone.identity != average.identity
    assert key_of(raw.weights_source) == "raw"
    assert key_of(alone.weights_source) is None


def test_a_digest_in_the_name_that_is_not_the_files_is_a_warning(weights_of, tmp_path: Path) -> None:
    content = weights_of("torchvision:squeezenet1_1").read_bytes()
    true = digest_file(weights_of("torchvision:squeezenet1_1"))
    for name, kinds in {
        f"net-{true[:8]}.pth": [],
        f"net-{true[:16]}.pth.tar": [],
        "net-20240131.pth": [],  # a date
        "net-0123456f.safetensors": ["weights_name"],
        f"net-{true[1:9]}.pth": ["weights_name"] if any(c in "abcdef" for c in true[1:9]) else [],
    }.items():
        path = tmp_path / name
        path.write_bytes(content)
        backbone = load_backbone(BackboneRequest(name="torchvision:squeezenet1_1", weights=path))
        assert [warning.kind for warning in backbone.warnings] == kinds


def test_weights_of_another_architecture(weights_of) -> None:
    request = BackboneRequest(name="torchvision:resnet18", weights=weights_of("torchvision:squeezenet1_1"))
    with pytest.raises(WeightsError, match=r"does not fit torchvision:resnet18: .* missing .* prefix") as caught:
        load_backbone(request)
    assert "\n" not in str(caught.value)


def test_torchvision_imports_whatever_its_operators_do() -> None:
    assert hasattr(import_torchvision().models, "resnet18")
    assert torchvision_state() in ("ok", "without compiled operators")


def test_a_real_training_checkpoint_is_read(material: Path) -> None:
    checkpoint = read_checkpoint(material / "weights" / "resnet20_cifar10" / "resnet20-12fca82f.th")
    assert "state_dict.module.conv1.weight" in checkpoint.tensors


def test_mobilenet_without_classifier(material: Path) -> None:
    file = material / "weights" / "mobilenet_v2" / "mobilenet_v2_features_bnfolded.pth"
    request = BackboneRequest(name="torchvision:mobilenet_v2", weights=file)
    assert "classifier.1.weight" in load_backbone(request).notes[0]
    with pytest.raises(WeightsError, match=r"2 missing \(classifier.1.weight, classifier.1.bias\)"):
        load_backbone(request, keep_classifier=True)


def test_squeezenet_reproduces_its_recorded_outputs(material: Path) -> None:
    folder = material / "weights" / "squeezenet1_1"
    request = BackboneRequest(name="torchvision:squeezenet1_1", weights=folder / "squeezenet1_1.pth")
    module = load_backbone(request, keep_classifier=True).module
    pairs = sorted((folder / "io").iterdir())
    assert len(pairs) == 3
    for pair in pairs:
        images_BCHW = torch.from_numpy(np.load(pair / "input_0.npy"))
        expected = np.load(pair / "output_0.npy").reshape(-1)
        np.testing.assert_allclose(module(images_BCHW).numpy().reshape(-1), expected, atol=5e-4)


def test_an_absent_file_is_named_whatever_the_provider(tmp_path: Path) -> None:
    for name in ("torchvision:squeezenet1_1", "python:tiny_backbones:tiny"):
        with pytest.raises(
            WeightsError, match=r"weights file .*absent.pth cannot be read: it does not exist; check the path"
        ):
            load_backbone(BackboneRequest(name=name, weights=tmp_path / "absent.pth"))


def test_averages_without_dots_in_their_names_are_told(tmp_path: Path) -> None:
    """As latent-diffusion code writes them: no network has such names, and the raw weights are not all there is."""
    averaged = {f"model_ema.{name.replace('.', '')}": tensor for name, tensor in state(2).items()}
    value, loaded = load(tmp_path, {"state_dict": under("model.", state(1)) | averaged})
    (warning,) = loaded.warnings
    assert value == 1
    assert "raw weights were loaded; the file has averaged ones too, first state_dict.model_ema." in warning.text
