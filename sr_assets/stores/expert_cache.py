"""The expert cache `cache.zarr`: what one frozen network said about every LR, quantised once.

Whole benchmark images are `whole_images.py`; running the network is
`sr_assets/assets/expert_caches.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sr_assets.disk import write_whole
from sr_assets.output_folder import OutputFolder
from sr_assets.storage import Output
from sr_assets.stores.cache_coding import CacheCoder, CodedShard
from sr_assets.stores.fixed_point import (
    PRESETS,
    SR_STEP,
    PresetName,
    dequantise,
    dequantise_features,
)
from sr_assets.stores.schema import schema_entry
from sr_assets.stores.shards import ArraySpec, GroupReader, ShardWriter

GROUP = "cache.zarr"
SCHEMA = "srd.expert_cache"
VERSION = 1
_SHARD_PIXELS = 32 * 256 * 256  # HR pixels a shard: what a kill may cost in expert time
_SHARD_SAMPLES = 256

Numbers = Sequence[int] | np.ndarray


class CacheWriter:
    """Writes an expert cache, shard by shard; `shards[i]` are the samples of shard i.

    Args:
        folder: where to write.
        count: number of patches N.
        variants: degraded versions of each patch, K.
        size: side of an SR patch S (px).
        features: (channels C, side s) of the feature maps, or None for an expert without any.
        attributes: what made the cache (expert, tap, weights digest, provenance; JSON values).
        preset: of `fixed_point.py`.
    """

    def __init__(
        self,
        folder: OutputFolder,
        count: int,
        variants: int,
        size: int,
        features: tuple[int, int] | None,
        attributes: Mapping[str, Any],
        preset: PresetName = "default",
    ) -> None:
        self._folder = folder
        wanted = PRESETS[preset]
        arrays = {
            "sr": ArraySpec(
                shape=(variants, 3, size, size),
                chunk=(1, 3, size, size),
                dtype="int16" if wanted.integers else "float32",
                axes=("patch", "variant", "channel", "y", "x"),
                filters=wanted.sr_filters(),
                compressors=wanted.sr,
            )
        }
        if features:
            channels, side = features
            arrays["features"] = ArraySpec(
                shape=(variants, channels, side, side),
                chunk=(1, channels, side, side),
                dtype="int8" if wanted.integers else "float32",
                axes=("patch", "variant", "feature", "y", "x"),
                compressors=wanted.features,
            )
        if features and wanted.integers:
            arrays["feature_scale"] = ArraySpec(
                shape=(variants, features[0]),
                chunk=(1, features[0]),
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
                "schema": schema_entry(SCHEMA, VERSION),
                "size": size,
                "variants": variants,
                "preset": preset,
                "sr_step": SR_STEP if wanted.integers else None,
            },
        )
        self.shards = self._writer.shards
        self.coder = CacheCoder(preset, features is not None, self._writer.coder)

    def finished(self, shard: int) -> bool:
        """Whether shard `shard` was written whole, in this run or an earlier one."""
        return self._writer.finished(shard) and self._error_file(shard).exists()

    def write(self, shard: int, sr: np.ndarray, features: np.ndarray | None = None) -> None:
        """Quantises and writes the samples `shards[shard]`; see `CacheCoder.encode`."""
        self.put(shard, self.coder.encode(shard, sr, features))

    def put(self, shard: int, coded: CodedShard) -> None:
        """Writes what `coder` made of shard `shard`, here or in another process."""
        self._write_errors(shard, coded.errors)  # first: a shard that is there has its errors
        self._writer.put(coded.files)

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
        write_whole(self._error_file(shard), json.dumps(errors).encode())


class CacheReader:
    """Reads an expert cache; safe to share by threads and to hand to worker processes.

    Attributes:
        size: side of an SR patch S (px).
        variants: K.
        sr_step: what stored SR counts in; None where it is stored as it is.
        feature_shape: (C, s, s), or None for a cache without features.
        attributes: of the group, as its writer was given them.
    """

    def __init__(self, output: Output) -> None:
        self._group = GroupReader(output.path / GROUP, SCHEMA, VERSION)
        self.attributes = self._group.attributes
        self.size: int = self.attributes["size"]
        self.variants: int = self.attributes["variants"]
        self.sr_step: float | None = self.attributes["sr_step"]
        self._count: int = self._group.array("sr").shape[0]
        self.feature_shape: tuple[int, ...] | None = None
        if "features" in self._group:
            self.feature_shape = tuple(self._group.array("features").shape[2:])

    def __len__(self) -> int:
        return self._count

    def sr_stored(self, index: int, variant: int) -> np.ndarray:
        """SR of one sample as stored: int16 [3, S, S], times `sr_step` the picture, or float32.

        Raises:
            IndexError: there is no such sample.
            DamagedStoreError: its checksum differs.
        """
        return self._group.read("sr", index, variant)

    def sr_stored_batch(
        self, indices: Numbers, variants: Numbers, out: np.ndarray | None = None
    ) -> np.ndarray:
        """SR of B samples (indices[i], variants[i]) as stored, [B, 3, S, S]; into `out` if given.

        Raises:
            IndexError, DamagedStoreError: as for `sr_stored`.
        """
        return self._group.read_batch("sr", indices, variants, out=out)

    def sr(self, index: int, variant: int) -> np.ndarray:
        """SR of one sample, float32 [3, S, S], not clamped."""
        return self.sr_batch([index], [variant])[0]

    def sr_batch(self, indices: Numbers, variants: Numbers) -> np.ndarray:
        """SR of the samples (indices[i], variants[i]), float32 [B, 3, S, S]."""
        stored = self.sr_stored_batch(indices, variants)
        return stored if self.sr_step is None else dequantise(stored)

    def features_stored(self, index: int, variant: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Features of one sample as stored; see `features_stored_batch`."""
        stored, scale = self.features_stored_batch([index], [variant])
        return stored[0], None if scale is None else scale[0]

    def features_stored_batch(
        self, indices: Numbers, variants: Numbers, out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Features of B samples as stored; into `out` if it is given.

        Returns:
            int8 [B, C, s, s] and their scale, float32 [B, C]; or float32 and None, where they are
            stored as they are.

        Raises:
            KeyError: the cache has no features.
            IndexError, DamagedStoreError: as for `sr_stored`.
        """
        if self.feature_shape is None:
            raise KeyError(
                "this cache has no features: set features on the expert and build it again"
            )
        stored = self._group.read_batch("features", indices, variants, out=out)
        if stored.dtype == np.float32:
            return stored, None
        return stored, self._group.read_batch("feature_scale", indices, variants)

    def features(self, index: int, variant: int) -> np.ndarray:
        """Features of one sample, float32 [C, s, s]."""
        return self.features_batch([index], [variant])[0]

    def features_batch(self, indices: Numbers, variants: Numbers) -> np.ndarray:
        """Features of the samples (indices[i], variants[i]), float32 [B, C, s, s]."""
        stored, scale = self.features_stored_batch(indices, variants)
        return stored if scale is None else dequantise_features(stored, scale)
