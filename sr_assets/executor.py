"""Where shards are computed: in this process, or by Ray's workers; the bytes are the same.

What a shard is, and how it is written, is for the stages: only this process writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from sr_assets.lineage.stage import StageContext

_T = TypeVar("_T")

#: Tells how many units of its shard are done since the last time.
Advance = Callable[[int], None]
#: Computes one shard, by its number.
Worker = Callable[[int, Advance], _T]
#: Opens a worker for a device of `compute.device`. Other processes get it pickled: a function of a
#: module, or a `functools.partial` of one.
OpenWorker = Callable[[str], Worker[_T]]
#: Takes the number of a shard and its result, to write it.
Take = Callable[[int, _T], None]


def compute_shards(
    context: StageContext,
    shards: Mapping[int, int],
    open_worker: OpenWorker[_T],
    take: Take[_T],
    advance: Advance,
    *,
    network: bool = True,
) -> None:
    """Computes shards by whatever `compute.executor` says.

    Args:
        context: of the stage.
        shards: number of each shard -> its units; nothing is opened where there is none.
        open_worker: called once in each process that computes.
        take: called in this process, once a shard, in any order.
        advance: of the progress bar; of Ray's workers it hears whole shards.
        network: whether a shard is work for an accelerator.

    Raises:
        StageError: Ray is missing, does not answer, or loses one worker after the other.
        Exception: what a worker or `take` raised.
    """
    if not shards:
        return
    if context.recipe.compute.executor == "ray":
        from sr_assets.ray_workers import compute_on_ray

        compute_on_ray(context, shards, open_worker, take, advance, network)
        return
    worker = open_worker(context.recipe.compute.device)
    for shard in shards:
        take(shard, worker(shard, advance))
