"""OpenVINO without the usage statistics that it sends over the network when it is imported and when it converts."""

from __future__ import annotations

from contextlib import AbstractContextManager

from featurecache.machine import variables_set


def without_telemetry() -> AbstractContextManager[None]:
    """Import or use OpenVINO without reports to its authors, which nobody here agreed to; CI jobs don't send any."""
    return variables_set({"CI": "true"})
