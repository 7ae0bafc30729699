"""A trained model's picture of every LR of a dataset, cached so that students can learn from it.

The frozen experts' caches, which also hold features, are made by `experts.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sr_assets.assets.trained import LoadedModel, load_model
from sr_assets.lineage.stage import StageContext, StageError
from sr_assets.stores.expert_cache import CacheReader, CacheWriter
from sr_assets.stores.pairs import PairReader

if TYPE_CHECKING:
    from torch import Tensor

_BATCH = 8  # patches at a time


def cache_model(context: StageContext, name: str) -> dict[str, Any]:
    """Writes the SR of model `name` for every (patch, variant) of one partition, shard by shard.

    Shards that a killed run has finished are kept.

    Returns:
        Metadata: the number of pictures and what quantisation cost.

    Raises:
        StageError: the weights do not fit their description, or a picture is not finite.
    """
    model = load_model(context.input(f"model/{name}/checkpoint"), context.recipe.compute.device)
    pairs = PairReader(context.input("gold/pairs", context.partition))
    experts = {
        expert: CacheReader(context.input(f"expert/{expert}/cache", context.partition))
        for expert in model.experts
    }
    writer = CacheWriter(
        context.output,
        count=len(pairs),
        variants=pairs.variants,
        size=pairs.size * model.scale,
        features=None,
        attributes={"model": name, "scale": model.scale, "provenance": dict(context.origin)},
    )
    total = len(pairs) * pairs.variants
    with context.progress(f"{name} on {context.partition}", total) as advance:
        for shard, patches in enumerate(writer.shards):
            if not writer.finished(shard):
                samples = [(n, k) for n in patches for k in range(pairs.variants)]
                pictures = np.concatenate(
                    [sr.numpy() for sr in pictures_of(model, pairs, experts, samples)]
                )
                shape = (len(patches), pairs.variants, *pictures.shape[1:])
                try:
                    writer.write(shard, pictures.reshape(shape))
                except ValueError as error:
                    raise StageError(f"model/{name}/cache: {error}: train it again") from error
            advance(len(patches) * pairs.variants)
    return {"pictures": total, **writer.error()}


def pictures_of(
    model: LoadedModel,
    pairs: PairReader,
    experts: Mapping[str, CacheReader],
    samples: Sequence[tuple[int, int]],
) -> Iterator[Tensor]:
    """What a model makes of samples (patch, variant): float32 [B, 3, S, S] on the CPU at a time."""
    import torch

    device = next(model.network.parameters()).device
    for start in range(0, len(samples), _BATCH):
        some = samples[start : start + _BATCH]
        indices, variants = [n for n, _ in some], [k for _, k in some]
        lr = np.stack([pairs.lr(n, k) for n, k in some]).transpose(0, 3, 1, 2)
        sr = {
            name: torch.from_numpy(cache.sr_batch(indices, variants)).to(device)
            for name, cache in experts.items()
        }
        # The same division as in training, so that a model sees the very numbers it learnt on.
        unit = lr.astype(np.float32) / np.float32(255)
        features = {
            name: torch.from_numpy(experts[name].features_batch(indices, variants)).to(device)
            for name in model.features
        }
        yield model.upscale(torch.from_numpy(unit).to(device), sr, features).cpu()
