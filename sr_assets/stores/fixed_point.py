"""The integers in which SR and features are stored, and the presets that choose among them.

Which arrays a cache has is `expert_cache.py`; filters and compressors lose nothing, what is lost is
lost here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BloscCodec

from sr_assets.stores.codecs import PictureDelta

PresetName = Literal["lossless", "default", "small"]
#: SR is stored as multiples of this: an eighth of a grey level; costs 0.0003 dB of fused PSNR.
SR_STEP = 1 / 2040
_LIMIT = 32767  # of int16, symmetric: values beyond +-16.06 saturate


@dataclass(frozen=True)
class Preset:
    """How a cache stores what an expert said.

    Args:
        integers: SR as int16 fixed point and features as int8 with a scale for each sample and
            channel; else both as they came, float32.
        sr, features: what packs the bytes.
    """

    integers: bool
    sr: tuple[BytesBytesCodec, ...]
    features: tuple[BytesBytesCodec, ...]

    def sr_filters(self) -> tuple[PictureDelta, ...]:
        """The lossless filter of SR images [..., 3, H, W]."""
        if not self.integers:
            return ()
        return (PictureDelta(zigzag=True, channel_axis=-3, predictor="above"),)


def _zstd(typesize: int) -> tuple[BloscCodec]:
    return (BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle", typesize=typesize),)


_LZ4 = BloscCodec(cname="lz4", clevel=5, shuffle="shuffle", typesize=2)
#: `default` is the fastest to read; `small` packs the same integers better. Bytes of SR in their
#: usual shuffle are a fifth longer than in a bit shuffle, and read in a third of the time.
PRESETS: dict[PresetName, Preset] = {
    "lossless": Preset(False, _zstd(4), _zstd(4)),
    "default": Preset(True, (_LZ4,), ()),
    "small": Preset(True, _zstd(2), _zstd(1)),
}


def quantise(sr: np.ndarray) -> np.ndarray:
    """float32 -> int16 fixed point, rint(sr * 2040); only beyond +-16 it saturates."""
    return np.clip(np.rint(sr * np.float32(1 / SR_STEP)), -_LIMIT, _LIMIT).astype(np.int16)


def dequantise(stored: np.ndarray) -> np.ndarray:
    """int16 fixed point -> float32, stored * SR_STEP in single precision."""
    return stored.astype(np.float32) * np.float32(SR_STEP)


def quantise_features(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [..., C, h, w] -> int8 of the same shape and float32 scale [..., C].

    The scale is the largest magnitude of each sample and channel / 127, so that nothing clips.
    """
    scale = (np.abs(features).max(axis=(-2, -1)) / np.float32(127)).astype(np.float32)
    divisor = np.where(scale > 0, scale, np.float32(1))[..., None, None]
    return np.clip(np.rint(features / divisor), -127, 127).astype(np.int8), scale


def dequantise_features(stored: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """int8 [..., C, h, w] and float32 [..., C] -> float32 [..., C, h, w]."""
    return stored.astype(np.float32) * scale[..., None, None]
