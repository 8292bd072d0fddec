"""What logistic regression and the linear support vector machine share: all values of C for the price of a few."""

from __future__ import annotations

import warnings
from abc import abstractmethod
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
    Scaling,
    by_scaling,
    check_prior_rows,
    checked_class_weight,
    checked_grid_values,
    checked_rows,
    checked_weight,
    fold_of_rows,
    is_small,
    prior_rows_of,
    with_weight,
)
from featurecache.heads.classifiers import ClassifierBase
from featurecache.heads.head import ANY_FIT_BYTES, NUM_FOLDS, Fold, Setting, Settings, Weights
from featurecache.heads.solver.classifier import LinearClassifier, absent_classes, drop_classes
from featurecache.wording import counted

if TYPE_CHECKING:
    from featurecache.heads.fold_blocks import FoldBlocks
    from featurecache.heads.solver.objective import LinearProblem, Loss
    from featurecache.heads.solver.path import LinearPath

# Features; above, no axes are computed (see `Preconditioner`).
_MOST_ROTATED = 4096


class LinearProbe(ClassifierBase, LinearClassifier):
    """What the linear heads have in common; use `LogisticProbe` or `LinearSvmProbe`.

    Parameters
    ----------
    C, Cs, cv, standardize, prior_rows, class_weight, tol, max_iter, device, random_state
        See `LogisticProbe`.
    """

    path_params: ClassVar[frozenset[str]] = frozenset({"C", "standardize"})
    streams: ClassVar[bool] = True
    takes_several: ClassVar[bool] = False
    optional_arrays: ClassVar[tuple[str, ...]] = ("n_iter_", "multilabel_")

    def __init__(
        self,
        C: float = 0.01,
        *,
        Cs: Sequence[float] | None = None,
        cv: Folds = 5,
        standardize: Scaling = True,
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
        weight = checked_weight(sample_weight, rows)
        check_prior_rows(self.prior_rows)
        Cs = checked_grid_values(self.C if self.Cs is None else self.Cs, "C")
        fold = np.full(len(labels), -1)
        if self.Cs is not None:
            fold = fold_of_rows(self.cv, labels, groups, self.random_state, classes=labels.ndim == 1)
        weight, rows, labels, fold = with_weight(weight, rows, labels, fold)
        path, data, problem = self._prepare(rows, labels, fold, weight)
        start, converged = None, True
        if (fold >= 0).any():
            from featurecache.heads.solver.path_search import search_path

            found = search_path(path, data, problem, Cs)
            Cs, self.scores_, converged = [found.best.C], np.array(found.accuracy), found.converged
            start, problem = found.best.theta_GKE.mean(0, keepdim=True), replace(problem, left_out=[-1])
        solutions = next(path.solve(data, problem, Cs[:1], start=start, precise=True))
        if not (converged and solutions.converged[0]):
            warnings.warn(
                f"{type(self).__name__} did not converge within {counted(self.max_iter, 'pass')} over the rows; "
                "use a smaller C, "
                "or a larger max_iter",
                ConvergenceWarning,
                stacklevel=2,
            )
        self.C_, self.n_iter_ = float(solutions.C), int(solutions.num_iterations[0])
        return self._fitted(solutions.weights_GKD[0].cpu().numpy(), solutions.intercept_GK[0].cpu().numpy())

    def fit_path(
        self, X: NDArray[Any], y: NDArray[Any], fold: Fold, settings: Settings, sample_weight: Weights = None
    ) -> Iterator[tuple[Setting, list[Self]]]:
        """Fit all values of C and all folds side by side; see `FitsPath`.

        Parameters
        ----------
        X, y, fold, sample_weight
            As for `FitsPath.fit_path`. The rows outside each fold must be of three classes at least, or of all; a head
            knows those that it was fitted on.
        settings : sequence of mapping
            Values of ``C`` in increasing order, as from strong to weak regularisation each step is short, for one value
            of ``standardize`` after the other.

        Yields
        ------
        (setting, heads)
        """
        absent = absent_classes(y, fold)
        for shared, some in by_scaling(self, settings):
            one = copy(self).set_params(**shared)
            one.n_features_in_ = X.shape[1]
            path, data, problem = one._prepare(X, y, fold, sample_weight)
            Cs = [setting.get("C", self.C) for setting in some]
            for setting, solutions in zip(some, path.solve(data, problem, Cs), strict=True):
                # Hundreds: scikit-learn's clone would take longer than the fits.
                heads = [copy(one) for _ in problem.left_out]
                weights_GKD, intercept_GK = solutions.weights_GKD.cpu().numpy(), solutions.intercept_GK.cpu().numpy()
                for group, head in enumerate(heads):
                    head.C, head.C_ = solutions.C, float(solutions.C)
                    head.n_iter_ = int(solutions.num_iterations[group])
                    head._fitted(weights_GKD[group], intercept_GK[group])
                drop_classes(heads, absent)
                yield dict(setting), heads

    @classmethod
    def memory_needed(cls, n_samples: int, n_features: int, n_outputs: int) -> int:
        """Return bytes for n_samples rows, n_features and n_outputs; see `HeadMixin.memory_needed`."""
        small = is_small(n_samples, n_features)
        few = small and 2 * n_samples <= n_features
        # Vectors of the solver, of every fold and output, and at least eight pairs of them that it remembers.
        vectors = NUM_FOLDS * n_outputs * n_features * 8
        axes = 3 * 8 * n_features**2 if n_features <= _MOST_ROTATED else 0
        rows = 4 * n_samples * n_features * (3 if small else 2)
        spaces = 2 * NUM_FOLDS * 8 * n_samples * n_features if few else axes
        return ANY_FIT_BYTES + rows + spaces + 12 * vectors + min(16 * vectors, 128 << 20)

    @abstractmethod
    def _loss(self) -> Loss:
        """Return what is minimised."""

    def _prepare(
        self, X: Any, labels: NDArray[Any], fold: NDArray[np.int64], weight: NDArray[np.float64] | None
    ) -> tuple[LinearPath, FoldBlocks, LinearProblem]:
        """Take the classes; return how to solve, on which rows, and what, once without each fold or once for all."""
        # torch is loaded by those who fit, not by those who list heads.
        import torch

        from featurecache.heads.fold_blocks import FoldBlocks
        from featurecache.heads.solver.objective import LinearProblem
        from featurecache.heads.solver.path import LinearPath

        y = self._take_labels(labels)
        data = FoldBlocks(
            X,
            y,
            fold,
            weight,
            dtype=torch.float64 if X.dtype == np.float64 or is_small(*X.shape) else torch.float32,
            device=self.device,
            num_classes=len(self.classes_),
            prior_rows=prior_rows_of(self.standardize, self.prior_rows),
        )
        left_out = [number for number in data.folds if number >= 0] or [-1]
        problem = LinearProblem(self._loss(), left_out, checked_class_weight(self.class_weight, self.classes_))
        path = LinearPath(standardize=bool(self.standardize), tol=self.tol, max_iter=self.max_iter)
        return path, data, problem
