"""Where a network's output layers are, and so which values are its features: found by walking back from its outputs.

From each output the walk goes back through everything that only reshapes, pools, scales, squashes or normalises, to the
products with weights that made it: those are the output layers, and what goes into them are the features. A sum with
something else (a residual connection), or an activation as between hidden layers, ends the walk: then the output is
itself taken for features. What the walk cannot decide is a warning, or refused with the candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from featurecache.backbones.default_tap.recording import Dataflow, record
from featurecache.backbones.default_tap.search import Found, OutputSearch
from featurecache.backbones.default_tap.walks import base_of
from featurecache.backbones.dry_run import input_errors
from featurecache.backbones.input_kinds import input_kind_of
from featurecache.backbones.provider import CERTAIN, PRE_LOGITS, DefaultTap, EarlierDefault, Provided
from featurecache.specs import BackboneRequest


@dataclass(frozen=True, kw_only=True)
class OutputLayers:
    """What was found."""

    classifiers: tuple[str, ...] = ()
    """Layers to remove: the input of the first are the features."""
    default: DefaultTap = CERTAIN
    notes: tuple[str, ...] = ()
    earlier: tuple[str, ...] = ()
    """What releases before 1.1 would have removed: the last registered linear layer, if its output is the network's."""

    def earlier_defaults(self) -> tuple[EarlierDefault, ...]:
        """Return what earlier releases made of the same network, if that was something else."""
        same = self.earlier == self.classifiers
        if same and self.default.tap == PRE_LOGITS:
            return ()
        if self.classifiers:
            now = f"the default tap is what goes into {', '.join(self.classifiers)} now"
        elif self.default.tap is None:
            now = f"a tap has to be named now ({self.default.doubt})"
        else:
            now = f"the default tap is {self.default.tap} now"
        if same:
            return (EarlierDefault(kind="default_tap", now=now, default_tap=PRE_LOGITS),)
        return (EarlierDefault(kind="default_tap", now=now, classifiers=self.earlier),)


def find_output_layers(provided: Provided, request: BackboneRequest) -> OutputLayers:
    """Run a network as it comes a few times, on inputs of the size that was asked for, and find its output layers.

    Parameters
    ----------
    provided
        Its network is put into eval mode, and else stays as it is.
    request
        What was asked for.
    """
    preprocess = provided.preprocess.override(**dict(request.preprocess))
    kind, network = input_kind_of(preprocess), provided.module.eval()
    inputs = kind.example(preprocess, provided.tokenizer, 2)
    with input_errors(request.name, preprocess):
        # A copy: a network may normalise its input in place, and these inputs are used again.
        flow = record(network, kind.call, inputs.clone())
        found = OutputSearch(flow, len(inputs)).run()
        earlier = _last_linear_if_output(network, flow)
        # What is doubtful is not removed, so that each of the candidates can be tapped; unless it always was.
        doubtful = bool(found.default.doubt) and found.paths != earlier
        if found.paths and (doubtful or not _still_runs(network, kind.call, inputs, found.paths)):
            found = Found(fallback=found.fallback, default=replace(found.default, tap=found.fallback))
    # Taps of layers that are removed are no candidates.
    lost = found.lost if found.paths else ()
    candidates = tuple(candidate for candidate in found.default.candidates if candidate[0] not in lost)
    return OutputLayers(
        classifiers=found.paths,
        default=replace(found.default, candidates=candidates),
        notes=tuple(found.notes()),
        earlier=earlier,
    )


def _last_linear_if_output(network: nn.Module, flow: Dataflow) -> tuple[str, ...]:
    linears = [path for path, layer in network.named_modules() if isinstance(layer, nn.Linear) and path]
    output = flow.outputs.get("")
    if not linears or output is None:
        return ()
    calls = [call for call in flow.calls if call.path == linears[-1]]
    last = calls[-1].output if calls else None
    same = last is not None and base_of(last) is base_of(output) and last.shape == output.shape
    return (linears[-1],) if same else ()


def _still_runs(
    network: nn.Module, call: Callable[[nn.Module, Tensor], Any], inputs: Tensor, paths: Sequence[str]
) -> bool:
    """Tell whether the network runs without its output layers, and hands the first what it did before."""
    with torch.inference_mode():
        # Equal to the last bit: the same operations run on the same numbers before the output layer.
        before = _input_of(network, call, inputs, paths[0])
        layers = {path: network.get_submodule(path) for path in paths}
        try:
            for path in paths:
                network.set_submodule(path, nn.Identity())
            after = _input_of(network, call, inputs, paths[0])
        # Code that looks into the layer, or wants its shape, objects with any exception at all.
        except Exception:
            return False
        finally:
            for path, layer in layers.items():
                network.set_submodule(path, layer)
    return before is not None and after is not None and torch.equal(before.nan_to_num(), after.nan_to_num())


def _input_of(network: nn.Module, call: Callable[[nn.Module, Tensor], Any], inputs: Tensor, path: str) -> Tensor | None:
    seen: list[Tensor] = []

    def keep(_module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.extend(value.clone() for value in args[:1] if isinstance(value, Tensor))

    with network.get_submodule(path).register_forward_pre_hook(keep):
        call(network, inputs.clone())
    return seen[0] if len(seen) == 1 else None
