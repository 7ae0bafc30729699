"""Resumable checkpoints and the best weights of a run as files that are whole or not there.

What a checkpoint holds is the loop's business; here are writing, verifying, finding and pruning.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

log = logging.getLogger(__name__)

_DIGEST_SIZE = 32
_STEP = re.compile(r"^step-(\d+)\.pt$")
_BEST = re.compile(r"^best-(\d+)\.safetensors$")


class DamagedCheckpointError(ValueError):
    """A checkpoint file is not what was written."""


def save(folder: Path, step: int, content: Mapping[str, Any]) -> Path:
    """Write `step-<step>.pt`: what torch.save makes of `content`, then the SHA-256 of that.

    torch.load ignores what follows its archive, so the file also opens without this module.
    """
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    data = buffer.getvalue()
    path = folder / f"step-{step:08d}.pt"
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
    for step in sorted(_steps(folder, _STEP), reverse=True):
        path = folder / f"step-{step:08d}.pt"
        try:
            return path, load(path)
        except DamagedCheckpointError as error:
            log.warning("%s: going back to the checkpoint before", error)
    return None


def prune(folder: Path, keep_last: int, milestones: Collection[int]) -> None:
    """Delete what is no milestone and not among the last; two stay, one for a damaged newest."""
    for step in sorted(_steps(folder, _STEP), reverse=True)[max(2, keep_last) :]:
        if step not in milestones:
            (folder / f"step-{step:08d}.pt").unlink()
    for leftover in folder.glob("*.tmp"):
        leftover.unlink()


def save_best(folder: Path, step: int, psnr_y: float, state: Mapping[str, Tensor]) -> Path:
    """Write `best-<step>.safetensors`: weights only, with step and PSNR-Y as metadata."""
    # Tied weights are one tensor under two names, which safetensors refuses.
    tensors = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    metadata = {"step": str(step), "psnr_y": repr(psnr_y)}
    path = folder / f"best-{step:08d}.safetensors"
    write_atomically(path, safetensors.torch.save(tensors, metadata))
    return path


def prune_best(folder: Path, keep: Sequence[int]) -> None:
    """Delete the best weights of every step that is not in `keep`."""
    for step in _steps(folder, _BEST) - set(keep):
        (folder / f"best-{step:08d}.safetensors").unlink()


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` so that after a crash at any moment `path` is the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    if os.name == "posix":  # elsewhere a folder cannot be opened, and renames are journalled
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _steps(folder: Path, pattern: re.Pattern[str]) -> set[int]:
    files = folder.iterdir() if folder.is_dir() else ()
    return {int(m[1]) for f in files if (m := pattern.match(f.name))}
