"""The output layers of a network and its features, decided on a recorded forward pass."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from featurecache.backbones.default_tap import walks
from featurecache.backbones.default_tap.operations import ACTIVATIONS, CONVOLUTIONS
from featurecache.backbones.default_tap.recording import Call, Dataflow, Value
from featurecache.backbones.default_tap.walks import Ends, base_of, ends_of, is_ancestor, width_of
from featurecache.backbones.dry_run import INPUT_OF
from featurecache.backbones.provider import CERTAIN, PRE_LOGITS, DefaultTap

_PROJECTION_NAMES = ("proj", "embed")
_GIVEN = "it puts out features as well as what its last layers make of them, and the features are taken"
_index = attrgetter("index")
_MOST_LAYERS_OF_A_PROJECTION = 2
_BETWEEN_LAYERS = {"relu", "gelu", "silu", "leaky_relu", "tanh", "native_batch_norm"}


@dataclass(frozen=True, kw_only=True)
class Found:
    paths: tuple[str, ...] = ()
    """To remove."""
    fallback: str | None = PRE_LOGITS
    """The tap of the same features where nothing may be removed."""
    default: DefaultTap = CERTAIN
    lost: tuple[str, ...] = ()
    """Candidates that go with the layers."""

    def notes(self) -> list[str]:
        if self.paths:
            return [f"{', '.join(self.paths)} taken for the output {'layer' if len(self.paths) == 1 else 'layers'}"]
        if (tap := self.default.tap or "").endswith(INPUT_OF):
            layer = tap.removesuffix(INPUT_OF)
            return [
                f"{layer}, the output layer, is not removed: it runs more than once, or the network needs it in place"
            ]
        if self.default.tap == PRE_LOGITS:
            return ["no output layer found: pre_logits is the network's output"]
        return []


class OutputSearch:
    def __init__(self, flow: Dataflow, batch_size: int) -> None:
        self._flow = flow
        outputs = {name: value for name, value in flow.outputs.items() if value.shape[:1] == (batch_size,)}
        # Masks and indices are no features; a network that puts out nothing else is taken as it is.
        floating = {name: value for name, value in outputs.items() if value.floating}
        self._outputs = floating or outputs
        # Maps and images: as large as the input, or of several positions.
        size = math.prod(flow.input.shape)
        shapes = {name: value.shape for name, value in self._outputs.items()}
        self._dense = {n for n, s in shapes.items() if math.prod(s) == size or (len(s) > 3 and math.prod(s[2:]) > 1)}
        self._ends = {name: ends_of(value) for name, value in self._outputs.items()}
        self._last_calls = {call.path: call for call in flow.calls}

    def run(self) -> Found:
        headed = [name for name, ends in self._ends.items() if ends.products]
        flat = [name for name in headed if name not in self._dense]
        if headed and not flat:
            return self._refuse_maps(headed)
        if not flat:
            return self._without_output_layer()
        # Rows of one length alone may be chance, or a softmax of two: the pass must have normalised them.
        embeddings = [n for n in flat if self._outputs[n].unit and "norm of rows" in self._ends[n].marks]
        if len(embeddings) == len(flat):
            return self._of_embeddings(embeddings)
        names = [name for name in flat if name not in embeddings]
        heads = list(dict.fromkeys(p for name in names for p in sorted(self._ends[name].products, key=_index)))
        marks = {mark for name in names for mark in self._ends[name].marks}
        # A layer whose output is the wider input of another output layer makes features, which are put out as well.
        feeding = {base_of(source): head for head in heads for source in head.sources if base_of(source) in set(heads)}
        kept = [head for head in heads if head not in feeding or width_of(head) < width_of(feeding[head])]
        return self._decide(kept or heads, marks)

    # ---------------------------------------------------------------------- one or several output layers

    def _decide(self, heads: list[Value], marks: set[str]) -> Found:
        if "relu" in marks and not all(head.op in CONVOLUTIONS or width_of(head) == 1 for head in heads):
            doubt = "it ends with a linear layer and a ReLU, as a network without its output layer does"
            return self._refuse(doubt, heads[0].sources)
        layers = [self._last_layer(head, heads) for head in heads]
        inputs = {base_of(layer.input) for layer in layers if layer is not None and layer.input is not None}
        if None not in layers and len(inputs) == 1:
            (features,) = inputs
            if features is self._flow.input and any(head.op in CONVOLUTIONS for head in heads):
                return self._without_output_layer()
            if (given := self._given_features(features)) is not None:
                return self._take(given, heads, _GIVEN, also=[features])
            return self._take(features, heads, self._doubt_of(heads, marks))
        return self._decide_among(heads, [layer for layer in layers if layer is not None], marks)

    def _decide_among(self, heads: list[Value], layers: Sequence[Call], marks: set[str]) -> Found:
        """Output layers that see different values: their common input, or the deepest of them."""
        sources = [base_of(source) for head in heads for source in head.sources]
        common, between = walks.common_ancestor(sources, set(heads))
        inputs = list(dict.fromkeys(base_of(call.input) for call in layers if call.input is not None))
        if not between and len(layers) == len(heads) and all(walks.is_slice_of(value, common) for value in inputs):
            doubt = "its output layers see different slices of the features, of which the first is taken"
            return self._take(inputs[0], heads, doubt, paths=tuple(dict.fromkeys(call.path for call in layers)))
        # One hidden layer before each head at most, as detection and attribute networks have.
        near = len(between) <= len(heads) and all(
            len(layer.shape) == 2 and layer.op not in CONVOLUTIONS for layer in between
        )
        if near and common is not self._flow.input:
            doubt = "its output layers have hidden layers before them, and one common input, which is taken"
            certain = not between or self._layers_after(common, heads)
            return self._take(common, heads, self._doubt_of(heads, marks) or ("" if certain else doubt))
        # Auxiliary output layers (Inception, GoogLeNet, deep supervision) hang on shallower features.
        last = max(heads, key=lambda head: max(_origin(source).index for source in head.sources))
        deepest = max(last.sources, key=_index)
        if all(is_ancestor(_origin(source), deepest) for source in sources):
            doubt = "it has output layers at several depths, of which the deepest is taken"
            return self._take(base_of(deepest), [last], doubt, also=inputs)
        doubt = "its outputs are made of different values"
        return self._refuse(doubt, [*inputs, common])

    def _take(
        self,
        features: Value,
        heads: Sequence[Value],
        doubt: str,
        *,
        paths: tuple[str, ...] | None = None,
        also: Iterable[Value] = (),
    ) -> Found:
        """Take a value for the features; remove the layers that it goes into on the way to the outputs."""
        features = base_of(features)
        fallback = self._name(features)
        paths = self._layers_after(features, heads) if paths is None else paths
        if fallback is None and not paths:
            fallback, activated = self._name_before(features)
            if activated and fallback is not None:
                doubt = (
                    doubt or f"what goes into its output layer has no name; {fallback}, before an activation, is taken"
                )
        candidates: list[tuple[str, int]] = []
        lost: list[tuple[str, int]] = []
        if doubt:
            made = [self._outputs[name] for name, ends in self._ends.items() if ends.products & set(heads)]
            lost = self._candidates(made)
            values = [features, *also, *(source for head in heads for source in head.sources)]
            candidates = [*self._candidates(values), *lost]
        taken = PRE_LOGITS if paths else fallback
        if taken is None:
            return self._refuse("what goes into its output layer has no name of its own", [features])
        default = DefaultTap(tap=taken, doubt=doubt, candidates=tuple(dict.fromkeys(candidates)))
        return Found(paths=paths, fallback=fallback, default=default, lost=tuple(name for name, _ in lost))

    def _layers_after(self, features: Value, heads: Sequence[Value]) -> tuple[str, ...]:
        """Return the layers that take the features and make the outputs, if each runs once; otherwise none."""
        found = []
        for head in heads:
            inside = [call for call in reversed(head.calls) if call.input and base_of(call.input) is features]
            if not inside or sum(call.path == inside[0].path for call in self._flow.calls) > 1:
                return ()
            found.append(inside[0].path)
        return tuple(path for path in dict.fromkeys(found) if not any(path.startswith(f"{p}.") for p in found))

    def _last_layer(self, head: Value, heads: Sequence[Value]) -> Call | None:
        """Return the innermost layer that an output is made in and whose input it is made of, layer by layer."""
        for call in reversed(head.calls):
            if call.input is not None and walks.depends_only_on(head, call.input, set(heads)):
                return call
        return None

    def _given_features(self, features: Value) -> Value | None:
        """Return another output that the features are made of: then the network says itself what its features are."""
        for name, value in self._outputs.items():
            if self._ends[name].products or len(value.shape) != 2:
                continue
            # Features may be put out with rows of length 1, and go on as they were.
            for given in (base_of(value), *filter(None, [walks.step_back(base_of(value))])):
                if given is not features and len(walks.layers_between(base_of(given), features) or ()) == 1:
                    return base_of(given)
        return None

    def _doubt_of(self, heads: Sequence[Value], marks: set[str]) -> str:
        if "relu" in marks and any(width_of(head) > 1 for head in heads):
            return "its output layer is followed by a ReLU, as hidden layers are"
        if "norm" in marks:
            return "its output layer is followed by a normalisation, as layers that make embeddings are"
        if any(head.op in CONVOLUTIONS and walks.kernel_of(head) > 1 for head in heads):
            return "its last convolution, taken for the output layer, is larger than 1x1"
        names = [name for name, ends in self._ends.items() if ends.products & set(heads)]
        if any(len(self._outputs[name].shape) == 3 and self._outputs[name].shape[1] > 1 for name in names):
            return "its output layer gives an output for each token or position"
        if any(ends.products and name not in names and name in self._dense for name, ends in self._ends.items()):
            return "it puts out maps or images as well"
        # Of the layer and what it is in, not of what the whole network may be wrapped in.
        paths = [head.calls[-1].path for head in heads if head.calls]
        words = {word for path in paths for word in path.lower().split(".")[-2:]}
        if any(name in word for word in words for name in _PROJECTION_NAMES):
            return "its last layer may be a projection to an embedding rather than to classes"
        return ""

    # ---------------------------------------------------------------------- no output layer

    def _without_output_layer(self) -> Found:
        if not self._outputs:
            return Found()
        outputs = list(self._outputs.values())
        if len(outputs) > 1:
            return self._deepest_output(outputs)
        (ends,) = self._ends.values()
        doubt = ""
        if "unknown" in ends.marks:
            doubt = "no output layer was found, and not all that makes its output is understood"
        elif any(stop.op == "add" and len(stop.shape) == 2 for stop in ends.stops) and not ends.products:
            doubt = "its output is a sum, which may be one of output layers"
        elif any(stop.op == "glu" and ends_of(stop.sources[0]).products for stop in ends.stops):
            doubt = "its output is a gated linear layer, which may be the output layer"
        sums = [source for stop in ends.stops for source in stop.sources if doubt]
        products = [product for source in sums for product in sorted(ends_of(source).products, key=_index)]
        values = [source for product in products for source in product.sources] or sums
        candidates = self._candidates(values, with_output=bool(doubt))
        return Found(default=DefaultTap(doubt=doubt, candidates=tuple(candidates)))

    def _deepest_output(self, outputs: list[Value]) -> Found:
        deepest = max(outputs, key=lambda value: base_of(value).index)
        downstream = all(is_ancestor(base_of(value), deepest) for value in outputs)
        taken = deepest if downstream else outputs[0]
        tap = PRE_LOGITS if taken is outputs[0] else self._name(taken)
        which = next(name for name, value in self._outputs.items() if value is taken)
        doubt = f"it puts out {len(outputs)} tensors, of which number {outputs.index(taken) + 1} ({which}) is taken"
        if tap is None:
            return self._refuse(f"it puts out {len(outputs)} tensors", outputs)
        return Found(
            fallback=tap, default=DefaultTap(tap=tap, doubt=doubt, candidates=tuple(self._candidates(outputs)))
        )

    # ---------------------------------------------------------------------- refusals

    def _refuse_maps(self, names: list[str]) -> Found:
        heads = [head for name in names for head in self._ends[name].products]
        if self._flow.input in {base_of(source) for head in heads for source in head.sources}:
            return Found()
        values = [source for head in sorted(heads, key=_index) for source in head.sources]
        doubt = "it puts out maps or images, not one row of outputs"
        return self._refuse(doubt, [*self._bottlenecks(heads), *values])

    def _of_embeddings(self, names: list[str]) -> Found:
        heads = sorted(self._ends[names[0]].products, key=_index)
        common, _ = walks.common_ancestor([base_of(s) for head in heads for s in head.sources], set(heads))
        if (given := self._given_features(common)) is not None:
            return self._take(given, heads, _GIVEN, also=[common])
        values = [common]
        for _ in range(_MOST_LAYERS_OF_A_PROJECTION):
            ends = ends_of(values[-1].sources[0]) if values[-1].op in _BETWEEN_LAYERS else Ends()
            values += [base_of(source) for product in sorted(ends.products, key=_index) for source in product.sources]
        return self._refuse("it puts out vectors of one length, as networks that make embeddings do", values)

    def _refuse(self, doubt: str, values: Iterable[Value]) -> Found:
        candidates = dict.fromkeys(self._candidates(values, with_output=True))
        return Found(default=DefaultTap(tap=None, doubt=doubt, candidates=tuple(candidates)))

    # ---------------------------------------------------------------------- names

    def _candidates(self, values: Iterable[Value], *, with_output: bool = False) -> list[tuple[str, int]]:
        others = [value for value in dict.fromkeys(map(base_of, values)) if value is not self._flow.input]
        by_name = {self._name(value): value for value in others}
        named = [(name, value) for name, value in by_name.items() if name is not None]
        if with_output:
            named += [(PRE_LOGITS, value) for value in list(self._flow.outputs.values())[:1]]
        # As many numbers as a tap has with its usual pooling: of maps, the channels.
        shapes = [(name, value.shape) for name, value in named]
        return [(name, s[1] if len(s) == 4 else s[-1] if len(s) > 1 else 1) for name, s in shapes]

    def _name(self, value: Value) -> str | None:
        """Return the tap of a value: the layer that puts it out, or the one that takes it."""
        base = base_of(value)
        calls = self._last_calls.values()
        outputs = [call for call in calls if call.output is not None and base_of(call.output) is base]
        if outputs:
            # The outermost layer: in a table of layers people look for `layer4`, not for the last norm in it.
            call = min(outputs, key=lambda call: (call.path.count("."), len(call.path)))
            assert call.output is not None
            # Its usual pooling would average what goes into the output layer as it is.
            shape = call.output.shape
            flattened = len(shape) > 2 and value.shape == (shape[0], math.prod(shape[1:]))
            return call.path + (":flatten" if flattened else "")
        inputs = [call for call in calls if call.input is not None and base_of(call.input) is base]
        if inputs:
            # The innermost: what goes into a container is what goes into its first layer.
            call = max(inputs, key=lambda call: (call.path.count("."), call.path))
            return f"{call.path}.input"
        return None

    def _name_before(self, value: Value) -> tuple[str | None, bool]:
        """Return the tap of the nearest value with a name that a value was pooled or scaled from."""
        activated, before = False, value
        while (name := self._name(before)) is None and (earlier := walks.step_back(before)) is not None:
            activated |= before.op in ACTIVATIONS
            before = base_of(earlier)
        return name, activated

    def _bottlenecks(self, heads: Sequence[Value]) -> list[Value]:
        """Return where the network is narrowest before its output layers: the ends of encoders."""
        first = [base_of(source) for head in heads for source in head.sources]
        inside = [call.output for call in self._last_calls.values() if call.output is not None]
        before = [value for value in inside if value.floating and any(is_ancestor(value, source) for source in first)]
        maps = [value for value in before if len(value.shape) == 4]
        fewest = min(before, key=lambda value: (math.prod(value.shape), value.index), default=None)
        smallest = min(maps, key=lambda value: (math.prod(value.shape[2:]), -value.index), default=None)
        return [value for value in (fewest, smallest) if value is not None]


def _origin(value: Value) -> Value:
    """Return what a value was pooled or scaled from."""
    while walks.is_open(base_of(value)) and (before := walks.step_back(base_of(value))) is not None:
        value = before
    return base_of(value)
