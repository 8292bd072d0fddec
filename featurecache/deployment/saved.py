"""A saved head, read back with everything that its features depend on."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from featurecache.backbones.backbone import Backbone
from featurecache.backbones.providers.python_factory import PREFIX
from featurecache.deployment.python_heads import python_head
from featurecache.errors import FeatureCacheError, HeadError, NotAgreedError, RequestError, shortened
from featurecache.extraction.reproduction import reproduce_backbone
from featurecache.finetuning.factories import check_agreed, is_layers, layer_factory, options_to_agree
from featurecache.finetuning.library import PREFIX as LIBRARY_PREFIX
from featurecache.heads.bundle import load_head
from featurecache.heads.gradient.finetuned import FineTuned
from featurecache.heads.head import HeadMixin
from featurecache.heads.outliers import OutlierDetector
from featurecache.heads.probability import predict_outputs, predict_proba
from featurecache.heads.thresholds import Thresholds
from featurecache.specs import FeatureIdentity, TaskKind, task_kind
from featurecache.store.store import FeatureStore
from featurecache.store.verify import Problem
from featurecache.wording import counted

# A stranger's record must not have a head tried out on more memory than there is: two rows of 64 MiB.
_MOST_FEATURES = 1 << 24


@dataclass(frozen=True)
class SavedHead:
    """A head read back from its folder.

    Attributes
    ----------
    identity : FeatureIdentity
        How the features were made that it was trained on; with views, each of them was a row to learn from.
    tap, dtype : str
        Which features, and the number type they were stored in.
    classes : list of str
        Label of each class index; or the labels, or the names of the numbers.
    kind : str
        ``classification``, ``multilabel`` or ``regression``.
    thresholds : Thresholds or None
        From which probability on the positive of two classes, or a label, is predicted; None: the most probable class,
        and labels above one half.
    outliers : OutlierDetector or None
        Tells inputs that are unlike those that it was fitted on; None where these were few, or activations.
    """

    estimator: Any
    identity: FeatureIdentity
    tap: str
    dtype: str
    classes: list[str]
    temperature: float | None
    meta: dict[str, Any]
    kind: TaskKind = "classification"
    thresholds: Thresholds | None = None
    outliers: OutlierDetector | None = None

    @property
    def rounded_to(self) -> str:
        """Type that features of new inputs are rounded to, so that they get the predictions of cached ones.

        The steps of int8 depend on the shard that a row lies in, and a new input lies in none.
        """
        return "float32" if self.dtype == "int8" else self.dtype

    def probabilities(self, features: NDArray[np.float32], *, num_views: int = 1) -> NDArray[np.float64]:
        """Return class probabilities ``(n, n_classes)`` for features ``(n, ...)`` as the cache would give them.

        Of labels, the probability of each by itself; of numbers, the numbers.

        With several views, features are ``(n, num_views, ...)`` and the result is the mean over them.
        """
        rows = features.reshape(len(features) * num_views, -1)
        if self.kind == "classification":
            every = predict_proba(self.estimator, rows, self.temperature, len(self.classes))
        else:
            every = predict_outputs(self.estimator, rows)
        mean = every.reshape(len(features), num_views, -1).mean(axis=1)
        return mean.clip(0, 1) if self.kind == "multilabel" else mean  # a regression may give more than one

    def names_of(self, probabilities: NDArray[np.float64]) -> list[list[str]]:
        """Return what is predicted for each input, from its probabilities: the class, or the labels that hold."""
        if self.kind == "multilabel":
            holds = probabilities > 0.5 if self.thresholds is None else self.thresholds.predict(probabilities)
            return [[self.classes[k] for k in np.flatnonzero(row)] for row in holds]
        found = probabilities.argmax(axis=1) if self.thresholds is None else self.thresholds.predict(probabilities)
        return [[self.classes[index]] for index in found.tolist()]


def open_head(folder: str | Path, *, agreed: str | None = None) -> SavedHead:
    """Read a saved head.

    Parameters
    ----------
    folder : path
    agreed : str, optional
        Name of somebody's own head, ``python:MODULE:FACTORY``, whose code the caller agrees to run.

    Raises
    ------
    HeadError
        There is none, or it is damaged.
    NotAgreedError
        It is of a class that the caller has not named.
    """
    folder = Path(folder)

    def brought(meta: dict[str, Any]) -> type[HeadMixin] | None:
        name = str(meta.get("head"))
        if not name.startswith(PREFIX):
            return None
        check_agreed(name, agreed)
        return cast("type[HeadMixin]", type(python_head(name).estimator))

    # A class of somebody else's is imported only where the caller names it: a record must not choose what code runs.
    estimator, meta, outliers = load_head(folder, other_class=brought)
    try:
        saved = SavedHead(
            estimator=estimator,
            identity=FeatureIdentity.from_json(meta["identity"]),
            tap=meta["tap"],
            dtype=meta["dtype"],
            classes=list(meta["classes"]),
            temperature=meta["temperature"],
            meta=meta,
            kind=_kind(meta),
            thresholds=None
            if meta.get("threshold") is None
            else Thresholds.from_json(meta["threshold"], len(meta["classes"])),
            outliers=outliers,
        )
        if not isinstance(estimator, FineTuned):  # that needs its layers first
            _try_out(saved)
        return saved
    # The arrays of a stranger can trip scikit-learn in any way there is.
    except Exception as error:
        raise HeadError(
            f"{folder} holds a head that does not work ({type(error).__name__}: {shortened(error)}); "
            "save it again with `featurecache train --save`"
        ) from None


def network_of(
    saved: SavedHead,
    *,
    backbone: str | None = None,
    weights: str | Path | None = None,
    weights_key: str | None = None,
    layers: str | None = None,
) -> Backbone:
    """Return the network that a head was trained on, and give a head of trained layers what it computes with.

    Parameters
    ----------
    saved : SavedHead
    backbone, weights, weights_key, layers
        As for `featurecache.deployment.predict.predict`.

    Raises
    ------
    BackboneMismatchError
        The backbone here would give other features than those the head was trained on.
    """
    network = reproduce_backbone(
        saved.identity,
        str(saved.meta.get("weights_source", "other weights")),
        needed_by="this head",
        backbone=backbone,
        weights=weights,
        weights_key=weights_key,
        also=options_to_agree(str(saved.meta.get("head")), layers),
    )
    with_layers(saved, network, layers)
    return network


def with_layers(saved: SavedHead, network: Backbone, agreed: str | None = None) -> SavedHead:
    """Give a head that is trained layers what it computes with; other heads stay as they are.

    Parameters
    ----------
    saved : SavedHead
    network : Backbone
        The one that made the features: its rest may be what was trained.
    agreed : str, optional
        Name of somebody's own layers, ``python:MODULE:FACTORY``, which the caller agrees to run.

    Raises
    ------
    RequestError
        The head needs code that the caller has not named.
    HeadError
        The layers are not those that were trained.
    """
    estimator, head = saved.estimator, str(saved.meta.get("head"))
    if not isinstance(estimator, FineTuned):
        if agreed is not None and agreed != head:
            raise RequestError(f"this head is {head}, not layers of somebody's own; leave --layers {agreed} out")
        return saved
    check_agreed(head, agreed)
    if not is_layers(head):
        raise HeadError(f"this head is {head!r:.80}, which is no name of layers; save it again")
    if estimator.n_features_in_ > _MOST_FEATURES:
        raise HeadError(f"this head wants {estimator.n_features_in_} activations; save it again")
    # Heads of earlier releases end in the input of the first output layer, whatever the network has.
    joined = getattr(estimator, "joined_", False)
    make = layer_factory(head, saved.tap, estimator.shape, network, joined=joined)
    try:
        if head.startswith(LIBRARY_PREFIX):  # a record may ask for more than there is memory
            with torch.device("meta"):
                estimator.check_fits(make(estimator.num_outputs))
        estimator.attach(make(estimator.num_outputs))
        _try_out(saved)
    # The arrays of a stranger may fit no layer, and break whatever they do fit.
    except FeatureCacheError:
        raise
    except Exception as error:
        raise HeadError(f"this head does not work with its layers ({shortened(error)}); save it again") from None
    return saved


def verify_heads(store: FeatureStore) -> list[Problem]:
    """Open every saved head of a cache and let it predict; name those that cannot."""
    problems = []
    for name in store.head_names():
        try:
            open_head(store.heads_path / name)
        except NotAgreedError:  # of somebody's own class: only who names it may run it
            continue
        except (FeatureCacheError, OSError) as error:
            advice = "remove it, or save it again with `featurecache train --save`"
            problems.append(Problem(f"heads/{name}", shortened(error, 500), advice))
    return problems


def _kind(meta: dict[str, Any]) -> TaskKind:
    """Return for which kind of task a head is; those that do not say are for classification."""
    kind = meta.get("kind", "classification")
    if not isinstance(kind, str):
        raise ValueError(f"it is for tasks of the unknown kind {kind!r}")
    return task_kind(kind)


def _try_out(saved: SavedHead) -> None:
    """Predict once: the arrays of a head may fit its record and still not fit together."""
    width = saved.estimator.n_features_in_
    if not 0 < width <= _MOST_FEATURES:
        raise ValueError(f"it wants {counted(width, 'feature')}")
    with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
        proba = saved.probabilities(np.ones((2, width), np.float32))
    if proba.shape != (2, len(saved.classes)) or not np.isfinite(proba).all():
        raise ValueError("its answers are no probabilities of its classes")
