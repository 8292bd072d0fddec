"""``linear_svm``: a linear support vector machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from featurecache.heads.head import Setting, powers_of_ten
from featurecache.heads.preparation import PRIOR_ROWS
from featurecache.heads.solver.linear import LinearProbe
from featurecache.specs import TaskKind

if TYPE_CHECKING:
    from featurecache.heads.solver.objective import Loss


class LinearSvmProbe(LinearProbe):
    """Support vector machine with the squared hinge loss, one class against the rest, on standardised features.

    Parameters and attributes are those of `LogisticProbe`. Unlike scikit-learn's ``LinearSVC``, the intercept is not
    penalised.
    """

    kinds: ClassVar[frozenset[TaskKind]] = frozenset({"classification"})
    # The hinge has a greater curvature than the softmax: the best C lies about a hundred times lower.
    regularization: ClassVar[str | None] = "C"
    grid: ClassVar[dict[str, list[Any]]] = {"standardize": [True, "jointly"], "C": powers_of_ten(-8, -1, per_decade=2)}
    defaults: ClassVar[Setting] = {"C": 0.001, "prior_rows": PRIOR_ROWS}
    earlier_names: ClassVar[tuple[str, ...]] = ("LinearSVC",)
    relative_seconds: ClassVar[float] = 12.0

    def _loss(self) -> Loss:
        from featurecache.heads.solver.objective import SquaredHinge

        return SquaredHinge()
