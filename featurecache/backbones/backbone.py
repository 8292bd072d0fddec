"""A frozen network with its output layer removed, and its identity by content."""

from __future__ import annotations

import copy
import hashlib
import sys
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from featurecache.backbones.provider import CERTAIN, DefaultTap, EarlierDefault
from featurecache.errors import ReportWarning
from featurecache.specs import AnyPreprocess, FeatureIdentity


@dataclass(frozen=True, kw_only=True, eq=False)
class Backbone:
    """A pretrained network, frozen, in eval mode, known by the content of its weights."""

    name: str
    module: nn.Module
    preprocess: AnyPreprocess
    classifier: str | None
    """Path of the output layer: its input is the node ``pre_logits``. ``None``: the network's output is."""
    output_layers: tuple[str, ...] = ()
    """Paths of all layers that were removed, or would be; several where a network was distilled or joins branches."""
    default: DefaultTap = CERTAIN
    """What ``default`` stands for."""
    num_prefix_tokens: int
    """Class, distillation and register tokens in front of the patch tokens of a transformer."""
    identity: FeatureIdentity
    weights_source: str
    notes: tuple[str, ...]
    """What `info` and `inspect` mention, and needs no action."""
    warnings: tuple[ReportWarning, ...] = ()
    """What is doubtful about the weights or the preprocess; printed after every extraction."""
    earlier: tuple[EarlierDefault, ...] = ()
    """What earlier releases made of the same request, the latest first, for caches that they began."""
    num_parameters: int
    num_trainable: int
    license: str | None
    has_class_token: bool = True
    """The first of the prefix tokens is a class token, not a register."""
    tokenizer: str | None = None
    """Of texts, the definition of the tokenizer that belongs to the weights, as the tokenizers library writes it."""
    token_pooling: str | None = None
    """Pooling of tokens that the weights were trained with, where that is known."""


def copy_sharing_tensors(module: nn.Module) -> nn.Module:
    """Copy the tree of a module; its parameters and buffers are shared with the original."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


def weights_digest(module: nn.Module) -> str:
    """SHA-256 (hex) of every parameter and buffer by content, persistent or not."""
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    hasher = hashlib.sha256()
    # By name, so that the order in which a constructor makes its layers does not count.
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        hasher.update(f"{name} {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}\n".encode())
        hasher.update(_little_endian_bytes(tensor))
    return hasher.hexdigest()


def architecture_digest(module: nn.Module) -> str:
    """SHA-256 (hex) of the module tree: one line per layer with its path, class and hyper-parameters."""
    hasher = hashlib.sha256()
    for path, layer in module.named_modules():
        # extra_repr holds what a layer was built with (kernel, stride, padding), as text, and no tensor.
        hasher.update(f"{path} {type(layer).__qualname__} {layer.extra_repr()}\n".encode())
    return hasher.hexdigest()


def _little_endian_bytes(tensor: Tensor) -> memoryview:
    # Contiguous in the plain sense: the digest must not depend on channels_last.
    flat = tensor.contiguous(memory_format=torch.contiguous_format).reshape(-1)
    raw = flat.view(torch.uint8).numpy()
    if sys.byteorder == "big":
        raw = raw.reshape(-1, flat.element_size())[:, ::-1].reshape(-1).copy()
    return memoryview(raw)
