"""An object store in memory, written for asyncio as those for S3 are, that counts what it gives and fails by name."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import fsspec
from fsspec.asyn import AsyncFileSystem

NEVER = 900.0


class Store(AsyncFileSystem):
    """What is served as ``store://``.

    Attributes
    ----------
    objects : dict of str to bytes
    silent : set of str
        Objects that never come.
    faults : dict of str to list of Exception
        What the next reads of an object raise.
    after_read : callable, optional
        Called with the path of what was read.
    asked, served : Counter
        Of each object, how often it was asked for, and how many of its bytes came.
    """

    protocol = "store"
    objects: ClassVar[dict[str, bytes]] = {}
    silent: ClassVar[set[str]] = set()
    faults: ClassVar[dict[str, list[Exception]]] = {}
    after_read: ClassVar[Callable[[str], None] | None] = None
    asked: ClassVar[Counter[str]] = Counter()
    served: ClassVar[Counter[str]] = Counter()
    has_digests = True
    """Else an object has a time in seconds only."""
    num_clients = 0
    num_waiting = 0

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        Store.num_clients += 1

    @classmethod
    def serve(cls, objects: dict[str, bytes]) -> None:
        """Begin anew with some objects."""
        fsspec.register_implementation("store", cls, clobber=True)
        cls.objects, cls.silent, cls.faults, cls.after_read, cls.has_digests = objects, set(), {}, None, True
        cls.asked, cls.served, cls.num_clients, cls.num_waiting = Counter(), Counter(), 0, 0

    async def _info(self, path: str, **options: Any) -> dict[str, Any]:
        if path not in self.objects:
            raise FileNotFoundError(path)
        data = self.objects[path]
        tag = {"ETag": str(hash(data))} if self.has_digests else {"mtime": 1.0}
        return {"name": path, "size": len(data), "type": "file", **tag}

    async def _ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        return [await self._info(name) for name in self.objects if name.startswith(f"{path}/")]

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        self.asked[path] += 1
        if self.faults.get(path):
            raise self.faults[path].pop(0)
        Store.num_waiting += 1
        try:
            await asyncio.sleep(NEVER if path in self.silent else 0)
        finally:
            Store.num_waiting -= 1
        data = self.objects[path][start:end]
        self.served[path] += len(data)
        if self.after_read is not None:
            type(self).after_read(path)
        return data
