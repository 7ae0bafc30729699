"""Measuring one frozen expert by kind of damage, from what its caches hold: no network runs.

The measure itself is `damage.py`; benchmarks are `experts.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sr_assets.evaluation.damage import measure_damage
from sr_assets.lineage.stage import StageContext
from sr_assets.stores.expert_cache import CacheReader
from sr_assets.stores.pairs import PairReader
from sr_models.degradations.steps import Process

if TYPE_CHECKING:
    from torch import Tensor


def measure_expert_damage(
    context: StageContext, name: str, datasets: Sequence[str], process: Process
) -> dict[str, Any]:
    """Reads what expert `name` made of every held-out sample of `datasets`; see `measure_damage`.

    Raises:
        StageError: a picture is not finite.
    """
    import torch

    def pictures(
        dataset: str, pairs: PairReader, samples: Sequence[tuple[int, int]]
    ) -> Iterator[Tensor]:
        cache = CacheReader(context.input(f"expert/{name}/cache", dataset))
        for index, variant in samples:
            yield torch.from_numpy(cache.sr_batch([index], [variant]))

    return measure_damage(context, name, datasets, process, pictures)
