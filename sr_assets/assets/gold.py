"""Gold: the LR that networks and experts see, made once for every HR patch of silver.

Where LR comes from is the business of the `lr_*` modules beside this one, one of which serves a
dataset; here their results are only ordered and written down.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from sr_assets.ahead import ahead
from sr_assets.lineage.slices import slice_of
from sr_assets.lineage.stage import Ref, Stage, StageContext, StageError
from sr_assets.recipe.models import Recipe
from sr_assets.report.markdown import table
from sr_assets.stores.pairs import PairWriter, SampleSteps, params_table
from sr_assets.stores.patches import PatchReader
from sr_assets.stores.shards import DamagedStoreError

KEY = "gold/pairs"
_SILVER, _BRONZE = "silver/patches", "bronze/images"
_BICUBIC = "sr_assets.assets.lr_bicubic"
_DRAWN = "sr_assets.assets.lr_drawn"
_PAIRED = "sr_assets.assets.lr_paired"
#: Samples that wait for a thread at a time: enough to keep all busy, few enough for the memory.
_AHEAD = 64


@dataclass(frozen=True)
class Made:
    """The K versions of one patch."""

    lr: np.ndarray | None
    """uint8 [K, s, s, 3]; None where only `steps` was asked for."""
    steps: tuple[SampleSteps, ...]
    """What was done, one entry a version."""


@dataclass(frozen=True)
class LrSource:
    """Where the LR of a dataset comes from; each `lr_*` module opens one with `open_lr`."""

    name: str
    """What the degradation is called."""
    make: Callable[[int, bool], Made]
    """(patch, whether its pixels are wanted) -> its versions; called by several threads."""
    variants: int = 1
    """Versions of each patch, K."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Metadata of its own."""


def stages(recipe: Recipe) -> list[Stage]:
    """The one stage of gold, partitioned by dataset."""

    def inputs(partition: str | None) -> list[Ref]:
        paired = partition in recipe.datasets and recipe.datasets[partition].lr
        return [Ref(_SILVER, partition), *([Ref(_BRONZE, partition)] if paired else [])]

    def modules(partition: str | None) -> tuple[str, ...]:
        return () if partition is None else (_module(recipe, partition),)

    return [
        Stage(
            key=KEY,
            description="LR of every patch, degraded once, with a table of what was done to each.",
            group="gold",
            run=_run,
            modules=("sr_assets.assets.gold",),
            kinds=frozenset({"zarr"}),
            partitions="dataset",
            inputs=inputs,
            settings=_settings(recipe),
            partition_modules=modules,
        )
    ]


def _settings(recipe: Recipe) -> dict[str, Any]:
    seed = {"seed": recipe.seed} if recipe.gold.random else {}
    return {**slice_of(recipe.gold, "gold"), "scale": recipe.scale, **seed}


def _module(recipe: Recipe, dataset: str) -> str:
    """Imported by name, so that the code of one way is no part of the others' code version."""
    if dataset in recipe.datasets and recipe.datasets[dataset].lr:
        return _PAIRED
    return _DRAWN if recipe.gold.random else _BICUBIC


def _run(context: StageContext) -> dict[str, Any]:
    patches = PatchReader(context.input(_SILVER, context.partition))
    module = importlib.import_module(_module(context.recipe, context.partition))
    source: LrSource = module.open_lr(context, patches)
    side = patches.size // context.recipe.scale
    writer = PairWriter(context.output, len(patches), source.variants, side, dict(context.origin))
    try:
        steps = _degrade(context, source, writer)
    except DamagedStoreError as error:
        raise StageError(str(error)) from error
    writer.write_params(params_table(source.name, steps))
    return {
        "pairs": len(patches) * source.variants,
        "variants": source.variants,
        "lr_side": side,
        "degradation": source.name,
        "damage": {"md": _how_often(steps)},
        **source.facts,
    }


def _degrade(
    context: StageContext, source: LrSource, writer: PairWriter
) -> list[tuple[SampleSteps, ...]]:
    """Writes every shard that is not there yet; what was done to all samples, in their order."""
    open_shards = {s for s in range(len(writer.shards)) if not writer.finished(s)}
    missing = {n for s in open_shards for n in writer.shards[s]}

    def one(n: int) -> Made:
        return source.make(n, n in missing)

    steps: list[tuple[SampleSteps, ...]] = []
    with context.progress(str(context.ref), len(missing), "patches") as advance:
        count = sum(map(len, writer.shards))
        made = ahead(context.recipe.compute.workers, one, range(count), _AHEAD)
        for shard, samples in enumerate(writer.shards):
            lr: list[np.ndarray] = []
            for result in islice(made, len(samples)):
                steps.append(result.steps)
                if result.lr is not None:
                    lr.append(result.lr)
                    advance(1)
            if lr:
                writer.write(shard, np.stack(lr))
    return steps


def _how_often(steps: list[tuple[SampleSteps, ...]]) -> str:
    """A table of how many samples had each step, by kind."""
    counts: dict[tuple[str, str], int] = {}
    samples = [sample for variants in steps for sample in variants]
    for sample in samples:
        for key in {(step.op, step.kind) for step in sample}:
            counts[key] = counts.get(key, 0) + 1
    rows = [
        (op, kind, str(n), f"{n / max(1, len(samples)):.0%}")
        for (op, kind), n in sorted(counts.items())
    ]
    return table(("step", "kind", "samples", "share"), rows)


def settings_of_degradation(recipe: Recipe) -> Mapping[str, Any]:
    """The recipe slice of whoever degrades patches outside gold, as online training does."""
    return {k: v for k, v in _settings(recipe).items() if k != "gold.variants"}
