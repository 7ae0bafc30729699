"""Writers of every kind of store, each in a forked process that can be killed at any moment.

Run as a script it imports everything once and then answers orders, one JSON line each. What the
tests expect of the stores is in `test_crash.py`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from upath import UPath

from sr_assets.output_folder import OutputFolder
from sr_assets.storage import open_output
from sr_assets.stores import expert_cache, pairs, patches
from sr_assets.stores.checkpoint import WEIGHTS, write_checkpoints
from sr_assets.stores.manifest import MANIFEST, ManifestRow, to_parquet
from sr_assets.stores.registry import publish
from sr_models.training import checkpoints

COUNT, SIDE = 20, 16
_PER_SHARD = 4
STEPS = 8
RELEASES = 4


def write(kind: str, root: Path) -> None:
    """Makes the store of one kind below `root`, or goes on with it, or finds it whole."""
    if kind == "release":
        _release(root)
        return
    final = output_path(kind, root)
    if open_output(final) is None:
        WRITERS[kind](OutputFolder(final)).commit({"metadata": {"kind": kind}})


def output_path(kind: str, root: Path) -> UPath:
    return UPath(root / kind / "photos" / "0123456789abcdef01234567")


def _patches(folder: OutputFolder) -> OutputFolder:
    column = np.arange(COUNT, dtype=np.int32)
    positions = patches.PatchPositions(column, column, column, np.zeros(COUNT, np.uint8))
    writer = patches.PatchWriter(folder, positions, SIDE, ["a.png"], {})
    assert len(writer.shards) == COUNT // _PER_SHARD
    pixels = _pixels((COUNT, SIDE, SIDE, 3))
    for shard, samples in enumerate(writer.shards):
        if not writer.finished(shard):
            writer.write(shard, pixels[samples.start : samples.stop])
    return folder


def _pairs(folder: OutputFolder) -> OutputFolder:
    writer = pairs.PairWriter(folder, COUNT, 2, SIDE, {})
    pixels = _pixels((COUNT, 2, SIDE, SIDE, 3))
    for shard, samples in enumerate(writer.shards):
        if not writer.finished(shard):
            writer.write(shard, pixels[samples.start : samples.stop])
    steps = [[(pairs.AppliedStep("resize", "area", {"height": float(n)}),)] * 2 for n in range(20)]
    writer.write_params(pairs.params_table("light", steps))
    return folder


def _cache(folder: OutputFolder) -> OutputFolder:
    writer = expert_cache.CacheWriter(folder, COUNT, 1, SIDE, (4, 8), {"expert": "hat"})
    sr = _pixels((COUNT, 1, 3, SIDE, SIDE)).astype(np.float32) / 255
    features = _pixels((COUNT, 1, 4, 8, 8)).astype(np.float32) - 100
    for shard, samples in enumerate(writer.shards):
        if not writer.finished(shard):
            chosen = slice(samples.start, samples.stop)
            writer.write(shard, sr[chosen], features[chosen])
    folder.write_json("error.json", writer.error())
    return folder


def _checkpoint(folder: OutputFolder) -> OutputFolder:
    """A training whose state after a step follows from the state before it alone."""
    states = folder.work / "checkpoints"
    found = checkpoints.newest(states)
    content = found[1] if found else {"step": 0, "weight": torch.ones(64, 64)}
    while content["step"] < STEPS:
        step = content["step"] + 1
        content = {"step": step, "weight": content["weight"] * 1.5 - step}
        checkpoints.save(states, step, content, {"weight": content["weight"]})
        checkpoints.prune(states, 2, keep=(3,))
    kept = checkpoints.weights_files(states, (3, STEPS))
    write_checkpoints(folder, states, [file.name for file in kept])
    folder.write_bytes(WEIGHTS, content["weight"].numpy().tobytes())
    return folder


def _manifest(folder: OutputFolder) -> OutputFolder:
    source = Path(str(folder.final)).parents[2] / "sources"
    source.mkdir(exist_ok=True)
    rows = []
    for number in range(6):
        file = source / f"{number}.png"
        if not file.exists():
            half = file.with_suffix(".half")
            half.write_bytes(bytes([number]) * 5000)
            half.replace(file)
        link = number % 2 == 0
        digest = folder.take(file, f"images/{number}.png", content=False, link=link)
        rows.append(ManifestRow(file.name, digest, 8, 8, "RGB", 5000, "ok", ""))
    folder.write_bytes(MANIFEST, to_parquet(rows))
    return folder


def _release(root: Path) -> None:
    for number in range(RELEASES):
        files = {f"deep/{name}.safetensors": bytes([number]) * 9000 for name in "ab"}
        manifest: dict[str, Any] = {
            "model": "net", "kind": "plain", "architecture": "Compact", "scale": 2, "metrics": {},
            "content": f"content{number}", "weights": f"weights{number}", "data": {},
        }  # fmt: skip
        publish(UPath(root / "registry"), files, manifest)


def _pixels(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, shape, np.uint8)


WRITERS: dict[str, Callable[[OutputFolder], OutputFolder]] = {
    "patches": _patches,
    "pairs": _pairs,
    "cache": _cache,
    "checkpoint": _checkpoint,
    "manifest": _manifest,
}
KINDS = (*WRITERS, "release")


class Tracer:
    """Notes in which order a process syncs and renames, and what a power cut could take back.

    A file or folder is safe while it looks as it did when it was last synced.
    """

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self._synced: dict[tuple[int, int], tuple[int, int]] = {}
        self._fsync, self._replace, self._rename = os.fsync, os.replace, os.rename

    def start(self) -> None:
        os.fsync = self._on_sync  # type: ignore[assignment]
        os.replace = os.rename = self._on_replace  # type: ignore[assignment]

    def _on_sync(self, handle: Any) -> None:
        self._fsync(handle)
        number = handle if isinstance(handle, int) else handle.fileno()
        status = os.fstat(number)
        self._synced[status.st_dev, status.st_ino] = (status.st_mtime_ns, status.st_size)
        self.events.append({"sync": os.readlink(f"/proc/self/fd/{number}")})  # noqa: PTH115

    def _on_replace(self, source: Any, target: Any) -> None:
        path = Path(source)
        below = [path, *(path.rglob("*") if path.is_dir() else ())]
        unsafe = [str(p.relative_to(path)) for p in below if not self._is_safe(p)]
        self.events.append({"rename": str(source), "to": str(target), "unsafe": unsafe})
        self._replace(source, target)

    def _is_safe(self, path: Path) -> bool:
        status = path.stat()
        now = (status.st_mtime_ns, status.st_size)
        return self._synced.get((status.st_dev, status.st_ino)) == now


def _smaller_shards() -> None:
    """Several shards of a few samples, where the product makes one."""
    for module in (patches, pairs, expert_cache):
        module._SHARD_SAMPLES = _PER_SHARD  # type: ignore[attr-defined]


def _child(order: dict[str, Any]) -> None:
    code = 1
    try:
        tracer = Tracer()
        if "trace" in order:
            tracer.start()
        write(order["kind"], Path(order["root"]))
        if "trace" in order:
            Path(order["trace"]).write_text(json.dumps(tracer.events))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _serve() -> None:
    _smaller_shards()
    with tempfile.TemporaryDirectory() as warm:  # what is imported or compiled late is there, too
        for kind in KINDS:
            write(kind, Path(warm))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        began = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _child(order)
        if (delay := order.get("kill_after")) is not None:
            time.sleep(delay)
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        print(json.dumps({"code": code, "seconds": time.monotonic() - began}), flush=True)


if __name__ == "__main__":
    _serve()
