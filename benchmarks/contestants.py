"""Our fusion network and the original's, fresh and ready to be stepped.

What they are compared by is `fusion_step.py` and `fusion_psnr.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from original_fusion import SCALE, OriginalFusion
from steps import FusionStep
from torch import nn

from sr_models.fusion.network import FusionNetwork
from sr_models.training.settings import TrainSettings

ORIGINAL, OURS = "original", "ours"
PEER = "the original's fusion network of 1.46 M parameters"
SEED = 42


def contestants(
    channels: Mapping[str, int], cached: Mapping[str, int], settings: TrainSettings
) -> dict[str, FusionStep]:
    """Both networks: the original over all `channels`, ours over what is `cached`."""
    builders: dict[str, Callable[[], nn.Module]] = {
        ORIGINAL: lambda: OriginalFusion(channels),
        OURS: lambda: FusionNetwork(tuple(channels), SCALE, cached),
    }
    found = {}
    for name, build in builders.items():
        torch.manual_seed(SEED)
        found[name] = FusionStep(build(), settings)
    return found


def parameters(rivals: Mapping[str, FusionStep]) -> str:
    """How large both are, for a title."""
    return "parameters: " + ", ".join(f"{n} {r.parameters:,}" for n, r in rivals.items())
