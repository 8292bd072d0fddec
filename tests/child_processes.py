"""Processes that a test has started."""

from __future__ import annotations

import multiprocessing


def active_children() -> list[multiprocessing.Process]:
    """Those of this process, but for the workers that joblib keeps for the next fit, perhaps of an earlier test."""
    return [child for child in multiprocessing.active_children() if not type(child).__name__.startswith("Loky")]
