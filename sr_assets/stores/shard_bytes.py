"""Shard files of one array: where each chunk lies in them, and reading chunks by single requests.

The layout is that of Zarr's sharding codec with the index at the end: chunks one after the other,
then for each chunk of the grid its offset and length (uint64, little-endian; all bits set for none)
and a crc32c of that index. How a chunk is coded is `chunk_bytes.py`.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import zarr
from fsspec.utils import merge_offset_ranges
from upath import UPath
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec

from sr_assets.remote_files import file_system
from sr_assets.storage import is_local
from sr_assets.stores.chunk_bytes import (
    CHECKSUM_BYTES,
    ChecksumError,
    ChunkBytes,
    check,
    chunk_bytes,
)

_NONE = 2**64 - 1
_ENTRY = 16  # bytes of the index for each chunk
_KEPT = 1024  # indices in memory: 16 MiB for shards of 1024 samples
_GAP = 64 << 10  # bytes between two chunks that are cheaper to read than another request


def shard_bytes(chunks: Sequence[bytes], grid: int) -> bytes:
    """The file of a shard that holds the first len(chunks) of `grid` chunks."""
    index = np.full((grid, 2), _NONE, "<u8")
    ends = np.cumsum([len(chunk) for chunk in chunks], dtype=np.uint64)
    index[: len(chunks), 1] = [len(chunk) for chunk in chunks]
    index[: len(chunks), 0] = ends - index[: len(chunks), 1]
    table = index.tobytes()
    checksum = google_crc32c.value(table).to_bytes(CHECKSUM_BYTES, "little")
    return b"".join([*chunks, table, checksum])


class _Wanted(NamedTuple):
    """One chunk that is asked for."""

    row: int
    shard: int
    chunk: int


class ShardedArray:
    """Reads single chunks of one sharded array whose chunks are single samples, or parts of them.

    An index is read once and kept; a chunk is one read of exactly its bytes. No file stays open and
    no lock is held, so that threads share it and a fork may copy it at any moment.

    Args:
        path: folder of the array.
        array: the same, opened by Zarr.
        samples: of one shard.
        coding: of its chunks.
    """

    def __init__(self, path: UPath, array: zarr.Array, samples: int, coding: ChunkBytes) -> None:
        self._path, self._coding, self._samples = path, coding, samples
        self._folder = path.path.rstrip("/")  # joining paths costs as much as reading a chunk
        self._shape = array.shape
        sides = zip(array.shape[1:], coding.shape[1:], strict=True)
        self._parts = math.prod(length // side for length, side in sides)  # chunks of a sample
        self._grid = samples * self._parts
        self._tail = "/0" * (array.ndim - 1)
        self._local = is_local(path)
        self._indices: OrderedDict[int, np.ndarray] = OrderedDict()

    def single(self, axes: int) -> bool:
        """Whether indices on the first `axes` axes name single chunks."""
        chunk = self._coding.shape
        return chunk[:axes] == (1,) * axes and chunk[axes:] == self._shape[axes:]

    def read(self, places: Sequence[tuple[int, ...]], out: np.ndarray) -> None:
        """Reads B chunks.

        Args:
            places: B indices on the first axes, inside the array, for which `single(axes)` holds.
            out: [B, ...], contiguous, of the array's type; overwritten.

        Raises:
            ShardError: a shard is missing, or stored bytes are not those that were written.
        """
        wanted = [
            _Wanted(row, *divmod(self._number(place), self._grid))
            for row, place in enumerate(places)
        ]
        flat = out.reshape(len(wanted), *self._coding.shape)
        if not self._local:
            self._read_remote(wanted, flat)
            return
        read = self._read_plain if self._coding.plain else self._read_coded
        for one in wanted:
            try:
                read(one, flat[one.row])
            except ShardError:
                # the file may have been replaced since its index was read: once more from the start
                self._indices.pop(one.shard, None)
                read(one, flat[one.row])

    def _number(self, place: tuple[int, ...]) -> int:
        number = 0  # on the first axes: the lengths of the others are left over
        for index, length in zip(place, self._shape, strict=False):
            number = number * length + index
        return number

    def _read_coded(self, one: _Wanted, out: np.ndarray) -> None:
        start, end = self._bounds(one)
        with self._opened(one) as handle:
            data = os.pread(handle, end - start, start)
        self._decode(one, data, out)

    def _read_plain(self, one: _Wanted, out: np.ndarray) -> None:
        """Straight into `out`: half the time of a read and a copy."""
        start, end = self._bounds(one)
        body, told = out.reshape(-1).view(np.uint8), bytearray(CHECKSUM_BYTES)
        with self._opened(one) as handle:
            read = os.preadv(handle, [body.data, told], start)
        if read != end - start:
            raise ShardError(self._name(one), "checksum")
        try:
            check(body, told)
        except ChecksumError as error:
            raise ShardError(self._name(one), str(error)) from error

    def _decode(self, one: _Wanted, data: memoryview | bytes, out: np.ndarray) -> None:
        try:
            self._coding.decode(memoryview(data), out)
        except (ValueError, RuntimeError) as error:
            raise ShardError(self._name(one), str(error)) from error

    def _name(self, one: _Wanted) -> str:
        sample = one.shard * self._samples + one.chunk // self._parts
        part = f", part {one.chunk % self._parts}" if self._parts > 1 else ""
        return f"shard {one.shard}, sample {sample}{part}"

    def _file(self, shard: int) -> str:
        return f"{self._folder}/c/{shard}{self._tail}"

    def _bounds(self, one: _Wanted) -> tuple[int, int]:
        index = self._indices.get(one.shard)
        if index is None:
            index = self._read_index(one.shard)
            self._indices[one.shard] = index
            if len(self._indices) > _KEPT:
                self._indices.popitem(last=False)
        start, size = index[one.chunk].tolist()
        if start == _NONE:
            raise ShardError(self._name(one), "its shard was written without it")
        return start, start + size

    def _read_index(self, shard: int) -> np.ndarray:
        size = self._grid * _ENTRY + CHECKSUM_BYTES
        where = self._file(shard)
        try:
            if self._local:
                with Path(where).open("rb", buffering=0) as file:
                    file.seek(max(0, os.fstat(file.fileno()).st_size - size))
                    data = file.read(size)
            else:
                data = file_system(self._path).cat_file(where, start=-size)
        except FileNotFoundError as error:
            raise ShardError(f"shard {shard}", "its file is missing") from error
        table, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
        if len(data) != size or google_crc32c.value(table) != int.from_bytes(checksum, "little"):
            raise ShardError(f"shard {shard}", "checksum of its index")
        return np.frombuffer(table, "<u8").reshape(self._grid, 2)

    @contextlib.contextmanager
    def _opened(self, one: _Wanted) -> Iterator[int]:
        try:
            handle = os.open(self._file(one.shard), os.O_RDONLY)
        except FileNotFoundError as error:
            raise ShardError(f"shard {one.shard}", "its file is missing") from error
        try:
            yield handle
        finally:
            os.close(handle)

    def _read_remote(self, wanted: Sequence[_Wanted], out: np.ndarray) -> None:
        """As few requests as there are stretches of the shards; all of them at once."""
        bounds = [self._bounds(one) for one in wanted]
        paths = [self._file(one.shard) for one in wanted]
        merged = merge_offset_ranges(
            list(paths), [a for a, _ in bounds], [b for _, b in bounds], max_gap=_GAP
        )
        try:
            blocks = file_system(self._path).cat_ranges(*merged, on_error="raise")
        except FileNotFoundError as error:
            raise ShardError("a shard", f"a file is missing ({error})") from error
        found = _Blocks(list(zip(*merged, blocks, strict=True)))
        for one, path, (start, end) in zip(wanted, paths, bounds, strict=True):
            self._decode(one, found.part(path, start, end), out[one.row])


class ShardError(OSError):
    """A chunk cannot be read: which, and why.

    Attributes:
        place: shard and sample, for people.
        reason: what is wrong with it.
    """

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place}: {reason}")
        self.place, self.reason = place, reason


class _Blocks:
    """Stretches of files that were read, and parts of them."""

    def __init__(self, blocks: Sequence[tuple[str, int, int, bytes]]) -> None:
        self._by_path: dict[str, list[tuple[int, int, bytes]]] = {}
        for path, start, end, data in blocks:
            self._by_path.setdefault(path, []).append((start, end, data))

    def part(self, path: str, start: int, end: int) -> memoryview:
        for first, last, data in self._by_path[path]:
            if first <= start and end <= last:
                return memoryview(data)[start - first : end - first]
        raise AssertionError("every part is inside a block")


def sharded_array(path: UPath, array: zarr.Array) -> ShardedArray | None:
    """A direct reader of what `ShardWriter` wrote; None for arrays that only Zarr reads."""
    codecs: tuple[Any, ...] = array.metadata.codecs  # type: ignore[union-attr]
    if len(codecs) != 1 or not isinstance(codecs[0], ShardingCodec) or not array.shards:
        return None
    sharding = codecs[0]
    index = [type(codec) for codec in sharding.index_codecs]
    plain = index == [BytesCodec, Crc32cCodec] and sharding.index_location.value == "end"
    if not plain or array.shards[1:] != array.shape[1:]:
        return None
    coding = chunk_bytes(array.chunks, array.dtype, sharding.codecs)
    return ShardedArray(path, array, array.shards[0], coding) if coding else None
