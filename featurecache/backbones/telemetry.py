"""OpenVINO without the usage statistics that it sends over the network when it is imported and when it converts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Import or use OpenVINO without reports to its authors, which nobody here agreed to; CI jobs don't send any."""
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = before
