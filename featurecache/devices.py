"""GPUs, as far as backbones and heads both ask about them: which model, and how exactly they compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def device_kind(device: str) -> tuple[str, str]:
    """Return the type of a device, and the model of a CUDA GPU, else an empty text.

    Two GPUs of one model compute the same, whatever their numbers: ``cuda:0`` and ``cuda:1`` are one kind.

    Parameters
    ----------
    device : str
        ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
    """
    kind = device.partition(":")[0]
    if kind != "cuda":
        return kind, ""
    import torch

    return kind, torch.cuda.get_device_name(device)


@contextmanager
def exact_float32(device: str) -> Iterator[None]:
    """Keep CUDA GPUs from rounding to ten bits (TF32) what is called float32; nothing is done for other devices.

    Parameters
    ----------
    device : str
        Where the block computes.
    """
    if device.partition(":")[0] != "cuda":
        yield
        return
    import torch

    cudnn: Any = torch.backends.cudnn  # its types know the older switches alone
    # The switches of torch 2.9 alone: to read the older ones raises where a program has set both kinds.
    switches = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)
    # Put back afterwards: the process may train something else with it.
    before = [switch.fp32_precision for switch in switches]
    flags = cudnn.enabled, cudnn.benchmark, cudnn.deterministic
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        cudnn.enabled, cudnn.benchmark, cudnn.deterministic = True, False, True
        yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision
        cudnn.enabled, cudnn.benchmark, cudnn.deterministic = flags
