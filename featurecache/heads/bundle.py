"""A head on disk: ``head.safetensors`` holds the arrays, ``head.json`` what they mean and their digest.

`head.json` is written last and names the digest of the arrays, so a folder whose writer was interrupted is noticed
when it is read, never half believed.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import safetensors.numpy
import sklearn
from safetensors import SafetensorError
from sklearn.base import BaseEstimator

from featurecache.atomic import publish_bytes
from featurecache.errors import HeadError
from featurecache.hashing import canonical_json, digest_bytes
from featurecache.heads.encoding import Arrays, decode_estimator, encode_estimator

FORMAT = "featurecache.head"
VERSION = 1
JSON_NAME = "head.json"
ARRAYS_NAME = "head.safetensors"
MAX_JSON_BYTES = 16 << 20


def save_head(folder: Path, estimator: BaseEstimator, meta: dict[str, Any]) -> None:
    """Write a fitted head into ``folder``, which is created; a head that is there is replaced.

    Parameters
    ----------
    folder : Path
    estimator : fitted classifier
        A scikit-learn class that `encode_estimator` knows, or a `Pipeline` of them.
    meta : dict
        JSON values that travel with the head (class names, tap, fingerprint, temperature, ...).

    Raises
    ------
    HeadError
        The head or the meta data cannot be written as plain data. Nothing is written then.
    """
    tree, arrays = encode_estimator(estimator)
    data = safetensors.numpy.save(arrays)
    document = {
        "format": FORMAT,
        "version": VERSION,
        "arrays": {"file": ARRAYS_NAME, "bytes": len(data), "sha256": digest_bytes(data)},
        "estimator": tree,
        "meta": meta,
        "written_by": {"scikit-learn": sklearn.__version__},
    }
    text = _serialised(document, folder)
    folder.mkdir(parents=True, exist_ok=True)
    publish_bytes(folder / ARRAYS_NAME, data)
    publish_bytes(folder / JSON_NAME, text)


def load_head(folder: Path) -> tuple[BaseEstimator, dict[str, Any]]:
    """Read the head in ``folder``; its predictions are those of the saved one, bit for bit.

    Returns
    -------
    (estimator, meta)

    Raises
    ------
    HeadError
        Nothing there, a file that is damaged or does not belong to the other, a class that heads never have, or
        a bundle of a later release.
    """
    document = _read_document(folder / JSON_NAME)
    arrays = _read_arrays(folder, document.get("arrays"))
    meta = document.get("meta")
    if not isinstance(meta, dict):
        raise _unusable(folder / JSON_NAME, "it has no meta data")
    try:
        return decode_estimator(document.get("estimator"), arrays), meta
    except (HeadError, ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise _unusable(folder / JSON_NAME, str(error)) from error


def _serialised(document: dict[str, Any], folder: Path) -> bytes:
    try:
        text = canonical_json(document).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise HeadError(
            f"meta data of head {folder} is not plain JSON ({error}); use finite numbers and text"
        ) from error
    if len(text) > MAX_JSON_BYTES:
        raise HeadError(f"meta data of head {folder} is {len(text)} bytes; keep it below {MAX_JSON_BYTES}")
    return text


def _read_document(path: Path) -> dict[str, Any]:
    document = _parsed(path, _read_bytes(path, MAX_JSON_BYTES))
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise _unusable(path, f"it does not say that it is a {FORMAT}")
    version = document.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise _unusable(path, f"its version is {version!r}")
    if version > VERSION:
        raise HeadError(f"{path} has head format {version}; this release reads up to {VERSION}. Upgrade featurecache")
    return document


def _parsed(path: Path, data: bytes) -> Any:
    try:
        return json.loads(data, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite_float)
    except (ValueError, RecursionError) as error:
        raise _unusable(path, f"it is not strict JSON ({error})") from error


def _read_arrays(folder: Path, entry: Any) -> Arrays:
    path = folder / ARRAYS_NAME
    if not isinstance(entry, dict) or entry.get("file") != ARRAYS_NAME or not isinstance(entry.get("bytes"), int):
        raise _unusable(folder / JSON_NAME, f"it has no entry for {ARRAYS_NAME}")
    data = _read_bytes(path, entry["bytes"])
    if len(data) != entry["bytes"] or digest_bytes(data) != entry.get("sha256"):
        raise _unusable(path, f"its digest is not the one in {JSON_NAME}")
    try:
        return safetensors.numpy.load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise _unusable(path, f"it is not a safetensors file ({error})") from error


def _read_bytes(path: Path, limit: int) -> bytes:
    try:
        size = path.stat().st_size
        if size > limit:
            raise _unusable(path, f"it has {size} bytes, more than the {limit} expected")
        return path.read_bytes()
    except OSError as error:
        raise HeadError(
            f"no head in {path.parent}: {path.name} cannot be read ({error.strerror}); save one there"
        ) from error


def _unusable(path: Path, reason: str) -> HeadError:
    return HeadError(f"{path} cannot be used: {reason}. Save the head again")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(mapping := dict(pairs)) != len(pairs):
        raise ValueError("a key appears twice")
    return mapping


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")


def _finite_float(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is too large")
    return value
