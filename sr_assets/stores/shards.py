"""Groups of sharded arrays: how every store of ours is written, a whole shard at a time, and read.

What the arrays mean is said in `patches.py`, `pairs.py` and `expert_cache.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from upath import UPath
from zarr.abc.codec import ArrayArrayCodec, BytesBytesCodec
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from sr_assets.storage import OutputFolder
from sr_assets.stores.hashing import HashingStore, reader_store


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
        filters, compressors: Zarr codecs. A checksum always follows them.
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
    may be written from different threads.

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
        self._specs = dict(arrays)
        columns = columns or {}
        step = max(1, min(samples_per_shard, count))
        self.shards = [range(a, min(a + step, count)) for a in range(0, count, step)]
        self._store = HashingStore(folder, group)
        described: dict[str, Any] = {}
        memory = zarr.create_group(MemoryStore(described), attributes=dict(attributes))
        for name, spec in self._specs.items():
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
        self._arrays = {
            name: zarr.open_array(self._store, path=name, mode="r+").with_config(
                {"write_empty_chunks": True}
            )
            for name in (*self._specs, *columns)
        }
        for name, values in columns.items():
            if count and not self._store.finished(f"{name}/c/0"):
                self._arrays[name][:] = values

    def finished(self, shard: int) -> bool:
        """Whether every array's file of this shard is there, from this run or an earlier one."""
        return all(self._store.finished(self._key(name, shard)) for name in self._specs)

    def write(self, shard: int, **arrays: np.ndarray) -> None:
        """Writes one shard of every array.

        Args:
            shard: index into `shards`.
            arrays: by name, [len(shards[shard]), *spec.shape] of exactly the specified type.

        Raises:
            ValueError: an array is missing, unknown or of another shape or type.
        """
        samples = self.shards[shard]
        if arrays.keys() != self._specs.keys():
            raise ValueError(
                f"shard {shard} needs {sorted(self._specs)}, was given {sorted(arrays)}"
            )
        for name, spec in self._specs.items():
            values, shape = arrays[name], (len(samples), *spec.shape)
            if values.shape != shape or values.dtype != np.dtype(spec.dtype):
                raise ValueError(
                    f"{name} of shard {shard} is {values.dtype} {values.shape}, "
                    f"expected {spec.dtype} {shape}"
                )
        for name in self._specs:
            self._arrays[name][samples.start : samples.stop] = arrays[name]
        if not self.finished(shard):
            raise OSError(f"shard {shard} of {self._store} was written but no file came of it")

    def _key(self, name: str, shard: int) -> str:
        return f"{name}/c/{shard}" + "/0" * len(self._specs[name].shape)

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


class GroupReader:
    """Reads samples of one Zarr group that `ShardWriter` wrote.

    Metadata is read once for each process: a reader may be handed to a worker process, forked or
    pickled, and be shared by threads. This is the only place that decides how bytes are fetched.

    Args:
        path: of the group.
        schema: name of the store's schema that the caller understands; None for a plain group.
        version: of that schema.

    Raises:
        DamagedStoreError: there is no such group, or it is of another schema.
    """

    def __init__(self, path: UPath, schema: str | None = None, version: int = 1) -> None:
        self.path = path
        self._opened: tuple[int, zarr.Group, dict[str, zarr.Array]] | None = None
        self.attributes: dict[str, Any] = self._open()[0].attrs.asdict()
        found = self.attributes.get("schema")
        if schema and found != {"name": schema, "version": version}:
            raise DamagedStoreError(
                f"{path} has schema {found}, expected {schema} version {version}: build it again"
            )

    def array(self, name: str) -> zarr.Array:
        """One array of the group.

        Raises:
            DamagedStoreError: the group has no such array.
        """
        group, arrays = self._open()
        if name not in arrays:
            found = group.get(name)
            if not isinstance(found, zarr.Array):
                raise DamagedStoreError(f"{self.path} has no array {name}: build it again")
            arrays[name] = found
        return arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self._open()[0]

    def read(self, name: str, *index: int | slice) -> np.ndarray:
        """Part of one array, with every checksum on the way verified.

        Raises:
            IndexError: outside the array.
            DamagedStoreError: a checksum differs or a file is missing.
        """
        array = self.array(name)
        # Not strict: an index may leave out the last axes.
        for axis, (i, length) in enumerate(zip(index, array.shape, strict=False)):
            if not isinstance(i, slice) and not 0 <= i < length:
                raise IndexError(f"{name}: index {i} on axis {axis} of length {length}")
        try:
            return np.asarray(array[tuple(index)])
        except (ValueError, RuntimeError, OSError) as error:
            where = ", ".join(map(str, index))
            raise DamagedStoreError(
                f"{self.path}/{name}[{where}] is damaged ({error}): "
                "delete its output and build again"
            ) from error

    def _open(self) -> tuple[zarr.Group, dict[str, zarr.Array]]:
        # No lock: a fork could copy it locked. Threads that race here open the group twice.
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                group = zarr.open_group(reader_store(self.path), mode="r")
            except FileNotFoundError as error:
                raise DamagedStoreError(f"{self.path} is no Zarr group: build it again") from error
            self._opened = os.getpid(), group, {}
        return self._opened[1:]

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "attributes": self.attributes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _opened=None)
