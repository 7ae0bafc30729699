"""Ranges of a graph's tensors, channel by channel, on real patches: extremes and percentiles.

Which of the two suits a network is measured by who quantises it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sr_models.export.int8.graph import pictures
from sr_models.export.int8.grids import Range
from sr_models.export.int8.runtimes import open_onnxruntime

_BINS = 2048
_PERCENTILE = 99.99  # share of a channel's values (%) within its range


@dataclass(frozen=True)
class Calibrated:
    """Ranges of the same tensors in two ways."""

    minmax: dict[str, Range]
    percentile: dict[str, Range]


def calibrate(model: Any, tensors: Collection[str], images: Sequence[np.ndarray]) -> Calibrated:
    """Runs `images` through `model` and takes the ranges of `tensors`.

    The percentile leaves out 0.005 % of a channel's values at each end. The graph's own input is
    [0, 1] in both, and so is what is only shuffled to its output: 8-bit pictures are exact on that
    grid.

    Args:
        model: `onnx.ModelProto`, fp32; left as it is.
        tensors: names of feature maps [B, C, H, W].
        images: float32 [1, 3, h, w], each of its own size.
    """
    source = model.graph.input[0].name
    watched = sorted(set(tensors) - {source})
    session = open_onnxruntime(_with_outputs(model, watched))
    minmax: dict[str, Range] = {}
    for image in images:
        for name, values in zip(watched, session.run(watched, {source: image}), strict=True):
            low = np.minimum(values.min(axis=(0, 2, 3)), 0)
            high = np.maximum(values.max(axis=(0, 2, 3)), 0)
            seen = minmax.get(name, Range(low, high))
            minmax[name] = Range(np.minimum(low, seen.low), np.maximum(high, seen.high))
    counts = {name: np.zeros((len(minmax[name].low), _BINS), np.int64) for name in watched}
    for image in images:
        for name, values in zip(watched, session.run(watched, {source: image}), strict=True):
            counts[name] += _histogram(values, minmax[name])
    percentile = {name: _within(counts[name], minmax[name]) for name in watched}
    if source in tensors:
        minmax[source] = percentile[source] = Range(np.zeros(3), np.ones(3))
    for name in pictures(model) & set(watched):
        whole = np.ones(len(minmax[name].low))
        minmax[name] = percentile[name] = Range(0 * whole, whole)
    return Calibrated(minmax, percentile)


def _with_outputs(model: Any, names: Sequence[str]) -> bytes:
    import onnx

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    present = {value.name for value in watched.graph.output}
    for name in names:
        if name not in present:
            watched.graph.output.append(onnx.ValueInfoProto(name=name))
    content: bytes = watched.SerializeToString()
    return content


def _histogram(values: np.ndarray, ends: Range) -> np.ndarray:
    """[C, bins] counts of the values of each channel between its ends."""
    channels = values.swapaxes(0, 1).reshape(values.shape[1], -1)
    width = np.maximum(ends.high - ends.low, np.finfo(np.float32).tiny)[:, None]
    bins = ((channels - ends.low[:, None]) / width * _BINS).astype(np.int64).clip(0, _BINS - 1)
    bins += np.arange(len(channels))[:, None] * _BINS
    return np.bincount(bins.ravel(), minlength=len(channels) * _BINS).reshape(-1, _BINS)


def _within(counts: np.ndarray, ends: Range) -> Range:
    """The part between the ends that holds `_PERCENTILE` of each channel, with 0 in it."""
    below = counts.cumsum(axis=1) / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    outside = (1 - _PERCENTILE / 100) / 2
    first = (below <= outside).sum(axis=1)
    last = (below < 1 - outside).sum(axis=1) + 1
    width = (ends.high - ends.low) / _BINS
    low, high = ends.low + first * width, ends.low + np.minimum(last, _BINS) * width
    return Range(np.minimum(low, 0), np.minimum(np.maximum(high, 0), ends.high))
