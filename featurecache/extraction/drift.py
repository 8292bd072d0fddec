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

import msgspec
import numpy as np
from numpy.typing import NDArray

from featurecache.backbones.runtimes import Runtime
from featurecache.devices import device_kind
from featurecache.errors import DriftError, InputError
from featurecache.extraction.loading import cut_into_batches
from featurecache.extraction.modality import InputDigests, Modality
from featurecache.extraction.reading import inputs_of_rows
from featurecache.sources.source import Source
from featurecache.specs import shape_of_row
from featurecache.store.feature_sets import FeatureSet
from featurecache.store.listings import Listing
from featurecache.store.schemas import Provenance, ReferenceBody
from featurecache.versions import installed_versions

TOLERANCE = {"float32": 1e-3, "float16": 2e-3, "bfloat16": 1e-2, "int8": 5e-2}
"""Largest difference, relative to the largest stored feature, that counts as agreement."""

# As `TOLERANCE`, of features that were computed with fewer digits, which other machines round elsewhere. What that may
# do was measured on the reference inputs as the difference from float32, the worst of all blocks and the default tap:
# bfloat16 1.0e-1 with EfficientNet-Lite0, 1.4e-2 with SqueezeNet 1.1, 1.1e-2 with ViT-Ti/16; float16 5.3e-3 and 1.1e-3
# with the first and the last. Real changes are above: with EfficientNet-Lite0 swapped channels are 1.5e-1 or more in
# every tap, another mean and deviation 5.3e-1, weights that are 5 % off 7.3e-1. TF32 has as many
# digits as float16.
_ROUNDING = {"float32": 0.0, "tf32": 8e-3, "float16": 8e-3, "bfloat16": 1.2e-1}

_MOST_SAMPLES = 8
_MOST_NUMBERS = 1024


def tolerance(dtype: str, precision: str) -> float:
    """Return the largest difference between stored features of a type and those computed again with a precision."""
    return max(TOLERANCE[dtype], _ROUNDING[precision])


def provenance(
    runtime: str, device: str, batch_size: int, *, lengths: Sequence[int] = (), norms_folded: bool = False
) -> Provenance:
    """Return what ran, for the record: no times and no names of machines, so that equal work gives equal records.

    Parameters
    ----------
    runtime, device : str
        Name of the runtime, and where it computes.
    batch_size : int
        Inputs in a forward pass.
    lengths : sequence of int
        Padded lengths of texts.
    norms_folded : bool
        Batch norms are part of the convolutions before them.
    """
    # Without its number: eight GPUs of one model make equal records.
    kind, model = device_kind(device)
    return Provenance(
        runtime=runtime,
        device=kind,
        device_model=model,
        batch_size=batch_size,
        python=platform.python_version(),
        machine=platform.machine(),
        versions=installed_versions(),
        lengths=tuple(lengths) or None,
        norms_folded=norms_folded,
    )


def provenance_of(runtime: Runtime) -> Provenance:
    """Return the provenance of what a runtime computes on this machine."""
    return provenance(
        runtime.name,
        runtime.device,
        runtime.batch_size,
        lengths=runtime.lengths,
        norms_folded=runtime.norms_folded,
    )


def is_same_device(stored: Provenance, device: str) -> bool:
    """Tell whether a device is of the type and model that features were made on; earlier releases recorded no model.

    Parameters
    ----------
    stored : Provenance
        Of the features.
    device : str
        ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
    """
    kind, model = device_kind(device)
    return stored.device.partition(":")[0] == kind and stored.device_model in ("", model)


def recorded_provenance(sets: Sequence[FeatureSet]) -> Provenance | None:
    """Return the provenance of the first set that has one: of its newest commit, or else of the writer that began it.

    A resumed run must not mix runtimes in one array.
    """
    for feature_set in sets:
        commit = feature_set.folder.last()
        record = commit.body if commit is not None else feature_set.reference()
        if record is not None:
            return msgspec.convert(record["provenance"], Provenance)
    return None


def changes(stored: Provenance, runtime: Runtime) -> list[str]:
    """Say what a runtime has here that features were not made with, of those things that may change features."""
    now = provenance_of(runtime)
    # What this program, h5py and scikit-learn are makes no feature.
    flat = [
        {**p.versions, "runtime": p.runtime, "device": _device_in_words(p), "machine": p.machine} for p in (stored, now)
    ]
    if is_same_device(stored, runtime.device):  # the words differ where earlier releases said less
        flat[0]["device"] = flat[1]["device"]
    if stored.norms_folded is not None:
        for words, ran in zip(flat, (stored, now), strict=True):
            words["batch norms"] = "folded" if ran.norms_folded else "not folded"
    names = sorted(flat[0].keys() & flat[1].keys() - {"featurecache", "h5py", "scikit-learn"})
    found = [f"{name} {flat[0][name]} -> {flat[1][name]}" for name in names if flat[0][name] != flat[1][name]]
    # Earlier releases padded every text to the most tokens, and recorded nothing.
    padded = [list(p.lengths or now.lengths[-1:]) for p in (stored, now)] if now.lengths else [[], []]
    return found + ([f"lengths of texts {padded[0]} -> {padded[1]}"] if padded[0] != padded[1] else [])


def _device_in_words(ran: Provenance) -> str:
    kind = ran.device.partition(":")[0]
    return f"{kind} ({ran.device_model})" if ran.device_model else kind


@contextmanager
def explained(before: Provenance, runtime: Runtime, advice: str) -> Iterator[None]:
    """Add to a drift error what has changed since features were made, and what to do.

    Parameters
    ----------
    before : Provenance
        Of those features.
    runtime : Runtime
        Of this machine.
    advice : str
        The rest of a sentence: ``extract into another cache``.
    """
    try:
        yield
    except DriftError as error:
        since = ", ".join(changes(before, runtime)) or "no library, so the code of the network itself"
        raise DriftError(f"{error}. What has changed since: {since}. Go back to that, or {advice}") from None


def check_stored(
    feature_set: FeatureSet, source: Source, listing: Listing, runtime: Runtime, modality: Modality
) -> None:
    """Compute a few stored samples again and compare.

    Parameters
    ----------
    feature_set : FeatureSet
        What is stored; its commits say which rows can be compared stage by stage.
    source, listing : Source, Listing
        Where samples can be read, and what it held at the scan.
    runtime, modality
        As in extraction.

    Raises
    ------
    DriftError
        The features differ beyond tolerance.
    """
    features = feature_set.open()
    recorded = {row: InputDigests(*digests) for c in features.commits for row, *digests in c.body.get("probe", [])}
    held = np.unique(np.array(list(recorded), np.int64))
    held = held[listing.held.contains(held)]
    inputs = dict(zip(held.tolist(), inputs_of_rows(source, listing, feature_set.samples, held), strict=True))
    readable: dict[int, bytes] = {}
    for row in recorded:
        if row in inputs and len(readable) < _MOST_SAMPLES:
            try:
                readable[row] = inputs[row].read()
            except InputError:  # a file that was edited or removed tells nothing of this machine
                continue
    if not readable:
        return
    rows = np.array(sorted(readable), np.int64)
    digests = []
    for row in rows.tolist():
        try:
            digests.append((recorded[row], _digests_of(readable[row], modality)))
        except InputError as error:  # what has a digest was decoded once
            raise DriftError(
                f"{inputs[row].name} has features in tap {features.tap!r}, and cannot be decoded on this machine "
                f"({error.reason}), so the first stage that changed is: {modality.stage_names[0]}"
            ) from None
    now = _run([readable[row] for row in rows.tolist()], runtime, modality)[features.tap]
    limit = tolerance(features.dtype, runtime.precision)
    _compare(features.read(rows), now, digests, limit=limit, tap=features.tap, modality=modality)


def reference(runtime: Runtime, modality: Modality) -> ReferenceBody:
    """Run the program's own inputs and record every stage."""
    features = _run(modality.reference_inputs, runtime, modality)
    return reference_of(features, modality, provenance_of(runtime))


def reference_of(
    features: Mapping[str, NDArray[np.float32]], modality: Modality, provenance: Provenance
) -> ReferenceBody:
    """Return the record of the program's own inputs.

    Parameters
    ----------
    features : mapping of str to ndarray, shape (n, ...)
        Of those inputs, by tap.
    modality : Modality
        What made the inputs of the network.
    provenance : Provenance
        Of the features.
    """
    digests = [_digests_of(data, modality) for data in modality.reference_inputs]
    numbers = {}
    for tap, values in features.items():
        flat = values.reshape(len(values), -1)
        # Of a large feature map some numbers are enough, and a record is read with every head.
        numbers[tap] = flat[:, :: max(flat.shape[1] // _MOST_NUMBERS, 1)].tolist()
    stages = [(digest.decoded, digest.prepared) for digest in digests]
    return ReferenceBody(stages=stages, features=numbers, provenance=provenance)


def check_reference(recorded: ReferenceBody, tap: str, runtime: Runtime, modality: Modality) -> None:
    """Compare the program's own inputs with what was recorded of them when the features were made.

    Parameters
    ----------
    recorded : ReferenceBody
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
    now = reference(runtime, modality)
    before, after = (np.array(record.features[tap], np.float32) for record in (recorded, now))
    stages = [[InputDigests(*pair) for pair in record.stages] for record in (recorded, now)]
    digests = list(zip(*stages, strict=True))
    _compare(before, after, digests, limit=tolerance("float32", runtime.precision), tap=tap, modality=modality)


def _run(inputs: Sequence[bytes], runtime: Runtime, modality: Modality) -> dict[str, NDArray[np.float32]]:
    """Return the features of a few inputs, ``(n, ...)``, or with views ``(n, n_views, ...)``."""
    arrays = np.concatenate([modality.load(data).arrays for data in inputs])
    # Of the shapes of extraction: a batch of another shape changes the last bits of the features.
    cut = cut_into_batches(arrays, runtime.batch_size, runtime.lengths, modality.empty)
    outputs = list(runtime.map([batch for batch, _ in cut]))
    order = np.argsort(np.concatenate([indices for _, indices in cut]))
    features = {
        tap: np.concatenate([o[tap][: len(indices)] for o, (_, indices) in zip(outputs, cut, strict=True)])[order]
        for tap in outputs[0]
    }
    return {
        tap: values.reshape(len(inputs), *shape_of_row(values.shape[1:], modality.views))
        for tap, values in features.items()
    }


def _digests_of(data: bytes, modality: Modality) -> InputDigests:
    digests = modality.load(data, digested=True).digests
    assert digests is not None
    return digests


def _compare(
    before: NDArray[Any],
    after: NDArray[Any],
    digests: Sequence[tuple[InputDigests, InputDigests]],
    *,
    limit: float,
    tap: str,
    modality: Modality,
) -> None:
    """Raise `DriftError` with the first stage that changed, unless the features agree within ``limit``."""
    # Relative to the largest feature of all: one that is nearly zero would differ by any multiple of itself.
    scale = max(float(np.abs(before.astype(np.float32)).max(initial=0)), 1e-12)
    difference = float(np.abs(before.astype(np.float32) - after.reshape(before.shape)).max(initial=0)) / scale
    if difference <= limit:  # NaN is not
        return
    if any(before.decoded != now.decoded for before, now in digests):
        stage = modality.stage_names[0]
    elif any(before.prepared != now.prepared for before, now in digests):
        stage = modality.stage_names[1]
    else:
        stage = "features"
    raise DriftError(
        f"this machine makes other numbers for tap {tap!r} than those stored: they differ by {difference:.1e} of the "
        f"largest (tolerance {limit:.0e}), and the first stage that changed is: {stage}"
    )
