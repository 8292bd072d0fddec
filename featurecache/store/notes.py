"""Records of a cache that only save time: what one of them says could be computed again."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from featurecache.atomic import is_partial, make_folder, publish_bytes, publish_once
from featurecache.errors import CorruptError
from featurecache.hashing import digest_json
from featurecache.records import encode_record, read_record
from featurecache.store.result_schemas import ArrayBody, ProbeBody, SearchBody
from featurecache.store.schemas import RequestBody, ResultBody, StoredType, checked_body

T = TypeVar("T", bound=msgspec.Struct)
KINDS: dict[type[msgspec.Struct], tuple[str, str]] = {
    ProbeBody: ("probes", "probe"),
    RequestBody: ("requests", "request"),
    ResultBody: ("results", "result"),
    SearchBody: ("searches", "search"),
    StoredType: ("types", "type"),
}
"""Folder and kind of the records of each body."""

_MOST_BYTES = 8 << 20
"""Of the arrays of what is kept: records are read whole."""

_MOST_RECORDS = 1_000
"""Of searches, and of probes."""


class Notes:
    """What a cache has noted."""

    path: Path
    """Folder of the cache."""

    def recall(self, body: type[T], digest: str) -> T | None:
        """Return what is kept under a digest; None where it is missing or damaged: then it is computed again.

        Parameters
        ----------
        body : type
            One of `KINDS`.
        digest : str
            Of everything that it depends on.
        """
        folder, kind = KINDS[body]
        path = self.path / folder / f"{digest}.json"
        try:
            return checked_body(read_record(path, kind), body, str(path))
        except (FileNotFoundError, CorruptError):
            return None

    def remember(self, digest: str, found: ResultBody | SearchBody | ProbeBody) -> None:
        """Keep a result, or what a search or a probe found, where it is small enough for a record.

        Parameters
        ----------
        digest : str
            Of everything that it depends on.
        found : ResultBody, SearchBody or ProbeBody
        """
        fields = (getattr(found, name) for name in found.__struct_fields__)
        if sum(len(field.data) for field in fields if isinstance(field, ArrayBody)) > _MOST_BYTES:
            return
        name, kind = KINDS[type(found)]
        folder = self.path / name
        make_folder(folder)
        # Parameters of heads may be numbers of numpy.
        body = msgspec.to_builtins(found, enc_hook=np.generic.item)
        # Not once: a damaged record is replaced by a fresh one.
        publish_bytes(folder / f"{digest}.json", encode_record(kind, body))
        if not isinstance(found, ResultBody):
            _forget_oldest(folder)

    def remember_request(self, digest: str, fingerprint: str, taps: list[str]) -> None:
        """Note which feature sets a request led to: an unchanged folder is then known without loading the backbone.

        Parameters
        ----------
        digest, fingerprint : str
            Of the request, and of the features.
        taps : list of str
        """
        folder = self.path / "requests"
        make_folder(folder)
        publish_once(folder / f"{digest}.json", encode_record("request", {"fingerprint": fingerprint, "taps": taps}))

    def remember_type(self, fingerprint: str, tap: str, chosen: StoredType) -> StoredType:
        """Keep the number type that ``--dtype auto`` chose for a tap, and return the first choice, which stays.

        Parameters
        ----------
        fingerprint, tap : str
            Of plain features; those of their views have the same type.
        chosen : StoredType
        """
        path = self.path / "types" / f"{_type_digest(fingerprint, tap)}.json"
        make_folder(path.parent)
        data = encode_record("type", msgspec.to_builtins(chosen))
        publish_once(path, data)
        # The first choice stays: all writers of a tap store one type.
        if (kept := self.recall_type(fingerprint, tap)) is not None:
            return kept
        publish_bytes(path, data)  # a damaged record is replaced
        return chosen

    def recall_type(self, fingerprint: str, tap: str) -> StoredType | None:
        """Return what `remember_type` kept, if anything that can be read is."""
        return self.recall(StoredType, _type_digest(fingerprint, tap))


def _type_digest(fingerprint: str, tap: str) -> str:
    return digest_json("type", 1, {"fingerprint": fingerprint, "tap": tap})


def _forget_oldest(folder: Path) -> None:
    """Remove the oldest: with every new label there are others, and the old ones are hardly wanted again."""
    records = [path for path in folder.iterdir() if not is_partial(path)]
    if len(records) <= _MOST_RECORDS:
        return
    with suppress(FileNotFoundError):  # another training may be faster
        for path in sorted(records, key=lambda path: path.stat().st_mtime_ns)[:-_MOST_RECORDS]:
            path.unlink()
