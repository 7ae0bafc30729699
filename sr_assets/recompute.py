"""Samples of a cache computed again: what its expert or its model makes of the same LR now.

Which caches, and how many samples of each, is `verify.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from sr_assets.lineage.stage import Ref, StageError
from sr_assets.recipe.models import Recipe
from sr_assets.storage import Output
from sr_assets.stores.expert_cache import CacheReader
from sr_assets.stores.fixed_point import SR_STEP
from sr_assets.stores.pairs import PairReader
from sr_assets.stores.verify import Recompute

#: Between the stored fixed point and a new forward pass: half a step of rounding, and the last bits
#: in which processors and batch sizes differ; bf16 has only eight of them.
_TOLERANCE = {"fp32": SR_STEP, "bf16": 4 / 255}
#: The same for features, in steps: 1/127 of the largest of the sample's channel.
_STEPS = {"fp32": 1.0, "bf16": 8.0}


def is_cache(ref: Ref) -> bool:
    """Whether an output is the cache of an expert or of a model."""
    kind, _, rest = ref.asset.partition("/")
    return kind in ("expert", "model") and rest.endswith("/cache")


def samples_again(
    recipe: Recipe, ref: Ref, cache: Output, inputs: Mapping[Ref, Output]
) -> Recompute:
    """What computes samples of a cache again, and yields a line for each that differs.

    Args:
        recipe: that the cache was made by.
        ref: of the cache.
        cache: the cache; samples that cannot be read are passed over, `verify_output` tells them.
        inputs: the outputs that it was made from.
    """
    kind, name, _ = ref.asset.split("/")
    again = _expert_again if kind == "expert" else _model_again
    return partial(again, recipe, ref, name, cache, inputs)


def _expert_again(
    recipe: Recipe,
    ref: Ref,
    name: str,
    cache: Output,
    inputs: Mapping[Ref, Output],
    indices: Sequence[int],
) -> Iterator[str]:
    import torch

    from sr_assets.assets.experts import load_weights, tap
    from sr_models.device import pick_device
    from sr_models.experts.running import NonFiniteOutputError, run_expert

    wanted = recipe.expert_as_cached(name)
    try:
        reader = CacheReader(cache)
        source = PairReader(inputs[Ref("gold/pairs", ref.partition)])
    except OSError:
        return
    with tempfile.TemporaryDirectory() as scratch:
        try:
            expert = load_weights(inputs[Ref(f"expert/{name}/weights")], Path(scratch))
        except (OSError, ValueError) as error:
            yield f"its expert cannot be run again: {error}"
            return
        expert = expert.to(pick_device(recipe.compute.device))
        asked = reader.feature_shape is not None
        expert = tap(expert, name, wanted) if asked else expert
        for index, variant in _samples(indices, reader):
            try:
                stored, lr = reader.sr(index, variant), source.lr(index, variant)
                maps = reader.features(index, variant) if asked else None
            except OSError:
                continue
            batch = torch.from_numpy(lr).permute(2, 0, 1)[None].float() / 255
            where = f"sample {index}, variant {variant}"
            try:
                again = run_expert(expert, batch, dtype=wanted.dtype, batch=1, features=asked)
            except NonFiniteOutputError:
                yield f"sr, {where}: the expert now gives a value that is not finite"
                continue
            worst = float(np.abs(again.sr[0].cpu().numpy() - stored).max())
            if worst > _TOLERANCE[wanted.dtype]:
                yield _another_picture(where, "expert", worst)
            if maps is None or again.features is None:
                continue
            steps = _steps_apart(again.features[0].cpu().numpy(), maps)
            if not steps <= _STEPS[wanted.dtype]:
                yield f"features, {where}: the expert now gives others (by {steps:.1f} steps)"


def _model_again(
    recipe: Recipe,
    ref: Ref,
    name: str,
    cache: Output,
    inputs: Mapping[Ref, Output],
    indices: Sequence[int],
) -> Iterator[str]:
    from sr_assets.assets.model_cache import pictures_of
    from sr_assets.assets.trained import load_model

    try:
        model = load_model(inputs[Ref(f"model/{name}/checkpoint")], recipe.compute.device)
    except (OSError, ValueError, StageError) as error:
        yield f"its model cannot be run again: {error}"
        return
    try:
        reader = CacheReader(cache)
        source = PairReader(inputs[Ref("gold/pairs", ref.partition)])
        experts = {
            expert: CacheReader(inputs[Ref(f"expert/{expert}/cache", ref.partition)])
            for expert in model.experts
        }
    except OSError:
        return
    for index, variant in _samples(indices, reader):
        try:
            stored = reader.sr(index, variant)
            [again] = pictures_of(model, source, experts, [(index, variant)])
        except OSError:
            continue
        worst = float(np.abs(again[0].numpy() - stored).max())
        if not worst <= _TOLERANCE["fp32"]:  # nor is a NaN
            yield _another_picture(f"sample {index}, variant {variant}", "model", worst)


def _samples(indices: Sequence[int], reader: CacheReader) -> list[tuple[int, int]]:
    """One variant of each index, all of them in turn."""
    return [(index, index % reader.variants) for index in indices]


def _another_picture(where: str, what: str, by: float) -> str:
    return f"sr, {where}: the {what} now gives another picture (by {by:.4f} of the range)"


def _steps_apart(again: np.ndarray, stored: np.ndarray) -> float:
    """Largest difference of features [C, s, s], in steps of the channel; NaN where one is."""
    step = np.abs(stored).max((-2, -1), keepdims=True) / 127
    return float((np.abs(again - stored) / np.where(step > 0, step, 1)).max())
