"""The JSON of a file of ``torch.export.save``, as far as it is known here: msgspec refuses whatever does not fit."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

Text = Annotated[str, Meta(max_length=1 << 20)]
Number = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Count = Annotated[int, Meta(ge=0, le=1 << 48)]
Real = float | Literal["Infinity", "-Infinity", "NaN"]

DTYPES = dict(
    enumerate([torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32], 1)
)
DTYPES |= {8: torch.float64, 12: torch.bool, 13: torch.bfloat16}
"""Types by their numbers in a file. Complex, quantised and 8-bit ones are not known here."""


class ProgramError(Exception):
    """A program that is not read here; says why, of ``it``."""


class Named(Struct, forbid_unknown_fields=True):
    """A tensor by its name in the graph."""

    name: Text


class Either(Struct, forbid_unknown_fields=True):
    """One of several kinds of values: just one field is there."""

    def kind(self) -> str:
        """Return the name of the field that is there."""
        there = [name for name in self.__struct_fields__ if getattr(self, name) is not UNSET]
        if len(there) != 1:
            raise ProgramError(f"it is damaged: a value is {' and '.join(there) or 'of no kind'}")
        return there[0]


class SymNumber(Either):
    """A number, or the name of one that the graph computes."""

    as_name: Text | UnsetType = UNSET
    as_int: Number | UnsetType = UNSET
    as_float: Real | UnsetType = UNSET
    as_bool: bool | UnsetType = UNSET


class OptionalTensor(Either):
    """A tensor or nothing."""

    as_tensor: Named | UnsetType = UNSET
    as_none: bool | UnsetType = UNSET


class Argument(Either):
    """What a call takes or gives."""

    as_none: bool | UnsetType = UNSET
    as_tensor: Named | UnsetType = UNSET
    as_tensors: list[Named] | UnsetType = UNSET
    as_optional_tensor: OptionalTensor | UnsetType = UNSET
    as_optional_tensors: list[OptionalTensor] | UnsetType = UNSET
    as_int: Number | UnsetType = UNSET
    as_ints: list[Number] | UnsetType = UNSET
    as_float: Real | UnsetType = UNSET
    as_floats: list[Real] | UnsetType = UNSET
    as_bool: bool | UnsetType = UNSET
    as_bools: list[bool] | UnsetType = UNSET
    as_string: Text | UnsetType = UNSET
    as_sym_int: SymNumber | UnsetType = UNSET
    as_sym_ints: list[SymNumber] | UnsetType = UNSET
    as_sym_float: SymNumber | UnsetType = UNSET
    as_sym_floats: list[SymNumber] | UnsetType = UNSET
    as_sym_bool: SymNumber | UnsetType = UNSET
    as_scalar_type: Count | UnsetType = UNSET
    as_memory_format: Count | UnsetType = UNSET
    as_layout: Count | UnsetType = UNSET
    as_device: Raw | UnsetType = UNSET
    # Kinds that are not known here, so that they are refused by their names.
    as_strings: Raw | UnsetType = UNSET
    as_sym_bools: Raw | UnsetType = UNSET
    as_complex: Raw | UnsetType = UNSET
    as_graph: Raw | UnsetType = UNSET
    as_custom_obj: Raw | UnsetType = UNSET
    as_operator: Raw | UnsetType = UNSET
    as_nested_tensors: Raw | UnsetType = UNSET
    as_int_lists: Raw | UnsetType = UNSET
    as_float_lists: Raw | UnsetType = UNSET
    as_string_to_argument: Raw | UnsetType = UNSET


class NamedArgument(Struct, forbid_unknown_fields=True):
    """What a call takes, by the name in the operator's schema."""

    name: Text
    arg: Argument
    kind: Count | None = None


class Origin(Struct):
    """Where in the original network a call was made; the rest of what torch notes there is not looked at."""

    nn_module_stack: Text = ""


class Node(Struct, forbid_unknown_fields=True):
    """A call."""

    target: Text
    inputs: list[NamedArgument]
    outputs: list[Argument]
    metadata: Origin
    is_hop_single_tensor_return: bool | None = None
    name: Text | None = None


class Hint(Struct):
    """What a size was when the network was exported."""

    as_int: Count | UnsetType = UNSET


class Expression(Struct):
    """A size that depends on the input. How it does is for the graph to compute, and not looked at."""

    hint: Hint | None = None


class Size(Either):
    """A fixed size, or one that depends on the input."""

    as_expr: Expression | UnsetType = UNSET
    as_int: Count | UnsetType = UNSET


class TensorMeta(Struct):
    """Form of a tensor. The device is not looked at: bytes are bytes."""

    dtype: Count
    sizes: list[Size]
    strides: list[Size]
    storage_offset: Size
    layout: Count = 7


class Graph(Struct):
    """Calls in their order."""

    inputs: list[Argument]
    outputs: list[Argument]
    nodes: list[Node]
    tensor_values: dict[Text, TensorMeta]


class UserInput(Struct):
    """What a caller passes, or gets."""

    arg: Argument


class ParameterInput(Struct):
    """A parameter by its path."""

    arg: Named
    parameter_name: Text


class BufferInput(Struct):
    """A buffer by its path."""

    arg: Named
    buffer_name: Text
    persistent: bool


class ConstantInput(Struct):
    """A tensor that the code made, by a path of its own."""

    arg: Named
    tensor_constant_name: Text


class InputSpec(Either):
    """Where an input of the graph comes from."""

    user_input: UserInput | UnsetType = UNSET
    parameter: ParameterInput | UnsetType = UNSET
    buffer: BufferInput | UnsetType = UNSET
    tensor_constant: ConstantInput | UnsetType = UNSET
    constant_input: Raw | UnsetType = UNSET
    custom_obj: Raw | UnsetType = UNSET
    token: Raw | UnsetType = UNSET


class OutputSpec(Either):
    """Where an output of the graph goes to."""

    user_output: UserInput | UnsetType = UNSET
    loss_output: Raw | UnsetType = UNSET
    buffer_mutation: Raw | UnsetType = UNSET
    parameter_mutation: Raw | UnsetType = UNSET
    user_input_mutation: Raw | UnsetType = UNSET
    gradient_to_parameter: Raw | UnsetType = UNSET
    gradient_to_user_input: Raw | UnsetType = UNSET
    token: Raw | UnsetType = UNSET


class Signature(Struct):
    """What the inputs and outputs of the graph are."""

    input_specs: list[InputSpec]
    output_specs: list[OutputSpec]


class GraphModule(Struct):
    """A graph and what surrounds it."""

    graph: Graph
    signature: Signature


class SchemaVersion(Struct):
    """Edition of the file's format; a new major one means that old readers fail."""

    major: Count
    minor: Count


class Version(Struct):
    """The one part that is read of editions that are not known here."""

    schema_version: SchemaVersion


class Model(Struct):
    """A program without its weights."""

    graph_module: GraphModule
    opset_version: dict[Text, Count]


class Payload(Struct):
    """Where the bytes of a tensor are, and what they mean."""

    path_name: Text
    is_param: bool
    use_pickle: bool
    tensor_meta: TensorMeta | None


class Payloads(Struct):
    """The tensors of a program by their paths in it."""

    config: dict[Text, Payload]
