"""A project so small that all of it is built in seconds, driven by the `srd` command alone.

Sources and weights are made once; what a project has made lies in its own folder, so that a copy of
that folder is the same project. What the tests expect of it is in the tests.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import yaml
from PIL import Image

SCALE = 2
SRD = (str(Path(sys.executable).with_name("srd")),)
_PATIENCE = 900  # seconds until a command counts as hung


@dataclass(frozen=True)
class Project:
    """A folder with a recipe, its outputs and its Dagster home."""

    folder: Path
    command: tuple[str, ...] = SRD
    import_path: Path | None = None
    """A folder with other sources of the two packages, for `command`."""

    @property
    def recipe_file(self) -> Path:
        return self.folder / "tiny.yaml"

    @property
    def root(self) -> Path:
        """Folder of all outputs: the default, below the current folder."""
        return self.folder / "data" / "tiny"

    def recipe(self) -> dict[str, Any]:
        return yaml.safe_load(self.recipe_file.read_text())

    def write_recipe(self, recipe: dict[str, Any]) -> None:
        self.recipe_file.write_text(yaml.safe_dump(recipe, sort_keys=False))

    def copy_to(self, folder: Path) -> Project:
        """The same project somewhere else."""
        shutil.copytree(self.folder, folder)
        return Project(folder)

    def srd(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Runs `srd` with this recipe to its end; it must end with exit code `code`."""
        done = subprocess.run(
            [*self.command, *words, *self._recipe_option(words)],
            cwd=self.folder, env=self.environment(), capture_output=True, text=True,
            timeout=_PATIENCE, check=False,
        )  # fmt: skip
        said = f"srd {' '.join(words)}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == code, f"exit code {done.returncode}, not {code}: {said}"
        assert "Traceback" not in done.stderr, said
        return done

    def srd_json(self, *words: str, code: int = 0) -> Any:
        """What `srd ... --json` prints."""
        return json.loads(self.srd(*words, "--json", code=code).stdout)

    def status(self) -> dict[str, dict[str, Any]]:
        """`asset[partition]` -> its row of `srd status --json`."""
        return {name_of(row): row for row in self.srd_json("status")}

    def to_make(self, *selection: str) -> dict[str, str]:
        """What a build would make, with the reason: `srd build --dry-run --json`."""
        rows = self.srd_json("build", *selection, "--dry-run")
        return {name_of(row): row["why"] for row in rows}

    def kill_when(self, condition: Callable[[], bool], *words: str) -> None:
        """Starts `srd`, sends it SIGKILL as soon as `condition` holds, and waits for its end."""
        with (self.folder / "killed.log").open("w") as log:
            process = subprocess.Popen(
                [*self.command, *words, *self._recipe_option(words)],
                cwd=self.folder, env=self.environment(), stdout=log, stderr=log,
            )  # fmt: skip
        give_up = time.monotonic() + _PATIENCE
        while not condition():
            said = (self.folder / "killed.log").read_text()
            assert process.poll() is None, f"it ended before it could be killed: {said}"
            assert time.monotonic() < give_up, f"the moment to kill never came: {said}"
            time.sleep(0.001)
        process.kill()
        assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"

    @contextmanager
    def dagster(self) -> Iterator[dg.DagsterInstance]:
        """Dagster's records of this project."""
        with dg.DagsterInstance.from_config(str(self.folder / "home")) as instance:
            yield instance

    def runs(self) -> int:
        """How many runs Dagster knows."""
        with self.dagster() as instance:
            return instance.get_runs_count()

    def _recipe_option(self, words: tuple[str, ...]) -> tuple[str, ...]:
        return ("--recipe", self.recipe_file.name) if words[:1] != ("--help",) else ()

    def environment(self) -> dict[str, str]:
        """Variables for a process of this project."""
        variables = {k: v for k, v in os.environ.items() if not k.startswith(("SRD_", "DAGSTER_"))}
        variables |= {"DAGSTER_HOME": str(self.folder / "home"), "OMP_NUM_THREADS": "1"}
        if self.import_path:
            variables["PYTHONPATH"] = str(self.import_path)
        return variables


def name_of(row: dict[str, Any]) -> str:
    """`asset[partition]` of a row that `srd` printed."""
    return row["asset"] if row["partition"] is None else f"{row['asset']}[{row['partition']}]"


def output_folders(root: Path) -> list[Path]:
    """Every folder below `root` that looks like a finished output: it is named by an address."""
    return [f for f in root.rglob("*") if f.is_dir() and re.fullmatch("[0-9a-f]{24}", f.name)]


def tiny_recipe(sources: Path) -> dict[str, Any]:
    """Two datasets, a benchmark, two experts, their fusion, a student and a plain model.

    The student has no control, which is why it is never released.
    """

    def folder(name: str) -> dict[str, Any]:
        return {"source": {"kind": "folder", "path": str(sources / name)}}

    def weights(name: str) -> dict[str, Any]:
        return {"source": {"kind": "file", "path": str(sources / f"{name}.safetensors")}}

    train = {
        "batch": 4, "crop": 16, "learning_rate": 5e-3, "warmup": 10, "ema": 0.9,
        "validate_every": 50, "checkpoint_every": 5, "log_every": 10,
    }  # fmt: skip
    network = {"architecture": "Compact", "args": {"num_feat": 16, "num_conv": 1}}
    return {
        "name": "tiny",
        "scale": SCALE,
        "datasets": {"photos": folder("photos"), "other": {**folder("other"), "training": False}},
        "benchmarks": {"bench": folder("bench")},
        "silver": {"min_side": 96, "patch_size": 32, "stride": 12, "validation_share": 0.25},
        "experts": {
            # one patch at a time: slow enough that a test can kill it between two shards
            "edsr": {**weights("edsr"), "features": True, "batch": 1},
            "compact": weights("compact"),
        },
        "models": {
            "fusion": {
                "kind": "gate", "width": 8, "depth": 1,
                "train": {**train, "steps": 40, "learning_rate": 1e-3},
            },
            "alone": {"kind": "plain", "network": network, "train": {**train, "steps": 200}},
            "student": {
                "kind": "student", "network": network, "teachers": ["fusion"],
                "train": {**train, "steps": 220},
            },
        },
        "evaluation": {"crops": 1, "crop_size": 48},
        "export": {"onnx": False},
        "release": {"models": ["fusion", "student", "alone"]},
        "compute": {"device": "cpu", "workers": 1},
    }  # fmt: skip


def make_sources(sources: Path) -> None:
    """Pictures, and the weights of two experts that beat bicubic without any training."""
    photos = [picture(seed) for seed in range(4)]
    for name, pictures in {
        "photos": photos,
        "other": [picture(seed) for seed in range(10, 13)],
        "bench": [picture(seed) for seed in range(20, 22)],
    }.items():
        (sources / name).mkdir(parents=True)
        for number, pixels in enumerate(pictures):
            Image.fromarray(pixels).save(sources / name / f"{name}{number}.png")
    _make_experts(sources, photos)


def picture(seed: int, side: int = 160) -> np.ndarray:
    """Striped shapes on a gradient, uint8 [side, side, 3]: edges and texture to enlarge."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    gradient = x * random.uniform(-0.3, 0.3) + y * random.uniform(-0.3, 0.3)
    image = np.repeat(0.5 + gradient[..., None], 3, axis=2)
    for _ in range(40):
        centre, angle = random.uniform(0, 1, 2), random.uniform(0, np.pi)
        u = (x - centre[0]) * np.cos(angle) + (y - centre[1]) * np.sin(angle)
        v = (y - centre[1]) * np.cos(angle) - (x - centre[0]) * np.sin(angle)
        inside = np.maximum(abs(u), abs(v) * random.uniform(1, 4)) < random.uniform(0.03, 0.2)
        stripes = 0.12 * np.sin(u * random.uniform(60, 250))
        image[inside] = random.uniform(0.1, 0.9, 3) + stripes[inside][:, None]
    return np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)


def _make_experts(folder: Path, photos: list[np.ndarray]) -> None:
    import torch
    from safetensors.torch import save_file

    from sr_models.networks import build_network

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(12)
        edsr = build_network("EDSR", SCALE, {"num_feat": 12, "num_block": 1})
        edsr.conv_last.weight.zero_()  # type: ignore[union-attr, operator]
        edsr.conv_last.bias.zero_()  # type: ignore[union-attr, operator]
        for colour in range(3):
            edsr.conv_last.weight[colour, colour, 1, 1] = 1  # type: ignore[union-attr, index]
        _fit(edsr, edsr.upsample[0], 255, photos)  # type: ignore[index]
        torch.manual_seed(3)
        compact = build_network("Compact", SCALE, {"num_feat": 8, "num_conv": 0})
        _fit(compact, compact.body[-1], 1, photos)  # type: ignore[index]
        for name, network in (("edsr", edsr), ("compact", compact)):
            state = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
            save_file(state, folder / f"{name}.safetensors")


def _fit(network: Any, layer: Any, gain: float, photos: list[np.ndarray]) -> None:
    """Solves the layer before the pixel shuffle by least squares, over random features."""
    import torch
    import torch.nn.functional as F

    from sr_models.degradations.bicubic import downscale_uint8

    def tensor(pixels: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255

    seen: list[torch.Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    layer.weight.zero_()
    layer.bias.zero_()
    wanted = []
    for photo in photos:
        rest = tensor(photo) - network(tensor(downscale_uint8(photo, SCALE)))
        wanted.append(F.pixel_unshuffle(rest * gain, SCALE)[0].flatten(1).T.double())
    hook.remove()
    columns = torch.cat([F.unfold(features, 3, padding=1)[0].T for features in seen]).double()
    columns = torch.cat([columns, torch.ones(len(columns), 1)], 1)
    square = columns.T @ columns
    square += 1e-6 * square.trace() / len(square) * torch.eye(len(square))
    solved = torch.linalg.solve(square, columns.T @ torch.cat(wanted))
    outputs = solved.shape[1]
    layer.weight[:outputs] = solved[:-1].T.reshape(outputs, *layer.weight.shape[1:])
    layer.bias[:outputs] = solved[-1]
