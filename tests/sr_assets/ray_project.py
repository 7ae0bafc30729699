"""A small graph whose stages run here or on Ray; run as a program, it dies making one output.

What the tests expect of it is in `test_ray.py`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from upath import UPath

from sr_assets.graph import build_graph
from sr_assets.lineage.stage import Ref, StageContext
from sr_assets.output_folder import OutputFolder
from sr_assets.recipe.models import Recipe
from sr_assets.storage import Output, open_output
from sr_assets.stores import expert_cache, pairs
from sr_models.networks import build_network

GOLD = Ref("gold/pairs", "photos")
CACHE = Ref("expert/e/cache", "photos")
EVALUATION = Ref("expert/e/evaluation", "bench")


class Project:
    """Sources below a folder, and outputs that are made on demand from those before them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make_sources(self) -> None:
        """Pictures and weights."""
        random = np.random.default_rng(0)
        for name, count in (("photos", 3), ("bench", 3)):
            (self.folder / name).mkdir()
            for number in range(count):
                small = random.integers(0, 256, (12, 15, 3), np.uint8)
                picture = Image.fromarray(small).resize((150, 120), Image.Resampling.BICUBIC)
                picture.save(self.folder / name / f"{number}.png")
        torch.manual_seed(0)
        network = build_network("EDSR", 2, {"num_feat": 24, "num_block": 2})
        save_file(network.state_dict(), self.folder / "e.safetensors")

    def recipe(self, executor: str) -> Recipe:
        """Its recipe."""

        def images(name: str) -> dict[str, Any]:
            return {"source": {"kind": "folder", "path": str(self.folder / name)}}

        weights = {"kind": "file", "path": str(self.folder / "e.safetensors")}
        return Recipe.model_validate(
            {
                "name": "r",
                "root": str(self.folder / "out"),
                "scale": 2,
                "datasets": {"photos": images("photos")},
                "benchmarks": {"bench": images("bench")},
                "silver": {"min_side": 64, "patch_size": 32, "stride": 16},
                "gold": {"degradation": "realworld", "variants": 2},
                "experts": {"e": {"source": weights, "features": True, "batch": 2}},
                "models": {"f": {"kind": "fusion", "train": {"crop": 16}}},
                "compute": {"device": "cpu", "executor": executor},
            }
        )

    def output(self, ref: Ref) -> Output:
        """An output as it is made without Ray."""
        made = open_output(UPath(self._folder(ref, "local")))
        return made or Run(self, ref).make()

    def run(self, ref: Ref, executor: str, address: str) -> Run:
        """A run that makes another copy of an output, from the same inputs."""
        return Run(self, ref, executor, address)

    def _folder(self, ref: Ref, address: str) -> Path:
        return self.folder / "out" / ref.asset / (ref.partition or "_") / address


class Run:
    """A stage's run: what it logged, and how far its bar came."""

    def __init__(
        self, project: Project, ref: Ref, executor: str = "local", address: str = "local"
    ) -> None:
        recipe = project.recipe(executor)
        self.stage = build_graph(recipe).stages[ref.asset]
        self.logged: list[str] = []
        self.advanced = 0
        self.after: Callable[[Run], object] = lambda run: None
        inputs = {wanted: project.output(wanted) for wanted in self.stage.inputs(ref.partition)}
        self.context = StageContext(
            recipe, ref, OutputFolder(UPath(project._folder(ref, address))), inputs, self._log,
            lambda points: None, self._bar,
        )  # fmt: skip

    def make(self) -> Output:
        """The output, in shards of a few samples."""
        sizes = expert_cache._SHARD_SAMPLES, pairs._SHARD_SAMPLES
        expert_cache._SHARD_SAMPLES = pairs._SHARD_SAMPLES = 8
        try:
            return self.context.output.commit({"metadata": self.stage.run(self.context)})
        finally:
            expert_cache._SHARD_SAMPLES, pairs._SHARD_SAMPLES = sizes

    def workers(self) -> list[int]:
        """Process of every worker that has come."""
        said = (re.match(r"Ray worker (\d+) on ", line) for line in self.logged)
        return [int(one[1]) for one in said if one]

    def advance(self, units: int) -> None:
        """Of the progress bar."""
        self.advanced += units
        self.after(self)

    def _log(self, line: str) -> None:
        self.logged.append(line)
        print(line, flush=True)

    @contextlib.contextmanager
    def _bar(self, label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        yield self.advance


if __name__ == "__main__":  # FOLDER ADDRESS: the cache, on a Ray of its own, killed at shard 3
    torch.set_num_threads(1)
    run, shards = Project(Path(sys.argv[1])).run(CACHE, "ray", sys.argv[2]), itertools.count(1)
    run.after = lambda run: next(shards) == 2 and os.kill(os.getpid(), signal.SIGKILL)
    run.make()
