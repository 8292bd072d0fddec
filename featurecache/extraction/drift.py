"""Drift guard: before a cache is used in another environment, look whether the numbers still agree.

Library versions, the runtime and the device are not part of the fingerprint, because most changes of them mean nothing.
Some mean a lot. So when they differ from what made the stored features, a few stored samples are computed again (or,
where no samples are at hand, two images that this program carries), and a difference beyond tolerance refuses, naming
the first stage that changed: decoded pixels, preprocessed pixels, or features.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurecache.errors import DriftError, InputError
from featurecache.extraction.augmentation import load_views
from featurecache.extraction.pipeline import FileInput, Runtime
from featurecache.extraction.probe_images import PROBE_IMAGES
from featurecache.hashing import digest_bytes
from featurecache.sources.images import decode
from featurecache.specs import ExtractionSettings, PreprocessSpec, ViewSpec, shape_of_row
from featurecache.store.features import Features
from featurecache.versions import installed_versions

TOLERANCE = {"float32": 1e-3, "float16": 2e-3, "bfloat16": 1e-2, "int8": 5e-2}
"""Largest difference, relative to the largest stored feature, that counts as agreement."""

_MOST_SAMPLES = 8
_MOST_NUMBERS = 1024


@dataclass(frozen=True, slots=True)
class Stages:
    """Digests of what an image was at each stage before the network."""

    decoded: str
    pixels: str


def provenance(runtime: Any, settings: ExtractionSettings) -> dict[str, Any]:
    """What ran, for the record: no times and no names of machines, so that equal work gives equal records."""
    return {
        "runtime": runtime.name,
        "device": runtime.device,
        "batch_size": settings.batch_size,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "versions": installed_versions(),
    }


def changes(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say what differs between two provenances, of those things that may change features."""
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


def stages_of(data: bytes, preprocess: PreprocessSpec, views: ViewSpec | None) -> Stages:
    """Digest an image before and after resizing and cropping, or before and after its views are made."""
    image = decode(data, preprocess)
    pixels = load_views(data, preprocess, views)
    return Stages(digest_bytes(image.tobytes())[:16], digest_bytes(pixels.tobytes())[:16])


def check_stored(
    features: Features,
    paths: Mapping[int, Path],
    runtime: Runtime,
    preprocess: PreprocessSpec,
    *,
    views: ViewSpec | None = None,
    batch_size: int,
) -> None:
    """Compute a few stored samples again and compare.

    Parameters
    ----------
    features : Features
        What is stored; its commits say which rows can be compared stage by stage.
    paths : mapping of int to Path
        Where the samples of some rows lie now.
    runtime, preprocess, views, batch_size
        As in extraction.

    Raises
    ------
    DriftError
        The features differ beyond tolerance.
    """
    probes = {row: Stages(*digests) for c in features.commits for row, *digests in c.body.get("probe", [])}
    readable: dict[int, bytes] = {}
    for row in list(probes):
        if row in paths and len(readable) < _MOST_SAMPLES:
            try:
                readable[row] = FileInput(paths[row]).read()
            except InputError:
                continue
    if not readable:
        return
    rows = np.array(sorted(readable), np.int64)
    now = _run([readable[row] for row in rows.tolist()], runtime, preprocess, views, batch_size)[features.tap]
    stages = [stages_of(readable[row], preprocess, views) for row in rows.tolist()]
    _compare(features.read(rows), now, [probes[row] for row in rows.tolist()], stages, features.dtype, features.tap)


def probed_rows(features: Features) -> list[int]:
    """Rows whose stages before the network were recorded."""
    return [row for commit in features.commits for row, *_ in commit.body.get("probe", [])]


def probe(
    runtime: Runtime, preprocess: PreprocessSpec, *, views: ViewSpec | None = None, batch_size: int
) -> dict[str, Any]:
    """Run the program's own images and record every stage, as plain JSON values."""
    features = _run(PROBE_IMAGES, runtime, preprocess, views, batch_size)
    stages = [stages_of(data, preprocess, views) for data in PROBE_IMAGES]
    return {
        "stages": [[s.decoded, s.pixels] for s in stages],
        "features": {tap: _thinned(values).tolist() for tap, values in features.items()},
    }


def check_probe(
    recorded: Mapping[str, Any],
    tap: str,
    runtime: Runtime,
    preprocess: PreprocessSpec,
    *,
    views: ViewSpec | None = None,
    batch_size: int,
) -> None:
    """Compare the program's own images with what `probe` recorded when the features were made.

    Raises
    ------
    DriftError
        The features differ beyond tolerance.
    """
    now = probe(runtime, preprocess, views=views, batch_size=batch_size)
    before, after = (np.array(record["features"][tap], np.float32) for record in (recorded, now))
    stages = [[Stages(*pair) for pair in record["stages"]] for record in (recorded, now)]
    _compare(before, after, stages[0], stages[1], "float32", tap)


def _run(
    images: Sequence[bytes], runtime: Runtime, preprocess: PreprocessSpec, views: ViewSpec | None, batch_size: int
) -> dict[str, NDArray[np.float32]]:
    """Return the features of a few images, ``(n, ...)``, or with views ``(n, n_views, ...)``."""
    if runtime.name == "torch":  # takes any number of images; the others are prepared for one
        batch_size = len(images)
    pixels = np.concatenate([load_views(data, preprocess, views) for data in images])
    batches = []
    for start in range(0, len(pixels), batch_size):
        batch = np.zeros((batch_size, preprocess.crop, preprocess.crop, 3), np.uint8)
        part = pixels[start : start + batch_size]
        batch[: len(part)] = part
        batches.append(batch)
    outputs = list(runtime.map(batches))
    features = {tap: np.concatenate([output[tap] for output in outputs])[: len(pixels)] for tap in outputs[0]}
    return {
        tap: values.reshape(len(images), *shape_of_row(values.shape[1:], views)) for tap, values in features.items()
    }


def _thinned(values: NDArray[np.float32]) -> NDArray[np.float32]:
    flat = values.reshape(len(values), -1)
    return flat[:, :: max(flat.shape[1] // _MOST_NUMBERS, 1)]


def _compare(
    before: NDArray[Any],
    after: NDArray[Any],
    stages_before: Sequence[Stages],
    stages_after: Sequence[Stages],
    dtype: str,
    tap: str,
) -> None:
    scale = max(float(np.abs(before.astype(np.float32)).max(initial=0)), 1e-12)
    difference = float(np.abs(before.astype(np.float32) - after.reshape(before.shape)).max(initial=0)) / scale
    if difference <= TOLERANCE[dtype]:
        return
    pairs = list(zip(stages_before, stages_after, strict=True))
    if any(a.decoded != b.decoded for a, b in pairs):
        stage = "decoded pixels"
    elif any(a.pixels != b.pixels for a, b in pairs):
        stage = "preprocessed pixels"
    else:
        stage = "features"
    raise DriftError(
        f"this machine makes other numbers for tap {tap!r} than those stored: they differ by {difference:.1e} of the "
        f"largest (tolerance {TOLERANCE[dtype]:.0e}), and the first stage that changed is: {stage}"
    )
