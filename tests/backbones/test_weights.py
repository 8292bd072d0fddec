"""Weights files: what they may look like, and how a bad one is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featurecache.backbones.registry import load_backbone
from featurecache.backbones.torchvision_compat import import_torchvision, torchvision_state
from featurecache.backbones.weights import load_weights, read_checkpoint
from featurecache.errors import WeightsError
from featurecache.hashing import digest_file
from featurecache.specs import BackboneRequest


class Thing:
    """An object that has no place in a weights file."""


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module."])
def test_wrappings_are_taken_off(wrapper, prefix, tmp_path):
    state = {f"{prefix}weight": torch.ones(2)}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "file.pth")
    assert list(read_checkpoint(tmp_path / "file.pth")) == ["weight"]


def test_a_prefix_of_some_keys_only_is_a_name(tmp_path):
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "file.pt")
    assert set(read_checkpoint(tmp_path / "file.pt")) == {"module.a", "b"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"/somewhere/else/resnet.pth\n", "is a text file"),
        (b"", "cut off or damaged"),
        (b"\x80\x02" + bytes(100), "cut off or damaged"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_files(content, message, suffix, tmp_path):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_cut_off_safetensors(weights_of, tmp_path):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(weights_of("torchvision:squeezenet1_1").read_bytes()[:-1000])
    with pytest.raises(WeightsError, match="cut off or damaged"):
        read_checkpoint(path)


def test_files_without_tensors(tmp_path):
    with pytest.raises(WeightsError, match="does not exist"):
        read_checkpoint(tmp_path / "absent.pth")
    torch.save({"epoch": 3}, tmp_path / "epoch.pth")
    with pytest.raises(WeightsError, match="holds no tensors"):
        read_checkpoint(tmp_path / "epoch.pth")
    torch.save({"model": Thing()}, tmp_path / "object.pth")
    with pytest.raises(WeightsError, match="not unpickled"):
        read_checkpoint(tmp_path / "object.pth")


def test_a_hash_in_the_name_is_a_promise(tmp_path):
    path = tmp_path / "net.pth"
    torch.save({"weight": torch.ones(2)}, path)
    dated = path.rename(tmp_path / "net-20240131.pth")  # digits alone are a date
    assert read_checkpoint(dated)
    kept = dated.rename(tmp_path / f"net-{digest_file(dated)[:16]}.pth")
    assert read_checkpoint(kept)
    broken = kept.rename(tmp_path / "net-0123456f.pth")
    with pytest.raises(WeightsError, match="the name promises sha256 0123456f"):
        read_checkpoint(broken)


def test_only_the_output_layer_may_be_absent_or_misfit():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 5))
    body = {"0.weight": torch.ones(4, 3), "0.bias": torch.ones(4)}
    assert "2 missing" in load_weights(module, body, ["1"])[0]
    assert "another shape" in load_weights(module, body | {"1.weight": torch.ones(7, 4)}, ["1"])[0]
    with pytest.raises(WeightsError, match=r"2 missing \(1.weight, 1.bias\)"):
        load_weights(module, body, ["1"], keep_classifier=True)
    bad = {"0.weight": torch.ones(4, 9), "extra": torch.ones(1)}
    with pytest.raises(
        WeightsError, match=r"1 missing \(0.bias\); 1 unexpected \(extra\); 1 of another shape \(0.weight\)"
    ):
        load_weights(module, bad, ["1"])


def test_prefixes_are_found_or_named():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    state = {name: tensor + 1 for name, tensor in module.state_dict().items() if "num_batches" not in name}

    def renamed(prefix):
        return {prefix + name: tensor for name, tensor in state.items()}

    (note,) = load_weights(module, renamed("model.backbone.") | {"head.weight": torch.ones(2)})
    assert note == "names in the weights file: prefix 'model.backbone.' taken off, 1 other tensors left out"
    assert torch.equal(module[0].weight, state["0.weight"])
    wrapped = torch.nn.ModuleDict({"encoder": module})
    assert "'encoder.' put in front" in load_weights(wrapped, state)[0]
    with pytest.raises(WeightsError, match=r"more than one way \('a.' taken off; 'b.' taken off\)"):
        load_weights(module, renamed("a.") | renamed("b."))
    del state["0.bias"]
    with pytest.raises(WeightsError, match=r"prefixes tried: 'a.' taken off \(5 of 6 fit\)"):
        load_weights(module, renamed("a."))
    with pytest.raises(WeightsError, match="under none does a name fit"):
        load_weights(module, {"x.y": torch.ones(1)})


def test_weights_of_another_architecture(weights_of):
    request = BackboneRequest(name="torchvision:resnet18", weights=weights_of("torchvision:squeezenet1_1"))
    with pytest.raises(WeightsError, match=r"for torchvision:resnet18: .* missing .* unexpected .* prefix") as caught:
        load_backbone(request)
    assert "\n" not in str(caught.value)


def test_torchvision_imports_whatever_its_operators_do():
    assert hasattr(import_torchvision().models, "resnet18")
    assert torchvision_state() in ("ok", "without compiled operators")


def test_broken_material_is_refused(material):
    files = sorted((material / "weights" / "broken").iterdir())
    assert len(files) == 3
    for file in files:
        with pytest.raises(WeightsError, match="damaged or not what its name says"):
            read_checkpoint(file)


def test_a_real_training_checkpoint_is_unwrapped(material):
    state = read_checkpoint(material / "weights" / "resnet20_cifar10" / "resnet20-12fca82f.th")
    assert "conv1.weight" in state


def test_mobilenet_without_classifier(material):
    file = material / "weights" / "mobilenet_v2" / "mobilenet_v2_features_bnfolded.pth"
    request = BackboneRequest(name="torchvision:mobilenet_v2", weights=file)
    assert "classifier.1.weight" in load_backbone(request).notes[0]
    with pytest.raises(WeightsError, match=r"2 missing \(classifier.1.weight, classifier.1.bias\)"):
        load_backbone(request, keep_classifier=True)


def test_squeezenet_reproduces_its_recorded_outputs(material):
    folder = material / "weights" / "squeezenet1_1"
    request = BackboneRequest(name="torchvision:squeezenet1_1", weights=folder / "squeezenet1_1.pth")
    module = load_backbone(request, keep_classifier=True).module
    pairs = sorted((folder / "io").iterdir())
    assert len(pairs) == 3
    for pair in pairs:
        images_BCHW = torch.from_numpy(np.load(pair / "input_0.npy"))
        expected = np.load(pair / "output_0.npy").reshape(-1)
        np.testing.assert_allclose(module(images_BCHW).numpy().reshape(-1), expected, atol=5e-4)


def test_an_absent_file_is_named_whatever_the_provider(tmp_path):
    for name in ("torchvision:squeezenet1_1", "python:tiny_backbones:tiny"):
        with pytest.raises(
            WeightsError, match=r"weights file .*absent.pth cannot be read: it does not exist; check the path"
        ):
            load_backbone(BackboneRequest(name=name, weights=tmp_path / "absent.pth"))
