"""Where the weights of perceptual losses are looked for on this machine, and how they are read.

Nothing is ever downloaded here, and only tensors are read from a file.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors.torch import load_file
from torch import Tensor

FOLDER_VARIABLE = "SRD_WEIGHTS"


class MissingWeightsError(ValueError):
    """A loss needs a file or a package that is not here; one line says where to get it."""


@dataclass(frozen=True)
class Weights:
    """A file of published weights, and the names that it goes by."""

    loss: str
    names: tuple[str, ...]
    """In order of preference; the first is the published one."""
    source: str
    """What to do to get it."""
    hub: tuple[str, str] | None = None
    """Repository and file on the Hugging Face hub."""


def find_weights(weights: Weights) -> Path:
    """The file, from the folder `SRD_WEIGHTS`, the torch hub's, or the Hugging Face cache.

    Raises:
        MissingWeightsError: it is in none of them.
    """
    folders = [Path(torch.hub.get_dir()) / "checkpoints"]
    if own := os.environ.get(FOLDER_VARIABLE):
        folders.insert(0, Path(own).expanduser())
    for folder in folders:
        for name in weights.names:
            if (folder / name).is_file():
                return folder / name
    if weights.hub is not None:
        cached = try_to_load_from_cache(*weights.hub)
        if isinstance(cached, str):
            return Path(cached)
    raise MissingWeightsError(
        f"loss {weights.loss!r} needs the file {weights.names[0]}: {weights.source}, or put it "
        f"into {folders[0]} (a folder of your own: set {FOLDER_VARIABLE})"
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or .pth file, on the CPU.

    Raises:
        ValueError: the SHA-256 does not begin as the file's name says (`name-dcbb9e9d.pth`), the
            file is damaged, or it holds anything but named tensors. One line that names the file.
    """
    _check_hash(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files fail in as many ways as there are readers
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{path} cannot be read as weights: {reason}") from error
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise ValueError(f"{path} does not hold a state dict")
    return tensors


def _check_hash(path: Path) -> None:
    named = re.search(r"-([0-9a-f]{8,64})\.\w+$", path.name)
    if named is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(named[1]):
        raise ValueError(
            f"{path} is damaged: its SHA-256 begins with {found[:8]}, not with the {named[1]} of "
            f"its name; remove it and download it again"
        )
