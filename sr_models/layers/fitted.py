"""State dicts as our networks take them: older names mapped, numbers that no shape tells checked.

Which names these are is each network's own `canonical`; opening files belongs elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sr_models.layers.told import number

_NAMING = ("fused_init", "base")  # arguments that decide which names there are
_ROUNDING = 2.0**-11  # relative, of a number that half precision held


def load_fitted(network: nn.Module, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    """Pre-hook of `load_state_dict` that has it take `fitted(network, state)`.

    Where there are reasons against the weights, they alone are the error and nothing is loaded.
    """
    own = [name for name in state if name.startswith(prefix)]
    given, reasons = fitted(network, {name.removeprefix(prefix): state.pop(name) for name in own})
    if reasons:
        errors: list[str] = rest[-1]
        errors += [prefix + reason for reason in reasons]
        given = network.state_dict()
    state.update({prefix + name: tensor for name, tensor in given.items()})


def fitted(
    network: nn.Module, state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """`state` under the names of `network`, and why these can be no weights of it.

    `network.untold` has the numbers that it was built with and that no shape tells, by their names
    in a state dict. A file that has no word of one, as those of other programs, takes what was
    built; one that was rounded takes the exact number.

    Args:
        network: any; one without `canonical` and the like takes `state` as it is.
        state: names to tensors, left as it is.

    Returns:
        The state dict, and reasons of one line each, none where `state` may fit.
    """
    renamed: dict[str, Tensor] = getattr(network, "canonical", dict)(state)
    told, built = _told(network, renamed), getattr(network, "hyperparameters", {})
    reasons = [
        f"{name} is {json.dumps(told[name])} in the file: build it with "
        f"{name}: {json.dumps(told[name])}"
        for name in _NAMING
        if name in told and told[name] != built.get(name)
    ]
    if reasons:
        return renamed, tuple(reasons)
    own = network.state_dict()
    for name, value in getattr(network, "untold", {}).items():
        said = renamed.get(name)
        if said is not None:
            if said.is_meta or said.numel() != 1:
                continue
            if not _same(said, value):
                reasons.append(
                    f"{name} is {number(said):g} in the file, but the network was built with "
                    f"{value:g}: build it from {type(network).__name__}.options of the file"
                )
            del renamed[name]
        if name in own:
            renamed[name] = torch.full_like(own[name], value)
    return renamed, tuple(reasons)


def _told(network: Any, state: Mapping[str, Tensor]) -> Mapping[str, Any]:
    """Arguments that the weights tell, nothing where they are of another network."""
    try:
        return network.options(state) if network.detect(state) else {}
    except (AttributeError, KeyError, IndexError, ValueError):
        return {}  # a tensor is missing, which a strict load names


def _same(said: Tensor, value: float) -> bool:
    rounding = max(_ROUNDING, torch.finfo(said.dtype).eps / 2) if said.is_floating_point() else 0
    return abs(float(said) - value) <= rounding * max(abs(float(said)), abs(value))
