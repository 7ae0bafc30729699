"""Ways to round one graph, from the one that runs fastest on, and what each costs on patches.

Which convolutions stay in float is chosen in `sensitivity.py`, which file is good enough in
`post_training.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from sr_models.export.int8.calibration import calibrate
from sr_models.export.int8.graph import (
    Convolution,
    convolutions,
    pictures,
    silus,
    sums_and_products,
)
from sr_models.export.int8.grids import Grid, Target, grid_of
from sr_models.export.int8.qat_export import trained_grids
from sr_models.export.int8.qdq import quantised
from sr_models.export.int8.quality import Patches, measured
from sr_models.export.int8.runtimes import run_onnxruntime

Way = Literal["minmax", "percentile", "trained"]
Grids = Mapping[str, Grid]
Measure = Callable[[Collection[str]], float]

_UNEVEN = 4.0  # noise ratio from where on channels get scales of their own, see `grid_of`
_FEW = 8  # patches that single layers are judged on


class Attempts:
    """One fp32 graph, the convolutions that may be quantised, and patches for calibration."""

    def __init__(
        self, model: Any, layers: Sequence[Convolution], target: Target, patches: Patches
    ) -> None:
        self._model, self._layers, self._target, self._patches = model, layers, target, patches
        chosen = {layer.name for layer in layers}
        self._always_float = {c.name for c in convolutions(model)} - chosen
        self._few = replace(
            patches, lr=patches.lr[:_FEW], hr=patches.hr[:_FEW], fp32=patches.fp32[:_FEW]
        )

    def trained(self, ranges: Mapping[str, Sequence[float]]) -> Iterator[tuple[Way, Grids]]:
        """The one way that a network was trained with; extremes where training rounded nothing."""
        # Those that stay in float as well: their rounded outputs are what others were trained on.
        layers = [layer for layer in convolutions(self._model) if layer.name in ranges]
        grids = trained_grids(layers, ranges, self._target)
        wanted = {name for layer in layers for name in (layer.input, layer.output)}
        between = set[str]()
        if self._target == "cpu":
            # Without these the integers between two convolutions would become floats and back.
            between = set(sums_and_products(self._model))
            for name in pictures(self._model):
                grids.pop(name, None)
        if missing := (wanted | between) - set(grids):
            found = calibrate(self._model, missing, self._patches.lr).minmax
            grids |= {name: grid_of(ends, self._target, np.inf) for name, ends in found.items()}
        yield "trained", grids

    def calibrated(self) -> Iterator[tuple[Way, Grids]]:
        """Fastest first; each with the ranges, extremes or percentiles, that are closer to fp32."""
        outputs = {layer.output for layer in self._layers}
        inputs = {layer.input for layer in self._layers}
        between = sums_and_products(self._model) if self._target == "cpu" else frozenset[str]()
        found = calibrate(self._model, outputs | inputs | between, self._patches.lr)
        in_silus = set().union(*silus(self._model, outputs, inputs).values())
        ways: tuple[tuple[Way, Any], ...] = (
            ("minmax", found.minmax),
            ("percentile", found.percentile),
        )
        # A SiLU is looked up in integers only where channels share one scale.
        nothing = set[str]()
        for spared, unevenness in ((nothing, np.inf), (in_silus, _UNEVEN), (nothing, 1.0)):
            tried: list[tuple[float, Way, Grids]] = []
            for way, ranges in ways:
                grids = {
                    name: grid_of(found, self._target, np.inf if name in spared else unevenness)
                    for name, found in ranges.items()
                }
                tried.append((self.measures(grids)[0](()), way, grids))
            _, best, grids_of_best = min(tried, key=lambda one: one[0])
            yield best, grids_of_best

    def written(self, grids: Grids, kept: Collection[str]) -> bytes:
        """The int8 graph with the layers `kept` in float."""
        model = quantised(self._model, grids, {*kept, *self._always_float}, self._target)
        content: bytes = model.SerializeToString(deterministic=True)
        return content

    def measures(self, grids: Grids) -> tuple[Measure, Measure]:
        """Two functions of the layers kept in float: mean squared error to fp32, PSNR-Y lost."""

        def error(kept: Collection[str]) -> float:
            return self._few.error(run_onnxruntime(self.written(grids, kept), self._few.lr))

        def drop(kept: Collection[str]) -> float:
            sr = run_onnxruntime(self.written(grids, kept), self._few.lr)
            return measured(self._few, sr).drop

        return error, drop
