"""Zarr stores over our output folders: one that hashes what is written, one that only reads.

Arrays are described and cut into shards in `shards.py`; files that are not Zarr's go to the
`OutputFolder` directly.
"""

from __future__ import annotations

import asyncio
from typing import Any, Self, cast

from upath import UPath
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from sr_assets.output_folder import OutputFolder
from sr_assets.remote_files import file_system, read_bytes
from sr_assets.storage import is_local

_METADATA = "zarr.json"
_OF_VERSION_2 = (".zgroup", ".zarray", ".zattrs", ".zmetadata")


class HashingStore(LocalStore):
    """A writable Zarr store in sub-folder `group` of an output that is being built.

    Every write is one file of the output: atomic, synced, hashed and journaled. The group's own
    `zarr.json` carries provenance, so it is kept out of the data version.
    """

    def __init__(self, folder: OutputFolder, group: str, *, read_only: bool = False) -> None:
        super().__init__(folder.path / group, read_only=read_only)
        self._folder, self._group = folder, group

    def with_read_only(self, read_only: bool = False) -> Self:
        """The same store, writable or not."""
        return type(self)(self._folder, self._group, read_only=read_only)

    def finished(self, key: str) -> bool:
        """Whether `key` was written whole, in this run or in an earlier, killed one."""
        return self._folder.finished(f"{self._group}/{key}")

    def set_sync(self, key: str, value: Buffer) -> None:
        """Writes one key whole."""
        self._check_writable()
        self._folder.write_bytes(f"{self._group}/{key}", value.to_bytes(), content=key != _METADATA)

    def delete_sync(self, key: str) -> None:
        """Removes one key."""
        self._check_writable()
        self._folder.discard(f"{self._group}/{key}")

    async def _set(self, key: str, value: Buffer, exclusive: bool = False) -> None:
        if exclusive and await self.exists(key):
            raise FileExistsError(key)
        await asyncio.to_thread(self.set_sync, key, value)

    async def delete(self, key: str) -> None:
        """Removes one key."""
        await asyncio.to_thread(self.delete_sync, key)

    async def delete_dir(self, prefix: str) -> None:
        """Removes every key below `prefix`."""
        start = f"{self._group}/{prefix}".rstrip("/") + "/"
        for name in [name for name in self._folder.files if name.startswith(start)]:
            await asyncio.to_thread(self._folder.discard, name)

    async def clear(self) -> None:
        """Removes every key."""
        await self.delete_dir("")


class _WholeStore(WrapperStore[Store]):
    """Raises for a chunk that is not there, where Zarr would show a black picture."""

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        value = await self._store.get(key, prototype, byte_range)
        if value is None and "/c/" in f"/{key}":
            raise FileNotFoundError(
                f"{self._store}/{key} is missing; delete its output and build it again"
            )
        return value

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Any
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]


class _ObjectStore(FsspecStore):
    """Asks an object store once for a whole file, and never for what only Zarr v2 writes."""

    folder: UPath

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        if key.rpartition("/")[2] in _OF_VERSION_2:
            return None
        if byte_range is not None:
            return await super().get(key, prototype, byte_range)
        try:
            return prototype.buffer.from_bytes(
                await asyncio.to_thread(read_bytes, self.folder / key)
            )
        except FileNotFoundError:
            return None


def reader_store(path: UPath) -> Store:
    """A read-only Zarr store at `path`, local or on any file system that fsspec knows.

    A missing chunk raises FileNotFoundError: our writers store every chunk.
    """
    if is_local(path):
        return _WholeStore(LocalStore(path.path, read_only=True))
    mapper = file_system(path).get_mapper(path.path)
    store = cast(_ObjectStore, _ObjectStore.from_mapper(mapper, read_only=True))
    store.folder = path
    return _WholeStore(store)
