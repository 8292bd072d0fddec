"""Names: those that people choose, and those of feature sets in a table, short and never two alike."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from featurecache.errors import RequestError
from featurecache.wording import counted

# A folder name on every file system, and no option on a command line.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# Short enough to be read out, and nearly always enough.
_LEAST_DIGITS = 8


def is_name(name: str) -> bool:
    """Tell whether a task or a head may have a name."""
    return _NAME.fullmatch(name) is not None


def check_name(kind: str, name: str) -> None:
    """Refuse a name that could not be a plain folder name everywhere."""
    if not is_name(name):
        raise RequestError(f"{name!r} cannot be the name of a {kind}; use letters, digits, '.', '_' and '-'")


def distinct_names(sets: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a name for each feature set: its tap, and of all else what differs between them.

    Parameters
    ----------
    sets : sequence of mapping
        ``backbone``, ``tap``, ``dtype``, ``views`` (a number, or None for plain features) and ``fingerprint`` of each,
        as `FeatureSet.to_json` and rows of results have them. The same set may come several times.

    Returns
    -------
    names : list of str
        Equal for equal sets only. The type and the backbone are named where there are several; views always; and the
        first digits of the fingerprint of sets that have all of these in common.
    """
    several = {key for key in ("dtype", "backbone") if len({document[key] for document in sets}) > 1}
    names = [_name(document, several) for document in sets]
    alike: dict[str, set[str]] = defaultdict(set)
    for name, document in zip(names, sets, strict=True):
        alike[name].add(document["fingerprint"])
    return [
        f"{name} ({_shortened(document['fingerprint'], alike[name])})" if len(alike[name]) > 1 else name
        for name, document in zip(names, sets, strict=True)
    ]


def _name(document: Mapping[str, Any], several: set[str]) -> str:
    words = [str(document["tap"])]
    if document["views"]:
        words.append(counted(document["views"], "view"))
    return ", ".join([*words, *(str(document[key]) for key in ("dtype", "backbone") if key in several)])


def _shortened(fingerprint: str, others: set[str]) -> str:
    """Return as many digits of a fingerprint as tell it from the others."""
    digits = next(
        (count for count in range(_LEAST_DIGITS, len(fingerprint)) if len({f[:count] for f in others}) == len(others)),
        len(fingerprint),
    )
    return fingerprint[:digits]
