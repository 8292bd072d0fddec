"""What estimators that train layers of any kind on cached activations have in common.

The layers themselves are made elsewhere: the rest of a pretrained network, or somebody's own. An estimator is handed a
function that makes them, and keeps what training changed.
"""

from __future__ import annotations

import copy
import json
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.utils.validation import check_is_fitted, validate_data

from featurecache.errors import HeadError
from featurecache.hashing import digest_arrays
from featurecache.heads.checks import check_whole_number, checked_to_fit
from featurecache.heads.gradient.reading import Draw, InputReader, ahead, blocks
from featurecache.heads.gradient.trainings import Trainings, rise
from featurecache.heads.head import Arrays, HeadMixin
from featurecache.heads.preparation import rows_to_stop_by
from featurecache.heads.threads import all_threads, one_thread
from featurecache.specs import BatchNormPolicy, TaskKind, TrainingAugmentation, TrainingPrecision

if TYPE_CHECKING:
    from torch import nn

    from featurecache.heads.gradient.checkpoints import Checkpoint
    from featurecache.heads.gradient.descent import RowsToTrain
    from featurecache.heads.gradient.trainable import TrainableLayers

MakeLayers = Callable[[int], "TrainableLayers"]
"""Takes the number of outputs, and returns layers that nobody else holds, on the CPU; new ones are drawn from torch's
generator, which is seeded."""

_COURSE = (
    *("learning_rate", "pretrained_factor", "layer_decay", "weight_decay", "batch_size", "warmup", "clip", "patience"),
    *("batch_norm", "precision", "device"),
)
_CHOICES: dict[str, tuple[Any, ...]] = {
    "batch_norm": get_args(BatchNormPolicy),
    "precision": get_args(TrainingPrecision),
    "start": ("fresh", "probe"),
    "augment": (None, *get_args(TrainingAugmentation)),
}
_EPOCHS, _LEAST_STEPS = 10, 100
_ROWS_AT_A_TIME = 64


class FineTuned(HeadMixin, BaseEstimator):
    """Use `FineTunedClassifier` or `FineTunedRegressor`.

    Parameters
    ----------
    layers : callable
        Makes what is trained; see `MakeLayers`.
    description : str
        Says what ``layers`` makes: trainings with the same are the same.
    shape : tuple of int
        Of one row's activations.
    learning_rate : float
        Of new layers, at its highest.
    pretrained_factor : float
        Times that, for layers that were trained before.
    layer_decay : float
        Each pretrained layer learns so much slower than the one after it (Clark et al., "ELECTRA", ICLR 2020).
    weight_decay : float
        Of AdamW (Loshchilov & Hutter, ICLR 2019); biases and norms have none.
    batch_size : int
    epochs : int or None
        None: 10, but at least 100 steps.
    warmup : float
        Share of the steps in which the learning rate rises; it falls along half a cosine thereafter.
    clip : float
        Longest gradient; 0 for any.
    batch_norm : str
        ``frozen``: norms that keep statistics use those of the pretrained weights, as small batches have no good ones.
        ``train``: they learn those of the task, as those of somebody's own layers always do.
    precision : str
        ``float32``, or ``bfloat16`` for mixed precision.
    start : str
        ``fresh``: the output layer is drawn. ``probe``: it is a linear head fitted on the untrained layers' features,
        so that the first steps don't spoil these (LP-FT: Kumar et al., "Fine-Tuning can Distort Pretrained Features and
        Underperform Out-of-Distribution", ICLR 2022).
    augment : str or None
        ``brightness``, ``noise`` or ``mixup`` of activations; see `featurecache.heads.gradient.augmenting`. ``views``:
        another random view of each input in every epoch; with a reader only.
    patience : int
        Epochs without a lower loss on held-out rows after which training ends.
    validation_fraction : float
        Of the rows, held out to stop by; none where there are fewer than 1,000.
    device : str
        As torch names it.
    random_state : int
        Of new layers, order, dropout, augmentation and held-out rows.
    checkpoints : str or None
        Folder to keep in how far a training is.
    checkpoint_seconds : float
        Between keeping.
    resume : bool
        Go on from there.
    reader : callable or None
        Makes activations when they are needed: see `featurecache.heads.gradient.reading.InputReader`. In fitting and
        predicting X has one column then, the places of the inputs. A head that was read from a file has none.
    trainings : Trainings or None
        How much time this and other trainings have together, and what became of them.

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

    streams: ClassVar[bool] = True
    path_params: ClassVar[frozenset[str]] = frozenset(
        {
            "learning_rate",
            "pretrained_factor",
            "layer_decay",
            "weight_decay",
            "epochs",
            "batch_norm",
            "start",
            "augment",
        }
    )
    relative_seconds: ClassVar[float] = 1000.0
    not_kept: ClassVar[frozenset[str]] = frozenset(
        {"layers", "description", "device", "checkpoints", "checkpoint_seconds", "resume", "reader", "trainings"}
    )
    """Parameters that are nothing to a fitted head."""

    n_features_in_: int
    names_: list[str]
    arrays_: list[NDArray[Any]]
    losses_: list[float]
    loss_rise_: tuple[float, float] | None

    def __init__(
        self,
        layers: MakeLayers | None = None,
        *,
        description: str = "",
        shape: tuple[int, ...] = (),
        learning_rate: float = 1e-3,
        pretrained_factor: float = 0.1,
        layer_decay: float = 1.0,
        weight_decay: float = 0.05,
        batch_size: int = 32,
        epochs: int | None = None,
        warmup: float = 0.1,
        clip: float = 1.0,
        batch_norm: BatchNormPolicy = "frozen",
        precision: TrainingPrecision = "float32",
        start: str = "fresh",
        augment: TrainingAugmentation | None = None,
        patience: int = 5,
        validation_fraction: float = 0.1,
        device: str = "cpu",
        random_state: int = 0,
        class_weight: str | Mapping[Any, float] | None = None,
        checkpoints: str | None = None,
        checkpoint_seconds: float = 30.0,
        resume: bool = False,
        reader: InputReader | None = None,
        trainings: Trainings | None = None,
    ) -> None:
        self.layers = layers
        self.description = description
        self.shape = shape
        self.learning_rate = learning_rate
        self.pretrained_factor = pretrained_factor
        self.layer_decay = layer_decay
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.epochs = epochs
        self.warmup = warmup
        self.clip = clip
        self.batch_norm = batch_norm
        self.precision = precision
        self.start = start
        self.augment = augment
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.device = device
        self.random_state = random_state
        self.class_weight = class_weight
        self.checkpoints = checkpoints
        self.checkpoint_seconds = checkpoint_seconds
        self.resume = resume
        self.reader = reader
        self.trainings = trainings

    @property
    @abstractmethod
    def _outcome(self) -> TaskKind:
        """What is said of a row."""

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """How many outputs the layers have."""

    @abstractmethod
    def _take(self, y: NDArray[Any], weight: NDArray[np.float64] | None) -> NDArray[Any]:
        """Keep what belongs to the labels or numbers of the rows that are fitted on."""

    @abstractmethod
    def _targets(self, y: NDArray[Any]) -> NDArray[Any]:
        """Return class indices (n,), or labels or numbers (n, K), as the loss takes them."""

    @abstractmethod
    def _probe(
        self,
        features: NDArray[np.float32],
        y: NDArray[Any],
        weight: NDArray[np.float64],
        group: NDArray[np.int64] | None,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Fit a linear head, and return its weights (K, D) and intercepts (K,)."""

    def fit(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None, groups: ArrayLike | None = None
    ) -> Self:
        """Train.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Activations, flattened, float32. A ``numpy.memmap`` is read by the batch.
        y : array-like of shape (n_samples,), or (n_samples, n_outputs)
        sample_weight : array-like of shape (n_samples,), optional
            Of each row in the loss.
        groups : array-like of shape (n_samples,), optional
            Rows of one group are held out together where some are held out to stop by.

        Raises
        ------
        ValueError
            Data or parameters that make no sense, or training that diverges.
        """
        self.check_settings()
        rows, said, weight, group = checked_to_fit(
            self, X, y, sample_weight, groups, numbers=self._outcome == "regression"
        )
        return self._fit_on(np.arange(len(rows)), rows, said, weight, group, self._digest_of(rows))

    def fit_path(
        self,
        X: NDArray[Any],
        y: NDArray[Any],
        fold: NDArray[np.int64],
        settings: Sequence[Mapping[str, Any]],
        sample_weight: NDArray[np.float64] | None = None,
        groups: NDArray[np.int64] | None = None,
    ) -> Iterator[tuple[Mapping[str, Any], list[Self]]]:
        """Train each setting without each fold, one after the other, on rows that stay where they are.

        Settings with which training diverges are left out, unless all are of that kind.
        """
        from featurecache.heads.gradient.descent import DivergedError

        digest = self._digest_of(X)
        counts = np.ones(len(y), bool) if sample_weight is None else sample_weight > 0
        left_out = np.unique(fold[fold >= 0]).tolist() or [None]
        diverged: ValueError | None = None
        num_good = 0
        for setting in settings:
            merged = clone(self).set_params(**setting)
            merged.check_settings()
            try:
                fitted = [
                    clone(merged)._like_rows(X)._fit_on(places, X, y, sample_weight, groups, digest)
                    for number in left_out
                    for places in [np.flatnonzero(counts if number is None else counts & (fold != number))]
                ]
            except DivergedError as error:
                diverged = error
                if self.trainings is not None:
                    self.trainings.diverged.append(dict(setting))
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
        head = super().from_arrays(own, **params)
        head.names_, head.arrays_ = names.tolist(), kept
        head._check_layers()
        return head

    def to_module(self) -> nn.Module:
        """Return what the layers give, (B, n_outputs)."""
        from featurecache.heads.modules import TrainedLayers

        return TrainedLayers(copy.deepcopy(self.fitted_layers).cpu(), self.shape)

    def _check_layers(self) -> None:
        """Refuse tensors that are not numbers, and activations that have another size than the rows."""
        if not all(isinstance(name, str) for name in self.names_) or len(set(self.names_)) < len(self.names_):
            raise HeadError("the names of its layers are not different texts")
        if not all(each.dtype.kind in "fib" and not np.isnan(each).any() for each in self.arrays_):
            raise HeadError("the values of its layers are not finite numbers")
        if not isinstance(self.shape, tuple) or not all(type(size) is int and size > 0 for size in self.shape):
            raise HeadError(f"the shape of its activations is {self.shape!r:.80}")
        if not isinstance(getattr(self, "joined_", False), bool):
            raise HeadError("joined_ of its layers is neither true nor false")
        if math.prod(self.shape) != self.n_features_in_:
            raise HeadError(f"its activations of shape {self.shape} are not {self.n_features_in_} numbers")

    def _like_rows(self, X: NDArray[Any]) -> Self:
        self.n_features_in_ = X.shape[1]
        return self

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

    def _logits_of(self, X: ArrayLike) -> NDArray[np.float64]:
        import torch

        check_is_fitted(self)
        plain = isinstance(X, np.memmap) or self.reader is not None
        rows: Any = X if plain else validate_data(self, X, reset=False, dtype=np.float32)
        layers = self.fitted_layers.to(self.device)
        said = np.empty((len(rows), self.num_outputs), np.float64)
        with all_threads(), torch.no_grad():
            pieces = blocks(np.arange(len(rows)), _ROWS_AT_A_TIME)
            for places, some in zip(pieces, ahead(lambda some: self._activations(rows, some), pieces), strict=True):
                said[places] = layers(some.to(self.device)).float().cpu().numpy()
        layers.cpu()  # a search holds several, and the device has to hold the next
        return said

    def _activations(self, rows: Any, places: NDArray[np.int64], epoch: int | None = None) -> Any:
        import torch

        if self.reader is not None:
            draw = None if epoch is None or self.augment != "views" else Draw(self.random_state or 0, epoch)
            return self.reader(rows[places, 0].astype(np.int64), draw)
        some = np.array(rows[places], np.float32, order="C")  # never the caller's: layers may write into it
        return torch.from_numpy(some).view(len(some), *self.shape)

    def _digest_of(self, X: Any) -> str:
        return "" if self.checkpoints is None else digest_arrays("", [X])

    def _fit_on(
        self,
        places: NDArray[np.int64],
        X: Any,
        y: NDArray[Any],
        weight: NDArray[np.float64] | None,
        group: NDArray[np.int64] | None,
        digest_of_X: str,
    ) -> Self:
        """Train on some of the rows."""
        import torch

        turn = (self.trainings or Trainings()).begin()  # before anything that takes time

        from featurecache.heads.gradient.augmenting import AUGMENTATIONS
        from featurecache.heads.gradient.beginning import made_layers, row_weights
        from featurecache.heads.gradient.descent import Course, RowsToTrain, descend

        if self.augment == "views" and self.reader is None:
            raise ValueError("augment='views' shows another view of each input in every epoch; give it a reader")
        said = y[places]
        weighed = None if weight is None else weight[places]
        grouped = None if group is None else group[places]
        self._take(said, weighed)
        targets = self._targets(said)
        labels = getattr(self, "classes_", np.arange(self.num_outputs))
        weights = row_weights(targets, weighed, self.class_weight, labels)
        to_stop_by = rows_to_stop_by(
            targets,
            np.ones((1, len(targets)), bool),
            grouped,
            fraction=self.validation_fraction,
            random_state=self.random_state,
        )
        is_number = self._outcome == "regression"
        rows = RowsToTrain(
            read=lambda some, epoch: self._activations(X, places[some], epoch),
            y=torch.from_numpy(targets.astype(np.float32) if is_number else targets),
            weight=torch.from_numpy(weights.astype(np.float32)),
            fitted=np.setdiff1d(np.arange(len(targets)), to_stop_by),
            to_stop_by=to_stop_by,
            outcome=self._outcome,
        )
        course = Course(
            **{name: getattr(self, name) for name in _COURSE},
            epochs=self.num_epochs(len(rows.fitted)),
            seed=self.random_state or 0,
            augment=AUGMENTATIONS.get(self.augment),
        )
        with all_threads():
            layers = made_layers(self.layers, self.num_outputs, self.shape, self.random_state or 0)
            first = [tensor.detach().cpu().float().numpy().reshape(-1) for tensor in layers.state_dict().values()]
            checkpoint = self._checkpoint(digest_of_X, layers, [places, targets, weights, to_stop_by, *first])
            begin = partial(self._start_from_a_probe, layers, rows, said, weights, grouped)
            first_of_all = {"begin": begin} if self.start == "probe" else {}
            progress = descend(layers, rows, course, checkpoint, **first_of_all, is_over=turn.is_over)
        self.losses_, self.n_iter_, self._layers = progress.losses, progress.step, layers.cpu()
        self.loss_rise_ = rise(
            progress.losses,
            batch_size=self.batch_size,
            of_an_epoch=course.num_batches(len(rows.fitted)),
            constant=_constant_loss(self._outcome, self.num_outputs),
        )
        self.n_features_in_ = int(np.prod(self.shape))  # also where X has been places
        own = layers.is_own  # what is drawn there is known nowhere else
        changed: dict[str, Any] = {name: p for name, p in layers.named_parameters() if p.requires_grad or own}
        if self.batch_norm == "train" or own:
            changed |= dict(layers.named_buffers())
        self.names_ = list(changed)
        if layers.joined:
            self.joined_ = True
        # Of these layers, not beside them: nobody trains them on.
        self.arrays_ = [tensor.detach().numpy() for tensor in changed.values()]
        return self

    def _start_from_a_probe(
        self,
        layers: TrainableLayers,
        rows: RowsToTrain,
        said: NDArray[Any],
        weights: NDArray[np.float64],
        group: NDArray[np.int64] | None,
    ) -> None:
        from featurecache.heads.gradient.beginning import features_of, set_output

        of = rows.fitted
        pieces = blocks(of, _ROWS_AT_A_TIME)
        features = features_of(layers, ahead(lambda places: rows.read(places, None), pieces), self.device)
        with one_thread():
            found = self._probe(features, said[of], weights[of], None if group is None else group[of])
        set_output(layers, *found)

    def num_epochs(self, num_rows: int) -> int:
        if self.epochs is not None:
            return self.epochs
        of_an_epoch = -(-num_rows // self.batch_size)
        return max(_EPOCHS, -(-_LEAST_STEPS // of_an_epoch))

    def _checkpoint(self, digest_of_X: str, layers: TrainableLayers, arrays: list[NDArray[Any]]) -> Checkpoint | None:
        from featurecache.heads.gradient.checkpoints import Checkpoint
        from featurecache.heads.gradient.trainable import layer_factors

        if self.checkpoints is None:
            return None
        unsaid = self.not_kept - {"description"}
        said = {name: value for name, value in self.get_params(deep=False).items() if name not in unsaid}
        # Left out at their usual values, so that what earlier releases kept is gone on from.
        said |= {"joined": True} if layers.joined else {}
        said |= {} if self.layer_decay == 1 else {"factors": layer_factors(layers, self.layer_decay)}
        digest = digest_arrays(json.dumps([said, digest_of_X], sort_keys=True, default=str), arrays)
        return Checkpoint(Path(self.checkpoints), digest, every=self.checkpoint_seconds, resume=self.resume)

    def check_settings(self) -> None:
        """Raise `ValueError` for parameters that make no sense."""
        check_whole_number("batch_size", self.batch_size, 1)
        check_whole_number("patience", self.patience, 1)
        if self.epochs is not None:
            check_whole_number("epochs", self.epochs, 1)
        for name in ("learning_rate", "pretrained_factor", "layer_decay"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)!r}")
        for name in ("weight_decay", "clip"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)!r}")
        for name in ("warmup", "validation_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be from 0 to below 1, got {getattr(self, name)!r}")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; known: {', '.join(map(str, known))}")


def _constant_loss(outcome: TaskKind, num_outputs: int) -> float:
    """Return what one answer for all rows loses: the same probability for each class, or the mean of each number."""
    if outcome == "classification":
        return math.log(max(num_outputs, 2))
    return num_outputs * math.log(2) if outcome == "multilabel" else 1.0
