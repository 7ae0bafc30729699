"""Weights to fine-tune from, loaded into a network tensor by tensor.

Going on with a run that was cut off is `checkpoints.py`: this starts a new one.
"""

from __future__ import annotations

import pickle
from collections.abc import Collection
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from sr_models.layers.fitted import fitted
from sr_models.training.quantisation import without_ranges

_WRAPPERS = ("params_ema", "params", "state_dict")  # keys that SR programs put around weights
_NAMED = 3  # tensors named in a message


def start_from(network: nn.Module, file: Path) -> None:
    """Load the weights in `file` (.safetensors, .pth or .pt) into `network`.

    What `fitted` maps is mapped: names of older versions and of data-parallel wrappers.

    Raises:
        ValueError: there is no such file, it holds no weights, or its tensors are not exactly those
            of the network; the message names tensors that are missing, unexpected or of another
            shape, or the argument that the network has to be built with.
    """
    (state, reasons), wanted = (
        fitted(network, without_ranges(read_weights(file))),
        network.state_dict(),
    )
    if reasons:
        raise ValueError(f"{file} does not fit the network: {'; '.join(reasons)}")
    shapes = [
        f"{name} {list(state[name].shape)} where the network has {list(wanted[name].shape)}"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    problems = [
        f"{what} {_few(names)}"
        for what, names in (
            ("missing", [name for name in wanted if name not in state]),
            ("unexpected", [name for name in state if name not in wanted]),
            ("shapes differ:", shapes),
        )
        if names
    ]
    if problems:
        raise ValueError(
            f"{file} does not fit the network ({'; '.join(problems)}): give weights of the same "
            "network, with the same arguments"
        )
    network.load_state_dict(state)


def read_weights(file: Path) -> dict[str, Tensor]:
    """The state dict in a file, on the CPU; no code in it is run.

    A .pth or .pt holds it plainly or under `params_ema`, `params` or `state_dict`, the first of
    these that is there. Raises ValueError when the file is missing or holds something else.
    """
    if not file.is_file():
        raise ValueError(f"{file} is missing: put the weights there, or give another file")
    try:
        if file.suffix.lower() == ".safetensors":
            return safetensors.torch.load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{file} is no whole file of weights: fetch it again") from error
    if isinstance(content, dict):
        content = next((content[key] for key in _WRAPPERS if key in content), content)
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(
            f"{file} holds no plain weights, nor any under {', '.join(_WRAPPERS)}: give a file "
            "that does, such as model.safetensors of an output"
        )
    return content


def _few(names: Collection[str]) -> str:
    first = ", ".join(list(names)[:_NAMED])
    return first if len(names) <= _NAMED else f"{first} and {len(names) - _NAMED} more"
