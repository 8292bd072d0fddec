"""Asking a model hub without waiting: its clients retry for a minute where nothing answers."""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

from featurecache.errors import DownloadNeededError

# A hub that answers does so well within this; its own clients go on trying for a minute.
_TIMEOUT_S = 5.0
_allowed: ContextVar[bool] = ContextVar("network_allowed", default=True)


@contextmanager
def no_network() -> Iterator[None]:
    """Take weights from this machine alone: what a record names is no reason to ask a network."""
    token = _allowed.set(False)
    try:
        yield
    finally:
        _allowed.reset(token)


def check_network_allowed(backbone: str) -> None:
    """Raise `DownloadNeededError` within `no_network`."""
    if not _allowed.get():
        raise DownloadNeededError(f"the weights of {backbone} are not on this machine")


@contextmanager
def quick_hub() -> Iterator[None]:
    """Work from the hub's local cache where the hub cannot be reached."""
    constants: Any = importlib.import_module("huggingface_hub.constants")
    before = constants.HF_HUB_OFFLINE
    # Asked once here, instead of by every file that a model consists of.
    if not before and not (_allowed.get() and _reachable(constants.ENDPOINT)):
        constants.HF_HUB_OFFLINE = True
    try:
        with socket_timeout(_TIMEOUT_S):
            yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def socket_timeout(seconds: float) -> Iterator[None]:
    """Limit how long sockets wait that are opened without a limit of their own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _reachable(endpoint: str) -> bool:
    # Behind a proxy a direct connection says nothing.
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    url = urlsplit(endpoint)
    with suppress(OSError), socket.create_connection((url.hostname, url.port or 443), timeout=_TIMEOUT_S):
        return True
    return False
