"""Whether spandrel makes the same function of a weights file as the network it came from.

Writing the file is `weights.py`; kept apart, so that a stricter check makes no checkpoint stale.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

_PROBE_SEED = 20250


@dataclass(frozen=True)
class SpandrelReport:
    """What spandrel made of a weights file."""

    architecture: str
    scale: int
    parameters: int
    shape: tuple[int, int, int, int]
    """Of the input that both networks were given."""
    max_difference: float
    """Largest |SR of the network - SR of the file|."""


def check_with_spandrel(path: Path, network: nn.Module) -> SpandrelReport:
    """Loads `path` as a stranger would, through spandrel, and compares it with `network`.

    Both see the same random LR [1, 3, side, side] in [0, 1], in fp32; nothing is clamped.

    Raises:
        ValueError: spandrel does not know the file, or takes it for no super-resolution network.
    """
    from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError

    from sr_models import plugin

    plugin.register()
    try:
        found = ModelLoader(device="cpu").load_from_file(path)
    except UnsupportedModelError as error:
        raise ValueError(f"{path.name}: spandrel does not know this architecture") from error
    if not isinstance(found, ImageModelDescriptor):
        raise ValueError(
            f"{path.name}: spandrel takes it for {found.architecture.name}, not for SR"
        )
    needs = found.size_requirements
    step = max(needs.multiple_of, 1)
    side = -(-max(24, needs.minimum) // step) * step
    lr = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(_PROBE_SEED))
    training, device = network.training, next(network.parameters()).device
    with torch.no_grad():  # what SPAN merges in this pass stays an ordinary tensor
        expected = network.eval()(lr.to(device)).cpu()
        actual = found.model.eval()(lr)
    network.train(training)
    if actual.shape != expected.shape:
        raise ValueError(
            f"{path.name}: spandrel's {found.architecture.name} gives {tuple(actual.shape)}, "
            f"the network gives {tuple(expected.shape)}"
        )
    return SpandrelReport(
        architecture=str(found.architecture.id),
        scale=found.scale,
        parameters=sum(p.numel() for p in found.model.parameters()),
        shape=(1, 3, side, side),
        max_difference=float((actual - expected).abs().max()),
    )
