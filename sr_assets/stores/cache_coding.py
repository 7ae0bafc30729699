"""What the files of one shard of an expert cache are, and what quantising it cost, in any process.

Which arrays a cache has, and writing them, is `expert_cache.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sr_assets.stores.fixed_point import (
    PRESETS,
    PresetName,
    dequantise,
    dequantise_features,
    quantise,
    quantise_features,
)
from sr_assets.stores.shard_coding import ShardCoder


@dataclass(frozen=True)
class CodedShard:
    """One shard of a cache, ready to be written."""

    files: Mapping[str, bytes]
    errors: Mapping[str, Mapping[str, float]]
    """`sr`, and `features` where there are some: the largest error, and sums of its squares, of
    the signal's squares and of the values."""


@dataclass(frozen=True)
class CacheCoder:
    """Quantises and encodes shards of one cache; may be handed to another process."""

    preset: PresetName
    features: bool
    coder: ShardCoder

    @property
    def shards(self) -> tuple[range, ...]:
        """The samples of each shard."""
        return self.coder.shards

    def encode(self, shard: int, sr: np.ndarray, features: np.ndarray | None = None) -> CodedShard:
        """The samples of one shard as files.

        Args:
            shard: its number.
            sr: float32 [n, K, 3, S, S], not clamped.
            features: float32 [n, K, C, s, s] for a cache with features.

        Raises:
            ValueError: a value is not finite (the message names the sample), or a shape is wrong.
        """
        if (features is not None) != self.features:
            raise ValueError(
                f"shard {shard}: this cache has {'features' if self.features else 'no features'}"
            )
        first, integers = self.shards[shard].start, PRESETS[self.preset].integers
        _demand_finite("sr", sr, first)
        arrays, read = {"sr": sr}, {"sr": sr}
        if integers:
            arrays["sr"] = quantise(sr)
            read["sr"] = dequantise(arrays["sr"])
        errors = {"sr": _error(sr, read["sr"])}
        if features is not None:
            _demand_finite("features", features, first)
            arrays["features"] = read["features"] = features
            if integers:
                arrays["features"], scale = quantise_features(features)
                arrays["feature_scale"] = scale
                read["features"] = dequantise_features(arrays["features"], scale)
            errors["features"] = _error(features, read["features"])
        return CodedShard(self.coder.encode(shard, **arrays), errors)


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
