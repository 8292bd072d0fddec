"""Samples that are in memory already, as a source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from featurecache.errors import InputError
from featurecache.sources.source import Entry, SingleUnit, Stamp, Unit


@dataclass(frozen=True)
class InMemory(SingleUnit):
    """Bytes by name; they are what they are, so they have no stamps."""

    samples: Mapping[str, bytes]
    modality: str

    key = "memory"

    def list(self, unit: Unit) -> Iterator[Entry]:
        """Yield the names."""
        return (Entry(name, None) for name in self.samples)

    def open(self, name: str, *, stamp: Stamp | None) -> bytes:
        """Return the bytes of one; raise `InputError` for a name that there is not."""
        if name not in self.samples:
            raise InputError("missing", f"there is no sample {name!r}")
        return self.samples[name]
