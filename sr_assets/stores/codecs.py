"""The lossless picture filter of our stores, as a Zarr codec named `srd.picture_delta`.

It turns pixels into the small differences that a fast entropy coder packs well. Nothing is lost or
scaled here: quantisation belongs to `expert_cache.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
from zarr.abc.codec import ArrayArrayCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import NDBuffer
from zarr.core.dtype import Int16, UInt8, UInt16

NAME = "srd.picture_delta"
Predictor = Literal["left", "left_above", "above"]


@dataclass(frozen=True)
class PictureDelta(ArrayArrayCodec):
    """Difference to a neighbour, per colour plane, modulo the range of the type.

    Encoded chunks are planar ([..., C, H, W]) whatever the layout of the array.

    Args:
        subtract_green: for uint8 RGB: R and B become R - G and B - G (modulo 256) first.
        zigzag: for int16: the difference d is stored as uint16 2d or -2d - 1, so that small
            differences of either sign have empty upper bits.
        channel_axis: -1 for [..., H, W, C], -3 for [..., C, H, W].
        predictor: the neighbour. "left": of the first pixel of a row, zero; arrays written before
            there was a choice do not name it. "left_above", for uint8: the same, of the first
            pixel the one above it. "above", for int16: the one above, in the first row the left.
    """

    is_fixed_size = True

    subtract_green: bool = False
    zigzag: bool = False
    channel_axis: int = -1
    predictor: Predictor = "left"

    def __post_init__(self) -> None:
        if self.channel_axis not in (-1, -3):
            raise ValueError(f"{NAME}: channel_axis is {self.channel_axis}, it may be -1 or -3")
        known = ("left", "above" if self.zigzag else "left_above")
        if self.predictor not in known:
            raise ValueError(
                f"{NAME}: predictor is {self.predictor!r}, with zigzag={self.zigzag} it may be "
                + " or ".join(known)
            )

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
                "predictor": self.predictor,
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
        from sr_models.picture_delta import planes_to_delta, rgb_to_delta, signed_to_zigzag

        if self.channel_axis == -1 and self.subtract_green:
            rgb = np.ascontiguousarray(pixels).reshape(-1, *pixels.shape[-3:])
            delta = np.empty((len(rgb), 3, *rgb.shape[1:3]), np.uint8)
            rgb_to_delta(rgb, delta, self.predictor == "left_above")
            return delta.reshape(*pixels.shape[:-3], *delta.shape[1:])
        planes = np.moveaxis(pixels, -1, -3) if self.channel_axis == -1 else pixels
        if self.subtract_green:
            planes = planes.copy()
            planes[..., ::2, :, :] -= planes[..., 1:2, :, :]
        if self.zigzag:
            planes = planes.astype(planes.dtype.newbyteorder("="), copy=False)
        planes = np.ascontiguousarray(planes)
        flat = planes.reshape(-1, *planes.shape[-2:])
        delta = np.empty_like(flat, np.uint16 if self.zigzag else np.uint8)
        if not self.zigzag:
            planes_to_delta(flat, delta, self.predictor == "left_above")
        elif self.predictor == "above":
            signed_to_zigzag(flat.view(np.uint16), delta)
        else:
            signed = np.diff(flat, axis=-1, prepend=flat.dtype.type(0))
            delta[...] = ((signed << 1) ^ (signed >> 15)).view(np.uint16)
        return delta.reshape(planes.shape)

    def undo(self, delta: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Exact inverse of `apply`.

        Args:
            delta: [..., C, H, W] as `apply` gives it.
            out: contiguous array for the pixels, of their shape and type; a new one when left out.
        """
        from sr_models.picture_delta import delta_to_planes, delta_to_rgb, zigzag_to_signed

        delta = np.ascontiguousarray(delta)
        *before, channels, height, width = delta.shape
        interleaved = self.channel_axis == -1
        shape = (*before, height, width, channels) if interleaved else delta.shape
        pixels = np.empty(shape, np.int16 if self.zigzag else np.uint8) if out is None else out
        if interleaved and self.subtract_green:
            delta_to_rgb(
                delta.reshape(-1, 3, height, width),
                pixels.reshape(-1, height, width, 3),
                self.predictor == "left_above",
            )
            return pixels
        planes = np.empty(delta.shape, pixels.dtype) if interleaved else pixels
        flat = planes.reshape(-1, height, width)
        delta = delta.reshape(flat.shape)
        if not self.zigzag:
            delta_to_planes(delta, flat, self.predictor == "left_above")
        elif self.predictor == "above":
            zigzag_to_signed(delta.astype(np.uint16, copy=False), flat.view(np.uint16))
        else:
            signed = (delta >> 1).astype(np.int16) ^ -(delta & 1).astype(np.int16)
            np.add.accumulate(signed, axis=-1, dtype=np.int16, out=flat)
        if self.subtract_green:
            planes[..., ::2, :, :] += planes[..., 1:2, :, :]
        if interleaved:
            pixels[...] = np.moveaxis(planes, -3, -1)
        return pixels
