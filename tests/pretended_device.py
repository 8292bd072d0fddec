"""A device that there is not: ``pretend``. Its tensors lie on the CPU, and refuse to meet tensors that are not its own.

Imported, it is registered for the whole process, so use it in a process of its own. It is torch's experimental backend
in Python (`_setup_privateuseone_for_python_backend`), with one fallback for all operations.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
counts: dict[str, int] = {"copies": 0, "operations": 0}


class PretendedTensor(torch.Tensor):
    """A tensor of the device, and the one of the CPU that it stands for."""

    data_on_cpu: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]


def to_device(tensor: Any) -> Any:
    if not isinstance(tensor, torch.Tensor) or isinstance(tensor, PretendedTensor):
        return tensor
    with torch.inference_mode(False):  # else it could be no view of a weight, which is none of that mode
        made = torch._C._acc.create_empty_tensor(tensor.shape, tensor.dtype)
    made.__class__ = PretendedTensor
    made.data_on_cpu = tensor
    return made


def to_cpu(value: Any) -> Any:
    if isinstance(value, PretendedTensor):
        return value.data_on_cpu
    return torch.device("cpu") if isinstance(value, torch.device) else value


def fallback(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Compute on the CPU what is asked of the device."""
    tensors = [leaf for leaf in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    own = [tensor for tensor in tensors if isinstance(tensor, PretendedTensor)]
    if op is torch.ops.aten._copy_from.default:  # the only one that knows both devices
        counts["copies"] += 1
        to_cpu(args[1]).copy_(to_cpu(args[0]))
        return args[1]
    if op is torch.ops.aten.as_strided.default:  # by the strides of a tensor that is alone in its memory
        base = to_cpu(args[0]).contiguous()
        return to_device(base.as_strided(*args[1:3], base.storage_offset() + (args[3:] or (0,))[0]))
    # As CUDA does; numbers alone may come from the CPU.
    if any(tensor.ndim for tensor in tensors if tensor not in set(own)):
        raise RuntimeError(f"{op}: tensors of {NAME} and of the CPU meet")
    counts["operations"] += 1
    found = op(*tree_map(to_cpu, args), **tree_map(to_cpu, kwargs))
    known = {id(tensor.data_on_cpu): tensor for tensor in own}  # what was changed in place
    return tree_map(lambda value: known.get(id(value), to_device(value)), found)


_setup_privateuseone_for_python_backend(NAME)
_library = torch.library.Library("_", "IMPL")
_library.fallback(fallback, "PrivateUse1")
# These have a kernel for all devices, which know nothing of the tensor behind.
_kernels = torch.library.Library("aten", "IMPL")
_kernels.impl("convolution_overrideable", partial(fallback, torch.ops.aten.convolution.default), "PrivateUse1")
_kernels.impl("detach", lambda tensor: to_device(tensor.data_on_cpu.detach()), "PrivateUse1")
