"""Samples of a cache computed again: what its expert or its model makes of the same LR now.

Which caches, and how many samples of each, is `verify.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
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

_Again = Callable[[int, int], tuple[np.ndarray, np.ndarray | None]]
"""SR [3, S, S] and, where they are wanted, features [C, s, s] of (sample, variant), float32."""


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

    def differences(indices: Sequence[int]) -> Iterator[str]:
        try:
            reader = CacheReader(cache)
            pairs = PairReader(inputs[Ref("gold/pairs", ref.partition)])
            experts = {
                parent.asset.split("/")[1]: CacheReader(output)
                for parent, output in inputs.items()
                if is_cache(parent)
            }
        except OSError:
            return
        with tempfile.TemporaryDirectory() as scratch:
            try:
                if kind == "expert":
                    weights = inputs[Ref(f"expert/{name}/weights")]
                    asked = reader.feature_shape is not None
                    again = _expert(recipe, name, weights, pairs, asked, Path(scratch))
                    dtype = recipe.expert_as_cached(name).dtype
                else:
                    checkpoint = inputs[Ref(f"model/{name}/checkpoint")]
                    again = _model(recipe, checkpoint, pairs, experts)
                    dtype = "fp32"
            except (OSError, ValueError, StageError) as error:
                yield f"its {kind} cannot be run again: {error}"
                return
            yield from _compared(reader, indices, again, kind, dtype)

    return differences


def _expert(
    recipe: Recipe, name: str, weights: Output, pairs: PairReader, features: bool, scratch: Path
) -> _Again:
    import torch

    from sr_assets.assets.experts import load_weights, tap
    from sr_models.device import pick_device
    from sr_models.experts.running import run_expert

    wanted = recipe.expert_as_cached(name)
    expert = load_weights(weights, scratch).to(pick_device(recipe.compute.device))
    expert = tap(expert, name, wanted) if features else expert

    def again(index: int, variant: int) -> tuple[np.ndarray, np.ndarray | None]:
        lr = torch.from_numpy(pairs.lr(index, variant)).permute(2, 0, 1)[None].float() / 255
        out = run_expert(expert, lr, dtype=wanted.dtype, batch=1, features=features)
        maps = None if out.features is None else out.features[0].cpu().numpy()
        return out.sr[0].cpu().numpy(), maps

    return again


def _model(
    recipe: Recipe, checkpoint: Output, pairs: PairReader, experts: Mapping[str, CacheReader]
) -> _Again:
    from sr_assets.assets.model_cache import pictures_of
    from sr_assets.assets.trained import load_model

    model = load_model(checkpoint, recipe.compute.device)

    def again(index: int, variant: int) -> tuple[np.ndarray, np.ndarray | None]:
        [sr] = pictures_of(model, pairs, experts, [(index, variant)])
        return sr[0].numpy(), None

    return again


def _compared(
    reader: CacheReader, indices: Sequence[int], again: _Again, what: str, dtype: str
) -> Iterator[str]:
    """A line for each picture and each sample's features that differ; the variants take turns."""
    from sr_models.experts.running import NonFiniteOutputError

    for index in indices:
        variant = index % reader.variants
        where = f"sample {index}, variant {variant}"
        try:
            stored = reader.sr(index, variant)
            maps = None if reader.feature_shape is None else reader.features(index, variant)
            sr, features = again(index, variant)
        except OSError:
            continue
        except NonFiniteOutputError:
            yield f"sr, {where}: the {what} now gives a value that is not finite"
            continue
        worst = float(np.abs(sr - stored).max())
        if not worst <= _TOLERANCE[dtype]:  # nor is a NaN
            yield f"sr, {where}: the {what} now gives another picture (by {worst:.4f} of the range)"
        if maps is None or features is None:
            continue
        steps = _steps_apart(features, maps)
        if not steps <= _STEPS[dtype]:
            yield f"features, {where}: the {what} now gives others (by {steps:.1f} steps)"


def _steps_apart(again: np.ndarray, stored: np.ndarray) -> float:
    """Largest difference of features [C, s, s], in steps of the channel; NaN where one is."""
    step = np.abs(stored).max((-2, -1), keepdims=True) / 127
    return float((np.abs(again - stored) / np.where(step > 0, step, 1)).max())
