"""One forward pass of made-up inputs that tells what every layer of a backbone puts out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.input_kinds import input_kind_of, is_text
from featurecache.backbones.provider import PRE_LOGITS as PRE_LOGITS
from featurecache.errors import BackboneError, first_line
from featurecache.specs import AnyPreprocess

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

INPUT = "input"
"""The images as the network sees them, normalised: what comes after is all of it."""
INPUT_OF = ".input"
"""After a layer's path: what goes into that layer."""
# Two inputs, so that an output whose first axis does not count inputs gives itself away.
_NUM_EXAMPLES = 2


@dataclass
class DryRun:
    """What a dry run saw, by node name."""

    modules: dict[str, nn.Module] = field(default_factory=dict)
    """Every module that can be tapped, `PRE_LOGITS` last; listed once, as large networks have thousands."""
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Shape of a node's last output, batch axis included; absent if it is no tensor."""
    num_calls: Counter[str] = field(default_factory=Counter)
    num_seen: int = 0
    order: dict[str, int] = field(default_factory=dict)
    """When a node's last call ended, counted over all calls of all nodes."""
    flops: dict[str, int] = field(default_factory=dict)
    """Operations of one sample until a node's last call has ended; empty unless they were counted."""

    def per_sample(self, node: str) -> tuple[int, ...] | None:
        """Return the shape for one input, or ``None`` if the output is not one row per input."""
        shape = self.shapes.get(node)
        return shape[1:] if shape and len(shape) > 1 and shape[0] == _NUM_EXAMPLES else None


def first_tensor(output: Any) -> Tensor | None:
    """Return a layer's output; of several (attention returns its weights too) the first."""
    while isinstance(output, (tuple, list, Mapping)) and output:
        output = next(iter(output.values() if isinstance(output, Mapping) else output))
    return output if isinstance(output, Tensor) else None


def node_modules(backbone: Backbone) -> dict[str, nn.Module]:
    """Return every module that can be tapped, ``pre_logits`` last; of images also ``input``."""
    # TorchScript takes no hooks.
    modules = {
        path: module
        for path, module in backbone.module.named_modules()
        if path and not isinstance(module, torch.jit.ScriptModule)
    }
    first = {} if is_text(backbone.preprocess) else {INPUT: backbone.module}
    # Its input are the final features; its output, where there is no output layer.
    last = backbone.module if backbone.classifier is None else backbone.module.get_submodule(backbone.classifier)
    return first | modules | {PRE_LOGITS: last}


def layer_of(node: str, modules: Collection[str]) -> str | None:
    """Return the layer whose input a node is, as ``fc.input`` is that of ``fc``; ``None`` for every other node."""
    path = node.removesuffix(INPUT_OF)
    return path if path != node and node not in modules and path in modules and path != PRE_LOGITS else None


def dry_run(backbone: Backbone, *, with_costs: bool = False) -> DryRun:
    """Run two inputs through the backbone and note every layer's output.

    Parameters
    ----------
    backbone
        The network.
    with_costs
        Count operations with torch's counter, which takes several times as long.
    """
    seen, counter = DryRun(modules=node_modules(backbone)), None
    if with_costs:
        # Late: it brings decompositions of all operators, which an extraction has no use for.
        from torch.utils.flop_counter import FlopCounterMode

        counter = FlopCounterMode(display=False)
    with ExitStack() as stack:
        # Hooks come off even where the pass fails: the network goes on to be used.
        for node, module in seen.modules.items():
            stack.callback(watch(module, node, backbone, partial(_note, seen, node, counter)).remove)
            if layer_of(node + INPUT_OF, seen.modules) and node != INPUT:
                stack.callback(watch_input(module, partial(_note, seen, node + INPUT_OF, None)).remove)
        backbone.module.eval()
        if counter is not None:
            stack.enter_context(counter)
            stack.enter_context(_slow_attention())
        with torch.inference_mode(), input_errors(backbone.name, backbone.preprocess):
            input_kind_of(backbone.preprocess).call(backbone.module, example_inputs(backbone))
    return seen


@contextmanager
def _slow_attention() -> Iterator[None]:
    """Keep transformers from their fused kernels, which the counter takes for one operation that costs nothing."""
    # Two switches: nn.TransformerEncoder has its own fast path, before scaled dot-product attention is asked.
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def watching(backbone: Backbone, modules: Mapping[str, nn.Module], see: Callable[[str, Any], None]) -> Iterator[None]:
    """While entered, call ``see`` with the name and the output of each node whenever its module is called.

    Parameters
    ----------
    backbone
        The network.
    modules
        By name of the node; see `watch`.
    see
        Gets both; an exception that it raises ends the pass.
    """
    with ExitStack() as stack:
        for node, module in modules.items():
            stack.callback(watch(module, node, backbone, partial(see, node)).remove)
        yield


def example_inputs(backbone: Backbone, count: int = _NUM_EXAMPLES) -> Tensor:
    """Make inputs up, the same ones each time, as a `TappedBackbone` takes them."""
    # A network without parameters has no device of its own.
    device = next((p.device for p in backbone.module.parameters()), torch.device("cpu"))
    return input_kind_of(backbone.preprocess).example(backbone.preprocess, backbone.tokenizer, count).to(device)


def watch(module: nn.Module, node: str, backbone: Backbone, see: Any) -> RemovableHandle:
    """Call ``see`` with a node's output at every call of its module.

    Parameters
    ----------
    module
        From `node_modules`; of ``fc.input``, that of ``fc``.
    node
        Name of the node.
    backbone
        The network that it is in.
    see
        Gets the output; its own result is of no account.

    Notes
    -----
    For ``pre_logits`` that is the classifier's input, for ``input`` the network's, for ``fc.input`` that of ``fc``.
    """
    # The name first: this is asked at every pass, and listing the modules of a large network takes a millisecond.
    if node.endswith(INPUT_OF) and layer_of(node, node_modules(backbone)) is not None:
        return watch_input(module, see)
    before = (node == PRE_LOGITS and backbone.classifier is not None) or (node == INPUT and module is backbone.module)
    if before:
        return module.register_forward_pre_hook(lambda _module, inputs: see(inputs))
    return module.register_forward_hook(lambda _module, _inputs, output: see(output))


def watch_input(module: nn.Module, see: Callable[[Any], None]) -> RemovableHandle:
    """Call ``see`` with the first tensor that a layer is given, at every call."""

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        see(next((found for value in (*args, *kwargs.values()) if (found := first_tensor(value)) is not None), None))

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def _note(seen: DryRun, node: str, counter: FlopCounterMode | None, output: Any) -> None:
    seen.num_calls[node] += 1
    seen.num_seen += 1
    seen.order[node] = seen.num_seen
    if counter is not None:
        # The counter counts the whole batch, and every operation here is linear in its size.
        seen.flops[node] = counter.get_total_flops() // _NUM_EXAMPLES
    tensor = first_tensor(output)
    if tensor is None:
        seen.shapes.pop(node, None)
    else:
        seen.shapes[node] = tuple(tensor.shape)


@contextmanager
def input_errors(name: str, preprocess: AnyPreprocess) -> Iterator[None]:
    """Turn what a network says against its input into one line; it may object with any exception at all."""
    try:
        yield
    except Exception as error:
        kind = input_kind_of(preprocess)
        raise BackboneError(f"{name} rejects {kind.sized(preprocess)}: {first_line(error)}; {kind.advice}") from error
