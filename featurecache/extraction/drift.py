"""Drift guard: before a cache is used in another environment, check whether the numbers still agree.

Library versions, the runtime and the device are not part of the fingerprint, because most changes of them mean nothing.
Some mean a lot. So when they differ from what made the stored features, a few stored samples are computed again (or,
where no samples are at hand, two inputs that this program carries), and a difference beyond tolerance refuses, naming
the first stage that changed: the decoded input, what preprocessing made of it, or the features.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurecache.backbones.runtimes import Runtime
from featurecache.errors import DriftError, InputError
from featurecache.extraction.modality import InputDigests, Modality
from featurecache.sources.inputs import Input
from featurecache.specs import shape_of_row
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.features import Features
from featurecache.versions import installed_versions

TOLERANCE = {"float32": 1e-3, "float16": 2e-3, "bfloat16": 1e-2, "int8": 5e-2}
"""Largest difference, relative to the largest stored feature, that counts as agreement."""

_ROUNDING = {"float32": 0.0, "float16": 5e-3, "bfloat16": 3e-2}
"""The same, of features that were computed with fewer digits, which other machines round elsewhere."""

_MOST_SAMPLES = 8
_MOST_NUMBERS = 1024


def tolerance(dtype: str, precision: str) -> float:
    """Return the largest difference between stored features of a type and those computed again with a precision."""
    return max(TOLERANCE[dtype], _ROUNDING[precision])


def provenance(runtime: Runtime) -> dict[str, Any]:
    """What ran, for the record: no times and no names of machines, so that equal work gives equal records."""
    return provenance_record(runtime.name, runtime.device, runtime.batch_size)


def provenance_record(runtime: str, device: str, batch_size: int) -> dict[str, Any]:
    """Return the record of a runtime with these properties, on this machine.

    Parameters
    ----------
    runtime, device : str
        Its name, and where it computes.
    batch_size : int
        Inputs in a forward pass.
    """
    return {
        "runtime": runtime,
        "device": device,
        "batch_size": batch_size,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "versions": installed_versions(),
    }


def made_with(feature_set: FeatureSet) -> dict[str, Any] | None:
    """Return the provenance of the newest commit, or, before there is one, of the writer that began."""
    if (commit := feature_set.folder.last()) is not None:
        return dict(commit.body["provenance"])
    if (known := feature_set.reference()) is not None:
        return dict(known["provenance"])
    return None


def made_with_any(sets: Sequence[FeatureSet]) -> dict[str, Any] | None:
    """Return the provenance of what some set holds: a resumed run must not mix runtimes in one array."""
    return next((before for each in sets if (before := made_with(each)) is not None), None)


def changes(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say what differs between two provenances, of those things that may change features."""
    # What this program, h5py and scikit-learn are makes no feature.
    flat = [{**p["versions"], **{k: p[k] for k in ("runtime", "device", "machine")}} for p in (stored, now)]
    names = sorted(flat[0].keys() & flat[1].keys() - {"featurecache", "h5py", "scikit-learn"})
    return [f"{name} {flat[0][name]} -> {flat[1][name]}" for name in names if flat[0][name] != flat[1][name]]


@contextmanager
def explained(differing: Sequence[str], otherwise: str) -> Iterator[None]:
    """Add to a drift error what has changed since, and what to do."""
    try:
        yield
    except DriftError as error:
        since = ", ".join(differing) or "no library, so the code of the network itself"
        raise DriftError(f"{error}. What has changed since: {since}. Go back to that, or {otherwise}") from None


def check_stored(features: Features, inputs: Mapping[int, Input], runtime: Runtime, modality: Modality) -> None:
    """Compute a few stored samples again and compare.

    Parameters
    ----------
    features : Features
        What is stored; its commits say which rows can be compared stage by stage.
    inputs : mapping of int to Input
        The samples of some rows.
    runtime, modality
        As in extraction.

    Raises
    ------
    DriftError
        The features differ beyond tolerance.
    """
    recorded = {row: InputDigests(*digests) for c in features.commits for row, *digests in c.body.get("probe", [])}
    readable: dict[int, bytes] = {}
    for row in list(recorded):
        if row in inputs and len(readable) < _MOST_SAMPLES:
            try:
                readable[row] = inputs[row].read()
            except InputError:
                continue
    if not readable:
        return
    rows = np.array(sorted(readable), np.int64)
    now = _run([readable[row] for row in rows.tolist()], runtime, modality)[features.tap]
    digests = [(recorded[row], _digests_of(readable[row], modality)) for row in rows.tolist()]
    limit = tolerance(features.dtype, runtime.precision)
    if difference := _difference(features.read(rows), now, limit):
        raise _drifted(difference, limit, features.tap, digests, modality)


def reference_rows(features: Features) -> list[int]:
    """Rows of which a digest of each stage before the network is kept."""
    return [row for commit in features.commits for row, *_ in commit.body.get("probe", [])]


def reference_record(runtime: Runtime, modality: Modality) -> dict[str, Any]:
    """Run the program's own inputs and record every stage, as plain JSON values."""
    return record_of(_run(modality.reference_inputs, runtime, modality), modality)


def record_of(features: Mapping[str, NDArray[np.float32]], modality: Modality) -> dict[str, Any]:
    """Return what `reference_record` records of the features (n, ...) of the program's own inputs."""
    digests = [_digests_of(data, modality) for data in modality.reference_inputs]
    return {
        "stages": [[s.decoded, s.prepared] for s in digests],
        "features": {tap: _thinned(values).tolist() for tap, values in features.items()},
    }


def check_reference(recorded: Mapping[str, Any], tap: str, runtime: Runtime, modality: Modality) -> None:
    """Compare the program's own inputs with what `reference_record` recorded when the features were made.

    Parameters
    ----------
    recorded : mapping
        As it is kept with the features, or with a head.
    tap : str
        Whose features are compared.
    runtime, modality
        Of this machine.

    Raises
    ------
    DriftError
        The features differ beyond tolerance.
    """
    now = reference_record(runtime, modality)
    before, after = (np.array(record["features"][tap], np.float32) for record in (recorded, now))
    digests = [[InputDigests(*pair) for pair in record["stages"]] for record in (recorded, now)]
    limit = tolerance("float32", runtime.precision)
    if difference := _difference(before, after, limit):
        raise _drifted(difference, limit, tap, list(zip(*digests, strict=True)), modality)


def _run(inputs: Sequence[bytes], runtime: Runtime, modality: Modality) -> dict[str, NDArray[np.float32]]:
    """Return the features of a few inputs, ``(n, ...)``, or with views ``(n, n_views, ...)``."""
    arrays = np.concatenate([modality.load(data).arrays for data in inputs])
    batches, batch_size = [], runtime.batch_size
    for start in range(0, len(arrays), batch_size):
        batch = modality.empty(batch_size)
        some = arrays[start : start + batch_size]
        batch[: len(some)] = some
        batches.append(batch)
    outputs = list(runtime.map(batches))
    features = {tap: np.concatenate([output[tap] for output in outputs])[: len(arrays)] for tap in outputs[0]}
    return {
        tap: values.reshape(len(inputs), *shape_of_row(values.shape[1:], modality.views))
        for tap, values in features.items()
    }


def _digests_of(data: bytes, modality: Modality) -> InputDigests:
    digests = modality.load(data, digested=True).digests
    assert digests is not None
    return digests


def _thinned(values: NDArray[np.float32]) -> NDArray[np.float32]:
    flat = values.reshape(len(values), -1)
    return flat[:, :: max(flat.shape[1] // _MOST_NUMBERS, 1)]


def _difference(before: NDArray[Any], after: NDArray[Any], limit: float) -> float | None:
    """Return the largest difference relative to the largest feature, if it is beyond tolerance."""
    scale = max(float(np.abs(before.astype(np.float32)).max(initial=0)), 1e-12)
    difference = float(np.abs(before.astype(np.float32) - after.reshape(before.shape)).max(initial=0)) / scale
    return None if difference <= limit else difference


def _drifted(
    difference: float, limit: float, tap: str, digests: Sequence[tuple[InputDigests, InputDigests]], modality: Modality
) -> DriftError:
    """Name the first stage that changed."""
    if any(before.decoded != now.decoded for before, now in digests):
        stage = modality.stage_names[0]
    elif any(before.prepared != now.prepared for before, now in digests):
        stage = modality.stage_names[1]
    else:
        stage = "features"
    return DriftError(
        f"this machine makes other numbers for tap {tap!r} than those stored: they differ by {difference:.1e} of the "
        f"largest (tolerance {limit:.0e}), and the first stage that changed is: {stage}"
    )
