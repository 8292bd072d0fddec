"""Attacks by what HDF5 can do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trials.hostile.forgery import SET, Attack, Forgery


def hdf5_attacks() -> Iterator[Attack]:
    """Shards that are what their record says byte by byte, and something else to libhdf5."""
    for label, make in HDF5_TRICKS.items():
        yield Attack("hdf5", f"shard: {label}", partial(_adopt, make), "hdf5")
    yield Attack("hdf5", "shard: a user block", lambda f: f.adopt(_plain, userblock_size=4096), "hdf5")
    yield Attack("hdf5", "shard: latest edition", lambda f: f.adopt(_plain, libver="latest"), "hdf5")
    yield Attack("hdf5", "shard: no HDF5 at all", lambda f: f.settle(b"no HDF5" * 1000), "hdf5")
    yield Attack("hdf5", "shard: only a signature", lambda f: f.settle(b"\x89HDF\r\n\x1a\n" + bytes(4096)), "hdf5")
    for seed in range(12):
        yield Attack("hdf5", f"shard: noise {seed} in the structure", partial(_noise, seed), "hdf5")


def _adopt(make: Callable[[Any, Path], None], forgery: Forgery) -> None:
    forgery.adopt(lambda file: make(file, forgery.outside))


def _plain(file: Any) -> None:
    file.create_dataset("features", data=np.zeros((9, 16), np.float16))


def _noise(seed: int, forgery: Forgery) -> None:
    folder = forgery.find(SET)
    shard = sorted(folder.glob("shards/*.h5"))[0]
    data = bytearray(shard.read_bytes()[:4096])
    rng = np.random.default_rng(seed)
    for _ in range(40):
        data[int(rng.integers(40, 1000))] = int(rng.choice([0, 1, 127, 128, 255]))
    forgery.settle(bytes(data))


def _external_storage(file: Any, outside: Path) -> None:
    file.create_dataset("features", (9, 16), "f2", external=[(str(outside / "secret.txt"), 0, 288)])


def _external_link(file: Any, outside: Path) -> None:
    import h5py

    with h5py.File(outside / "other.h5", "w") as other:
        _plain(other)
    file["features"] = h5py.ExternalLink(str(outside / "other.h5"), "/features")


def _soft_link(file: Any, outside: Path) -> None:
    import h5py

    _plain(file.create_group("deep"))
    file["features"] = h5py.SoftLink("/deep/features")


def _virtual(file: Any, outside: Path, *, unlimited: bool = False) -> None:
    import h5py

    maximum = (None, 16) if unlimited else (9, 16)
    with h5py.File(outside / "other.h5", "w") as other:
        other.create_dataset("x", data=np.ones((9, 16), "f2"), maxshape=maximum, chunks=(9, 16) if unlimited else None)
    layout = h5py.VirtualLayout((9, 16), "f2", maxshape=maximum)
    source = h5py.VirtualSource(str(outside / "other.h5"), "x", (9, 16), "f2", maxshape=maximum)
    if unlimited:
        layout[0 : h5py.h5s.UNLIMITED, :] = source[0 : h5py.h5s.UNLIMITED, :]
    else:
        layout[:] = source
    file.create_virtual_dataset("features", layout)


def _filter_bomb(file: Any, outside: Path) -> None:
    file.create_dataset("features", (9 << 20, 16), "f2", compression="gzip", chunks=(9 << 10, 16), fillvalue=0)[:9] = 1


def _unknown_filter(file: Any, outside: Path) -> None:
    import h5py

    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((9, 16))
    plan.set_filter(32_015, h5py.h5z.FLAG_OPTIONAL, ())
    space, kind = h5py.h5s.create_simple((9, 16)), h5py.h5t.py_create(np.dtype("f2"))
    h5py.h5d.create(file.id, b"features", kind, space, dcpl=plan)


def _references(file: Any, outside: Path) -> None:
    import h5py

    file.create_dataset("features", (9, 16), h5py.ref_dtype)[0, 0] = file["id"].ref


def _cycle(file: Any, outside: Path) -> None:
    group = file.create_group("features")
    group["again"] = file["/"]


def _texts(file: Any, outside: Path) -> None:
    import h5py

    file.create_dataset("features", (9, 16), h5py.string_dtype())[0, 0] = "x" * 1000


HDF5_TRICKS: dict[str, Callable[[Any, Path], Any]] = {
    "external storage": _external_storage,
    "external link": _external_link,
    "soft link": _soft_link,
    "virtual data set": _virtual,
    "unlimited virtual data set": partial(_virtual, unlimited=True),
    "filter bomb": _filter_bomb,
    "unknown filter": _unknown_filter,
    "object references": _references,
    "a cycle of groups": _cycle,
    "text of any length": _texts,
    "compound type": lambda file, outside: file.create_dataset("features", (9, 16), [("a", "f2"), ("b", "i4")]),
    "compact storage": lambda file, outside: file.create_dataset("features", data=np.float16(1)),
    "another type": lambda file, outside: file.create_dataset("features", data=np.zeros((9, 16), ">f2")),
    "another shape": lambda file, outside: file.create_dataset("features", data=np.zeros((9, 17), "f2")),
    "another offset": lambda file, outside: _plain(file),
    "no features": lambda file, outside: None,
    "a huge shape": lambda file, outside: file.create_dataset("features", (2**40, 2**20), "f2"),
    "a control character": lambda file, outside: (_plain(file), file.create_group("\x1b[2J\n")),
    "many groups": lambda file, outside: [file.create_group(f"g{k}") for k in range(3000)],
    "a committed type": lambda file, outside: file.__setitem__("features", np.dtype("f2")),
}
