"""The expert cache `cache.zarr`: what one frozen network said about every LR, quantised once.

Whole benchmark images, `images.zarr`, are stored the same way: 16-bit fixed point, never clamped
to the range of a picture. Running the network is `sr_assets/assets/experts.py`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from sr_assets.storage import Output, OutputFolder
from sr_assets.stores.codecs import PictureDelta
from sr_assets.stores.hashing import HashingStore
from sr_assets.stores.shards import ArraySpec, GroupReader, ShardWriter

GROUP = "cache.zarr"
IMAGES = "images.zarr"
FEATURES = "features.zarr"
SCHEMA = "srd.expert_cache"
VERSION = 1
#: SR is stored as multiples of this: an eighth of a grey level; costs 0.0003 dB of fused PSNR.
SR_STEP = 1 / 2040
_LIMIT = 32767  # of int16, symmetric: values beyond +-16.06 saturate
_SHARD_PIXELS = 32 * 256 * 256  # HR pixels a shard: what a kill may cost in expert time
_SHARD_SAMPLES = 256
_TILE = 512  # side of a chunk of a whole image (px)


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


def sr_filters() -> tuple[PictureDelta]:
    """The lossless filter of every stored SR image [..., 3, H, W]."""
    return (PictureDelta(zigzag=True, channel_axis=-3),)


def sr_compressors() -> tuple[BloscCodec]:
    """The entropy coder of every stored SR image."""
    return (BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle", typesize=2),)


class CacheWriter:
    """Writes an expert cache, shard by shard; `shards[i]` are the samples of shard i.

    Args:
        folder: where to write.
        count: number of patches N.
        variants: degraded versions of each patch, K.
        size: side of an SR patch S (px).
        features: (channels C, side s) of the feature maps, or None for an expert without any.
        attributes: what made the cache (expert, tap, weights digest, provenance; JSON values).
    """

    def __init__(
        self,
        folder: OutputFolder,
        count: int,
        variants: int,
        size: int,
        features: tuple[int, int] | None,
        attributes: Mapping[str, Any],
    ) -> None:
        self._folder = folder
        arrays = {
            "sr": ArraySpec(
                shape=(variants, 3, size, size),
                chunk=(1, 3, size, size),
                dtype="int16",
                axes=("patch", "variant", "channel", "y", "x"),
                filters=sr_filters(),
                compressors=sr_compressors(),
            )
        }
        if features:
            channels, side = features
            arrays["features"] = ArraySpec(
                shape=(variants, channels, side, side),
                chunk=(1, channels, side, side),
                dtype="int8",
                axes=("patch", "variant", "feature", "y", "x"),
            )
            arrays["feature_scale"] = ArraySpec(
                shape=(variants, channels),
                chunk=(1, channels),
                dtype="float32",
                axes=("patch", "variant", "feature"),
            )
        self._features = features is not None
        self._writer = ShardWriter(
            folder,
            GROUP,
            count,
            arrays,
            max(1, min(_SHARD_SAMPLES, _SHARD_PIXELS // (size * size * variants))),
            {
                **attributes,
                "schema": {"name": SCHEMA, "version": VERSION},
                "size": size,
                "variants": variants,
                "sr_step": SR_STEP,
            },
        )
        self.shards = self._writer.shards

    def finished(self, shard: int) -> bool:
        """Whether shard `shard` was written whole, in this run or an earlier one."""
        return self._writer.finished(shard) and self._error_file(shard).exists()

    def write(self, shard: int, sr: np.ndarray, features: np.ndarray | None = None) -> None:
        """Quantises and writes the samples `shards[shard]`.

        Args:
            shard: index into `shards`.
            sr: float32 [n, K, 3, S, S], not clamped.
            features: float32 [n, K, C, s, s] for a cache with features.

        Raises:
            ValueError: a value is not finite (the message names the sample), or a shape is wrong.
        """
        if (features is not None) != self._features:
            raise ValueError(
                f"shard {shard}: this cache has {'features' if self._features else 'no features'}"
            )
        first = self.shards[shard].start
        _demand_finite("sr", sr, first)
        stored = quantise(sr)
        arrays = {"sr": stored}
        errors = {"sr": _error(sr, dequantise(stored))}
        if features is not None:
            _demand_finite("features", features, first)
            arrays["features"], arrays["feature_scale"] = quantise_features(features)
            errors["features"] = _error(
                features, dequantise_features(arrays["features"], arrays["feature_scale"])
            )
        self._write_errors(shard, errors)  # first: a shard that is there has its errors
        self._writer.write(shard, **arrays)

    def error(self) -> dict[str, float]:
        """What quantisation cost, measured over every finished shard.

        `sr_error_max` and `sr_error_rms` in units of the picture's range [0, 1]; for features
        `features_error_max` and `features_snr_db` (signal to noise).
        """
        shards = [
            json.loads(self._error_file(i).read_bytes())
            for i in range(len(self.shards))
            if self.finished(i)
        ]
        result: dict[str, float] = {}
        for name in ("sr", "features") if self._features else ("sr",):
            parts = [shard[name] for shard in shards]
            noise, signal, values = (
                math.fsum(part[key] for part in parts) for key in ("noise", "signal", "values")
            )
            result[f"{name}_error_max"] = max((part["max"] for part in parts), default=0.0)
            if name == "sr":
                result["sr_error_rms"] = math.sqrt(noise / values) if values else 0.0
            elif noise > 0 and signal > 0:
                result["features_snr_db"] = 10 * math.log10(signal / noise)
        return result

    def _error_file(self, shard: int) -> Path:
        return self._folder.work / f"quantisation-{shard}.json"

    def _write_errors(self, shard: int, errors: Mapping[str, Any]) -> None:
        target = self._error_file(shard)
        temporary = target.with_suffix(".tmp")
        with temporary.open("w") as file:
            json.dump(errors, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)


class CacheReader:
    """Reads an expert cache; safe to share by threads and to hand to worker processes.

    Attributes:
        size: side of an SR patch S (px).
        variants: K.
        feature_shape: (C, s, s), or None for a cache without features.
        attributes: of the group, as its writer was given them.
    """

    def __init__(self, output: Output) -> None:
        self._group = GroupReader(output.path / GROUP, SCHEMA, VERSION)
        self.attributes = self._group.attributes
        self.size: int = self.attributes["size"]
        self.variants: int = self.attributes["variants"]
        self._count: int = self._group.array("sr").shape[0]
        self.feature_shape: tuple[int, ...] | None = None
        if "features" in self._group:
            self.feature_shape = tuple(self._group.array("features").shape[2:])

    def __len__(self) -> int:
        return self._count

    def sr_stored(self, index: int, variant: int) -> np.ndarray:
        """SR of one sample as stored, int16 [3, S, S]; times SR_STEP it is the picture.

        Raises:
            IndexError: there is no such sample.
            DamagedStoreError: its checksum differs.
        """
        return self._group.read("sr", index, variant)

    def sr(self, index: int, variant: int) -> np.ndarray:
        """SR of one sample, float32 [3, S, S], not clamped."""
        return dequantise(self.sr_stored(index, variant))

    def sr_batch(self, indices: Sequence[int], variants: Sequence[int]) -> np.ndarray:
        """SR of the samples (indices[i], variants[i]), float32 [B, 3, S, S]."""
        batch = np.empty((len(indices), 3, self.size, self.size), np.float32)
        for row, (index, variant) in enumerate(zip(indices, variants, strict=True)):
            batch[row] = self.sr(index, variant)
        return batch

    def features_stored(self, index: int, variant: int) -> tuple[np.ndarray, np.ndarray]:
        """Features of one sample as stored: int8 [C, s, s] and their scale, float32 [C].

        Raises:
            KeyError: the cache has no features.
        """
        if self.feature_shape is None:
            raise KeyError(
                "this cache has no features: set features on the expert and build it again"
            )
        stored = self._group.read("features", index, variant)
        return stored, self._group.read("feature_scale", index, variant)

    def features(self, index: int, variant: int) -> np.ndarray:
        """Features of one sample, float32 [C, s, s]."""
        return dequantise_features(*self.features_stored(index, variant))

    def features_batch(self, indices: Sequence[int], variants: Sequence[int]) -> np.ndarray:
        """Features of the samples (indices[i], variants[i]), float32 [B, C, s, s]."""
        return np.stack([self.features(i, k) for i, k in zip(indices, variants, strict=True)])


def write_image(folder: OutputFolder, name: str, sr: np.ndarray) -> None:
    """Writes the SR of one whole image as array `name` of the group `images.zarr`.

    Args:
        folder: where to write.
        name: of the image, unique in the output; slashes make folders.
        sr: float32 [3, H, W], not clamped.

    Raises:
        ValueError: a value is not finite.
    """
    if not np.isfinite(sr).all():
        raise ValueError(f"the SR of image {name} holds a value that is not finite")
    store = HashingStore(folder, IMAGES)
    if not store.finished("zarr.json"):
        zarr.create_group(store, attributes={"sr_step": SR_STEP})
    tile = tuple(max(1, min(_TILE, side)) for side in sr.shape[1:])
    array = zarr.create_array(
        store,
        name=name,
        shape=sr.shape,
        dtype="int16",
        chunks=(3, *tile),
        shards=(3, *(math.ceil(side / t) * t for side, t in zip(sr.shape[1:], tile, strict=True))),
        filters=sr_filters(),
        compressors=(*sr_compressors(), Crc32cCodec()),
        fill_value=0,
        dimension_names=("channel", "y", "x"),
        config={"write_empty_chunks": True},
        overwrite=True,
    )
    array[:] = quantise(sr)


def image_finished(folder: OutputFolder, name: str) -> bool:
    """Whether `write_image` wrote this image, in this run or in an earlier, killed one."""
    return folder.finished(f"{IMAGES}/{name}/c/0/0/0")


def read_image(output: Output, name: str) -> np.ndarray:
    """SR of one whole image, float32 [3, H, W].

    Raises:
        DamagedStoreError: there is no such image, or a checksum differs.
    """
    return dequantise(GroupReader(output.path / IMAGES).read(name, slice(None)))


def write_features(folder: OutputFolder, name: str, features: np.ndarray) -> None:
    """Writes the features of one whole image as array `name` of the group `features.zarr`.

    Args:
        folder: where to write.
        name: of the image, unique in the output; slashes make folders.
        features: float32 [C, h, w].

    Raises:
        ValueError: a value is not finite.
    """
    if not np.isfinite(features).all():
        raise ValueError(f"the features of image {name} hold a value that is not finite")
    stored, scale = quantise_features(features)
    store = HashingStore(folder, FEATURES)
    if not store.finished("zarr.json"):
        zarr.create_group(store)
    array = zarr.create_array(
        store,
        name=name,
        shape=stored.shape,
        dtype="int8",
        chunks=(1, *stored.shape[1:]),
        shards=stored.shape,
        compressors=(
            BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle", typesize=1),
            Crc32cCodec(),
        ),
        fill_value=0,
        dimension_names=("feature", "y", "x"),
        attributes={"scale": scale.tolist()},
        config={"write_empty_chunks": True},
        overwrite=True,
    )
    array[:] = stored


def features_finished(folder: OutputFolder, name: str) -> bool:
    """Whether `write_features` wrote this image, in this run or in an earlier, killed one."""
    return folder.finished(f"{FEATURES}/{name}/c/0/0/0")


def read_features(output: Output, name: str) -> np.ndarray:
    """Features of one whole image, float32 [C, h, w].

    Raises:
        DamagedStoreError: there is no such image, or a checksum differs.
    """
    group = GroupReader(output.path / FEATURES)
    scale = np.asarray(group.array(name).attrs["scale"], np.float32)
    return dequantise_features(group.read(name, slice(None)), scale)


def _demand_finite(name: str, values: np.ndarray, first: int) -> None:
    for row, sample in enumerate(values):
        for variant, one in enumerate(sample):
            if not np.isfinite(one).all():
                raise ValueError(
                    f"{name} of sample {first + row}, variant {variant} "
                    "holds a value that is not finite"
                )


def _error(true: np.ndarray, read: np.ndarray) -> dict[str, float]:
    difference = true - read
    return {
        "max": float(np.abs(difference).max(initial=0)),
        "noise": float(np.square(difference, dtype=np.float64).sum()),
        "signal": float(np.square(true, dtype=np.float64).sum()),
        "values": float(true.size),
    }
