"""Measuring one trained model by kind of damage; a fusion reads its experts' pictures from caches.

The measure itself is `damage.py`; benchmarks are `models.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sr_assets.assets.model_cache import pictures_of
from sr_assets.assets.trained import load_model
from sr_assets.evaluation.damage import measure_damage
from sr_assets.lineage.stage import StageContext, StageError
from sr_assets.stores.expert_cache import CacheReader
from sr_assets.stores.pairs import PairReader
from sr_models.degradations.steps import Process

if TYPE_CHECKING:
    from torch import Tensor


def measure_model_damage(
    context: StageContext, name: str, datasets: Sequence[str], process: Process
) -> dict[str, Any]:
    """Runs model `name` on every held-out sample of `datasets`; see `measure_damage`.

    Raises:
        StageError: the device is missing, the weights do not fit, or a picture is not finite.
    """
    checkpoint = context.input(f"model/{name}/checkpoint")
    try:
        model = load_model(checkpoint, context.recipe.compute.device)
    except ValueError as error:
        raise StageError(f"compute.device: {error}") from error

    def pictures(
        dataset: str, pairs: PairReader, samples: Sequence[tuple[int, int]]
    ) -> Iterator[Tensor]:
        caches = {
            e: CacheReader(context.input(f"expert/{e}/cache", dataset)) for e in model.experts
        }
        yield from pictures_of(model, pairs, caches, samples)

    return measure_damage(context, name, datasets, process, pictures)
