"""What the commits of each kind of folder hold: arrays with their types and shapes, and the fields of the body.

A cache may come from a stranger who knows how to compute digests, so nothing of a record is used before it has been
compared with its schema. msgspec does the comparing: a few microseconds for a record.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from featurecache.errors import MAX_EXAMPLES, CorruptError, shortened
from featurecache.specs import MAX_SHARD_ROWS
from featurecache.store.commits import Commit
from featurecache.wording import counted

T = TypeVar("T", bound=Struct)
Shape = tuple[int | str, ...]
"""Lengths of the axes: a number, or a letter that stands for the same length wherever it occurs; ``+`` for one more."""

Arrays = dict[str, tuple[tuple[str, ...], Shape]]
"""For each array, the types that it may have, and its shape."""

# Far above what any cache holds, and far below the end of int64.
Count = Annotated[int, Meta(ge=0, le=1 << 48)]
Number = Annotated[float, Meta(ge=0)]
Text = Annotated[str, Meta(max_length=1 << 16)]
Run = tuple[Count, Count]
Bad = tuple[Count, Text, Text]
ReferenceRow = tuple[Count, Text, Text]


class SamplesBody(Struct):
    """One addition to the sample table."""

    start: Count


class IgnoredBody(Struct):
    """Files of a source that are no inputs."""

    images: dict[Text, Count]
    others: dict[Text, Count]
    examples: Annotated[list[Text], Meta(max_length=MAX_EXAMPLES)]
    folders: Annotated[list[Text], Meta(max_length=100)]
    num_folders: Count


class SourceBody(Struct):
    """The listing of a source."""

    root: Text
    problems: dict[Text, Text]
    order: Count
    # None in records of earlier releases.
    ignored: IgnoredBody | None = None


class UnitNote(Struct):
    """What is to be said of a unit: why samples of it could not be read, and what it holds besides samples."""

    problems: dict[Text, Text]
    ignored: IgnoredBody


class UnitsBody(Struct):
    """Listed units of a source; what is said of them by their numbers."""

    units: dict[Annotated[str, Meta(pattern="^[0-9]{1,9}$")], UnitNote]


class UnitSourceBody(Struct):
    """The listing of a source by its units; each is named by a part, and by its number in it."""

    root: Text
    order: Count
    parts: Annotated[list[Annotated[str, Meta(pattern="^[0-9]{32}$")]], Meta(min_length=1)]


class Provenance(Struct, omit_defaults=True):
    """What ran.

    Attributes
    ----------
    runtime, device, machine : str
        ``torch`` or ``openvino``; the type of the device, in earlier releases with its number; of the processor.
    batch_size : int
        Inputs in a forward pass.
    versions, python
        Of libraries.
    device_model : str
        Of a GPU; empty where the type says all, and in earlier releases.
    lengths : tuple of int or None
        To which texts may be padded; None of images, and in earlier releases, which padded each to the most tokens.
    norms_folded : bool or None
        Batch norms were part of the convolutions before them; None in earlier releases.
    """

    runtime: Text
    device: Text
    machine: Text
    batch_size: Annotated[int, Meta(ge=1, le=1 << 20)]
    versions: dict[Text, Text]
    python: Text = ""
    device_model: Text = ""
    lengths: Annotated[tuple[Annotated[int, Meta(ge=1)], ...], Meta(max_length=64)] | None = None
    norms_folded: bool | None = None


class Precision(Struct, frozen=True, omit_defaults=True):
    """Error of stored features against those that were to be stored.

    Attributes
    ----------
    against : str
        Number type of the features that they are compared with.
    rows : int
        Rows that were compared.
    relative_rms, relative_largest : float
        Root mean square and largest error, relative to the same of the features.
    bound : bool
        The errors are bounds, sums of those of two conversions.
    relative_to_spread : float or None
        See `featurecache.store.precision.spread_error`; None of very few rows.
    """

    against: Text
    rows: Count
    relative_rms: Number
    relative_largest: Number
    bound: bool = False
    relative_to_spread: Number | None = None


class FeaturesBody(Struct):
    """A shard of features."""

    rows: Annotated[list[Run], Meta(min_length=1)]
    bad: list[Bad]
    tap: Text
    fingerprint: Text
    provenance: Provenance
    # From here on: not in records of earlier releases, or only where there is something to record.
    precision: Precision | None = None
    probe: list[ReferenceRow] = []
    cut: list[Run] = []
    constant: list[tuple[Count, Count, float]] | None = None
    flat_deep: list[Run] = []
    flat_transparent: list[Run] = []
    decoder_errors: list[Run] = []


class TaskAbout(Struct):
    """Where labels and splits came from."""

    origin: Text
    splits: Text
    random_state: Count | None
    conflicts: list[dict[Text, Text]]
    num_conflicts: Count
    num_moved: Count
    num_missing: Count
    warnings: list[WarningBody] = []


class TaskBody(Struct):
    """Labels and splits."""

    classes: Annotated[list[Text], Meta(min_length=1)]
    about: TaskAbout
    # Those of release 0.1 among them.
    kind: Literal["classification", "multilabel", "regression", "classes", "labels", "numbers"] = "classification"
    domains: list[Text] = []


class BackboneAbout(Struct, frozen=True):
    """What `info` shows of a backbone besides its identity."""

    num_parameters: Count
    num_trainable: Count
    weights_source: Text
    license: Text | None
    classifier: Text | None
    notes: list[Text]


class SpecBody(Struct):
    """How features were made; the identity is checked by its own class."""

    identity: dict[str, Any]
    about: BackboneAbout


class RequestBody(Struct):
    """Which feature sets a request led to."""

    fingerprint: Text
    taps: list[Text]


class StoredType(Struct, frozen=True):
    """The number type that was chosen for a tap.

    Attributes
    ----------
    dtype : str
    rows : int
        On how many the error was measured.
    error : float or None
        Of float16, relative to the spread of the features; None where they do not fit.
    """

    dtype: Literal["float16", "float32"]
    rows: Count
    error: Number | None


class ResultBody(Struct):
    """Scores of one head: a row of a table."""

    row: dict[Text, bool | int | float | Text | None]


class ReferenceBody(Struct):
    """Features of the reference inputs."""

    stages: list[tuple[Text, Text]]
    features: dict[Text, list[list[float]]]
    provenance: Provenance


class WarningBody(Struct):
    """A warning that is kept with features."""

    kind: Annotated[str, Meta(pattern="^[a-z_]{1,40}$")]
    count: Count
    text: Text
    examples: Annotated[list[Text], Meta(max_length=MAX_EXAMPLES)]


@dataclass(frozen=True)
class Schema:
    """Arrays (types, shape) and body of one kind of commit; ``most_rows`` is the longest first axis of the arrays."""

    kind: str
    arrays: Arrays
    body: type[Struct]
    most_rows: int
    per_sample: tuple[str, ...] = ()
    """Arrays that are spread over every sample of ``features``."""
    optional: tuple[str, ...] = ()
    """Arrays that may be missing."""
    instead: Schema | None = None
    """What a commit holds instead, where it has the first array of that."""

    def check(self, commit: Commit, path: Path) -> None:
        """Raise `CorruptError` unless a commit holds what this kind of commit holds."""
        if self.instead is not None and next(iter(self.instead.arrays)) in commit.shard.arrays:
            self.instead.check(commit, path)
            return
        checked_body(commit.body, self.body, f"{path}: {self.kind} {commit.key}")
        # A letter stands for one length in all arrays of a commit.
        lengths: dict[str, int] = {}
        for name, (dtypes, shape) in self.arrays.items():
            array = commit.shard.arrays.get(name)
            if array is None and name in self.optional:
                continue
            if array is None or array.dtype not in dtypes or not _fits(array.shape, shape, lengths):
                found = "no such array" if array is None else f"{array.dtype} {list(array.shape)}"
                raise CorruptError(
                    f"{path}: {self.kind} {commit.key} should hold {name!r} as {' or '.join(dtypes)} {list(shape)}, "
                    f"and has {shortened(found)}; run `featurecache repair`"
                )
        if lengths["n"] > self.most_rows:
            raise CorruptError(
                f"{path}: {self.kind} {commit.key} has {counted(lengths['n'], 'row')}, more than one ever holds"
            )
        for name in self.per_sample:
            # By broadcasting, which would otherwise stretch a sample to any size.
            spread, sample = commit.shard.arrays[name].shape, commit.shard.arrays["features"].shape[1:]
            if len(spread) != len(sample) or any(a not in (1, b) for a, b in zip(spread, sample, strict=True)):
                raise CorruptError(f"{path}: {self.kind} {commit.key} has {name!r} {list(spread)} for {list(sample)}")


def checked_body(body: Any, kind: type[T], where: str) -> T:
    """Return the fields of a record; raise `CorruptError` unless they are what they should be.

    Parameters
    ----------
    body : JSON value
    kind : type of Struct
    where : str
        Beginning of the message.
    """
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        raise CorruptError(f"{where} cannot be used ({shortened(error)}); run `featurecache repair`") from None


def _fits(found: tuple[int, ...], shape: Shape, lengths: dict[str, int]) -> bool:
    """Compare a shape, and note what the letters stand for; ``...`` takes any axes that are left."""
    if shape[-1:] == ("...",):
        found, shape = (*found[: len(shape) - 1],), shape[:-1]
    if len(found) != len(shape):
        return False
    for length, axis in zip(found, shape, strict=True):
        if isinstance(axis, int):
            expected = axis
        elif axis.endswith("+"):
            expected = lengths[axis[:-1]] + 1
        else:
            expected = lengths.setdefault(axis, length)
        if length != expected:
            return False
    return True


_TEXT: Arrays = {"text": (("uint8",), ("bytes",)), "text_start": (("uint64",), ("n+",))}
ID: tuple[tuple[str, ...], Shape] = (("uint8",), ("n", 32))

# More than any folder of files holds; a length is bounded all the same before memory is reserved for it.
MANY = 1 << 40
_SAMPLES: Arrays = {"id": ID, "size": (("uint64",), ("n",)), **_TEXT}
_OF_UNITS: Arrays = {
    "unit_text_start": (("uint64",), ("starts",)),
    "unit_start": (("int64",), ("starts",)),
    "unit_text": (("uint8",), ("unit_bytes",)),
    "size": (("int32", "int64"), ("n",)),
    "text": (("uint8",), ("bytes",)),
    "text_length": (("uint8", "int32"), ("n",)),
}
_SAMPLES_OF_UNITS = Schema("sample table", {**_OF_UNITS, "id": ID}, SamplesBody, most_rows=1 << 20)
_SOURCE: Arrays = {"row": (("int64",), ("n",)), "stamp": (("int64",), ("n", 4)), **_TEXT}
_TASK: Arrays = {
    "id": ID,
    "label": (("int32",), ("n",)),
    "holds": (("uint8",), ("n", "outputs")),
    "number": (("float64",), ("n", "outputs")),
    "split": (("uint8",), ("n",)),
    "group": (("int32",), ("n",)),
    "weight": (("float64",), ("n",)),
    "domain": (("int32",), ("n",)),
}
SAMPLES = Schema("sample table", _SAMPLES, SamplesBody, most_rows=1 << 20, instead=_SAMPLES_OF_UNITS)
_UNITS: Arrays = {
    "run_start": (("int64",), ("runs",)),
    "run_row": (("int64",), ("runs",)),
    "unit_stamp": (("int64",), ("units", 4)),
    **_OF_UNITS,
}
UNITS = Schema("listed units", _UNITS, UnitsBody, most_rows=MANY)
_SOURCE_OF_UNITS = Schema("listing", {"unit": (("int64",), ("n", 2))}, UnitSourceBody, most_rows=MANY)
SOURCE = Schema("listing", _SOURCE, SourceBody, most_rows=MANY, instead=_SOURCE_OF_UNITS)
TASK = Schema(
    "task", _TASK, TaskBody, most_rows=MANY, optional=("label", "holds", "number", "group", "weight", "domain")
)


def features_schema(dtype: str) -> Schema:
    """Return the schema of features of a stored type."""
    arrays: Arrays = {"id": ID, "features": ((dtype,), ("n", "..."))}
    per_sample = ("scale", "offset") if dtype == "int8" else ()
    arrays |= dict.fromkeys(per_sample, (("float32",), ("...",)))
    return Schema("shard", arrays, FeaturesBody, most_rows=MAX_SHARD_ROWS, per_sample=per_sample)
