"""A head on disk: ``head.safetensors`` holds the arrays, ``head.json`` what they mean and their digest.

The folder with both is one publication: it gets its name when both are there, and changes places with the one that had
the name before. So of two writers one leaves its head, whole, and a reader finds one or the other.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.numpy
import sklearn
from safetensors import SafetensorError
from sklearn.base import BaseEstimator

from featurecache.atomic import is_partial, make_folder, published_folder
from featurecache.errors import CorruptError, FormatVersionError, HeadError, NotAgreedError, shortened
from featurecache.hashing import digest_bytes
from featurecache.heads.encoding import decode_estimator, encode_estimator
from featurecache.heads.head import Arrays, HeadMixin
from featurecache.heads.outliers import OutlierDetector
from featurecache.records import encode_record, read_record, read_small_file

_DIGEST = re.compile("[0-9a-f]{64}")
JSON_NAME = "head.json"
ARRAYS_NAME = "head.safetensors"
# Nearest neighbours keep all their rows; a record of a stranger must not ask for more.
MAX_ARRAYS_BYTES = 16 << 30
# To read a head that others replace meanwhile.
_ATTEMPTS = 30
_OUTLIERS = "outliers."
"""What the names of the arrays of an `OutlierDetector` begin with; releases that know none of it leave them alone."""
OtherClass = Callable[[dict[str, Any]], type[HeadMixin] | None]


class SavedBundle(NamedTuple):
    """What is in the folder of a head.

    Attributes
    ----------
    estimator : fitted estimator
    meta : dict
        JSON values that travel with it.
    outliers : OutlierDetector or None
        None: of few samples, of activations, or saved by an earlier release.
    """

    estimator: BaseEstimator
    meta: dict[str, Any]
    outliers: OutlierDetector | None


def save_head(
    folder: Path, estimator: BaseEstimator, meta: dict[str, Any], outliers: OutlierDetector | None = None
) -> None:
    """Write a fitted head into ``folder``, which is created; a head that is there is replaced.

    Parameters
    ----------
    folder : Path
    estimator : fitted classifier
        Must state its arrays; see `featurecache.heads.head.Head`.
    meta : dict
        JSON values that travel with the head (class names, tap, fingerprint, temperature, ...).
    outliers : OutlierDetector, optional
        Tells inputs that are unlike those that the head was fitted on.

    Raises
    ------
    HeadError
        The head or the meta data cannot be written as plain data. Nothing is written then.
    """
    tree, arrays = encode_estimator(estimator)
    if outliers is not None:
        arrays |= {f"{_OUTLIERS}{name}": array for name, array in outliers.to_arrays().items()}
    data = safetensors.numpy.save(arrays)
    body = {
        "arrays": {"bytes": len(data), "sha256": digest_bytes(data)},
        "estimator": tree,
        "meta": meta,
        "written_by": {"scikit-learn": sklearn.__version__},
    }
    try:
        text = encode_record("head", body, version=2)
    except (ValueError, TypeError, RecursionError) as error:
        raise HeadError(
            f"meta data of head {folder} cannot be kept ({error}); use finite numbers and short text"
        ) from error
    make_folder(folder.parent)
    with published_folder(folder) as partial:
        (partial / ARRAYS_NAME).write_bytes(data)
        (partial / JSON_NAME).write_bytes(text)
        # What people have put into the folder of a head that is replaced stays there.
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name not in (JSON_NAME, ARRAYS_NAME) and not path.name.startswith(".") and path.is_file():
                shutil.copy2(path, partial / path.name, follow_symlinks=False)


def load_head(folder: Path, *, other_class: OtherClass | None = None) -> SavedBundle:
    """Read the head in ``folder``; its predictions are those of the saved one, bit for bit.

    Parameters
    ----------
    folder : Path
    other_class : callable, optional
        Takes the meta data and returns the class of a head that is none of those that have a name, or None.

    Returns
    -------
    SavedBundle

    Raises
    ------
    HeadError
        Nothing there, a file that is damaged or does not belong to the other, a class that heads never have, or
        a bundle of a later release.
    """
    for _ in range(_ATTEMPTS):
        before = _state(folder)
        try:
            return _load(folder, other_class)
        except HeadError:
            if _state(folder) == before:  # else it was replaced while it was read
                raise
    raise HeadError(f"the head in {folder} is replaced faster than it can be read; try again")


def _load(folder: Path, other_class: OtherClass | None) -> SavedBundle:
    path = folder / JSON_NAME
    try:
        document = read_record(path, "head")
    except FormatVersionError as error:
        raise HeadError(str(error)) from None
    except CorruptError as error:
        raise _unusable(path, str(error)) from None
    except OSError as error:
        found = folder.parent.glob(f"*/{JSON_NAME}")
        others = sorted(other.parent.name for other in found if not is_partial(other.parent))[:20]
        advice = f"there are {', '.join(others)} next to it" if others else "save one there"
        raise HeadError(f"no head in {folder}: {JSON_NAME} cannot be read ({error.strerror}); {advice}") from None
    meta = document.get("meta")
    if not isinstance(meta, dict):
        raise _unusable(path, "it has no meta data")
    arrays = _read_arrays(folder, document.get("arrays"))
    named = partial(other_class, meta) if other_class is not None else None
    try:
        estimator = decode_estimator(document.get("estimator"), arrays, other_class=named)
        own = {name.removeprefix(_OUTLIERS): array for name, array in arrays.items() if name.startswith(_OUTLIERS)}
        outliers = OutlierDetector.from_arrays(own, int(estimator.n_features_in_)) if own else None
        return SavedBundle(estimator, meta, outliers)
    except NotAgreedError:  # the head may be sound; nobody has named its code yet
        raise
    except (HeadError, ValueError, TypeError, AttributeError, LookupError, RecursionError, OverflowError) as error:
        raise _unusable(path, shortened(error)) from error


def _state(folder: Path) -> tuple[int, int] | None:
    """Return what another folder of the same name does not have."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _read_arrays(folder: Path, entry: Any) -> Arrays:
    if (
        not isinstance(entry, dict)
        or type(entry.get("bytes")) is not int
        or entry["bytes"] < 0
        or not isinstance(entry.get("sha256"), str)
        or not _DIGEST.fullmatch(entry["sha256"])
    ):
        raise _unusable(folder / JSON_NAME, f"it has no entry for {ARRAYS_NAME}")
    problem = ""
    # The second is where earlier releases kept the arrays of a head while they replaced it.
    for path in (folder / ARRAYS_NAME, folder / f".{ARRAYS_NAME}.{entry['sha256'][:16]}"):
        try:
            data = read_small_file(path, max_bytes=min(entry["bytes"], MAX_ARRAYS_BYTES))
        except (OSError, CorruptError) as error:
            problem = problem or str(error)
            continue
        if len(data) == entry["bytes"] and digest_bytes(data) == entry["sha256"]:
            return _parsed(path, data)
        problem = problem or f"its digest is not the one in {JSON_NAME}"
    raise _unusable(folder / ARRAYS_NAME, problem)


def _parsed(path: Path, data: bytes) -> Arrays:
    try:
        return safetensors.numpy.load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise _unusable(path, f"it is not a safetensors file ({shortened(error)})") from error


def _unusable(path: Path, reason: str) -> HeadError:
    return HeadError(f"{path} cannot be used: {reason}. Save the head again")
