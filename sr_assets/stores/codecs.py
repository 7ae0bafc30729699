"""The lossless picture filter of our stores, as a Zarr codec named `srd.picture_delta`.

It turns pixels into the small differences that a fast entropy coder packs well. Nothing is lost or
scaled here: quantisation belongs to `expert_cache.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from zarr.abc.codec import ArrayArrayCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import NDBuffer
from zarr.core.dtype import Int16, UInt8, UInt16

NAME = "srd.picture_delta"


@dataclass(frozen=True)
class PictureDelta(ArrayArrayCodec):
    """Difference to the left neighbour, per colour plane, modulo the range of the type.

    Encoded chunks are planar ([..., C, H, W]) whatever the layout of the array.

    Args:
        subtract_green: for uint8 RGB: R and B become R - G and B - G (modulo 256) first.
        zigzag: for int16: the difference d is stored as uint16 2d or -2d - 1, so that small
            differences of either sign have empty upper bits.
        channel_axis: -1 for [..., H, W, C], -3 for [..., C, H, W].
    """

    is_fixed_size = True

    subtract_green: bool = False
    zigzag: bool = False
    channel_axis: int = -1

    def __post_init__(self) -> None:
        if self.channel_axis not in (-1, -3):
            raise ValueError(f"{NAME}: channel_axis is {self.channel_axis}, it may be -1 or -3")

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The codec from its entry in an array's `zarr.json`."""
        return cls(**data.get("configuration", {}))

    def to_dict(self) -> dict[str, Any]:
        """The codec's entry in an array's `zarr.json`."""
        return {
            "name": NAME,
            "configuration": {
                "subtract_green": self.subtract_green,
                "zigzag": self.zigzag,
                "channel_axis": self.channel_axis,
            },
        }

    def validate(self, *, shape: tuple[int, ...], dtype: Any, chunk_grid: Any) -> None:
        """Raises ValueError for an array that the filter was not made for."""
        wanted = Int16 if self.zigzag else UInt8
        if not isinstance(dtype, wanted):
            raise ValueError(
                f"{NAME} with zigzag={self.zigzag} takes {wanted.__name__} arrays only"
            )
        if len(shape) < 3:
            raise ValueError(f"{NAME} takes arrays of pictures, this one has {len(shape)} axes")
        if self.subtract_green and (self.zigzag or shape[self.channel_axis] != 3):
            raise ValueError(f"{NAME}: subtract_green takes 8-bit pictures of 3 channels only")

    def resolve_metadata(self, chunk_spec: ArraySpec) -> ArraySpec:
        """Shape and type of an encoded chunk."""
        shape = chunk_spec.shape
        if self.channel_axis == -1:
            shape = (*shape[:-3], shape[-1], shape[-3], shape[-2])
        dtype = UInt16() if self.zigzag else chunk_spec.dtype
        return replace(chunk_spec, shape=shape, dtype=dtype, fill_value=dtype.default_scalar())

    def compute_encoded_size(self, input_byte_length: int, _chunk_spec: ArraySpec) -> int:
        """Bytes of an encoded chunk: as many as before."""
        return input_byte_length

    async def _encode_single(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> NDBuffer | None:
        return self._encode_sync(chunk_array, chunk_spec)

    async def _decode_single(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> NDBuffer:
        return self._decode_sync(chunk_array, chunk_spec)

    def _encode_sync(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> NDBuffer | None:
        encoded = self.apply(chunk_array.as_numpy_array())
        return chunk_spec.prototype.nd_buffer.from_numpy_array(encoded)

    def _decode_sync(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> NDBuffer:
        decoded = self.undo(chunk_array.as_numpy_array())
        return chunk_spec.prototype.nd_buffer.from_numpy_array(decoded)

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Differences of one chunk: uint8 or, with zigzag, int16 -> uint16; [..., C, H, W]."""
        if self.channel_axis == -1:
            pixels = np.moveaxis(pixels, -1, -3)
        planes = np.ascontiguousarray(pixels)
        if self.zigzag:
            planes = planes.astype(planes.dtype.newbyteorder("="), copy=False).view(np.uint16)
        if self.subtract_green:
            planes = planes.copy() if np.shares_memory(planes, pixels) else planes
            planes[..., ::2, :, :] -= planes[..., 1:2, :, :]
        delta = np.empty_like(planes)
        delta[..., 0] = planes[..., 0]
        np.subtract(planes[..., 1:], planes[..., :-1], out=delta[..., 1:])
        if self.zigzag:
            # the sign, spread over the word, flips the bits of negative differences
            delta = (delta << 1) ^ (delta.view(np.int16) >> 15).view(np.uint16)
        return delta

    def undo(self, delta: np.ndarray) -> np.ndarray:
        """Exact inverse of `apply`."""
        if self.zigzag:
            delta = delta.astype(np.uint16, copy=False)
            delta = (delta >> 1) ^ (0 - (delta & 1))
            planes = np.cumsum(delta, axis=-1, dtype=np.uint16).view(np.int16)
        else:
            planes = _running_sum(delta)
        if self.channel_axis == -3:
            if self.subtract_green:
                planes[..., ::2, :, :] += planes[..., 1:2, :, :]
            return planes
        shape = planes.shape
        pixels = np.empty((*shape[:-3], shape[-2], shape[-1], shape[-3]), planes.dtype)
        for channel in range(shape[-3]):  # plane by plane is four times faster than one transpose
            plane = planes[..., channel, :, :]
            if self.subtract_green and channel != 1:
                plane += planes[..., 1, :, :]
            pixels[..., channel] = plane
        return pixels


def _running_sum(delta: np.ndarray) -> np.ndarray:
    """Sums along the last axis modulo 256: uint8 -> uint8.

    Doubling the stride keeps every step a wide vector addition, twice as fast as a cumulative sum.
    """
    total, spare = delta.copy(), np.empty_like(delta)
    step = 1
    while step < delta.shape[-1]:
        spare[..., :step] = total[..., :step]
        np.add(total[..., step:], total[..., :-step], out=spare[..., step:])
        total, spare = spare, total
        step *= 2
    return total
