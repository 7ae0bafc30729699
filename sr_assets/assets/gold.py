"""Gold: the LR that networks and experts see, made once from every HR patch of silver.

How pixels are degraded is `sr_models/degradations`; here it is only applied and written down.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from sr_assets.lineage.slices import slice_of
from sr_assets.lineage.stage import Ref, Stage, StageContext, StageError
from sr_assets.recipe.models import Recipe
from sr_assets.stores.pairs import PairWriter
from sr_assets.stores.patches import PatchReader
from sr_assets.stores.shards import DamagedStoreError

KEY = "gold/pairs"
_SILVER = "silver/patches"


def stages(recipe: Recipe) -> list[Stage]:
    """The one stage of gold, partitioned by dataset."""

    def inputs(partition: str | None) -> list[Ref]:
        return [Ref(_SILVER, partition)]

    return [
        Stage(
            key=KEY,
            description="LR of every patch, degraded once, with a table of what was done to each.",
            group="gold",
            run=_run,
            modules=("sr_assets.assets.gold", "sr_models.degradations.bicubic"),
            kinds=frozenset({"zarr"}),
            partitions="dataset",
            inputs=inputs,
            settings={**slice_of(recipe.gold, "gold"), "scale": recipe.scale},
        )
    ]


def _run(context: StageContext) -> dict[str, Any]:
    gold, scale = context.recipe.gold, context.recipe.scale
    if gold.variants != 1:
        raise StageError(
            f"gold.variants is {gold.variants}, but the {gold.degradation} degradation has one "
            "result only: set gold.variants to 1"
        )
    patches = PatchReader(context.input(_SILVER, context.partition))
    writer = PairWriter(
        context.output, len(patches), gold.variants, patches.size // scale, dict(context.origin)
    )
    try:
        _degrade(context, patches, writer)
    except DamagedStoreError as error:
        raise StageError(str(error)) from error
    writer.write_params(
        pa.table(
            {
                "index": pa.array(range(len(patches)), pa.int32()),
                "variant": pa.array(np.zeros(len(patches), np.int16)),
                "degradation": pa.array([gold.degradation] * len(patches), pa.string()),
            }
        )
    )
    return {
        "pairs": len(patches) * gold.variants,
        "variants": gold.variants,
        "lr_side": patches.size // scale,
        "degradation": gold.degradation,
    }


def _degrade(context: StageContext, patches: PatchReader, writer: PairWriter) -> None:
    """Writes every shard that is not there yet."""
    from sr_models.degradations.bicubic import downscale_uint8

    scale, side = context.recipe.scale, patches.size // context.recipe.scale

    def make(n: int) -> np.ndarray:
        return downscale_uint8(patches.hr(n), scale)

    open_shards = [s for s in range(len(writer.shards)) if not writer.finished(s)]
    total = sum(len(writer.shards[s]) for s in open_shards)
    with (
        ThreadPoolExecutor(context.recipe.compute.workers) as pool,
        context.progress(str(context.ref), total, "patches") as advance,
    ):
        try:
            for shard in open_shards:
                samples = writer.shards[shard]
                lr = np.empty((len(samples), 1, side, side, 3), np.uint8)
                for slot, picture in enumerate(pool.map(make, samples)):
                    lr[slot, 0] = picture
                    advance(1)
                writer.write(shard, lr)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
