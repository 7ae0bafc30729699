"""Fusions by name and plain arguments, as checkpoints and released files describe them.

Networks that need LR alone are `sr_models/networks.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sr_models.fusion.gate import GateFusion
from sr_models.fusion.network import FusionNetwork, FusionShape


def build_fusion(
    architecture: str, experts: Sequence[str], scale: int, args: Mapping[str, Any]
) -> GateFusion | FusionNetwork:
    """A fresh fusion in training mode.

    Args:
        architecture: `GateFusion` or `FusionNetwork`.
        experts: their names, in the order of the network.
        scale: upscaling factor.
        args: of a gate `width` and `depth`; of a `FusionNetwork` what `fusion_args` gives.

    Raises:
        ValueError: there is no such fusion, or an argument is unknown or out of range.
    """
    try:
        if architecture == "GateFusion":
            return GateFusion(experts, scale, **args)
        if architecture == "FusionNetwork":
            shape = {key: value for key, value in args.items() if key != "features"}
            return FusionNetwork(experts, scale, args.get("features"), FusionShape(**shape))
    except TypeError as error:
        raise ValueError(f"{architecture}: {error}") from error
    raise ValueError(f"{architecture!r} is no fusion: there are GateFusion and FusionNetwork")


def fusion_args(shape: FusionShape, features: Mapping[str, int]) -> dict[str, Any]:
    """The arguments of a `FusionNetwork` as JSON values.

    Args:
        shape: widths and switches.
        features: name -> channels of the features of those experts that have some.
    """
    return {"features": dict(features), **asdict(shape)}
