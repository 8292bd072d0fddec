"""One sample of a source, to be read when its turn comes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from featurecache.errors import InputError
from featurecache.hashing import digest_bytes
from featurecache.sources.source import Source, Stamp
from featurecache.spill import Spill


@dataclass(frozen=True, slots=True)
class Input:
    """A sample to read; with ``id`` given, it must still hold the bytes that were seen at the scan.

    Attributes
    ----------
    source : Source
    entry : str
        Its name there.
    id : str, optional
        SHA-256 (hex) of its bytes.
    stamp : Stamp, optional
        That it had at the scan. Where it still has it, its bytes need no digest.
    prefix : str
        What stands in front of the name when people read it.
    kept : Spill, optional
        Bytes that this process has read before, by their ids. Those that have this id need not be asked for again,
        whatever has become of them in the source.
    """

    source: Source
    entry: str
    id: str | None = None
    stamp: Stamp | None = None
    prefix: str = ""
    kept: Spill | None = None

    @property
    def name(self) -> str:
        """What people call it."""
        return self.prefix + self.entry

    def read(self, max_bytes: int | None = None) -> bytes:
        """Return its bytes; one that is known to be beyond the limit is not read.

        Raises
        ------
        InputError
            It cannot be read, or is not what it was at the scan.
        """
        # A stamp begins with the size, so that a file which is too large is not opened.
        if max_bytes is not None and self.stamp is not None and self.stamp[0] > max_bytes:
            raise InputError("too_large", f"the file has {self.stamp[0]} bytes, the limit is {max_bytes}")
        if self.kept is not None and self.id is not None:
            known = self.kept.get(bytes.fromhex(self.id))
            if known is not None:
                return known
        if self.stamp is not None:
            try:
                data = self.source.open(self.entry, stamp=self.stamp)
                if not getattr(self.source, "has_coarse_stamps", False) or self.id in (None, digest_bytes(data)):
                    return data
            except InputError as error:
                # A touched file, or one that was copied back, still holds what it held; only a digest can tell.
                if error.status != "changed" or self.id is None:
                    raise
        data = self.source.open(self.entry, stamp=None)
        if self.id is not None and digest_bytes(data) != self.id:
            raise InputError("changed", "the file was edited while the run went on")
        return data


def inputs_of(source: Source) -> Iterator[Input]:
    """Yield every sample of a source, in the order in which it lists them."""
    prefix = str(getattr(source, "prefix", ""))
    for unit in source.units():
        for entry in source.list(unit):
            yield Input(source, entry.name, prefix=prefix)
