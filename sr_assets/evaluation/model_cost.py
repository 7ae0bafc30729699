"""What a trained model costs to run, in the form that people run: fused where it can be.

Of a fusion it is the fusion alone: the leaderboard adds the experts that it needs.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from sr_assets.assets.trained import LoadedModel, load_model
from sr_assets.evaluation.cost import write_cost
from sr_assets.lineage.stage import StageContext, StageError

if TYPE_CHECKING:
    from torch import Tensor


def measure_model_cost(context: StageContext, name: str) -> dict[str, Any]:
    """Writes the cost of model `name`; returns metadata.

    Raises:
        StageError: the device is missing, or the weights do not fit.
    """
    from sr_models.export.fusing import fused_copy, with_plain_convolutions
    from sr_models.export.weights import running_parameters

    checkpoint = context.input(f"model/{name}/checkpoint")
    try:
        loaded = load_model(checkpoint, context.recipe.compute.device)
    except ValueError as error:
        raise StageError(f"compute.device: {error}") from error
    network = with_plain_convolutions(fused_copy(loaded.network))
    model = dataclasses.replace(loaded, network=network)
    given: dict[int, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}

    def forward(lr: Tensor) -> Tensor:
        side = lr.shape[-1]
        if side not in given:  # in the warm-up: making them is no work of the model's
            given[side] = _experts_say(model, lr)
        return model.upscale(lr, *given[side])

    device = next(network.parameters()).device
    return write_cost(context, forward, running_parameters(network), model.scale, device)


def _experts_say(model: LoadedModel, lr: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Pictures and features of the right shapes for a fusion; nothing for other models."""
    import torch.nn.functional as F

    sr = F.interpolate(lr, scale_factor=model.scale, mode="nearest")
    features = {
        expert: lr[:, :1].expand(-1, channels, -1, -1).contiguous()
        for expert, channels in model.features.items()
    }
    return dict.fromkeys(model.experts, sr), features
