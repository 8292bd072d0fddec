"""``logistic``: logistic regression, of classes or of several labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from featurecache.heads.head import Setting, powers_of_ten
from featurecache.heads.preparation import PRIOR_ROWS
from featurecache.heads.solver.classifier import ProbabilisticClassifier
from featurecache.heads.solver.linear import LinearProbe
from featurecache.specs import TaskKind

if TYPE_CHECKING:
    from featurecache.heads.solver.objective import Loss


class LogisticProbe(ProbabilisticClassifier, LinearProbe):
    """Multinomial logistic regression with an L2 penalty, on standardised features.

    The same objective as ``make_pipeline(StandardScaler(), LogisticRegression(C=C))``, with all values of ``Cs``
    and all folds fitted side by side. Where rows may have several labels, it is one binary regression for each.

    Parameters
    ----------
    C : float
        Weight of the data against the penalty, as in scikit-learn. Not used when ``Cs`` is given.
    Cs : sequence of float, optional
        Values of C to choose from by cross-validated accuracy; of equals the smallest. Features are standardised by the
        rows of each fold alone.
    cv : int, splitter or iterable of (train, test)
        How rows are held out when ``Cs`` is given; a number makes stratified folds, which keep groups together.
    standardize : bool or "jointly"
        False: features are taken as they are. Jointly: all are divided by one number, the root of the mean of their
        variances, so that those that vary most keep most weight, as in scikit-learn's ``LogisticRegression`` on raw
        features, but with a C that does not depend on their units.
    prior_rows : float
        Of the variances by which features are standardised: each is drawn to the mean of all, as by so many more rows
        that have it. With few rows a feature's own variance is mostly chance.
    class_weight : None, "balanced" or mapping of class to weight
        Balanced: all classes have the same total weight.
    tol : float
        Relative error of the objective at which a fit ends, as far as it can be told; small problems are solved to the
        last digits.
    max_iter : int
        Most passes over the rows for one C: evaluations of the objective, and products with its second derivatives.
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
    scores_ : ndarray (n_values,)
        Cross-validated accuracy of each of ``Cs``.
    n_iter_ : int
    """

    kinds: ClassVar[frozenset[TaskKind]] = frozenset({"classification", "multilabel"})
    linear_probe_of: ClassVar[frozenset[TaskKind]] = kinds
    # Standardised features have a scale of one each, so a thousand of them want far less than scikit-learn's default C.
    regularization: ClassVar[str | None] = "C"
    grid: ClassVar[dict[str, list[Any]]] = {"standardize": [True, "jointly"], "C": powers_of_ten(-6, 1, per_decade=2)}
    defaults: ClassVar[Setting] = {"C": 0.01, "prior_rows": PRIOR_ROWS}
    calibrated_by_grid: ClassVar[bool] = True
    relative_seconds: ClassVar[float] = 10.0
    earlier_names: ClassVar[tuple[str, ...]] = ("LogisticRegression",)
    takes_unknown: ClassVar[bool] = True
    takes_several: ClassVar[bool] = True

    def _loss(self) -> Loss:
        from featurecache.heads.solver.objective import Sigmoids, Softmax

        return Sigmoids() if self.multilabel_ else Softmax()
