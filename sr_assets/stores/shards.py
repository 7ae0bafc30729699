"""Groups of sharded arrays: how every store of ours is written, a whole shard at a time, and read.

What the arrays mean is said in `patches.py`, `pairs.py` and `expert_cache.py`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zarr
from upath import UPath
from zarr.abc.codec import ArrayArrayCodec, BytesBytesCodec
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from sr_assets.output_folder import OutputFolder
from sr_assets.stores.chunk_bytes import ChunkBytes, chunk_bytes
from sr_assets.stores.hashing import HashingStore, reader_store
from sr_assets.stores.schema import check_schema
from sr_assets.stores.shard_bytes import ShardedArray, ShardError, sharded_array
from sr_assets.stores.shard_coding import ArrayCoder, ShardCoder


class DamagedStoreError(OSError):
    """A store does not hold what was written into it; the message names the store and the mend."""


@dataclass(frozen=True)
class ArraySpec:
    """One array of a group; its first axis, the samples, is left out of the shapes.

    Args:
        shape: of one sample.
        chunk: of one chunk, the unit of a random read; divides `shape`.
        dtype: numpy name of the type.
        axes: names of all axes, the samples' included.
        filters, compressors: Zarr codecs: at most a `PictureDelta`, and at most one of zstd and
            Blosc. A checksum always follows them.
    """

    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: str
    axes: tuple[str, ...]
    filters: tuple[ArrayArrayCodec, ...] = ()
    compressors: tuple[BytesBytesCodec, ...] = ()


class ShardWriter:
    """Writes the arrays of one Zarr group shard by shard, into an output that is being built.

    A shard is the file of one array for `samples_per_shard` consecutive samples. Each is written in
    one step, so that a killed run loses the shard it was writing and nothing else; what an earlier
    run finished is kept when its layout is the same and removed when it is not. Different shards
    may be written from different threads, and be coded by other processes, to which `coder` may be
    handed.

    Args:
        folder: where to write.
        group: folder of the group inside the output, such as `patches.zarr`.
        count: number of samples N.
        arrays: the sharded arrays by name.
        samples_per_shard: in every array; the last shard may hold fewer.
        attributes: of the group (JSON values); they are not content.
        columns: small arrays of one value a sample [N], written whole at once.
    """

    def __init__(
        self,
        folder: OutputFolder,
        group: str,
        count: int,
        arrays: Mapping[str, ArraySpec],
        samples_per_shard: int,
        attributes: Mapping[str, Any],
        columns: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self._folder, self._group = folder, group
        columns = columns or {}
        step = max(1, min(samples_per_shard, count))
        self.shards = [range(a, min(a + step, count)) for a in range(0, count, step)]
        self._store = HashingStore(folder, group)
        described: dict[str, Any] = {}
        memory = zarr.create_group(MemoryStore(described), attributes=dict(attributes))
        for name, spec in arrays.items():
            memory.create_array(
                name,
                shape=(count, *spec.shape),
                dtype=spec.dtype,
                chunks=(1, *spec.chunk),
                shards=(step, *spec.shape),
                filters=spec.filters,
                compressors=(*spec.compressors, Crc32cCodec()),
                fill_value=0,
                dimension_names=spec.axes,
            )
        for name, values in columns.items():
            if values.shape != (count,):
                raise ValueError(f"column {name} has shape {values.shape}, expected ({count},)")
            memory.create_array(
                name,
                shape=(count,),
                dtype=values.dtype,
                chunks=(max(1, count),),
                filters=(),
                compressors=(ZstdCodec(level=1), Crc32cCodec()),
                fill_value=0,
                dimension_names=("sample",),
            )
        self._write_layout(folder, group, {k: v.to_bytes() for k, v in described.items()})
        self.coder = ShardCoder(
            tuple(self.shards),
            {
                name: ArrayCoder(
                    spec.shape,
                    spec.dtype,
                    step * math.prod(spec.shape) // math.prod(spec.chunk),
                    _coding(memory[name]),
                )
                for name, spec in arrays.items()
            },
        )
        for name, values in columns.items():
            if count and not self._store.finished(f"{name}/c/0"):
                array = zarr.open_array(self._store, path=name, mode="r+")
                array.with_config({"write_empty_chunks": True})[:] = values

    def finished(self, shard: int) -> bool:
        """Whether every array's file of this shard is there, from this run or an earlier one."""
        return all(self._store.finished(key) for key in self.coder.keys(shard).values())

    def write(self, shard: int, **arrays: np.ndarray) -> None:
        """Writes one shard of every array; the arguments are those of `ShardCoder.encode`.

        Raises:
            ValueError: an array is missing, unknown or of another shape or type.
        """
        self.put(self.coder.encode(shard, **arrays))

    def put(self, files: Mapping[str, bytes]) -> None:
        """Writes what `coder` made of one shard, here or in another process."""
        for name, data in files.items():
            self._folder.write_bytes(f"{self._group}/{name}", data)

    def _write_layout(self, folder: OutputFolder, group: str, files: Mapping[str, bytes]) -> None:
        same = {
            key: folder.finished(f"{group}/{key}")
            and (folder.path / group / key).read_bytes() == data
            for key, data in files.items()
        }
        if not all(same[key] for key in files if key != "zarr.json"):
            for name in [name for name in folder.files if name.startswith(f"{group}/")]:
                folder.discard(name)
            same = dict.fromkeys(files, False)
        for key, data in files.items():
            if not same[key]:
                folder.write_bytes(f"{group}/{key}", data, content=key != "zarr.json")


def _coding(array: Any) -> ChunkBytes:
    coding = chunk_bytes(array.chunks, array.dtype, array.metadata.codecs[0].codecs)
    if coding is None:
        raise ValueError(f"array {array.name} has codecs that a shard is not written with")
    return coding


class GroupReader:
    """Reads samples of one Zarr group that `ShardWriter` wrote.

    Metadata is read once for each process: a reader may be handed to a worker process, forked or
    pickled, and be shared by threads. This is the only place that decides how bytes are fetched:
    single samples directly from their shard, everything else through Zarr.

    Args:
        path: of the group.
        schema: name of the store's schema that the caller understands; None for a plain group.
        version: of that schema.

    Raises:
        DamagedStoreError: there is no such group.
        SchemaError: it is of a schema that the caller does not understand.
    """

    def __init__(self, path: UPath, schema: str | None = None, version: int = 1) -> None:
        self.path = path
        self._opened: _Opened | None = None
        self.attributes: dict[str, Any] = self._open().group.attrs.asdict()
        if schema:
            check_schema(self.attributes.get("schema"), schema, version, path)

    def array(self, name: str) -> zarr.Array:
        """One array of the group.

        Raises:
            DamagedStoreError: the group has no such array.
        """
        opened = self._open()
        if name not in opened.arrays:
            found = opened.group.get(name)
            if not isinstance(found, zarr.Array):
                raise DamagedStoreError(f"{self.path} has no array {name}: build it again")
            opened.arrays[name] = found
        return opened.arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self._open().group

    def read(self, name: str, *index: int | slice) -> np.ndarray:
        """Part of one array, with every checksum on the way verified.

        Raises:
            IndexError: outside the array.
            DamagedStoreError: a checksum differs or a file is missing.
        """
        single = [[i] for i in index if not isinstance(i, slice)]
        if len(single) < len(index):
            return self._read_by_zarr(name, index)
        return self.read_batch(name, *single)[0]

    def read_batch(
        self, name: str, *indices: Sequence[int] | np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray:
        """B samples of one array, with every checksum on the way verified.

        Args:
            name: of the array.
            indices: integers [B] on the first axis, and on as many of the next as are given.
            out: [B, ...], contiguous, of the array's type; a new array when left out.

        Returns:
            [B, ...]: `out`, where it was given.

        Raises:
            IndexError: outside the array.
            DamagedStoreError: a checksum differs or a file is missing.
        """
        array = self.array(name)
        shape = array.shape
        # Plain integers: for the few samples of a batch, numpy takes longer than a read. They are
        # on the first axes: lengths are left over.
        columns = [np.asarray(axis).tolist() for axis in indices]
        for axis, (column, length) in enumerate(zip(columns, shape, strict=False)):
            for index in column:
                if not 0 <= index < length:
                    raise IndexError(f"{name}: index {index} on axis {axis} of length {length}")
        places = list(zip(*columns, strict=True))
        if out is None:
            out = np.empty((len(places), *shape[len(columns) :]), array.dtype)
        direct = self._direct(name)
        if direct is None or not direct.single(len(columns)):
            for row, place in enumerate(places):
                out[row] = self._read_by_zarr(name, place)
            return out
        try:
            direct.read(places, out)
        except ShardError as error:
            raise DamagedStoreError(
                f"{self.path}/{name}: {error.place} is damaged ({error.reason}): "
                "delete its output and build again"
            ) from error
        return out

    def _read_by_zarr(self, name: str, index: tuple[int | slice, ...]) -> np.ndarray:
        array = self.array(name)
        try:
            return np.asarray(array[index])
        except (ValueError, RuntimeError, OSError) as error:
            where = ", ".join(map(str, index))
            raise DamagedStoreError(
                f"{self.path}/{name}[{where}] is damaged ({error}): "
                "delete its output and build again"
            ) from error

    def _direct(self, name: str) -> ShardedArray | None:
        opened = self._open()
        if name not in opened.direct:
            opened.direct[name] = sharded_array(self.path / name, self.array(name))
        return opened.direct[name]

    def _open(self) -> _Opened:
        # No lock: a fork could copy it locked. Threads that race here open the group twice.
        opened = self._opened
        if opened is None or opened.process != os.getpid():
            try:
                group = zarr.open_group(reader_store(self.path), mode="r")
            except FileNotFoundError as error:
                raise DamagedStoreError(f"{self.path} is no Zarr group: build it again") from error
            self._opened = opened = _Opened(os.getpid(), group)
        return opened

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "attributes": self.attributes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _opened=None)


@dataclass
class _Opened:
    """What one process has opened of a group."""

    process: int
    group: zarr.Group
    arrays: dict[str, zarr.Array] = field(default_factory=dict)
    direct: dict[str, ShardedArray | None] = field(default_factory=dict)
