"""From a weights file to a frozen expert: which network it is, and what running it asks for.

Executing code from a file is never possible here; running the network is `running.py`.
"""

from __future__ import annotations

import dataclasses
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from spandrel import (
    MAIN_REGISTRY,
    ImageModelDescriptor,
    ModelDescriptor,
    ModelLoader,
    StateDict,
    UnsupportedModelError,
    canonicalize_state_dict,
)
from spandrel.__helpers.unpickler import RestrictedUnpickle
from torch import Tensor, nn

from sr_models.export.weights import running_parameters
from sr_models.plugin import register

SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors")
_TAP = "conv_after_body"


@dataclass(frozen=True)
class Expert:
    """A frozen single-image SR network for RGB, and what has to be known to run it."""

    architecture: str
    """spandrel's name of it."""
    model: nn.Module
    """In eval mode; no parameter asks for a gradient."""
    call: Callable[[nn.Module, Tensor], Tensor]
    """How spandrel calls this architecture's `model` (some return more than the picture)."""
    scale: int
    minimum: int
    """Smallest height and width that the network takes (px)."""
    multiple: int
    """Height and width are padded to a multiple of this (px)."""
    feature_module: str | None
    """Path of the module whose output is its features [B,C,h,w], where there is one."""
    feature_channels: int | None
    parameters: int
    bf16_safe: bool
    """Whether bfloat16 arithmetic is known to work."""

    def to(self, device: torch.device) -> Expert:
        """The same expert with its network on `device`."""
        return dataclasses.replace(self, model=self.model.to(device))


def load_expert(path: str | Path) -> Expert:
    """Loads any single-image SR network that spandrel knows, and ours: students and EDSR.

    Tensors are loaded strictly: one that is missing or left over is an error.

    Args:
        path: a .safetensors file, or a .pth, .pt or .ckpt file, of which only tensors are read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no SR network for RGB that spandrel knows, its tensors do not fit, or it
            holds Python objects. One line that names the file.
    """
    path = Path(path)
    descriptor = _describe(path, _read_tensors(path))
    kind = descriptor.architecture.name
    if not isinstance(descriptor, ImageModelDescriptor) or descriptor.purpose == "Inpainting":
        raise ValueError(f"{path.name}: {kind} is an inpainting network, not one for SR")
    if descriptor.purpose == "FaceSR":
        raise ValueError(f"{path.name}: {kind} restores faces only; an expert takes any picture")
    if descriptor.purpose != "SR" or descriptor.scale == 1:
        raise ValueError(f"{path.name}: {kind} restores pictures without enlarging them (scale 1)")
    if (descriptor.input_channels, descriptor.output_channels) != (3, 3):
        raise ValueError(
            f"{path.name}: {kind} maps {descriptor.input_channels} channels to "
            f"{descriptor.output_channels}; an expert maps RGB to RGB"
        )
    model = descriptor.model.eval().requires_grad_(False)
    channels = _feature_channels(model)
    minimum, multiple = _sizes(descriptor)
    return Expert(
        architecture=str(descriptor.architecture.id),
        model=model,
        # spandrel's own __call__ clamps to [0,1] and drops batches: only its adapter is of use.
        call=descriptor._call_fn,
        scale=descriptor.scale,
        minimum=minimum,
        multiple=multiple,
        feature_module=None if channels is None else _TAP,
        feature_channels=channels,
        parameters=running_parameters(model),
        bf16_safe=descriptor.supports_bfloat16,
    )


def size_requirements(network: nn.Module) -> tuple[int, int]:
    """(minimum, multiple) of `Expert` for a network of `build_network`.

    Ours say it (`minimum_size`, `multiple_of`; 1 where they do not), others are told from weights.
    """
    if not type(network).__module__.startswith(("spandrel.", "sr_models.experts.")):
        return getattr(network, "minimum_size", 1), getattr(network, "multiple_of", 1)
    register()
    with torch.random.fork_rng(devices=[]):
        return _sizes(MAIN_REGISTRY.load(dict(network.state_dict())))


def _sizes(descriptor: ModelDescriptor) -> tuple[int, int]:
    asked = descriptor.size_requirements
    return max(asked.minimum, 1), math.lcm(asked.multiple_of, _window(descriptor.model))


def _read_tensors(path: Path) -> StateDict:
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path.name}: weights files end in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no weights file {path}")
    try:
        if path.suffix.lower() == ".safetensors":
            return ModelLoader(device="cpu").load_state_dict_from_file(path)
        # spandrel opens a .pt as TorchScript, which is code; here it is tensors like the others.
        _refuse_torchscript(path)
        state: Any = torch.load(path, map_location="cpu", pickle_module=RestrictedUnpickle)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path.name} holds Python objects, which are never loaded ({_line(error)}): save its "
            f"state dict alone"
        ) from error
    except Exception as error:  # damaged files fail in as many ways as there are readers
        raise ValueError(f"{path.name} cannot be read as weights: {_line(error)}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path.name} holds a {type(state).__name__}, not a state dict")
    return canonicalize_state_dict(state)


def _refuse_torchscript(path: Path) -> None:
    """torch.load runs such a program whatever the file's ending and whatever unpickler it has."""
    with path.open("rb") as file:
        if torch.serialization._is_zipfile(file):
            with torch.serialization._open_zipfile_reader(file) as archive:
                if torch.serialization._is_torchscript_zip(archive):
                    raise ValueError("a TorchScript program: save its state dict alone")


def _describe(path: Path, state: StateDict) -> ModelDescriptor:
    register()
    try:
        return ModelLoader(device="cpu").load_from_state_dict(state)
    except UnsupportedModelError:
        raise ValueError(
            f"{path.name}: no architecture of spandrel or of ours has these tensors"
        ) from None
    except Exception as error:  # each architecture's reader has its own ways to fail
        raise ValueError(f"{path.name}: its tensors do not fit: {_line(error)}") from error


def _window(model: nn.Module) -> int:
    """Side that the network itself pads to: GRL's is of its stripes, others have one window."""
    size: Any = getattr(model, "pad_size", None) or getattr(model, "window_size", 1)
    return math.lcm(*size) if isinstance(size, (tuple, list)) else int(size)


def _feature_channels(model: nn.Module) -> int | None:
    tap = dict(model.named_children()).get(_TAP)
    convolutions = [m for m in tap.modules() if isinstance(m, nn.Conv2d)] if tap else []
    return convolutions[-1].out_channels if convolutions else None


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])[:300]}" if lines else type(error).__name__
