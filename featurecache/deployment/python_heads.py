"""Somebody's own estimator as a head: ``python:MODULE:FACTORY``."""

from __future__ import annotations

from sklearn.base import BaseEstimator

from featurecache.backbones.providers.python_factory import PREFIX, import_factory
from featurecache.errors import HeadError, first_line
from featurecache.heads.head import NamedHead


def python_head(name: str) -> NamedHead:
    """Run somebody's factory and return what it makes as a head of that name.

    The factory takes no arguments and returns an unfitted scikit-learn classifier or regressor; its attribute ``grid``,
    parameters with the values to search, may be absent.

    Raises
    ------
    BackboneError
        The factory cannot be imported.
    HeadError
        It fails, or returns anything else.
    """
    factory = import_factory(name, name.removeprefix(PREFIX))
    try:
        estimator = factory()
    # Somebody's own code may fail in any way.
    except Exception as error:
        raise HeadError(
            f"{name} failed: {first_line(error)}; it is called without arguments and returns a scikit-learn estimator "
            "(layers of a network are trained with --from-tap or --from-images)"
        ) from error
    if not isinstance(estimator, BaseEstimator) or not hasattr(estimator, "fit") or not hasattr(estimator, "predict"):
        raise HeadError(
            f"{name} returned a {type(estimator).__name__}; it must return an unfitted scikit-learn classifier or "
            "regressor (layers of a network are trained with --from-tap or --from-images)"
        )
    return NamedHead(name, estimator)
