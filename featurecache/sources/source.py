"""Where samples come from, behind one protocol: folders, tables of texts, and what other distributions offer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from featurecache.errors import InputError, SourceError
from featurecache.specs import AnyPreprocess

Stamp = tuple[int, int, int, int]
"""Four whole numbers of which one at least differs once the bytes do. The first is the number of bytes; of a file the
others are mtime and ctime in ns, and inode; of an object on the network, say, the digest of its ETag in pieces. Where
the third is negative, the stamp says nothing yet: the sample could change once more without another stamp."""


NO_STAMP: Stamp = (0, 0, -1, 0)
"""Of what has none in an array of stamps."""
UNSETTLED_NS = 2_000_000_000
"""What was written within that time could be written again with the same stamp: the coarsest clock of a file system in
use (FAT)."""

PATIENCE, LEAST_RATE = 60.0, 1000
"""Seconds, and bytes/s beyond them, that an object on a server may take: the slowest line anybody would wait for."""


class Unit(NamedTuple):
    """What one worker reads in one go: a folder, a table, a tar, a row group."""

    name: str


class Entry(NamedTuple):
    """One sample as a source lists it, without its bytes."""

    name: str
    """What the source calls it; each name once."""
    stamp: Stamp | None
    """``None``: nothing tells whether it changed, so it is read at each scan."""
    problem: str = ""
    """Why it cannot be read, where that is known already."""


class Source(Protocol):
    """Samples by name.

    Attributes
    ----------
    key : str
        Names its listing in a cache: an absolute path, a URL. Another key is another source.
    modality : str
        Kind of its samples, as a preprocess names it: ``image``, ``text``.

    Optional attributes are ``ignored`` (an `IgnoredFiles`: what it held besides samples when it was last listed),
    ``prefix`` (what stands in front of a name when people read it: the folder as they wrote it), and
    ``has_coarse_stamps`` (a change within a second may leave a stamp as it was, so bytes are compared with their
    digest whenever they are read), ``is_far`` (each read asks a server: what a scan reads is kept for the worker of
    the same process), ``kept`` (a `Spill`, set by a scan: a source that must read samples to list them puts the bytes
    there under their SHA-256, and gives them from there), and a method ``unit_stamp(unit)``, which returns what the
    names of a unit begin with, and of no other, and the stamp that all of them share but for the size: where an earlier
    listing has both, the unit is not listed again. The size there is that of the unit, 0 where it is not known: a large
    source is read in blocks of units, of which one is listed while samples of the one before are opened. Beside it a
    method ``ignored_of(unit)``, what a unit that was listed holds besides samples.
    """

    @property
    def key(self) -> str: ...

    @property
    def modality(self) -> str: ...

    def units(self) -> Iterator[Unit]:
        """Yield its units, in an order that stays."""

    def list(self, unit: Unit) -> Iterator[Entry]:
        """Yield the entries of a unit without reading a sample.

        Raises
        ------
        SourceError
            The source is missing, or holds nothing that could be a sample.
        """

    def read(self, unit: Unit) -> Iterator[tuple[str, bytes]]:
        """Yield the names and bytes of a unit, in the order of `list`; what cannot be read is left out."""

    def open(self, name: str, *, stamp: Stamp | None) -> bytes:
        """Return the bytes of one sample; called by many threads at once.

        Parameters
        ----------
        name : str
            As it was listed.
        stamp : Stamp, optional
            That it must still have.

        Raises
        ------
        InputError
            ``missing``, ``unreadable``, ``too_large``, or ``changed``: it has another stamp.
        """


class SingleUnit:
    """Base of sources that one worker reads in one go: they write `list` and `open`."""

    def units(self) -> Iterator[Unit]:
        """Yield one unit."""
        yield Unit("")

    def read(self: Source, unit: Unit) -> Iterator[tuple[str, bytes]]:
        """Yield the names and bytes of what can be read."""
        for entry in self.list(unit):
            try:
                yield entry.name, self.open(entry.name, stamp=None)
            except InputError:
                continue


def check_source(source: Source) -> None:
    """Raise `SourceError` when a source is missing or empty; it is asked for its first entry only."""
    # Listing millions of files takes a minute; whether there is one is known at once.
    for unit in source.units():
        for _ in source.list(unit):
            return
    raise SourceError(f"{source.key} holds no {source.modality}s; name another source")


def check_modality(source: Source, preprocess: AnyPreprocess, backbone: str) -> None:
    """Raise `SourceError` when a backbone takes another kind of sample than a source holds.

    Parameters
    ----------
    source : Source
    preprocess
        Of the backbone.
    backbone : str
        Its name, for the message.
    """
    if source.modality != preprocess.modality:
        advice = "name a table and its --text-column" if preprocess.modality == "text" else "name a folder of images"
        raise SourceError(
            f"{backbone} takes {preprocess.modality}s, and {source.key} holds {source.modality}s; {advice}, or choose "
            "another backbone"
        )
