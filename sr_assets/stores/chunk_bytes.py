"""One chunk of an array to the bytes of a shard and back, without the detours of a general reader.

The bytes are those that Zarr's own codecs read and write, so that any Zarr program opens our files;
where they lie in a shard is `shard_bytes.py`.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import zstandard
from numcodecs.blosc import Blosc
from zarr.abc.codec import Codec
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ZstdCodec

from sr_assets.stores.codecs import PictureDelta

CHECKSUM_BYTES = 4
#: On the residuals of a predictor, shorter and faster than any level of zstd: no false matches.
#: The frames are ordinary ones.
_ZSTD = {
    "window_log": 18,
    "chain_log": 6,
    "hash_log": 6,
    "search_log": 1,
    "min_match": 7,
    "target_length": 0,
    "strategy": zstandard.STRATEGY_FAST,
}
_PLANE = 16 << 10  # bytes from which a plane is worth a table of symbols of its own
_SHUFFLES = {"noshuffle": Blosc.NOSHUFFLE, "shuffle": Blosc.SHUFFLE, "bitshuffle": Blosc.BITSHUFFLE}
_contexts = threading.local()


class ChecksumError(ValueError):
    """Stored bytes are not those that were written."""


@dataclass(frozen=True)
class ChunkBytes:
    """How the chunks of one array become bytes.

    Args:
        shape, dtype: of a chunk, as the array has it.
        picture: the filter, if there is one.
        compressor: "zstd", a Blosc, or None for plain bytes. A crc32c follows in any case.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    picture: PictureDelta | None
    compressor: str | Blosc | None

    @property
    def plain(self) -> bool:
        """Whether the stored bytes are those of the array and then the checksum."""
        return self.picture is None and self.compressor is None

    def encode(self, chunk: np.ndarray) -> bytes:
        """The stored bytes of one chunk [*shape]."""
        values = self.picture.apply(chunk) if self.picture else chunk
        values = np.ascontiguousarray(values)
        if self.compressor is None:
            data = values.tobytes()
        elif isinstance(self.compressor, Blosc):
            data = bytes(self.compressor.encode(values))
        else:
            data = _zstd(values)
        return data + google_crc32c.value(data).to_bytes(CHECKSUM_BYTES, "little")

    def decode(self, data: memoryview, out: np.ndarray) -> None:
        """Puts the chunk that is stored as `data` into `out` [*shape], contiguous.

        Raises:
            ChecksumError: the bytes are not those that were written.
        """
        stored = np.frombuffer(data, np.uint8)  # the checksum takes no memoryview
        body = stored[:-CHECKSUM_BYTES]
        check(body, data[-CHECKSUM_BYTES:])
        if self.picture is None and isinstance(self.compressor, Blosc):
            self.compressor.decode(body, out)
            return
        if self.compressor is None:
            flat = body
        elif isinstance(self.compressor, Blosc):
            flat = np.frombuffer(self.compressor.decode(body, _scratch(out.nbytes)), np.uint8)
        else:
            flat = np.frombuffer(_decompressor().decompress(body.data), np.uint8)
        if self.picture is None:
            out.reshape(-1).view(np.uint8)[:] = flat
            return
        delta = flat.view(np.uint16 if self.picture.zigzag else np.uint8)
        self.picture.undo(delta.reshape(self._planar()), out)

    def _planar(self) -> tuple[int, ...]:
        if self.picture is None or self.picture.channel_axis == -3:
            return self.shape
        return (*self.shape[:-3], self.shape[-1], self.shape[-3], self.shape[-2])


def check(body: np.ndarray, told: bytes | bytearray | memoryview) -> None:
    """Compares bytes with the checksum that follows them.

    Raises:
        ChecksumError: the bytes are not those that were written.
    """
    if len(told) < CHECKSUM_BYTES or google_crc32c.value(body) != int.from_bytes(told, "little"):
        raise ChecksumError("checksum")


def chunk_bytes(
    shape: tuple[int, ...], dtype: np.dtype[Any], codecs: tuple[Codec, ...]
) -> ChunkBytes | None:
    """How chunks with Zarr codecs `codecs` become bytes; None for codecs that only Zarr knows."""
    picture: PictureDelta | None = None
    compressor: str | Blosc | None = None
    rest = list(codecs)
    if rest and isinstance(rest[0], PictureDelta):
        picture = rest.pop(0)  # type: ignore[assignment]
    little = len(rest) > 1 and isinstance(rest[0], BytesCodec)
    if not little or not isinstance(rest[-1], Crc32cCodec) or dtype.byteorder == ">":
        return None
    for codec in rest[1:-1]:
        if compressor is not None:
            return None
        if isinstance(codec, ZstdCodec):
            compressor = "zstd"
        elif isinstance(codec, BloscCodec):
            shuffle = codec.shuffle.value if codec.shuffle else "noshuffle"
            compressor = Blosc(codec.cname.value, codec.clevel, _SHUFFLES[shuffle])
        else:
            return None
    return ChunkBytes(shape, dtype, picture, compressor)


def _zstd(values: np.ndarray) -> bytes:
    if not hasattr(_contexts, "compressor"):
        parameters = zstandard.ZstdCompressionParameters(**_ZSTD)
        _contexts.compressor = zstandard.ZstdCompressor(compression_params=parameters)
    plane = values.shape[-1] * values.shape[-2] * values.itemsize if values.ndim > 1 else 0
    step = plane if plane >= _PLANE else values.nbytes
    data = values.reshape(-1).view(np.uint8).data
    stream = _contexts.compressor.compressobj(size=values.nbytes)
    parts = []
    for start in range(0, len(data), step):  # colours differ: each plane has its own symbols
        parts.append(stream.compress(data[start : start + step]))
        if start + step < len(data):
            parts.append(stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
    return b"".join([*parts, stream.flush()])


def _decompressor() -> zstandard.ZstdDecompressor:
    if not hasattr(_contexts, "decompressor"):
        _contexts.decompressor = zstandard.ZstdDecompressor()
    return _contexts.decompressor


def _scratch(size: int) -> np.ndarray:
    """Memory of this thread, so that no sample asks the system for pages."""
    if getattr(_contexts, "scratch", None) is None or _contexts.scratch.nbytes != size:
        _contexts.scratch = np.empty(size, np.uint8)
    return _contexts.scratch
