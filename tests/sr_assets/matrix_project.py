"""A project whose whole graph is built in seconds, in this process, through Dagster.

It lies in one folder that is put back as it was between tests. What a change must make run again is
in `test_freshness_matrix.py`.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
from PIL import Image

import sr_assets
import sr_models
from sr_assets.graph import Graph, build_graph
from sr_assets.lineage.build import build, to_do
from sr_assets.lineage.code_version import digest_of
from sr_assets.lineage.dagster_assets import to_asset
from sr_assets.lineage.plan import Status, survey
from sr_assets.lineage.records import asset_key
from sr_assets.lineage.stage import Ref, StageContext
from sr_assets.recipe.models import Recipe

SCALE = 2


class MatrixProject:
    """Pictures, weights, a recipe and its outputs in one folder; Dagster's records in memory."""

    def __init__(
        self,
        folder: Path,
        code: Path,
        recipe: dict[str, Any],
        instance: dg.DagsterInstance,
        patch: pytest.MonkeyPatch,
    ) -> None:
        self.folder, self.code, self.recipe = folder, code, recipe
        self.instance, self.patch = instance, patch
        self.ran: list[str] = []
        """Outputs that were computed and not found whole."""
        self.act: Callable[[Ref], None] = lambda ref: None
        self._sources: dict[str, Path | None] = {}

    def source_path(self, name: str) -> Path | None:
        """File of a module in the copies of both packages, instead of the installed one."""
        if name not in self._sources:
            base = self.code.joinpath(*name.split("."))
            files = (base / "__init__.py", base.with_suffix(".py"))
            self._sources[name] = next((file for file in files if file.is_file()), None)
        return self._sources[name]

    def edit(self, module: str, old: str, new: str) -> None:
        """From now on the module has `new` where it had `old`."""
        source = self.source_path(module)
        assert source is not None, f"there is no module {module}"
        text = source.read_text()
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {source}"
        # Digests are kept by path while a process lives: no two texts may share one.
        changed = text.replace(old, new)
        edited = self.folder / f"{digest_of(changed)}.py"
        edited.write_text(changed)
        self._sources[module] = edited

    def graph(self) -> Graph:
        """The graph of the recipe as it is now; its stages tell when they run."""
        graph = build_graph(Recipe.model_validate(copy.deepcopy(self.recipe)))
        stages = {
            key: dataclasses.replace(stage, run=partial(self._run, stage.run))
            for key, stage in graph.stages.items()
        }
        return dataclasses.replace(graph, stages=stages)

    def _run(self, run: Callable[[StageContext], dict[str, Any]], context: StageContext) -> Any:
        self.act(context.ref)
        self.ran.append(str(context.ref))
        return run(context)

    def statuses(self) -> dict[str, Status]:
        """`asset[partition]` -> where it stands."""
        return {str(ref): status for ref, status in survey(self.graph(), self.instance).items()}

    def path(self, name: str) -> Path:
        """Folder of the current output of `asset[partition]`."""
        output = self.statuses()[name].output
        assert output is not None, f"{name} has not been made"
        return Path(str(output.path))

    def rerun(self) -> list[set[str]]:
        """Builds until all is fresh; returns what was asked for, level by level."""
        levels = []
        graph = self.graph()
        job: dg.JobDefinition | None = None
        every = set(graph.refs())
        while True:
            todo = to_do(survey(graph, self.instance), every)
            ready = {status.ref for status in todo if status.ready}
            if not ready:
                assert not todo, f"nothing is ready, but {todo[0].ref} is not fresh"
                return levels
            if job is None:
                assets = [to_asset(stage, graph) for stage in graph.stages.values()]
                job = dg.Definitions(assets).resolve_implicit_global_asset_job_def()
            result = build(graph, job, self.instance, ready, lambda line: None)
            assert not result.failed, result.failed
            assert set(result.made) == ready, "the build did not make what was ready"
            levels.append({str(ref) for ref in ready})

    def records(self) -> list[dg.AssetMaterialization]:
        """The latest materialisation of everything, to tell another instance."""
        found = []
        for ref in self.graph().refs():
            (record,) = self.instance.fetch_materializations(
                dg.AssetRecordsFilter(asset_key(ref), ref.partition and [ref.partition]), limit=1
            ).records
            assert record.asset_materialization is not None
            found.append(record.asset_materialization)
        return found


def make_sources(folder: Path) -> None:
    """Pictures and the weights of two experts."""
    images = {"photos": (1, 2, 3), "other": (11, 12, 14), "bench": (21,)}
    for name, seeds in images.items():
        for seed in seeds:
            write_picture(folder / "images" / name / f"{seed}.png", seed)
    write_weights(folder / "one.safetensors", "EDSR", 1)
    write_weights(folder / "two.safetensors", "Compact", 2)


def copy_code(folder: Path) -> None:
    """Copies both packages, so that a test may edit them."""
    for package in (sr_models, sr_assets):
        (source,) = package.__path__
        ignored = shutil.ignore_patterns("__pycache__", "weights")
        shutil.copytree(source, folder / Path(source).name, ignore=ignored)


def write_picture(file: Path, seed: int, side: int = 48) -> None:
    """Blocks of random colours: no two seeds look alike."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    file.parent.mkdir(parents=True, exist_ok=True)
    small.resize((side, side), Image.Resampling.BICUBIC).save(file)


def write_weights(file: Path, architecture: str, seed: int) -> None:
    """Weights of an untrained network of one of our architectures."""
    import torch
    from safetensors.torch import save_file

    from sr_models.networks import build_network

    arguments = {
        "EDSR": {"num_feat": 8, "num_block": 1},
        "Compact": {"num_feat": 8, "num_conv": 0},
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build_network(architecture, SCALE, arguments[architecture])
    save_file({k: t.contiguous() for k, t in network.state_dict().items()}, file)


def matrix_recipe(folder: Path) -> dict[str, Any]:
    """Two datasets, one not for training, a benchmark, a fusion, its student and a plain model.

    None of them is for quality: they train for two steps.
    """

    def source(name: str) -> dict[str, Any]:
        return {"source": {"kind": "folder", "path": str(folder / "images" / name)}}

    def weights(name: str) -> dict[str, Any]:
        return {"source": {"kind": "file", "path": str(folder / f"{name}.safetensors")}}

    train = {
        "steps": 2, "batch": 2, "crop": 8, "warmup": 0, "validate_every": 2, "ema": 0.5,
        "checkpoint_every": 2, "log_every": 1,
    }  # fmt: skip
    network = {"architecture": "Compact", "args": {"num_feat": 8, "num_conv": 0}}
    recipe = {
        "name": "matrix",
        "root": str(folder / "outputs"),
        "scale": SCALE,
        "datasets": {"photos": source("photos"), "other": {**source("other"), "training": False}},
        "benchmarks": {"bench": source("bench")},
        "silver": {"min_side": 32, "patch_size": 16, "stride": 16, "validation_share": 0.4},
        "experts": {"one": weights("one"), "two": weights("two")},
        "models": {
            "fusion": {"kind": "gate", "width": 4, "depth": 1, "train": train},
            "student": {
                "kind": "student", "network": network, "teachers": ["fusion"], "control": False,
                "train": train,
            },
            "alone": {"kind": "plain", "network": network, "train": train},
        },
        "evaluation": {"crops": 0},
        "export": {"onnx": False},
        "release": {"models": ["fusion", "student"]},
        "compute": {"device": "cpu", "workers": 1},
    }  # fmt: skip
    return json.loads(json.dumps(recipe))  # nothing of it is shared
