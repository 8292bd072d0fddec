"""A network cut in two is the network: its values, gradients and statistics, or else the cut is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from featurecache.backbones.cutting import cut, each_cut, valid_cuts
from featurecache.backbones.dry_run import example_inputs
from featurecache.backbones.registry import load_backbone
from featurecache.errors import BackboneError, UnknownNameError
from featurecache.specs import BackboneRequest

RESNET, SMALL = "torchvision:resnet18", "timm:test_resnet"
# Name, crop, and how many of the suggested stages and blocks are valid cuts.
NETWORKS = [
    ("torchvision:squeezenet1_1", 64, 7),
    ("timm:test_resnet", 64, 6),
    ("timm:test_efficientnet", 64, 8),
    ("timm:test_convnext", 64, 13),
    ("timm:test_vit3", None, 9),
    ("timm:test_byobnet", 64, 6),
    ("timm:test_nfnet", 64, 8),
]
LARGER = [
    ("torchvision:mobilenet_v3_small", 32, 11),
    ("timm:regnety_002", 32, 15),
    (RESNET, 64, 10),
    ("torchvision:swin_t", 64, 16),
    ("timm:efficientnet_b0", 64, 21),
    ("timm:convnext_atto", 64, 16),
    ("timm:vit_tiny_patch16_224", None, 12),
    ("timm:deit_tiny_distilled_patch16_224", None, 12),
    ("timm:levit_128s", None, 12),
    ("timm:resmlp_12_224", None, 12),
]


class Reference:
    """The whole network with everything frozen until a layer has run: by plain hooks, without any graph.

    It ends in the input of its output layer; where it has several on different inputs, in what it makes of them.
    """

    def __init__(self, backbone, node: str) -> None:
        self.network = copy.deepcopy(backbone.module).eval().requires_grad_(True)
        self.node, self._outputs = node, list(dict.fromkeys([backbone.classifier, *backbone.output_layers]))

    def run(self, inputs, *, training: bool):
        """Return the layer's output and the network's end; a module that starts later is in training mode."""
        caught, late = {}, []

        def freeze_until_here(module, _, output):
            late.append(True)
            is_tensor = isinstance(output, torch.Tensor)
            caught["activations"] = (output if is_tensor else output[0]).detach().clone()
            return output.detach() if is_tensor else (output[0].detach(), *output[1:])

        def start(module, _):
            module.training = training and bool(late)

        ends = []
        handles = [module.register_forward_pre_hook(start) for module in self.network.modules()]
        handles.append(self.network.get_submodule(self.node).register_forward_hook(freeze_until_here))
        for path in self._outputs:
            last = self.network.get_submodule(path)
            handles.append(last.register_forward_pre_hook(lambda _, inputs: ends.append(inputs[0])))
        torch.manual_seed(1)  # dropout
        end = self.network(inputs)
        for handle in handles:
            handle.remove()
        return caught["activations"], ends[0] if len({id(each) for each in ends}) == 1 else end


def loss_of(pre_logits_BD):
    return (pre_logits_BD * torch.linspace(-1, 1, pre_logits_BD[0].numel()).reshape(pre_logits_BD[0].shape)).sum()


def check_is_the_rest(backbone, found, inputs) -> None:
    reference = Reference(backbone, found.tap.node)
    with torch.inference_mode():
        activations, expected = reference.run(inputs, training=False)
        assert activations.shape[1:] == found.tap.shape
        assert torch.equal(found.tail(activations), expected)

    activations, expected = reference.run(inputs, training=True)
    given = activations.clone()
    torch.manual_seed(1)
    pre_logits = found.tail.train()(activations)
    assert torch.equal(pre_logits, expected)
    assert torch.equal(activations, given), "the caller's activations are the caller's"

    loss_of(pre_logits).backward()
    loss_of(expected).backward()
    gradients = {name: p.grad for name, p in reference.network.named_parameters() if p.grad is not None}
    assert gradients.keys() - set(found.shared) <= set(found.trainable)
    for name in found.trainable:
        torch.testing.assert_close(found.tail.get_parameter(name).grad, gradients.get(name), rtol=0, atol=0)
    buffers = dict(reference.network.named_buffers())
    for name, buffer in found.tail.named_buffers():
        assert name not in buffers or torch.equal(buffer, buffers[name]), name


@pytest.mark.parametrize(
    ("name", "crop", "num_valid"), [*NETWORKS, *(pytest.param(*larger, marks=pytest.mark.slow) for larger in LARGER)]
)
def test_the_rest_after_every_valid_cut_has_the_values_gradients_and_statistics_of_the_whole(
    random_backbone, name, crop, num_valid
):
    backbone = random_backbone(name, crop=crop)
    inputs = example_inputs(backbone, 3)  # not the number that was traced with
    nodes = []
    for found in each_cut(backbone):
        check_is_the_rest(backbone, found, inputs)
        nodes.append(found.tap.node)
    assert len(nodes) == num_valid
    assert not any(p.requires_grad for p in backbone.module.parameters())


def test_cutting_leaves_the_backbone_alone(random_backbone):
    backbone = random_backbone(RESNET, crop=32)
    before = {name: tensor.clone() for name, tensor in backbone.module.state_dict().items()}
    attributes = {path: set(vars(module)) for path, module in backbone.module.named_modules()}
    found = cut(backbone, "layer3:none")
    assert found.num_trainable == sum(p.numel() for p in backbone.module.layer4.parameters())
    found.tail.train()(torch.randn(2, *found.tap.shape)).sum().backward()
    with torch.no_grad():
        for name in found.trainable:
            found.tail.get_parameter(name).add_(1)
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.module.state_dict().items())
    assert attributes == {path: set(vars(module)) for path, module in backbone.module.named_modules()}
    # What was trained goes back by name.
    assert not backbone.module.load_state_dict(found.tail.state_dict(), strict=False).unexpected_keys


def test_a_cut_between_the_blocks_that_nobody_suggests(random_backbone):
    backbone = random_backbone(SMALL, crop=64)
    for node in ("conv1", "maxpool", "global_pool"):
        if node == "global_pool":
            with pytest.raises(BackboneError, match="no parameters come after it; cache it pooled and train a head"):
                cut(backbone, node)
        else:
            check_is_the_rest(backbone, cut(backbone, node), example_inputs(backbone, 3))


@pytest.mark.parametrize(
    ("name", "node", "message"),
    [
        (SMALL, "layer3.0.conv1", "at layer3.0.conv1: the output of layer2 is used after it as well; nearest cuts: "
         "layer2 (before), layer3.0 (after)"),
        (SMALL, "layer3:avg", "'layer3:avg' is pooled, and the layers after it need all of it: cache 'layer3:none'"),
        (SMALL, "pre_logits", "it is or holds the output layer; nearest cuts: layer3 (before)"),
        (RESNET, "layer1.0.relu", "cannot be cut at layer1.0.relu: it runs 2 times; cut at a layer that runs once"),
        (SMALL, "layer4", "no parameters come after it; cache it pooled and train a head; nearest cuts: layer3"),
    ],
)  # fmt: skip
def test_an_invalid_cut_is_refused_with_the_nearest_valid_ones(random_backbone, name, node, message):
    with pytest.raises(BackboneError) as caught:
        cut(random_backbone(name, crop=64), node)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_layer_is_refused_with_the_nearest_names(random_backbone):
    with pytest.raises(UnknownNameError, match="unknown tap 'layr3'; did you mean .*'layer3'"):
        cut(random_backbone(SMALL, crop=64), "layr3:none")


def python_backbone(factory: str):
    torch.manual_seed(0)
    return load_backbone(BackboneRequest(name=f"python:tests.backbones.networks:{factory}"))


def test_a_branch_that_goes_past_a_layer_is_named():
    with pytest.raises(BackboneError, match="cannot be cut at norm: the output of conv is used after it as well"):
        cut(python_backbone("used_twice"), "norm")


@pytest.mark.slow
def test_branches_in_parallel_are_no_cuts(random_backbone):
    backbone = random_backbone("timm:crossvit_tiny_240")
    with pytest.raises(BackboneError, match="cannot be cut at blocks.0.blocks.0"):
        cut(backbone, "blocks.0.blocks.0.0")


def test_parameters_on_both_sides_stay_frozen():
    backbone = python_backbone("tied")
    found = cut(backbone, "middle")
    assert found.shared == ("weight_44",)
    assert set(found.trainable) == {"last.weight", "last.bias"}
    assert not found.tail.get_parameter("weight_44").requires_grad


def test_a_norm_on_both_sides_is_refused():
    with pytest.raises(BackboneError, match="norm runs before and after it, and keeps statistics"):
        cut(python_backbone("tied_norm"), "middle")


@pytest.mark.parametrize("node", ["stem", "pair"])
def test_sizes_may_pass_by_a_cut_for_any_length_of_batch(node):
    backbone = python_backbone("sized")
    before = {name: buffer.clone() for name, buffer in backbone.module.named_buffers()}
    cut(backbone, node)
    assert all(torch.equal(before[name], buffer) for name, buffer in backbone.module.named_buffers())
    for num_images in (1, 2, 5):
        check_is_the_rest(backbone, cut(backbone, node), example_inputs(backbone, num_images))


def test_code_between_the_layers_that_depends_on_the_mode_is_refused():
    with pytest.raises(BackboneError, match="the code between its layers does other things in training mode"):
        cut(python_backbone("moody"), "body.0")


def test_what_no_graph_shows_is_refused_because_the_values_differ():
    with pytest.raises(BackboneError, match="the rest of the network alone computes something else"):
        cut(python_backbone("hasty"), "body.0")


def test_a_forward_pass_that_cannot_be_followed_is_refused():
    with pytest.raises(BackboneError, match=r"its forward pass cannot be followed \(symbolically traced"):
        cut(python_backbone("only_twice"), "exit")


def test_a_network_that_cannot_be_copied_is_refused():
    with pytest.raises(BackboneError, match=r"cannot be cut: it cannot be copied \(no copies\)"):
        cut(python_backbone("uncopyable"), "body.0")


def test_tracing_leaves_nothing_in_a_network_that_keeps_what_it_works_on():
    backbone = python_backbone("forgetful")
    cut(backbone, "body.0")
    assert isinstance(backbone.module.images_BCHW, torch.Tensor)


def test_costs_of_cuts_by_hand(random_backbone):
    backbone = random_backbone(RESNET, crop=64)
    costs = {info.tap: info for info in valid_cuts(backbone)}
    info = costs["layer3:none"]
    assert (info.shape, info.bytes_float16, info.bytes_float32) == ((256, 4, 4), 2 * 4096 + 32, 4 * 4096 + 32)
    assert info.num_trainable == sum(p.numel() for p in backbone.module.layer4.parameters())
    # Two blocks of two 3x3 convolutions on 2x2 places, and the 1x1 convolution of the first.
    by_hand = 2 * 4 * (9 * 256 * 512 + 3 * 9 * 512 * 512 + 256 * 512)
    assert info.flops_after == by_hand
    assert info.speedup == pytest.approx((info.flops_before + 3 * by_hand) / (3 * by_hand))
    speedups = [info.speedup for info in costs.values()]
    assert speedups == sorted(speedups)


def test_text_encoders_are_refused(tmp_path):
    from tiny_texts import write_encoder

    backbone = load_backbone(BackboneRequest(name=f"hf:{write_encoder(tmp_path)}"))
    with pytest.raises(BackboneError, match="cannot be cut: it reads texts"):
        cut(backbone, "encoder.layer.0")
    assert valid_cuts(backbone) == []


@pytest.mark.parametrize("name", ["timm:test_vit", "timm:test_resnet", "timm:test_efficientnet"])
def test_all_of_a_network_comes_after_its_input(random_backbone, name):
    backbone = random_backbone(name)
    found = cut(backbone, "input")
    images = example_inputs(backbone, 3)
    with torch.inference_mode():
        assert torch.equal(found.tail(images), backbone.module(images))
    everything = {name for name, p in backbone.module.named_parameters() if p.is_floating_point()}
    assert set(found.trainable) == everything


def test_a_network_that_looks_how_large_its_images_are_can_be_cut(random_backbone):
    backbone = random_backbone("timm:test_vit")  # it resizes its positions where the size is not that of training
    found = cut(backbone, "blocks.2")
    check_is_the_rest(backbone, found, example_inputs(backbone, 3))


def test_a_tail_learns():
    """Not only exact: what optimizers see is a module like any other."""
    found = cut(python_backbone("small"), "body.0")
    tail, activations = found.tail.train(), torch.randn(16, *found.tap.shape)
    optimizer = torch.optim.SGD([p for p in tail.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(3):
        losses.append(nn.functional.mse_loss(tail(activations), torch.ones(16, 8)))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
