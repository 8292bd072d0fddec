"""Which nodes of a network are worth tapping: the end of every stage, every block, the classifier's input.

Nothing here knows an architecture by name. A *block* is the outermost module with at least two layers that multiply
(convolution, linear, attention) which is not itself a sequence of such modules. A *stage* is a run of blocks with
equally many positions; it ends where the next block halves the map. A network that never does so (a plain transformer)
is cut into four equal runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby, pairwise

from torch import nn
from torch.export.unflatten import InterpreterModule, InterpreterModuleDispatcher, UnflattenedModule

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.dry_run import PRE_LOGITS, DryRun
from featurecache.backbones.layout import layout_of, prefix_tokens_at

GROUPS = ("stages", "blocks")
# As many as convolutional networks have stages (ResNet, ConvNeXt, Swin).
_NUM_EQUAL_RUNS = 4
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_CONTAINER_KINDS = {container.__name__ for container in _CONTAINERS}
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.Mish, nn.Tanh)
_ACTIVATION_KINDS = {activation.__name__ for activation in _ACTIVATIONS}


def suggested_nodes(backbone: Backbone, seen: DryRun) -> dict[str, list[str]]:
    """Return the nodes behind ``stages`` and ``blocks``, in the order in which they run."""
    blocks: list[str] = []
    for nodes in (_find_blocks(backbone.module), _find_activations(backbone.module)):
        found = {_tappable(backbone, seen, node) for node in nodes if seen.num_calls[node]} - {None}
        blocks = sorted((node for node in found if node is not None), key=seen.order.__getitem__)
        if blocks:
            break
    return {"stages": _stage_ends(backbone, seen, blocks), "blocks": blocks}


def _tappable(backbone: Backbone, seen: DryRun, node: str) -> str | None:
    """Move a node outwards until it gives one row of maps or tokens per image; ``None`` where none does."""
    while node:
        rows = seen.num_calls[node] == 1 and len(seen.per_sample(node) or ()) in (2, 3)
        if rows and layout_of(backbone, seen, node) is not None:
            return node
        node = node.rpartition(".")[0]
    return None


def _find_blocks(module: nn.Module, path: str = "") -> list[str]:
    containers: list[str] = []
    stages: list[str] = []
    others: list[str] = []
    for name, child in module.named_children():
        full = f"{path}.{name}" if path else name
        # A single convolution, linear layer or norm is no block.
        if _num_products(child) < 2 or full == PRE_LOGITS:
            continue
        if class_name(child) in _CONTAINER_KINDS:
            containers += _find_blocks(child, full)
        elif _is_stage(child):
            stages += _find_blocks(child, full)
        else:
            others.append(full)
    # Beside a sequence of blocks stand stems and downsampling; in a container every item is one of the sequence.
    return containers + stages + others if class_name(module) in _CONTAINER_KINDS else containers or stages or others


def _is_stage(module: nn.Module) -> bool:
    """Tell whether a module is mainly a sequence of like blocks: itself, one of its children, or deeper inside."""
    containers = [
        child for child in module.children() if isinstance(child, _CONTAINERS) or class_name(child) in _CONTAINER_KINDS
    ]
    if any(_holds_like_blocks(container) for container in (module, *containers)):
        return True
    # A stage may begin with a downsampling layer next to its sequence of blocks: the larger half decides.
    sizes = {child: sum(parameter.numel() for parameter in child.parameters()) for child in module.children()}
    half = sum(parameter.numel() for parameter in module.parameters()) / 2
    return any(size > half and _is_stage(child) for child, size in sizes.items())


def _holds_like_blocks(module: nn.Module) -> bool:
    items = list(module.children())
    kinds = {class_name(item) for item in items}
    if kinds == {"Sequential"}:
        return all(_holds_like_blocks(item) for item in items)
    return len(kinds) == 1 and all(_num_products(item) > 1 for item in items)


def class_name(module: nn.Module) -> str:
    """Return the name of a module's class; of an exported program, of the class that it had in the network."""
    if isinstance(module, UnflattenedModule | InterpreterModule | InterpreterModuleDispatcher):
        return (module.type_name() or "Module").rpartition(".")[2]
    # A container of a program that is never called has no class, only numbered layers.
    numbered = type(module) is nn.Module and next(iter(module._modules), "").isdigit()
    return "ModuleList" if numbered else module._get_name()


def _num_products(module: nn.Module) -> int:
    """Count the matrices of weights. Class tokens and positions (one row), norms and scales (one column) are none."""
    return sum(p.ndim > 1 and p.shape[0] > 1 and p.numel() > p.shape[0] for p in module.parameters())


def _find_activations(module: nn.Module) -> Iterator[str]:
    """In a network without blocks (AlexNet, VGG) the features after every activation are what blocks are elsewhere."""
    return (
        path
        for path, layer in module.named_modules()
        if isinstance(layer, _ACTIVATIONS) or class_name(layer) in _ACTIVATION_KINDS
    )


def _stage_ends(backbone: Backbone, seen: DryRun, blocks: Sequence[str]) -> list[str]:
    positions = partial(_stage_key, backbone, seen)
    # Where branches of several resolutions run side by side, the last run of each counts.
    runs = list({key: list(run) for key, run in groupby(blocks, key=positions)}.values())
    if len(runs) == 1:
        cuts = [round(len(blocks) * run / _NUM_EQUAL_RUNS) for run in range(_NUM_EQUAL_RUNS + 1)]
        runs = [list(blocks[start:stop]) for start, stop in pairwise(cuts) if stop > start]
    return sorted((_outermost(backbone, seen, run, blocks) for run in runs), key=seen.order.__getitem__)


def _outermost(backbone: Backbone, seen: DryRun, run: Sequence[str], blocks: Sequence[str]) -> str:
    """Return the outermost module that ends with a run's last block and holds no block of another run."""
    last, names = run[-1], run[-1].split(".")
    for depth in range(1, len(names)):
        ancestor = ".".join(names[:depth])
        inside = {block for block in blocks if block.startswith(ancestor + ".")}
        same = _stage_key(backbone, seen, ancestor) == _stage_key(backbone, seen, last)
        if inside <= set(run) and seen.num_calls[ancestor] == 1 and same:
            return ancestor
    return last


def _stage_key(backbone: Backbone, seen: DryRun, node: str) -> tuple[int, ...]:
    """Return what stays the same within a stage: the number of patch tokens, or the sides of a map."""
    shape = seen.per_sample(node) or ()
    if len(shape) == 2:
        return (shape[0] - (prefix_tokens_at(backbone, shape[0]) or 0),)
    return shape[1:] if len(shape) == 3 and shape[1] == shape[2] else shape[:2]
