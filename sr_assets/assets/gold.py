"""Gold: the LR that networks and experts see, made once for every HR patch of silver.

Where LR comes from is the business of the `lr_*` modules beside this one, one of which serves a
dataset; here their results are only put in order; where shards are computed is
`executor.py`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from sr_assets.ahead import ahead
from sr_assets.executor import Advance, Worker, compute_shards
from sr_assets.lineage.slices import slice_of
from sr_assets.lineage.stage import Given, Ref, Stage, StageContext, StageError
from sr_assets.recipe.models import Recipe
from sr_assets.report.markdown import table
from sr_assets.stores.pairs import PairCoder, PairWriter, SampleSteps, params_table
from sr_assets.stores.patches import PatchReader
from sr_assets.stores.shards import DamagedStoreError

KEY = "gold/pairs"
_SILVER, _BRONZE = "silver/patches", "bronze/images"
_BICUBIC = "sr_assets.assets.lr_bicubic"
_DRAWN = "sr_assets.assets.lr_drawn"
_PAIRED = "sr_assets.assets.lr_paired"
#: Samples that wait for a thread at a time: enough to keep all busy, few enough for the memory.
_AHEAD = 64


#: What was done to the K versions of one patch.
PatchSteps = tuple[SampleSteps, ...]


@dataclass(frozen=True)
class Made:
    """The K versions of one patch."""

    lr: np.ndarray | None
    """uint8 [K, s, s, 3]; None where only `steps` was asked for."""
    steps: PatchSteps


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
    patches, source = _open_source(context.given)
    side = patches.size // context.recipe.scale
    writer = PairWriter(context.output, len(patches), source.variants, side, dict(context.origin))
    steps = _degrade(context, writer)
    writer.write_params(params_table(source.name, steps))
    return {
        "pairs": len(patches) * source.variants,
        "variants": source.variants,
        "lr_side": side,
        "degradation": source.name,
        "damage": {"md": _how_often(steps)},
        **source.facts,
    }


def _open_source(given: Given) -> tuple[PatchReader, LrSource]:
    patches = PatchReader(given.input(_SILVER, given.partition))
    module = importlib.import_module(_module(given.recipe, given.partition))
    return patches, module.open_lr(given, patches)


def _degrade(context: StageContext, writer: PairWriter) -> list[PatchSteps]:
    """Writes every shard that is not there yet; what was done to all samples, in their order."""
    finished = frozenset(s for s in range(len(writer.shards)) if writer.finished(s))
    # Of a finished shard, only what was done to its samples is found out again, in no time.
    shards = {s: 0 if s in finished else len(n) for s, n in enumerate(writer.shards)}
    worker = partial(_open_worker, context.given, writer.coder, finished)
    steps: dict[int, list[PatchSteps]] = {}

    def take(shard: int, result: tuple[list[PatchSteps], dict[str, bytes]]) -> None:
        steps[shard], files = result
        writer.put(files)

    with context.progress(str(context.ref), sum(shards.values()), "patches") as advance:
        compute_shards(context, shards, worker, take, advance, network=False)
    return [sample for shard in sorted(steps) for sample in steps[shard]]


def _open_worker(
    given: Given, coder: PairCoder, finished: frozenset[int], device: str
) -> Worker[tuple[list[PatchSteps], dict[str, bytes]]]:
    """What degrades the samples of one shard: what was done to each, and the shard's files."""
    _, source = _open_source(given)

    def work(shard: int, advance: Advance) -> tuple[list[PatchSteps], dict[str, bytes]]:
        steps: list[PatchSteps] = []
        lr: list[np.ndarray] = []
        make = partial(_make, source, shard not in finished)
        for made in ahead(given.recipe.compute.workers, make, coder.shards[shard], _AHEAD):
            steps.append(made.steps)
            if made.lr is not None:
                lr.append(made.lr)
                advance(1)
        return steps, coder.encode(shard, np.stack(lr)) if lr else {}

    return work


def _make(source: LrSource, pixels: bool, n: int) -> Made:
    try:
        return source.make(n, pixels)
    except DamagedStoreError as error:
        raise StageError(str(error)) from error


def _how_often(steps: list[PatchSteps]) -> str:
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
