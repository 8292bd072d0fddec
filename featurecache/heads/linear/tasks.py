"""What linear heads have in common that are fitted for several tasks at once, on the same rows of some features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone


class FitsTasks:
    """A head whose folds, settings and tasks are fitted side by side."""

    streams: ClassVar[bool] = True
    side_by_side: ClassVar[frozenset[str]]
    """Parameters in which settings may differ that are fitted side by side."""

    def fit_folds(
        self,
        X: NDArray[Any],
        y: NDArray[Any],
        fold: NDArray[np.int64],
        settings: Sequence[Mapping[str, Any]],
        sample_weight: NDArray[np.float64] | None = None,
    ) -> Iterator[tuple[dict[str, Any], list[Self]]]:
        """Fit all settings and all folds side by side.

        Parameters
        ----------
        X, y
            As for ``fit``; arrays.
        fold : ndarray of int (n_samples,)
            -1 for rows that are never held out. The rows outside each fold must be of three classes at least, or of
            all; an estimator knows those that it was fitted on.
        settings : sequence of mapping
            Each the strength alone; from strong to weak regularisation each step is short.
        sample_weight : ndarray (n_samples,), optional
            Above 0.

        Yields
        ------
        (setting, estimators)
            One fitted estimator for each fold, which was not fitted on it; a single one, fitted on all rows, where no
            row is held out.
        """
        for setting, (fitted,) in self.fit_folds_of_tasks([clone(self)], [X], [y], [fold], settings, sample_weight):
            yield setting, fitted

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
        """Fit all settings, all folds and all tasks side by side.

        Parameters
        ----------
        heads : sequence
            One for each task, unfitted, in one of `batches`; they may differ in how they weigh classes only. They get
            to know the classes, and what is yielded are copies of them.
        Xs, ys, folds : sequence of ndarray
            For each task the rows, what it says of them and how it divides them. Tasks have equally many rows, which
            weigh alike; on the same features they have the same array, or views of the same memory.
        settings, sample_weight
            As for `fit_folds`.

        Yields
        ------
        (setting, estimators)
            For each task what `fit_folds` gives, but for rounding and within the tolerance.
        """
        raise NotImplementedError

    @classmethod
    def fit_tasks(
        cls,
        heads: Sequence[Self],
        Xs: Sequence[NDArray[Any]],
        ys: Sequence[NDArray[Any]],
        sample_weight: NDArray[np.float64] | None = None,
    ) -> list[bool]:
        """Fit heads of several tasks in place, each with a strength of its own.

        Parameters
        ----------
        heads, Xs, ys
            As for `fit_folds_of_tasks`.
        sample_weight
            As for `fit_folds`.

        Returns
        -------
        list of bool
            Whether each converged.
        """
        raise NotImplementedError

    @staticmethod
    def batches(
        Xs: Sequence[NDArray[Any]], ys: Sequence[NDArray[Any]], folds: Sequence[NDArray[np.int64]]
    ) -> list[list[int]]:
        """Return the places of tasks that are fitted together, of those whose rows weigh alike."""
        raise NotImplementedError
