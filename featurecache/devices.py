"""GPUs, as far as backbones and heads both ask about them: which model, how much memory, how exactly they compute."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

_log = logging.getLogger(__name__)


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


def free_device_memory(device: str) -> int | None:
    """Return how many bytes of a CUDA GPU's memory this process may still take; None for other devices.

    Parameters
    ----------
    device : str
        ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
    """
    if device.partition(":")[0] != "cuda":
        return None
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    # What torch has taken from the device and lends to no tensor just now is as good as free.
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def copied_to(tensor: Tensor, device: str) -> Tensor:
    """Return a tensor of the CPU on a device.

    Parameters
    ----------
    tensor : Tensor
    device : str
        To a CUDA GPU it is copied while other things are computed, for which it has to be in pinned memory.
    """
    if device.partition(":")[0] != "cuda":
        return tensor.to(device)
    # torch itself keeps pinned memory from reuse until the copy is done.
    return tensor.pin_memory().to(device, non_blocking=True)


def host_array(shape: tuple[int, ...], dtype: np.dtype[Any], device: str) -> NDArray[Any]:
    """Return memory of the CPU, not zeroed, that is filled again and again for a device to copy from.

    Parameters
    ----------
    shape : tuple of int
    dtype : dtype
    device : str
        For a CUDA GPU it is pinned: from other memory it would be copied to such first.
    """
    if device.partition(":")[0] == "cuda":
        import torch

        try:
            return torch.empty(shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype, pin_memory=True).numpy()
        except RuntimeError as error:  # the system grants no more of it
            _log.info("memory is not pinned (%s)", error)
    return np.empty(shape, dtype)


@contextmanager
def pinned(array: NDArray[Any], device: str) -> Iterator[None]:
    """Pin memory that is there already, because processes share it; left alone where there is no CUDA GPU, or it fails.

    Parameters
    ----------
    array : ndarray
        Must stay for as long as the block runs.
    device : str
        Where it is copied to.
    """
    if device.partition(":")[0] != "cuda":
        yield
        return
    import torch

    cuda: Any = torch.cuda.cudart()
    if failed := int(cuda.cudaHostRegister(array.ctypes.data, array.nbytes, 0)):
        _log.info("shared memory is not pinned (CUDA error %d); it is copied once more", failed)
        # The next operation would report it as its own.
        with suppress(RuntimeError):
            torch.zeros(1, device=device)
        yield
        return
    try:
        yield
    finally:
        torch.cuda.synchronize(device)  # a copy may still read it
        cuda.cudaHostUnregister(array.ctypes.data)


def has_tf32(device: str) -> bool:
    """Tell whether a device is a CUDA GPU that multiplies in TF32: those of compute capability 8.0 and later."""
    if device.partition(":")[0] != "cuda":
        return False
    import torch

    return torch.cuda.get_device_capability(device) >= (8, 0)


def exact_float32(device: str) -> AbstractContextManager[None]:
    """Keep a CUDA GPU from rounding to ten bits (TF32) what is called float32; see `float32_as`.

    Parameters
    ----------
    device : str
        Where the block computes.
    """
    return float32_as("ieee", device)


@contextmanager
def float32_as(precision: Literal["ieee", "tf32"], device: str) -> Iterator[None]:
    """Let a CUDA GPU multiply float32 numbers exactly, or rounded to ten bits; nothing is done for other devices.

    Parameters
    ----------
    precision : str
        As torch's switches call it.
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
            switch.fp32_precision = precision
        cudnn.enabled, cudnn.benchmark, cudnn.deterministic = True, False, True
        yield
    finally:
        for switch, earlier in zip(switches, before, strict=True):
            switch.fp32_precision = earlier
        cudnn.enabled, cudnn.benchmark, cudnn.deterministic = flags
