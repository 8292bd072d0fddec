"""Pictures in an array of an HDF5 file, (n, height, width) or (n, height, width, channels)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from featurecache.errors import SourceError
from featurecache.files import open_regular, reason_of
from featurecache.sources.in_memory import IndexedImages, number_names


class Hdf5Arrays(IndexedImages):
    """The pictures of one array, named by their numbers.

    Parameters
    ----------
    url : str
        The file and the array in it: ``h5://scans.h5::images/raw``.

    Raises
    ------
    SourceError
        There is no such file or array, or it holds no pictures.
    """

    def __init__(self, url: str) -> None:
        import h5py

        path, _, name = url.removeprefix("h5://").partition("::")
        try:
            with open_regular(path):
                self._file: Any = h5py.File(path, "r")
        except OSError as error:
            raise SourceError(f"cannot open {path}: {reason_of(error)}") from None
        arrays = [found for found in _arrays(self._file) if not name or found == name.strip("/")]
        if len(arrays) != 1:
            able = ", ".join(_arrays(self._file)) or "none"
            what = f"has no array {name!r} of pictures" if name else f"has {len(arrays)} arrays of pictures"
            raise SourceError(f"{path} {what}; write h5://{path}::NAME, with one of: {able}")
        array = self._file[arrays[0]]
        key = f"{Path(path).absolute()}::{arrays[0]}"
        # HDF5 lets one thread at a time into the library.
        super().__init__(array.__getitem__, number_names(len(array)), key=key, one_at_a_time=True)


def _arrays(file: Any) -> list[str]:
    """Return the names of arrays that can hold pictures; links out of the file are not followed."""
    import h5py

    found = []

    def collect(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim in (3, 4) and len(item) and item.external is None:
            found.append(name)

    file.visititems(collect)
    return found
