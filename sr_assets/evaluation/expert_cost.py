"""What a frozen expert costs to run, measured from its weights alone.

Apart from its evaluation, so that a change here runs no expert on a benchmark again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sr_assets.assets.experts import load_weights
from sr_assets.evaluation.cost import write_cost
from sr_assets.lineage.stage import StageContext, StageError

if TYPE_CHECKING:
    from torch import Tensor


def measure_expert_cost(context: StageContext, name: str) -> dict[str, Any]:
    """Writes the cost of expert `name` in the precision it runs in; returns metadata.

    Raises:
        StageError: the device is missing, or it fails there.
    """
    from sr_models.device import pick_device
    from sr_models.experts.running import ExpertMemoryError, run_expert
    from sr_models.export.fusing import with_plain_convolutions

    try:
        device = pick_device(context.recipe.compute.device)
    except ValueError as error:
        raise StageError(f"compute.device: {error}") from error
    weights = context.input(f"expert/{name}/weights")
    expert = load_weights(weights, context.output.work).to(device)
    with_plain_convolutions(expert.model)
    dtype = context.recipe.experts[name].dtype

    def forward(lr: Tensor) -> Tensor:
        return run_expert(expert, lr, dtype=dtype, batch=1).sr

    try:
        return write_cost(context, forward, expert.parameters, expert.scale, device)
    except (ArithmeticError, ExpertMemoryError, ValueError) as error:
        raise StageError(f"experts.{name}: {error}") from error
