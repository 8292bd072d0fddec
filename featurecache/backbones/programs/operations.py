"""What a program may call: the operators in a closed list, and arithmetic on sizes.

A name in a file only chooses from what is here. The list has what networks of images compute with: no operator that
reads or writes files (``aten::from_file``, ``aten::save``), draws random numbers, leaves memory as it finds it, or
takes pointers.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from msgspec import UNSET
from torch import Tensor

from featurecache.backbones.programs.schemas import DTYPES, Argument, Node, ProgramError, SymNumber
from featurecache.errors import shortened

# As they are, or with an underscore behind them for the variant in place.
_NAMES = """
    __and__ __or__ _adaptive_avg_pool2d _adaptive_avg_pool3d _log_softmax _native_batch_norm_legit_no_training
    _scaled_dot_product_flash_attention_for_cpu _softmax _to_copy _unsafe_view _upsample_bicubic2d_aa
    _upsample_bilinear2d_aa abs acos adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
    adaptive_max_pool2d add addbmm addcdiv addcmul addmm alias all amax amin any arange argmax argmin argsort asin atan
    atan2 avg_pool1d avg_pool2d avg_pool3d baddbmm batch_norm bitwise_and bitwise_not bitwise_or bitwise_xor bmm
    broadcast_tensors broadcast_to bucketize cat cdist ceil celu channel_shuffle chunk clamp clamp_max clamp_min clip
    clone col2im concat constant_pad_nd contiguous conv1d conv2d conv3d conv_transpose1d conv_transpose2d
    conv_transpose3d convolution copy copy_ cos cosh cosine_similarity cross cummax cumprod cumsum detach detach_ diag
    diagonal div divide dropout einsum elu embedding eq erf exp exp2 expand expand_as expm1 eye feature_dropout fill
    flatten flip floor floor_divide fmod frobenius_norm full full_like gather ge gelu glu grid_sampler grid_sampler_2d
    group_norm gru gt hardshrink hardsigmoid hardswish hardtanh im2col index index_add index_copy index_fill index_put
    index_select instance_norm isfinite isinf isnan layer_norm le leaky_relu lerp lift_fresh lift_fresh_copy linalg_norm
    linalg_vector_norm linear linspace log log10 log1p log2 log_sigmoid log_softmax logaddexp logical_and logical_not
    logical_or logical_xor logit logsumexp lstm lt masked_fill masked_scatter matmul max max_pool1d max_pool2d
    max_pool2d_with_indices max_pool3d max_pool3d_with_indices maximum mean meshgrid min minimum mish mm movedim mul
    multiply mv nan_to_num narrow native_batch_norm native_group_norm native_layer_norm ne neg new_full new_ones
    new_zeros norm one_hot ones ones_like outer pad permute pixel_shuffle pixel_unshuffle pow prelu prod reciprocal
    reflection_pad1d reflection_pad2d reflection_pad3d relu relu6 remainder renorm repeat repeat_interleave
    replication_pad1d replication_pad2d replication_pad3d reshape reshape_as rms_norm roll rot90 round rsqrt rsub
    scalar_tensor scaled_dot_product_attention scatter scatter_add scatter_reduce select select_scatter selu sigmoid
    sign silu sin sinh slice slice_scatter softmax softplus softshrink sort split split_with_sizes sqrt square
    squeeze stack std std_mean sub sum swapaxes sym_size t take_along_dim tan tanh tensor_split tensordot threshold tile
    to topk transpose tril triu true_divide trunc type_as unbind unflatten unfold unsafe_chunk unsafe_split
    unsafe_split_with_sizes unsqueeze upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d
    upsample_nearest2d var var_mean view view_as where zero zeros zeros_like
"""
_KNOWN = frozenset(_NAMES.split())
_ARITHMETIC: dict[str, Callable[..., Any]] = {
    **{
        f"_operator.{function.__name__}": function
        for function in (
            *(operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.mod),
            *(operator.neg, operator.pos, operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge),
        )
    },
    "math.trunc": math.trunc,
    **{f"torch.{name}": getattr(torch, name) for name in ("sym_float", "sym_int", "sym_max", "sym_min", "sym_not")},
}
# Of what they look at, what a network of images needs was looked at when it was exported.
_CHECKS = {"_assert_scalar", "_assert_tensor_metadata", "sym_constrain_range", "sym_constrain_range_for_size"}
_NUMBERS = {"as_int", "as_float", "as_bool", "as_sym_int", "as_sym_float", "as_sym_bool"}
_TARGET = re.compile(r"torch\.ops\.aten\.([a-z_0-9]+)\.([A-Za-z_0-9]+)")
_MEMORY_FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}
_PRESERVED = 4
_REALS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


@dataclass(frozen=True)
class Value:
    """Something that the graph computes, or is given, by its name."""

    name: str


@dataclass(frozen=True)
class DeviceOf:
    """The device of a tensor: new ones are made where the batch is, not where the program was exported."""

    tensor: Value


@dataclass(frozen=True)
class Call:
    """One call, understood."""

    text: str
    """Names the function in messages and in the digest of the architecture."""
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    """Plain values, with `Value` and `DeviceOf` in them."""
    results: tuple[str | None, ...]
    """Names of what it gives; ``None`` for what nobody uses."""
    is_tuple: bool
    """It gives a sequence, also of one."""
    tensors: frozenset[str]
    """Those of the results that are tensors."""


def understood(node: Node, before: Value) -> Call | None:
    """Turn a node of a graph into a call; ``None`` if it only checks something.

    Parameters
    ----------
    node
        As the file has it.
    before
        A tensor that is there when it is called.

    Raises
    ------
    ProgramError
        It calls what is not known here, or in a way that is not.
    """
    if node.target in _ARITHMETIC:
        if unfit := [given.arg.kind() for given in node.inputs if given.arg.kind() not in _NUMBERS]:
            raise ProgramError(
                f"it calls {node.target} with a value of the kind {unfit[0]}, and numbers are known here"
            )
        args = tuple(_plain(given.arg, before) for given in node.inputs)
        return _call(node, node.target, _ARITHMETIC[node.target], args, {})
    match = _TARGET.fullmatch(node.target)
    name = match[1] if match else ""
    if match and name in _CHECKS:
        return None
    if not match or (name not in _KNOWN and name.removesuffix("_") not in _KNOWN):
        raise ProgramError(f"it calls {shortened(node.target)}, which is not known here as a part of networks")
    found = getattr(getattr(torch.ops.aten, name, None), match[2], None)
    if not isinstance(found, torch._ops.OpOverload) or not _is_of_tensors(name, found._schema):
        raise ProgramError(f"it calls {shortened(node.target)}, which torch {torch.__version__} does not have")
    args, kwargs = _arguments(node, found._schema, before)
    return _call(node, f"aten.{name}.{match[2]}", _substitute(name, found), args, kwargs)


def _is_of_tensors(name: str, schema: Any) -> bool:
    """Tell whether an operator makes tensors; others of the same names are for numbers, text and lists."""
    kinds = [getattr(result.type, "getElementType", lambda result=result: result.type)() for result in schema.returns]
    tensors = bool(kinds) and all(isinstance(kind, torch.TensorType) for kind in kinds)
    return (tensors or name == "sym_size") and not any(argument.is_out for argument in schema.arguments)


def _substitute(name: str, found: Callable[..., Any]) -> Callable[..., Any]:
    if name == "sym_size":
        return _size
    # The same wherever `view` works, and tensors that are laid out in another way are no error.
    return torch.ops.aten.reshape.default if name in ("view", "_unsafe_view") else found


def _size(tensor: Tensor, dim: int) -> int:
    """What ``sym_size`` says, in words that every tracer follows."""
    return tensor.shape[dim]


def _call(node: Node, text: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    outputs = node.outputs
    kinds = [output.kind() for output in outputs]
    if kinds == ["as_tensors"]:
        results: list[str | None] = [tensor.name for tensor in outputs[0].as_tensors]  # type: ignore[union-attr]
        return Call(text, function, args, kwargs, tuple(results), True, frozenset(filter(None, results)))
    results = [_result(output, kind) for output, kind in zip(outputs, kinds, strict=True)]
    tensors = frozenset(name for name, kind in zip(results, kinds, strict=True) if name and kind == "as_tensor")
    return Call(text, function, args, kwargs, tuple(results), len(results) > 1, tensors)


def _result(output: Argument, kind: str) -> str | None:
    value = getattr(output, kind)
    if kind == "as_tensor":
        return value.name  # type: ignore[no-any-return]
    if kind in ("as_sym_int", "as_sym_float", "as_sym_bool") and value.as_name is not UNSET:
        return value.as_name  # type: ignore[no-any-return]
    if kind == "as_none":
        return None
    raise ProgramError(f"a call in it gives a value of the kind {kind}, which is not known here")


def _arguments(node: Node, schema: Any, before: Value) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments in the order of the schema, and those after a gap by their names."""
    given = {argument.name: _plain(argument.arg, before) for argument in node.inputs}
    _check_mode(node.target, given)
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    in_order = True
    for argument in schema.arguments:
        in_order = in_order and not argument.kwarg_only and argument.name in given
        if in_order:
            args.append(given.pop(argument.name))
        elif argument.name in given:
            kwargs[argument.name] = given.pop(argument.name)
        elif not argument.has_default_value():
            raise ProgramError(f"it is damaged: {node.target} is called without {argument.name}")
    if given:
        raise ProgramError(f"it calls {node.target} with {shortened(next(iter(given)))!r}, which it does not take here")
    return tuple(args), kwargs


def _check_mode(target: str, given: Mapping[str, Any]) -> None:
    if given.get("training") is True or given.get("train") is True or given.get("dropout_p", 0.0) != 0.0:
        raise ProgramError(
            f"it was exported in training mode ({target.removeprefix('torch.ops.')}), and its features would depend on "
            "chance or on other images; call .eval() on the network, then export it again"
        )


def _plain(argument: Argument, before: Value) -> Any:
    """Return a plain value, or one with `Value` and `DeviceOf` in it."""
    kind = argument.kind()
    value: Any = getattr(argument, kind)
    match kind:
        case "as_none":
            return None
        case "as_tensor":
            return Value(value.name)
        case "as_tensors":
            return [Value(tensor.name) for tensor in value]
        case "as_optional_tensor":
            return _optional(value)
        case "as_optional_tensors":
            return [_optional(tensor) for tensor in value]
        case "as_float":
            return _real(value)
        case "as_floats":
            return [_real(number) for number in value]
        case "as_sym_int" | "as_sym_float" | "as_sym_bool":
            return _number(value)
        case "as_sym_ints" | "as_sym_floats":
            return [_number(number) for number in value]
        case "as_scalar_type":
            return _known(DTYPES, value, "a type of numbers")
        case "as_memory_format":
            return torch.preserve_format if value == _PRESERVED else _known(_MEMORY_FORMATS, value, "a memory format")
        case "as_layout":
            return _known({7: torch.strided}, value, "a layout")
        case "as_device":
            return DeviceOf(before)
        case "as_int" | "as_ints" | "as_bool" | "as_bools" | "as_string":
            return value
    raise ProgramError(f"a call in it takes a value of the kind {kind}, which is not known here")


def _optional(tensor: Any) -> Value | None:
    return Value(tensor.as_tensor.name) if tensor.kind() == "as_tensor" else None


def _number(number: SymNumber) -> Any:
    kind = number.kind()
    value = getattr(number, kind)
    return Value(value) if kind == "as_name" else _real(value) if kind == "as_float" else value


def _real(value: float | str) -> float:
    return _REALS[value] if isinstance(value, str) else float(value)


def _known(table: Mapping[int, Any], value: int, what: str) -> Any:
    if value not in table:
        raise ProgramError(f"it uses {what} ({value}) that is not known here")
    return table[value]
