"""The one module that imports torchvision, because that import fails on a very common installation.

A CPU-only torch with the torchvision wheel that was built for CUDA cannot load torchvision's compiled operators,
and then ``import torchvision`` stops with "operator torchvision::nms does not exist". Models and transforms need
none of those operators: declaring the two that are looked up at import time is enough. timm imports torchvision
too, so its provider comes through here first.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Literal, TypeVar

from featurecache.errors import BackboneError, MissingExtraError

T = TypeVar("T")
_MISSING_OPERATOR = "torchvision::nms"
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

# The declarations live only as long as this object.
_library: Any = None


def import_torchvision() -> ModuleType:
    """Import torchvision, with or without its compiled operators.

    Returns
    -------
    module
        ``torchvision``; its submodule ``models`` is imported too.
    """
    try:
        importlib.import_module("torchvision.models")
    except RuntimeError as error:
        if _MISSING_OPERATOR not in str(error):
            raise
        _declare_operators()
        # Dropped, because a retry would build on the halves that the failed import left behind.
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        importlib.import_module("torchvision.models")
    except ImportError as error:
        raise BackboneError(f"torchvision cannot be imported ({error}); install the release that fits torch") from error
    return sys.modules["torchvision"]


def import_dependent(package: str, extra: str) -> Any:
    """Import a package that imports torchvision, or name the extra that brings it."""
    if find_spec(package) is None:
        raise MissingExtraError(package, extra)
    import_torchvision()
    return importlib.import_module(package)


def retry_with_torchvision(call: Callable[[], T]) -> T:
    """Call somebody's code, and once more where it imports a torchvision whose operators cannot be loaded here.

    Importing torchvision beforehand would cost every network a second, and most need none of it.
    """
    try:
        return call()
    except RuntimeError as error:
        if _MISSING_OPERATOR not in str(error):
            raise
    import_torchvision()
    return call()


def torchvision_state() -> Literal["ok", "without compiled operators", "missing"]:
    """Say how much of torchvision works here."""
    if find_spec("torchvision") is None:
        return "missing"
    import_torchvision()
    # A private function, but the only one that tells whether compiled operators were loaded.
    extension = importlib.import_module("torchvision.extension")
    return "ok" if extension._has_ops() else "without compiled operators"


def _declare_operators() -> None:
    global _library
    if _library is not None:
        return
    import torch

    _library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        _library.define(schema)
