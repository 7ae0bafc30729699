"""Workers for `test_ray.py`, in a module that Ray's processes can import: each has its own fate."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path

from sr_assets.executor import Advance, Worker
from sr_assets.lineage.stage import StageError

Told = tuple[int, str, int]
"""Shard, device and process."""


def open_calm(seconds: float, device: str) -> Worker[Told]:
    """Takes its time."""

    def work(shard: int, advance: Advance) -> Told:
        time.sleep(seconds)
        advance(1)
        return shard, device, os.getpid()

    return work


def open_gathering(folder: Path, count: int, device: str) -> Worker[Told]:
    """Goes on beyond shard 3 when so many workers have come, each of which marks `folder`."""
    calm = open_calm(0.05, device)
    (folder / str(os.getpid())).touch()

    def work(shard: int, advance: Advance) -> Told:
        give_up = time.monotonic() + 300
        while shard > 3 and len(list(folder.iterdir())) < count and time.monotonic() < give_up:
            time.sleep(0.05)
        return calm(shard, advance)

    return work


def open_mortal(mark: Path, device: str) -> Worker[Told]:
    """Its process dies at shard 2: once, where the folder `mark` is; else always."""
    calm = open_calm(0.05, device)

    def work(shard: int, advance: Advance) -> Told:
        first = mark / "died"
        if shard == 2 and not first.exists():
            if mark.is_dir():
                first.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return calm(shard, advance)

    return work


def open_failing(device: str) -> Worker[Told]:
    """Tells what is wrong with shard 1."""
    return partial(_fail, device)


def _fail(device: str, shard: int, advance: Advance) -> Told:
    if shard == 1:
        raise StageError("experts.e: shard 1 is not finite: set dtype to fp32")
    return shard, device, os.getpid()
