"""A saved head and its backbone in this process, ready to predict: inputs in, predictions out, as a stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, repeat
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.runtimes import Runtime, open_runtime
from featurecache.backbones.taps import Tap, resolve_taps
from featurecache.deployment.one_network import as_one_network, can_be_one_network
from featurecache.deployment.prediction import Prediction
from featurecache.deployment.saved import SavedHead
from featurecache.extraction import drift
from featurecache.extraction.modality import Modality, modality_of
from featurecache.extraction.pipeline import Outcome, run_chunks, to_stored
from featurecache.sources.inputs import Input
from featurecache.specs import ExtractionSettings, ViewSpec, num_views
from featurecache.store.dtypes import decode
from featurecache.store.schemas import ReferenceBody

Chunk = TypeVar("Chunk")


@dataclass(frozen=True)
class RuntimeChoice:
    """What executes the backbone, and in batches of which size: it decides the last digits of what is predicted."""

    runtime: str
    batch_size: int
    lengths: tuple[int, ...]
    norms_folded: bool

    @classmethod
    def of(cls, runtime: Runtime) -> RuntimeChoice:
        """Return what a runtime is."""
        return cls(runtime.name, runtime.batch_size, tuple(runtime.lengths), runtime.norms_folded)


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """What predicts.

    Attributes
    ----------
    saved : SavedHead
    network : Backbone
        Makes the features that the head was trained on.
    views : ViewSpec or None
        Of each input, where the prediction is the mean over views.
    settings : ExtractionSettings
    """

    saved: SavedHead
    network: Backbone
    views: ViewSpec | None
    settings: ExtractionSettings

    def open(self, num_inputs: int, choice: RuntimeChoice | None = None) -> OpenPredictor:
        """Prepare a runtime, and see that it makes the features which the head was trained on.

        Parameters
        ----------
        num_inputs : int
            Inputs of the whole run: for few, preparing a faster runtime takes longer than it saves.
        choice : RuntimeChoice, optional
            What another worker of the run has chosen for all.

        Raises
        ------
        DriftError
            The features are others here.
        """
        saved, network, settings = self.saved, self.network, self.settings
        (tap,) = resolve_taps(network, [saved.tap])
        modality = modality_of(network.preprocess, network.tokenizer, self.views)
        count = num_inputs * num_views(self.views)
        if can_be_one_network(saved):
            if saved.meta.get("probe") is not None:
                # The record is of activations before the layers: they are compared once, apart from the whole network.
                runtime = open_runtime(
                    network, [tap], runtime="torch", device=settings.device, batch_size=2, num_inputs=count
                )
                _checked(runtime, saved, tap, network, modality).close()
            saved, network, tap = as_one_network(saved, network, tap)
        runtime = open_runtime(
            network,
            [tap],
            runtime=settings.runtime,
            device=settings.device,
            batch_size=settings.batch_size or (None if choice is None else choice.batch_size),
            num_inputs=count,
            remembered=None if choice is None else choice.runtime,
            lengths=None if choice is None else choice.lengths or None,
            norms_folded=None if choice is None else choice.norms_folded,
        )
        return OpenPredictor(saved, tap, _checked(runtime, saved, tap, network, modality), modality, settings)


@dataclass(frozen=True)
class OpenPredictor:
    """A predictor whose runtime is ready; to be closed."""

    saved: SavedHead
    tap: Tap
    runtime: Runtime
    modality: Modality
    settings: ExtractionSettings

    def predict(
        self, chunks: Iterable[tuple[Chunk, Sequence[Input]]]
    ) -> Generator[tuple[Chunk, list[Prediction], list[str]], None, None]:
        """Predict the inputs of several chunks in one stream, a batch or so at a time; no batch holds two chunks.

        Parameters
        ----------
        chunks
            Any objects, each with at least one input. The next one is asked for when loading gets there.

        Yields
        ------
        chunk
        predictions : list of Prediction
            In the order of the inputs.
        remarks : list of str
            On each input, as `featurecache.store.image_warnings` counts them.
        """
        waiting: deque[tuple[Chunk, Iterator[Input]]] = deque()

        def noted() -> Iterator[tuple[Chunk, Sequence[Input]]]:
            for chunk, inputs in chunks:
                waiting.append((chunk, iter(inputs)))
                yield chunk, inputs

        with self.modality.undisturbed():
            outcomes = run_chunks(noted(), self.runtime, self.modality, num_workers=self.settings.num_workers)
            for chunk, outcome in outcomes:
                while waiting[0][0] is not chunk:
                    waiting.popleft()
                names = [item.name for item in islice(waiting[0][1], len(outcome.problems))]
                yield chunk, self._label(names, outcome), outcome.remarks

    def close(self) -> None:
        """Let go of the network."""
        self.runtime.close()

    def _label(self, names: Sequence[str], outcome: Outcome) -> list[Prediction]:
        saved, found = self.saved, list[Prediction]()
        stored, problems = to_stored(outcome.features[self.tap.name], outcome.problems, saved.rounded_to)
        good = [index for index in range(len(stored)) if index not in problems]
        features = decode(stored[good], saved.rounded_to).astype(np.float32)
        # Heads predict the good inputs of a batch in one call.
        outputs = iter(saved.probabilities(features, num_views=num_views(self.modality.views)) if good else ())
        p_values = iter(_p_values(saved, features) if good else ())
        for index, name in enumerate(names):
            if index in problems:
                found.append(Prediction(name, None, None, {}, problems[index].status, problems[index].reason))
            else:
                found.append(replace(_prediction(name, next(outputs), saved), p_value=next(p_values)))
        return found


def _checked(runtime: Runtime, saved: SavedHead, tap: Tap, network: Backbone, modality: Modality) -> Runtime:
    """Return a runtime that makes the features which the head was trained on; one that makes others is closed."""
    try:
        with modality.undisturbed():
            check_features(saved, tap, runtime, network)
    # Interrupts too: a runtime holds threads and memory of the device.
    except BaseException:
        runtime.close()
        raise
    return runtime


def check_features(saved: SavedHead, tap: Tap, runtime: Runtime, network: Backbone) -> None:
    """Refuse a machine that makes other features than the one where the head was trained.

    Parameters
    ----------
    saved : SavedHead
    tap : Tap
    runtime : Runtime
    network : Backbone

    Raises
    ------
    DriftError
        The reference inputs give other features here.
    """
    if (record := saved.meta.get("probe")) is None:
        return
    recorded = msgspec.convert(record, ReferenceBody)
    with drift.explained(recorded.provenance, runtime, "extract and train here"):
        modality = modality_of(network.preprocess, network.tokenizer, saved.identity.views)
        drift.check_reference(recorded, tap.name, runtime, modality)


def _p_values(saved: SavedHead, features: NDArray[np.float32]) -> list[float] | Iterator[None]:
    """Return how usual each input is, of several views (n, num_views, d) by their mean."""
    if saved.outliers is None:
        return repeat(None)
    # The detector knows plain inputs, one row each.
    rows = features.reshape(len(features), -1, saved.outliers.rows.shape[1]).mean(axis=1)
    return [round(value, 6) for value in saved.outliers.p_values(rows).tolist()]


def _prediction(path: str, outputs: NDArray[np.float64], saved: SavedHead) -> Prediction:
    classes = saved.classes
    if saved.kind == "regression":
        return Prediction(path, None, None, {}, numbers=dict(zip(classes, outputs.tolist(), strict=True)))
    # Features are float32 at best: further digits mean nothing.
    every = {label: round(float(p), 6) for label, p in zip(classes, outputs, strict=True)}
    (names,) = saved.names_of(outputs[None])
    if saved.kind == "multilabel":
        return Prediction(path, ";".join(names), None, every)
    return Prediction(path, names[0], every[names[0]], every)
