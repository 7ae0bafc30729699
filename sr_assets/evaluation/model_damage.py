"""Measuring one trained model by kind of damage; a fusion reads its experts' pictures from caches.

The measure itself is `damage.py`; benchmarks are `models.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sr_assets.assets.trained import load_model
from sr_assets.evaluation.damage import measure_damage
from sr_assets.lineage.stage import StageContext, StageError
from sr_assets.stores.expert_cache import CacheReader
from sr_assets.stores.pairs import PairReader
from sr_models.degradations.steps import Process

if TYPE_CHECKING:
    from torch import Tensor

_BATCH = 8  # patches at a time


def measure_model_damage(
    context: StageContext, name: str, datasets: Sequence[str], process: Process
) -> dict[str, Any]:
    """Runs model `name` on every held-out sample of `datasets`; see `measure_damage`.

    Raises:
        StageError: the device is missing, the weights do not fit, or a picture is not finite.
    """
    import torch

    checkpoint = context.input(f"model/{name}/checkpoint")
    try:
        model = load_model(checkpoint, context.recipe.compute.device)
    except ValueError as error:
        raise StageError(f"compute.device: {error}") from error
    device = next(model.network.parameters()).device

    def pictures(
        dataset: str, pairs: PairReader, samples: Sequence[tuple[int, int]]
    ) -> Iterator[Tensor]:
        caches = {
            e: CacheReader(context.input(f"expert/{e}/cache", dataset)) for e in model.experts
        }
        for start in range(0, len(samples), _BATCH):
            some = samples[start : start + _BATCH]
            indices, variants = [n for n, _ in some], [k for _, k in some]
            lr = np.stack([pairs.lr(n, k) for n, k in some]).transpose(0, 3, 1, 2)
            sr = {
                e: torch.from_numpy(cache.sr_batch(indices, variants)).to(device)
                for e, cache in caches.items()
            }
            features = {
                e: torch.from_numpy(caches[e].features_batch(indices, variants)).to(device)
                for e in model.features
            }
            # The same division as in training, so that a model sees the very numbers it learnt on.
            unit = torch.from_numpy(lr.astype(np.float32) / np.float32(255))
            yield model.upscale(unit.to(device), sr, features).cpu()

    return measure_damage(context, name, datasets, process, pictures)
