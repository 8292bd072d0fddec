"""The notice that code which others wrote runs here, because somebody typed its name."""

from __future__ import annotations

import logging
from functools import cache

LOGGER = "featurecache.code_notice"
"""Its warnings go to stderr; ``--quiet`` turns them off."""


@cache
def notice_code_of_others(name: str, what: str) -> None:
    """Say once per process that a name runs code, as in "python:nets:tiny imports nets and runs its code"."""
    logging.getLogger(LOGGER).warning("%s %s", name, what)
