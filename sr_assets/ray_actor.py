"""What one of Ray's actors does: says where it is, and computes one shard after the other.

Who asks it to is `ray_workers.py`; Ray itself is not known here.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sr_assets.lineage.code_version import digest_of, module_digests

if TYPE_CHECKING:
    from sr_assets.executor import OpenWorker, Worker

_KILL_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux' prctl


@dataclass(frozen=True)
class Machine:
    """Where an actor runs."""

    name: str
    process: int
    packages: Mapping[str, str]
    missing: str | None
    """A folder that it should see and does not."""


class Actor:
    """Computes shards in a process of its own; what it needs is opened with its first one."""

    def __init__(self, open_worker: OpenWorker[Any], device: str, threads: int | None) -> None:
        self._open, self._device, self._threads = open_worker, device, threads
        self._worker: Worker[Any] | None = None

    def start(self, with_parent: bool, folders: list[str], entries: list[str]) -> Machine:
        """Says where it is; `with_parent` ends it at once when Ray is killed."""
        if with_parent and sys.platform == "linux":
            ctypes.CDLL(None).prctl(_KILL_WITH_PARENT, signal.SIGKILL)
        missing = next((folder for folder in folders if not Path(folder).is_dir()), None)
        return Machine(socket.gethostname(), os.getpid(), packages_of(entries), missing)

    def work(self, shard: int) -> Any:
        """The result of one shard."""
        if self._worker is None:
            if self._threads:
                import torch

                torch.set_num_threads(self._threads)
            self._worker = self._open(self._device)
        return self._worker(shard, lambda units: None)


def packages_of(entries: Sequence[str]) -> dict[str, str]:
    """What decides the bytes of a result beside the machine: versions, and the code of `entries`.

    The code is that which this process has imported, whatever is edited since.
    """
    versions = {name: importlib.metadata.version(name) for name in ("torch", "numpy")}
    return {**versions, "sr-distillery": f"with code {digest_of(module_digests(entries))}"}
