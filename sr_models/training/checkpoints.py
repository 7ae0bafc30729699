"""Checkpoints of a run, each as a state to go on from and as weights to use, whole or not there.

What a checkpoint holds is the loop's business; here are writing, verifying, finding and pruning.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

log = logging.getLogger(__name__)

_DIGEST_SIZE = 32
_KINDS = ("pt", "safetensors", "pth")
_NAME = re.compile(r"^step-(\d+)\.(pt|safetensors|pth)$")


class DamagedCheckpointError(ValueError):
    """A checkpoint file is not what was written."""


def save(
    folder: Path,
    step: int,
    content: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    *,
    pth: bool = False,
) -> Path:
    """Write the files of one checkpoint, `step-<step>.pt` last, and return the path of that.

    - `.safetensors`: `weights` alone, with the step as metadata; with `pth` also as `.pth`, which
      holds {"params": weights}, what most SR programs read.
    - `.pt`: what torch.save makes of `content`, then the SHA-256 of that. torch.load ignores what
      follows its archive, so the file also opens without this module.
    """
    stem = f"step-{step:08d}"
    # Tied weights are one tensor under two names, which safetensors refuses.
    tensors = {name: tensor.contiguous().clone() for name, tensor in weights.items()}
    data = safetensors.torch.save(tensors, {"step": str(step)})
    write_atomically(folder / f"{stem}.safetensors", data)
    if pth:
        write_atomically(folder / f"{stem}.pth", _archive({"params": tensors}))
    data = _archive(dict(content))
    path = folder / f"{stem}.pt"
    write_atomically(path, data + hashlib.sha256(data).digest())
    return path


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU. Raises DamagedCheckpointError when a single bit is wrong."""
    stored = path.read_bytes()
    data, digest = stored[:-_DIGEST_SIZE], stored[-_DIGEST_SIZE:]
    if hashlib.sha256(data).digest() != digest:
        raise DamagedCheckpointError(f"{path}: the content does not match its SHA-256")
    content: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return content


def newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint, or None; each damaged one on the way is a warning."""
    for step in sorted(_steps(folder, ("pt",)), reverse=True):
        path = folder / f"step-{step:08d}.pt"
        try:
            return path, load(path)
        except DamagedCheckpointError as error:
            log.warning("%s: going back to the checkpoint before", error)
    return None


def prune(folder: Path, keep_last: int, keep: Collection[int]) -> None:
    """Delete checkpoints that are neither in `keep` nor among the last, and what was half written.

    Two of the last stay at least, one for a damaged newest.
    """
    newest_steps = sorted(_steps(folder, ("pt",)), reverse=True)[: max(2, keep_last)]
    for step in _steps(folder, _KINDS) - set(newest_steps) - set(keep):
        for kind in _KINDS:  # the state first: weights alone are no checkpoint
            (folder / f"step-{step:08d}.{kind}").unlink(missing_ok=True)
    for leftover in folder.glob("*.tmp"):
        leftover.unlink()


def weights_files(folder: Path, steps: Collection[int]) -> list[Path]:
    """The weights (`.safetensors`, `.pth`) of those of `steps` that are kept in `folder`."""
    names = (f"step-{s:08d}.{kind}" for s in sorted(set(steps)) for kind in _KINDS[1:])
    return [folder / name for name in names if (folder / name).is_file()]


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` so that after a crash at any moment `path` is the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # half a file on a full disk
        raise
    if os.name == "posix":  # elsewhere a folder cannot be opened, and renames are journalled
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _archive(content: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _steps(folder: Path, kinds: Collection[str]) -> set[int]:
    files = folder.iterdir() if folder.is_dir() else ()
    found = (_NAME.match(file.name) for file in files)
    return {int(name[1]) for name in found if name and name[2] in kinds}
