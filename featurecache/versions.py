"""Versions of the libraries that results may depend on."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from functools import cache

RECORDED_PACKAGES = (
    *("featurecache", "torch", "torchvision", "timm", "transformers", "tokenizers", "openvino"),
    *("numpy", "pillow", "h5py", "scikit-learn"),
)
"""Packages whose versions are recorded with results."""


# Metadata are files in hundreds of folders; every record asks for a dozen of them.
@cache
def installed_version(package: str) -> str | None:
    """Return the version of an installed package, ``None`` where it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def installed_versions(packages: Iterable[str] = RECORDED_PACKAGES) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {package: installed_version(package) for package in packages}
    return {package: version for package, version in found.items() if version is not None}
