"""Layers of any kind, trained on cached activations or on inputs, as scikit-learn estimators.

The layers themselves are made elsewhere: the rest of a pretrained network, or a user's own. An estimator is handed a
function that makes them, and keeps what training changed.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted, validate_data

from featurecache.devices import copied_to, exact_float32
from featurecache.errors import HeadError
from featurecache.hashing import digest_arrays
from featurecache.heads.gradient.budget import TrainingBudget, loss_rise
from featurecache.heads.gradient.datasets import ActivationDataset, Dataset, InputDataset, read_ahead
from featurecache.heads.gradient.estimators import GradientEstimator
from featurecache.heads.gradient.linear_start import fit_linear_head
from featurecache.heads.gradient.options import LayerSetting, check_choices, check_numbers
from featurecache.heads.gradient.outputs import ClassOutputs, NumberOutputs, row_weights
from featurecache.heads.head import Arrays, Fold, Groups, Labels, Settings, Weights
from featurecache.heads.preparation import rows_to_stop_by
from featurecache.heads.threads import all_threads, one_thread

if TYPE_CHECKING:
    from torch import Tensor, nn

    from featurecache.heads.gradient.checkpoints import Checkpoint
    from featurecache.heads.gradient.layer_training import LayerTrainer, TrainingData
    from featurecache.heads.gradient.trainable import LayerFactory, TrainableLayers

# Few, as whole activations of a sample may be megabytes.
_ROWS_AT_A_TIME = 64


@dataclass(kw_only=True, eq=False, repr=False)
class FineTuned(LayerSetting, GradientEstimator):
    """Use `FineTunedClassifier` or `FineTunedRegressor`; options are those of `LayerSetting` too.

    Parameters
    ----------
    factory : callable
        Makes what is trained; see `LayerFactory`.
    description : str
        Of what ``factory`` makes and of the samples: trainings with the same are the same.
    shape : tuple of int
        Of one row's activations.
    start : str
        ``fresh``: the output layer is drawn. ``probe``: it is a linear head fitted on the untrained layers' features,
        so that the first steps don't spoil these (LP-FT: Kumar et al., "Fine-Tuning can Distort Pretrained Features and
        Underperform Out-of-Distribution", ICLR 2022).
    validation_fraction : float
        Of the rows, held out to stop by; none where there are fewer than 1,000.
    checkpoints : str or None
        Folder for checkpoints of a training.
    budget : TrainingBudget or None
        Time that this and other trainings have together, and what became of them.

    Attributes
    ----------
    names_, arrays_ : list
        Names and values of the tensors that training changed.
    losses_ : list of float
        Loss of each step, on its batch before it; empty for a head that was read from a file.
    loss_rise_ : tuple of float, or None
        Where the loss began and where it ended, if that is far above.
    joined_ : bool
        The layers end in what a network makes of the inputs of several output layers; absent where they do not.
    """

    path_params: ClassVar[frozenset[str]] = frozenset(
        (*("learning_rate", "pretrained_factor", "layer_decay", "weight_decay"),
         *("epochs", "batch_norm", "start", "augment"))
    )  # fmt: skip
    relative_seconds: ClassVar[float] = 1000.0
    not_kept: ClassVar[frozenset[str]] = frozenset(
        {"factory", "description", "device", "checkpoints", "checkpoint_seconds", "resume", "budget"}
    )
    """Parameters that are nothing to a fitted head."""

    factory: LayerFactory | None = field(default=None, kw_only=False)
    description: str = ""
    shape: tuple[int, ...] = ()
    start: str = "fresh"
    validation_fraction: float = 0.1
    checkpoints: str | None = None
    budget: TrainingBudget | None = None
    names_: list[str] = field(init=False)
    arrays_: list[NDArray[Any]] = field(init=False)
    losses_: list[float] = field(init=False)
    loss_rise_: tuple[float, float] | None = field(init=False)

    def check_options(self) -> None:
        """Raise `ValueError` for parameters that make no sense."""
        super().check_options()
        check_choices(start=(self.start, ("fresh", "probe")))
        check_numbers(shares={"validation_fraction": self.validation_fraction})

    def fit_path(
        self, X: Any, y: Labels, fold: Fold, settings: Settings, sample_weight: Weights = None, groups: Groups = None
    ) -> Iterator[tuple[Mapping[str, Any], list[Self]]]:
        """Train each setting without each fold, one after the other: the layers of one may fill the device.

        Settings with which training diverges are left out, unless all are of that kind.

        Parameters
        ----------
        X, y, fold, settings, sample_weight, groups
            As for `GradientEstimator.fit_path`.
        """
        from featurecache.heads.gradient.layer_training import DivergedError

        dataset = X if isinstance(X, Dataset) else ActivationDataset(X, self.shape)
        digest = ""
        if self.checkpoints is not None:
            # Of all rows once, and not for each fold: they may be gigabytes.
            digest = X.identity if isinstance(X, InputDataset) else digest_arrays("", [X])
        # Rows without weight are left out: they would count in the sizes of batches and epochs.
        has_weight = np.ones(len(y), bool) if sample_weight is None else sample_weight > 0
        folds = np.unique(fold[fold >= 0]).tolist()
        diverged: ValueError | None = None
        num_good = 0
        for setting in settings:
            merged = clone(self).set_params(**setting)
            merged.check_options()
            fitted = []
            try:
                for kept in [has_weight & (fold != number) for number in folds] or [has_weight]:
                    rows = np.flatnonzero(kept)
                    weight, group = (None if array is None else array[rows] for array in (sample_weight, groups))
                    fitted.append(clone(merged)._train(dataset[rows], y[rows], weight, group, digest))
            except DivergedError as error:
                diverged = error
                if self.budget is not None:
                    self.budget.diverged.append(dict(setting))
                continue
            num_good += 1
            yield setting, fitted
        if diverged is not None and not num_good:
            raise diverged

    def to_arrays(self) -> Arrays:
        """See `featurecache.heads.head.Head`: the tensors that training changed."""
        kept = {f"arrays_.{index}": np.asarray(array) for index, array in enumerate(self.arrays_)}
        return super().to_arrays() | {"names_": np.array(self.names_, dtype=object)} | kept

    @classmethod
    def from_arrays(cls, arrays: Arrays, **params: Any) -> Self:
        """See `featurecache.heads.head.Head`; the head can predict when its layers are attached."""
        kept = [arrays[f"arrays_.{index}"] for index in range(len(arrays)) if f"arrays_.{index}" in arrays]
        names = arrays.get("names_")
        own = {name: array for name, array in arrays.items() if name != "names_" and "." not in name}
        if names is None or names.ndim != 1 or len(own) + len(kept) + 1 != len(arrays) or len(kept) != len(names):
            raise HeadError("the names and values of its layers do not belong together")
        # Names and values of tensors are checked here: they may be any, and the base knows only fixed ones.
        head = super().from_arrays(own, **params)
        head.names_, head.arrays_ = names.tolist(), kept
        head._check_layers()
        return head

    def to_module(self) -> nn.Module:
        """Return a network from rows to the outputs of the layers, (B, n_outputs)."""
        from featurecache.heads.modules import TrainedLayers

        # A copy: a network that is exported may be moved to another device, or changed in place.
        return TrainedLayers(copy.deepcopy(self.fitted_layers).cpu(), self.shape)

    def attach(self, layers: TrainableLayers) -> None:
        """Give a head that was read from a file its layers, made as those that were trained.

        Raises
        ------
        ValueError
            They are not of the kind that was trained.
        """
        import torch

        self.check_fits(layers)
        own = {**dict(layers.named_parameters()), **dict(layers.named_buffers())}
        with torch.no_grad():
            for name, array in zip(self.names_, self.arrays_, strict=True):
                own[name].copy_(torch.from_numpy(array).view(own[name].shape))
        self._layers = layers.eval()

    def check_fits(self, layers: TrainableLayers) -> None:
        """Raise `ValueError` unless layers, which may have no values yet, are of the kind that was trained."""
        own = {**dict(layers.named_parameters()), **dict(layers.named_buffers())}
        trained = {name for name, p in layers.named_parameters() if p.requires_grad}
        if missing := trained - set(self.names_):
            raise ValueError(f"nothing is kept for its layers' {min(missing)}")
        for name, array in zip(self.names_, self.arrays_, strict=True):
            # A file keeps a single number as an array of one.
            if name not in own or tuple(own[name].shape) not in (array.shape, () if array.size == 1 else None):
                raise ValueError(f"its layers have no {name} of shape {array.shape}")

    @property
    def fitted_layers(self) -> TrainableLayers:
        """The layers, as training left them."""
        if not hasattr(self, "_layers"):
            raise ValueError("this head has no layers yet; attach() those that it was trained with")
        return self._layers

    def _check_layers(self) -> None:
        """Refuse tensors that are not numbers, and activations that have another size than the rows."""
        if not all(isinstance(name, str) for name in self.names_) or len(set(self.names_)) < len(self.names_):
            raise HeadError("the names of its layers are not different texts")
        if not all(array.dtype.kind in "fib" and not np.isnan(array).any() for array in self.arrays_):
            raise HeadError("the values of its layers are not finite numbers")
        if not isinstance(self.shape, tuple) or not all(type(size) is int and size > 0 for size in self.shape):
            raise HeadError(f"the shape of its activations is {self.shape!r:.80}")
        if not isinstance(getattr(self, "joined_", False), bool):
            raise HeadError("joined_ of its layers is neither true nor false")
        if math.prod(self.shape) != self.n_features_in_:
            raise HeadError(f"its activations of shape {self.shape} are not {self.n_features_in_} numbers")

    def _logits_of(self, X: Any) -> NDArray[np.float64]:
        check_is_fitted(self)
        # scikit-learn's checks would read all of what is read by the batch.
        if not isinstance(X, np.memmap | Dataset):
            X = validate_data(self, X, reset=False, dtype=np.float32)
        dataset = X if isinstance(X, Dataset) else ActivationDataset(X, self.shape)
        layers = self.fitted_layers.to(self.device)
        with all_threads():
            outputs = _computed(layers, dataset, np.arange(len(dataset)), self.device)
        layers.cpu()  # a search holds several, and the device has to hold the next
        return np.concatenate([np.empty((0, self.num_outputs)), *outputs])

    def _train(self, dataset: Dataset, y: NDArray[Any], weight: Weights, groups: Groups, digest: str) -> Self:
        """Train on all samples of a data set; ``digest`` is that of all that it could read."""
        deadline = (self.budget or TrainingBudget()).begin()  # before anything that takes time

        import torch

        from featurecache.heads.gradient.layer_training import LayerTrainer, TrainingData
        from featurecache.heads.gradient.trainable import make_layers

        targets, class_weight = self._encode(y, weight, slice(None))
        weights = row_weights(targets, weight, class_weight)
        # One on average over all rows, not in each batch, so that a batch of heavy rows counts more than a light one.
        weights /= weights.mean()
        seen, fraction = np.ones((1, len(targets)), bool), self.validation_fraction
        held_out = rows_to_stop_by(targets, seen, groups, fraction=fraction, random_state=self.random_state)
        data = TrainingData(
            dataset=dataset,
            y=torch.from_numpy(targets.astype(np.float32) if self.task_kind == "regression" else targets),
            weight=torch.from_numpy(weights.astype(np.float32)),
            fitted=np.setdiff1d(np.arange(len(targets)), held_out),
            held_out=held_out,
            kind=self.task_kind,
        )
        with all_threads():
            layers = make_layers(self.factory, self.num_outputs, self.shape, self.random_state or 0)
            # The first weights identify a training too: a factory may make other ones the next time.
            first = [tensor.detach().cpu().float().numpy().reshape(-1) for tensor in layers.state_dict().values()]
            checkpoint = self._checkpoint(digest, layers, [dataset.indices, targets, weights, held_out, *first])
            trainer = LayerTrainer(layers, data, self, checkpoint, deadline)
            if not trainer.resume() and self.start == "probe":
                self._start_from_a_probe(layers, data, targets, weights, groups)
            trainer.run()
        self._keep(trainer)
        return self

    def _start_from_a_probe(
        self, layers: TrainableLayers, data: TrainingData, targets: NDArray[Any], weight: NDArray[Any], groups: Groups
    ) -> None:
        """Let the output layer be a linear head on the features of the untrained layers."""
        import torch

        if layers.output is None:
            raise ValueError("start='probe' needs layers that end in an output layer; use start='fresh'")
        fitted = data.fitted
        features = _computed(layers.to(self.device).eval().features, data.dataset, fitted, self.device)
        # As all linear heads: sums in another order would give other last digits.
        with one_thread():
            groups = None if groups is None else groups[fitted]
            y, X = targets[fitted], np.concatenate(features)
            coef_KD, intercept_K = fit_linear_head(X, y, weight[fitted], groups, self.task_kind)
        with torch.no_grad():
            layers.output.weight.copy_(torch.from_numpy(coef_KD))
            layers.output.bias.copy_(torch.from_numpy(intercept_K))

    def _checkpoint(self, digest: str, layers: TrainableLayers, arrays: list[NDArray[Any]]) -> Checkpoint | None:
        """Return where this training is kept: by a digest of all that its result depends on."""
        from featurecache.heads.gradient.checkpoints import Checkpoint
        from featurecache.heads.gradient.trainable import layer_factors

        if self.checkpoints is None:
            return None
        # What changes no number: where it is computed, and how often it is kept.
        irrelevant = self.not_kept - {"description"}
        identity = {name: value for name, value in self.get_params(deep=False).items() if name not in irrelevant}
        identity |= {"joined": layers.joined, "factors": layer_factors(layers, self.layer_decay)}
        name = digest_arrays(json.dumps([identity, digest], sort_keys=True, default=str), arrays)
        # 128 bits: enough that no two trainings share a file.
        path = Path(self.checkpoints) / f"{name[:32]}.safetensors"
        return Checkpoint(path=path, every=self.checkpoint_seconds, resume=self.resume)

    def _keep(self, trainer: LayerTrainer) -> None:
        """Take what training changed."""
        layers = self._layers = trainer.layers.cpu()
        self.losses_, self.n_iter_ = trainer.losses, trainer.step
        # What one prediction for all rows loses: the same probability for each class, or the mean of each number.
        constant = math.log(max(self.num_outputs, 2)) if self.task_kind == "classification" else 1.0
        self.loss_rise_ = loss_rise(
            trainer.losses,
            batch_size=self.batch_size,
            steps_per_epoch=trainer.schedule.steps_per_round,
            constant=self.num_outputs * math.log(2) if self.task_kind == "multilabel" else constant,
        )
        self.n_features_in_ = math.prod(self.shape)
        own = layers.is_own  # what is drawn there is known nowhere else
        changed: dict[str, Tensor] = {name: p for name, p in layers.named_parameters() if p.requires_grad or own}
        if self.batch_norm == "train" or own:
            changed |= dict(layers.named_buffers())
        self.names_ = list(changed)
        if layers.joined:
            self.joined_ = True
        # Not copies: these layers are not trained on.
        self.arrays_ = [tensor.detach().numpy() for tensor in changed.values()]


@dataclass(kw_only=True, eq=False, repr=False)
class FineTunedClassifier(ClassOutputs, FineTuned):
    """Layers for classes, or for labels; see `FineTuned`."""

    arrays: ClassVar[tuple[str, ...]] = ("classes_",)
    optional_arrays: ClassVar[tuple[str, ...]] = ("n_iter_", "multilabel_", "joined_")


class FineTunedRegressor(NumberOutputs, FineTuned):
    """Layers for numbers; see `FineTuned`."""

    arrays: ClassVar[tuple[str, ...]] = ("flat_", "target_mean_", "target_scale_")
    optional_arrays: ClassVar[tuple[str, ...]] = ("n_iter_", "joined_")


def _computed(
    function: Callable[[Tensor], Tensor], dataset: Dataset, indices: NDArray[np.int64], device: str
) -> list[NDArray[np.float32]]:
    """Return what a function makes of samples, block by block; the next block is read meanwhile."""
    import torch

    size = _ROWS_AT_A_TIME
    blocks = (indices[start : start + size] for start in range(0, len(indices), size))
    with torch.no_grad(), exact_float32(device):
        return [function(copied_to(block, device)).float().cpu().numpy() for block in read_ahead(dataset.read, blocks)]
