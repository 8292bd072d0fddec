"""Linear heads as scikit-learn estimators that try all strengths of regularisation for the price of a few."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.multiclass import check_classification_targets

from featurecache.heads.checks import (
    Folds,
    check_prior_rows,
    checked_class_weight,
    checked_rows,
    checked_strengths,
    checked_weight,
    fold_of_rows,
    is_small,
    sets_of,
    with_weight,
)
from featurecache.heads.labelled import LabelledMixin
from featurecache.heads.linear.classifier import (
    LinearClassifier,
    ProbabilisticClassifier,
    absent_classes,
    forget_classes,
)
from featurecache.heads.linear.tasks import FitsTasks

if TYPE_CHECKING:
    from featurecache.heads.linear.objective import Labelling
    from featurecache.heads.linear.path import LinearFamily
    from featurecache.heads.linear.solver import Step
    from featurecache.heads.rows import Rows

_NUMBERS_TOGETHER, _TIMES_THE_OUTPUTS = 1_000_000, 16
"""In the solutions of tasks that are fitted together, and most outputs for each of the task that has the fewest."""


class LinearProbe(FitsTasks, LabelledMixin, LinearClassifier):
    """What the linear heads have in common; use `LogisticProbe` or `LinearSvmProbe`."""

    _loss: ClassVar[str]
    side_by_side: ClassVar[frozenset[str]] = frozenset({"C"})
    takes_several: ClassVar[bool] = False
    _loss_of_labels: ClassVar[str]
    """Where rows may have several labels."""

    def __init__(
        self,
        C: float = 0.01,
        *,
        Cs: Sequence[float] | None = None,
        cv: Folds = 5,
        standardize: bool = True,
        prior_rows: float = 0.0,
        class_weight: str | Mapping[Any, float] | None = None,
        tol: float = 1e-4,
        max_iter: int = 1000,
        device: str = "cpu",
        random_state: int | None = 0,
    ) -> None:
        self.C = C
        self.Cs = Cs
        self.cv = cv
        self.standardize = standardize
        self.prior_rows = prior_rows
        self.class_weight = class_weight
        self.tol = tol
        self.max_iter = max_iter
        self.device = device
        self.random_state = random_state

    def fit(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None, groups: ArrayLike | None = None
    ) -> Self:
        """Fit.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Float64 is computed in float64, all else in float32, as long as that is precise enough. A ``numpy.memmap``
            is read in blocks and never held as a whole.
        y : array-like of shape (n_samples,)
            `LogisticProbe` also takes several labels of each row, (n_samples, n_labels), 0 or 1.
        sample_weight : array-like of shape (n_samples,), optional
        groups : array-like of shape (n_samples,), optional
            Rows of one group are held out together.

        Raises
        ------
        ValueError
            Data or parameters that scikit-learn's estimators refuse too.
        """
        rows, labels = checked_rows(self, X, y, several=self.takes_several)
        check_classification_targets(labels)
        several = labels.ndim == 2
        weight = checked_weight(sample_weight, rows)
        check_prior_rows(self.prior_rows)
        Cs = checked_strengths(self.C if self.Cs is None else self.Cs, "C")
        fold = None
        if self.Cs is not None:
            fold = fold_of_rows(self.cv, labels, groups, self.random_state, classes=not several)
        weight, rows, labels, fold = with_weight(weight, rows, labels, fold)
        y_index = self._take_labels(labels)
        checked_class_weight(self.class_weight, self.classes_)
        # torch is loaded by those who fit, not by those who list heads.
        from featurecache.heads.linear.path import search
        from featurecache.heads.rows import NO_FOLD

        fold = np.full(len(y_index), NO_FOLD) if fold is None else fold
        held_out = [int(each) for each in np.unique(fold) if each != NO_FOLD]
        family, divided = self._family(), self._rows(rows, y_index, fold, weight)
        start, converged = None, True
        if held_out:
            found = search(family, divided, self._labelling(y_index, fold, held_out), Cs)
            Cs, self.scores_, converged = [found.C], np.array(found.accuracy), found.converged
            assert found.theta_GKE is not None
            start = found.theta_GKE.mean(0, keepdim=True)
        labelling = self._labelling(y_index, fold, [NO_FOLD])
        ((step,),) = family.solve([divided], [labelling], Cs[:1], starts=[start], to_the_end=True)
        if not (converged and step.converged[0]):
            warnings.warn(
                f"{type(self).__name__} did not converge within {self.max_iter} looks at the rows; use a smaller C, or "
                "a larger max_iter",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self._solved(step, 0)

    @classmethod
    def fit_folds_of_tasks(
        cls,
        heads: Sequence[Self],
        Xs: Sequence[NDArray[Any]],
        ys: Sequence[NDArray[Any]],
        folds: Sequence[NDArray[np.int64]],
        settings: Sequence[Mapping[str, Any]],
        sample_weight: NDArray[np.float64] | None = None,
    ) -> Iterator[tuple[dict[str, Any], list[list[Self]]]]:
        """See `FitsTasks`; ``settings`` are ``{"C": strength}``, in increasing order."""
        asked, absent = _Together(heads, Xs, ys, folds, sample_weight), absent_classes(ys, folds)
        Cs = [setting["C"] for setting in settings]
        for C, steps in zip(Cs, asked.solve(Cs), strict=True):
            fitted: list[list[Self]] = []
            for head, place, groups in zip(heads, asked.places, asked.groups, strict=True):
                new = [copy(head) for _ in groups]  # hundreds: scikit-learn's clone would take longer than the fits
                for each, group in zip(new, groups, strict=True):
                    each.C = C
                    each._solved(steps[place], group)
                fitted.append(new)
            forget_classes(fitted, absent)
            yield {"C": C}, fitted

    @classmethod
    def fit_tasks(
        cls,
        heads: Sequence[Self],
        Xs: Sequence[NDArray[Any]],
        ys: Sequence[NDArray[Any]],
        sample_weight: NDArray[np.float64] | None = None,
    ) -> list[bool]:
        """See `FitsTasks`."""
        asked = _Together(heads, Xs, ys, [np.full(len(X), -1) for X in Xs], sample_weight)
        (steps,) = asked.solve([asked.of_groups([head.C for head in heads])], to_the_end=True)
        converged = []
        for head, place, (group,) in zip(heads, asked.places, asked.groups, strict=True):
            head._solved(steps[place], group)
            converged.append(bool(steps[place].converged[group]))
        return converged

    @staticmethod
    def batches(
        Xs: Sequence[NDArray[Any]], ys: Sequence[NDArray[Any]], folds: Sequence[NDArray[np.int64]]
    ) -> list[list[int]]:
        """Return the places of tasks that are fitted together: as many as the solver may remember much of.

        Tasks with far fewer outputs than others would pay for theirs. Different features are fitted together as long as
        they are few numbers: with many, products take all the time, and these they do not share.
        """
        sets = sets_of(Xs)
        outputs = [y.shape[1] if y.ndim == 2 else len(np.unique(y)) for y in ys]
        groups = [max(len(np.unique(fold[fold >= 0])), 1) for fold in folds]

        def fit_together(batch: list[int]) -> bool:
            """Tell whether some places, those with fewer outputs first, go together."""
            first, X = batch[0], Xs[batch[0]]
            num_sets = len({sets[place] for place in batch})
            if num_sets > 1:
                alike = all(Xs[place].shape == X.shape for place in batch)
                if not alike or not is_small(num_sets * X.shape[0], X.shape[1]):
                    return False
            size = sum(groups[place] for place in batch) * X.shape[1] * outputs[batch[-1]]
            return size <= _NUMBERS_TOGETHER and outputs[batch[-1]] <= _TIMES_THE_OUTPUTS * outputs[first]

        found: list[list[int]] = []
        for place in sorted(range(len(ys)), key=lambda place: outputs[place]):
            batch = next((batch for batch in found if fit_together([*batch, place])), None)
            if batch is None:
                found.append([place])
            else:
                batch.append(place)
        return [sorted(batch) for batch in found]

    def _solved(self, step: Step, group: int) -> Self:
        self.C_, self.n_iter_ = float(step.C_G[group]), int(step.num_iterations[group])
        return self._fitted(step.weights_GKD[group].cpu().numpy(), step.intercept_GK[group].cpu().numpy())

    def _family(self) -> LinearFamily:
        from featurecache.heads.linear.path import LinearFamily

        return LinearFamily(standardize=self.standardize, tol=self.tol, max_iter=self.max_iter)

    def _labelling(self, y: NDArray[np.int64], fold: NDArray[np.int64], left_out: list[int]) -> Labelling:
        from featurecache.heads.linear import losses
        from featurecache.heads.linear.objective import Labelling

        return Labelling(
            y=y,
            fold=fold,
            num_classes=len(self.classes_),
            loss=getattr(losses, self._loss_of_labels if self.multilabel_ else self._loss)(),
            left_out=left_out,
            class_weight=checked_class_weight(self.class_weight, self.classes_),
        )

    def _rows(self, X: Any, y: NDArray[np.int64], fold: NDArray[np.int64], weight: NDArray[np.float64] | None) -> Rows:
        import torch

        from featurecache.heads.rows import Rows

        dtype = torch.float64 if X.dtype == np.float64 or is_small(*X.shape) else torch.float32
        return Rows(X, y, fold, weight, dtype=dtype, device=self.device, prior_rows=self.prior_rows)


class LogisticProbe(ProbabilisticClassifier, LinearProbe):
    """Multinomial logistic regression with an L2 penalty, on standardised features.

    The same objective as ``make_pipeline(StandardScaler(), LogisticRegression(C=C))``, with all strengths and folds
    fitted side by side. Where rows may have several labels, it is one binary regression for each.

    Parameters
    ----------
    C : float
        Weight of the data against the penalty, as in scikit-learn. Not used when ``Cs`` is given.
    Cs : sequence of float, optional
        Strengths to choose from by cross-validated accuracy; of equals the smallest. Features are standardised by the
        rows of each fold alone.
    cv : int, splitter or iterable of (train, test)
        How rows are held out when ``Cs`` is given; a number makes stratified folds, which keep groups together.
    standardize : bool
        Without it, features are taken as they are.
    prior_rows : float
        Of the variances by which features are standardised: each is drawn to the mean of all, as by so many more rows
        that have it. With few rows a feature's own variance is mostly chance.
    class_weight : None, "balanced" or mapping of class to weight
        Balanced: all classes have the same total weight.
    tol : float
        Relative error of the objective at which a fit ends, as far as it can be told; small problems are solved to the
        last digits.
    max_iter : int
        Most looks at the rows for one strength.
    device : str
        Where to compute, e.g. ``cuda``.
    random_state : int or None
        Of the folds.

    Attributes
    ----------
    classes_ : ndarray (n_classes,)
    coef_ : ndarray (n_classes, n_features) or (1, n_features), float64
        For features as they come, not standardised.
    intercept_ : ndarray (n_classes,) or (1,), float64
    C_ : float
    scores_ : ndarray (n_strengths,)
        Cross-validated accuracy of each of ``Cs``.
    n_iter_ : int
    """

    takes_unknown: ClassVar[bool] = True
    _loss = "Softmax"
    _loss_of_labels = "Sigmoids"
    takes_several = True


class LinearSvmProbe(LinearProbe):
    """Support vector machine with the squared hinge loss, one class against the rest, on standardised features.

    Parameters and attributes are those of `LogisticProbe`. Unlike scikit-learn's ``LinearSVC``, the intercept is not
    penalised.
    """

    _loss = "SquaredHinge"


class _Together:
    """What heads of several tasks ask to be solved side by side.

    Heads that are told the same of different features are one labelling, whose losses are computed at once.

    Attributes
    ----------
    places : list of int
        Of the labelling of each head.
    groups : list of range
        Of each head among those of its labelling.
    """

    def __init__(
        self,
        heads: Sequence[LinearProbe],
        Xs: Sequence[NDArray[Any]],
        ys: Sequence[NDArray[Any]],
        folds: Sequence[NDArray[np.int64]],
        sample_weight: NDArray[np.float64] | None,
    ) -> None:
        from featurecache.heads.rows import NO_FOLD

        self._family, sets = heads[0]._family(), sets_of(Xs)
        self._labellings: list[Labelling] = []
        self.places: list[int] = []
        self.groups: list[range] = []
        known: dict[Any, int] = {}
        for head, X, y, fold, of_set in zip(heads, Xs, ys, folds, sets, strict=True):
            head.n_features_in_ = X.shape[1]
            left_out = [int(each) for each in np.unique(fold) if each != NO_FOLD] or [NO_FOLD]
            new = replace(head._labelling(head._take_labels(y), fold, left_out), sets=[of_set] * len(left_out))
            weights = new.class_weight
            key = (
                *(new.y.tobytes(), new.y.shape, fold.tobytes(), new.num_classes, type(new.loss)),
                weights.tobytes() if isinstance(weights, np.ndarray) else weights,
            )
            if (place := known.setdefault(key, len(known))) == len(self._labellings):
                self._labellings.append(new)
                start = 0
            else:
                old = self._labellings[place]
                start = len(old.left_out)
                left_out = [*old.left_out, *left_out]
                self._labellings[place] = replace(old, left_out=left_out, sets=[*old.sets, *new.sets])
            self.places.append(place)
            self.groups.append(range(start, len(left_out)))
        # Blocks of one fold each are for tasks that divide the rows alike.
        alike = all(np.array_equal(fold, folds[0]) for fold in folds)
        fold = folds[0] if alike else np.full(len(Xs[0]), NO_FOLD)
        each_set = [Xs[sets.index(number)] for number in range(max(sets) + 1)]
        self._rows = [heads[0]._rows(X, self._labellings[0].y, fold, sample_weight) for X in each_set]

    def of_groups(self, Cs: Sequence[float]) -> NDArray[np.float64]:
        """Return the strength of each group of all labellings, by those of the heads."""
        found = [np.zeros(len(labelling.left_out)) for labelling in self._labellings]
        for C, place, groups in zip(Cs, self.places, self.groups, strict=True):
            found[place][groups] = C
        return np.concatenate(found)

    def solve(self, Cs: Sequence[float | NDArray[np.float64]], *, to_the_end: bool = False) -> Iterator[list[Step]]:
        """Yield for each strength the solutions of all labellings."""
        return self._family.solve(self._rows, self._labellings, Cs, to_the_end=to_the_end)
