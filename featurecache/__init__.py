"""featurecache: run a frozen pretrained network over your images once, keep the features, learn from them for ever.

The public names are loaded when they are first used, so that ``import featurecache`` is quick.
"""

from __future__ import annotations

import sys
from types import ModuleType

TYPE_CHECKING = False  # as in `typing`, which takes longer to import than all of this
if TYPE_CHECKING:
    from typing import Any

    from featurecache.advice.advise import advise as advise
    from featurecache.advice.finding import Finding as Finding
    from featurecache.backbones.providers.module_in_memory import name_module as name_module
    from featurecache.backbones.registry import list_backbones as list_backbones
    from featurecache.backbones.registry import load_backbone as load_backbone
    from featurecache.deployment.image_heads import load_head as load_head
    from featurecache.deployment.predict import predict as predict
    from featurecache.deployment.transformer import FrozenBackbone as FrozenBackbone
    from featurecache.errors import FeatureCacheError as FeatureCacheError
    from featurecache.evaluation.scores import evaluate as evaluate
    from featurecache.evaluation.training import train_heads as train_heads
    from featurecache.extraction.extract import extract as extract
    from featurecache.extraction.source_scan import scan as scan
    from featurecache.heads.fitting import fit_head as fit_head
    from featurecache.heads.registry import list_heads as list_heads
    from featurecache.heads.registry import make_head as make_head
    from featurecache.interop.dataset_labels import labels_from_dataset as labels_from_dataset
    from featurecache.progress import set_verbosity as set_verbosity
    from featurecache.run import run as run
    from featurecache.run_report import RunReport as RunReport
    from featurecache.specs import BackboneRequest as BackboneRequest
    from featurecache.specs import ExtractionSettings as ExtractionSettings
    from featurecache.specs import PreprocessSpec as PreprocessSpec
    from featurecache.specs import ViewSpec as ViewSpec
    from featurecache.store.label_tables import labels_from_csv as labels_from_csv
    from featurecache.store.label_tables import labels_from_frame as labels_from_frame
    from featurecache.store.label_tables import labels_from_mapping as labels_from_mapping
    from featurecache.store.labels import labels_from_folders as labels_from_folders
    from featurecache.store.store import FeatureStore as FeatureStore
    from featurecache.train import TrainingSettings as TrainingSettings

__version__ = "0.1.0"

_HOMES = {
    name: module
    for module, names in {
        "advice.advise": "advise",
        "advice.finding": "Finding",
        "backbones.providers.module_in_memory": "name_module",
        "backbones.registry": "list_backbones load_backbone",
        "deployment.image_heads": "load_head",
        "deployment.predict": "predict",
        "deployment.transformer": "FrozenBackbone",
        "errors": "FeatureCacheError",
        "evaluation.scores": "evaluate",
        "evaluation.training": "train_heads",
        "extraction.extract": "extract",
        "extraction.source_scan": "scan",
        "heads.fitting": "fit_head",
        "heads.registry": "list_heads make_head",
        "interop.dataset_labels": "labels_from_dataset",
        "progress": "set_verbosity",
        "run": "run",
        "run_report": "RunReport",
        "specs": "BackboneRequest ExtractionSettings PreprocessSpec ViewSpec",
        "store.label_tables": "labels_from_csv labels_from_frame labels_from_mapping",
        "store.labels": "labels_from_folders",
        "store.store": "FeatureStore",
        "train": "TrainingSettings",
    }.items()
    for name in names.split()
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'featurecache' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"featurecache.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


class _Package(ModuleType):
    """Keeps ``featurecache.run`` the function: importing a module sets its name on the package to the module."""

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value.run if name == "run" and isinstance(value, ModuleType) else value)


sys.modules[__name__].__class__ = _Package
