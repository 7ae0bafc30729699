"""How a full fusion is trained: on its experts' cached pictures and features, or on live ones.

The network is `sr_models/fusion/network.py`; the run around it is `training.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sr_assets.assets.experts import load_weights, tap
from sr_assets.assets.training import Trainee, against_hr
from sr_assets.lineage.stage import Given, StageError
from sr_assets.recipe.models import Recipe
from sr_assets.recipe.networks import FusionModel
from sr_assets.stores.expert_cache import CacheReader

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sr_models.experts.loading import Expert

Batch = dict[str, "Tensor"]

#: Module that features come from where the recipe names none.
_USUAL_TAP = "conv_after_body"


def fusion_caches(recipe: Recipe, name: str) -> dict[str, str]:
    """Expert -> asset of the cache that fusion `name` is trained from; none for a live one."""
    if recipe.models[name].experts == "live":  # type: ignore[union-attr]
        return {}
    return {expert: f"expert/{expert}/cache" for expert in recipe.experts_of(name)}


def open_fusion(given: Given, name: str, model: FusionModel, scratch: Path) -> Trainee:
    """How fusion `name` is trained, its experts opened where they run live.

    Args:
        given: recipe and inputs of the checkpoint.
        name, model: of the fusion.
        scratch: folder of this process for copies of files that are not on this machine.

    Raises:
        StageError: an expert's cache has no features although the recipe asks for them.
    """
    from sr_models.fusion.build import fusion_args
    from sr_models.fusion.network import FusionShape

    recipe = given.recipe
    experts, wanted = recipe.experts_of(name), recipe.features_of(name)
    if model.experts == "live":
        live = _open_experts(given, experts, scratch)
        channels = {e: live[e].feature_channels or 0 for e in wanted}
        complete = _completer(recipe, live, wanted)
    else:
        channels, complete = _cached_channels(given, model, wanted), _nothing
    shape = FusionShape(
        **model.phases.model_dump(),
        wavelet=model.wavelet,
        guidance_width=model.guidance_width,
        common_width=model.common_width,
        width=model.width,
        depth=model.depth,
    )
    trainee = fusion_trainee(experts, recipe.scale, fusion_args(shape, channels), complete)
    named = {e: recipe.experts[e].features for e in wanted}
    taps = {e: module if isinstance(module, str) else _USUAL_TAP for e, module in named.items()}
    return replace(trainee, caches=fusion_caches(recipe, name), taps=taps)


def fusion_trainee(
    experts: tuple[str, ...],
    scale: int,
    args: Mapping[str, Any],
    complete: Callable[[Batch], None],
) -> Trainee:
    """A fusion of `experts`; validation shows their mean and every one of them beside it.

    Args:
        experts: names, in the order of the network.
        scale: upscaling factor.
        args: of `build_fusion`.
        complete: adds to a batch what no cache gave it.
    """
    features = tuple(args["features"])

    def build() -> nn.Module:
        from sr_models.fusion.build import build_fusion

        return build_fusion("FusionNetwork", experts, scale, args)

    def pictures(batch: Batch) -> dict[str, Tensor]:
        complete(batch)
        return {name: batch[f"sr/{name}"] for name in experts}

    def forward(network: nn.Module, batch: Batch) -> Tensor:
        sr = pictures(batch)
        return network(batch["lr"], sr, {name: batch[f"features/{name}"] for name in features})

    def rivals(batch: Batch) -> dict[str, Tensor]:
        from sr_models.fusion.experts import expert_mean

        sr = pictures(batch)
        return {**sr, "mean": expert_mean(sr, experts)}

    return Trainee(
        architecture="FusionNetwork",
        args=args,
        build=build,
        forward=forward,
        losses=against_hr,
        rivals=rivals,
        caches={},
        experts=experts,
        features=features,
        describe=describe,
    )


def describe(network: nn.Module) -> str:
    """Trainable parameters of each phase, in one line."""
    from sr_models.fusion.network import FusionNetwork

    assert isinstance(network, FusionNetwork)
    phases = network.phase_parameters()
    return "parameters of phases " + ", ".join(f"{p} {count:,}" for p, count in phases.items())


def _cached_channels(given: Given, model: FusionModel, wanted: tuple[str, ...]) -> dict[str, int]:
    """Channels of the features in the caches of the first training dataset."""
    dataset = given.recipe.training_datasets(model.datasets)[0]
    channels = {}
    for expert in wanted:
        shape = CacheReader(given.input(f"expert/{expert}/cache", dataset)).feature_shape
        if shape is None:
            raise StageError(
                f"expert/{expert}/cache[{dataset}] has no features, but experts.{expert}.features "
                f"asks for them: run `srd build 'expert/{expert}/cache'`"
            )
        channels[expert] = shape[0]
    return channels


def _open_experts(given: Given, names: tuple[str, ...], scratch: Path) -> dict[str, Expert]:
    from sr_models.device import pick_device

    device = pick_device(given.recipe.compute.device)
    return {
        name: tap(
            load_weights(given.input(f"expert/{name}/weights"), scratch).to(device),
            name,
            given.recipe.experts[name],
        )
        for name in names
    }


def _completer(
    recipe: Recipe, experts: Mapping[str, Expert], features: tuple[str, ...]
) -> Callable[[Batch], None]:
    """Runs the experts on the LR of a batch, in their own precision, whatever training's is."""

    def complete(batch: Batch) -> None:
        import torch

        from sr_models.experts.running import run_expert

        lr = batch["lr"]
        for name, expert in experts.items():
            if f"sr/{name}" in batch:
                continue
            told = recipe.experts[name]
            with torch.autocast(lr.device.type, enabled=False):
                made = run_expert(
                    expert, lr, dtype=told.dtype, batch=told.batch, features=name in features
                )
            # Clones: tensors of inference mode cannot be part of a gradient.
            batch[f"sr/{name}"] = made.sr.clone()
            if made.features is not None:
                batch[f"features/{name}"] = made.features.clone()

    return complete


def _nothing(batch: Batch) -> None:
    """Caches gave everything."""
