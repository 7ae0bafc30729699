"""Training in two processes: what one process with the same batches learns, but for rounding.

Run as a script by torchrun it is one of the processes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sr_models import processes
from sr_models.layers.deployment_norm import DeploymentNorm
from sr_models.layers.drop_path import DropPath
from sr_models.losses.pixel import charbonnier, l1
from sr_models.losses.registry import LOSSES, open_losses
from sr_models.training import checkpoints
from sr_models.training.determinism import seeded
from sr_models.training.loop import Batch, Task, TrainResult, train
from sr_models.training.quantisation import fake_quantised, prepare
from sr_models.training.settings import TrainSettings

SETTINGS = TrainSettings(
    steps=20,
    batch=4,
    accumulate=2,
    learning_rate=3e-3,
    warmup=2,
    ema=0.9,
    clip=0.05,  # of most steps here: the norm is of the averaged gradients
    validate_every=5,
    checkpoint_every=4,
    log_every=1,
    device="cpu",
)
NEED_WEIGHTS = {"vgg", "lpips", "clip"}
MIDDLE = 13  # a step after a checkpoint


class Wide(nn.Module):
    """A branch that is left out at random, and statistics of the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.branch = nn.Sequential(DeploymentNorm(8), nn.Conv2d(8, 8, 1), DropPath(0.3))
        self.tail = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.head(x))
        return self.tail(x + self.branch(x))


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2)
    )


def rounded() -> nn.Module:
    network = plain()
    prepare(network, kept_in_float=("2",))
    return network


def rounding(network: nn.Module, batch: Batch) -> Tensor:
    with fake_quantised(network):
        return network(batch["lr"])


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, Batch], Tensor]]] = {
    "plain": (plain, lambda network, batch: network(batch["lr"])),
    "wide": (Wide, lambda network, batch: network(batch["lr"])),
    "rounded": (rounded, rounding),
}
OPTIMIZERS = {"plain": "adamw", "wide": "adam_schedule_free", "rounded": "adamw"}


def share_of(number: int) -> Batch:
    """The samples of this process of a batch whose samples are drawn one by one."""
    size = SETTINGS.batch // processes.count()
    first = number * SETTINGS.batch + processes.rank() * size
    drawn = [torch.Generator().manual_seed(position) for position in range(first, first + size)]
    hr = torch.stack([torch.rand(3, 16, 16, generator=generator) for generator in drawn])
    return {"lr": nn.functional.avg_pool2d(hr, 2), "hr": hr}


def losses(sr: Tensor, batch: Batch, step: int) -> dict[str, Tensor]:
    return {"l1": 0.5 * l1(sr, batch["hr"]), "charbonnier": 0.5 * charbonnier(sr, batch["hr"])}


def measure(network: nn.Module) -> float:
    hr = torch.rand(2, 3, 16, 16)  # of the seed of the run
    error = (network(nn.functional.avg_pool2d(hr, 2)) - hr).square().mean()
    return float(-10 * torch.log10(error))


def run(
    name: str, work: Path, advance: Callable[[int], None] = lambda n: None
) -> tuple[TrainResult, dict[int, dict[str, float]]]:
    """A run, and its points by step."""
    build, forward = NETWORKS[name]
    schedule_free = OPTIMIZERS[name].endswith("free")
    settings = replace(
        SETTINGS,
        optimizer=OPTIMIZERS[name],  # type: ignore[arg-type]
        schedule="constant" if schedule_free else "cosine",
    )
    points: dict[int, dict[str, float]] = {}

    def report(step: int, numbers: Mapping[str, float]) -> None:
        points.setdefault(step, {}).update(numbers)

    with seeded(1):
        network = build()
    processes.demand_splittable(network)
    task = Task(forward, losses)
    result = train(network, task, share_of, measure, settings, work, report=report, advance=advance)
    return result, points


class Stopped(Exception):  # noqa: N818
    """Stands for a kill, where the process has to go on."""


def stopping(kill: Callable[[], None]) -> Callable[[int], None]:
    done = 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        if done == MIDDLE:
            kill()

    return advance


def stop() -> None:
    raise Stopped


def one_of_several(todo: str, folder: Path) -> None:
    """What each process does that torchrun starts here."""
    with processes.joined("cpu"):
        if todo == "die":
            kill = stopping(lambda: os.kill(os.getpid(), signal.SIGKILL))
            run("wide", folder / "killed", kill if processes.rank() == 0 else lambda n: None)
        told = {}
        for work in ("plain", "wide", "rounded", "resumed"):
            drawn: list[Tensor] = []  # random states after steps

            def remember(n: int, drawn: list[Tensor] = drawn) -> None:
                drawn.append(torch.get_rng_state())

            name = "wide" if work == "resumed" else work
            result, points = run(name, folder / work, remember)
            told[work] = {"points": points, "history": result.history, "step": result.step}
            final = {"weights": result.state, "random": drawn[-1]}
            torch.save(final, folder / f"{work}-{processes.rank()}.pt")
        (folder / f"told-{processes.rank()}.json").write_text(json.dumps(told))


def launch(todo: str, folder: Path) -> subprocess.CompletedProcess[str]:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    return subprocess.run(
        [sys.executable, *torchrun, __file__, todo, str(folder)],
        capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[TrainResult, Any]]:
    """Each run in this process, undisturbed."""
    folder = tmp_path_factory.mktemp("alone")
    return {name: run(name, folder / name) for name in NETWORKS}


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each run in two processes, and one that this process began."""
    folder = tmp_path_factory.mktemp("together")
    with pytest.raises(Stopped):
        run("wide", folder / "resumed", stopping(stop))
    done = launch("train", folder)
    assert done.returncode == 0, done.stderr
    return folder


def told(folder: Path, work: str, rank: int = 0) -> dict[str, Any]:
    return json.loads((folder / f"told-{rank}.json").read_text())[work]


def assert_near(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert state.keys() == other.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_curves_are_those_of_one_process(
    name: str, alone: dict[str, tuple[TrainResult, Any]], together: Path
) -> None:
    result, points = alone[name]
    found = told(together, name)
    assert [int(step) for step in found["points"]] == list(range(1, SETTINGS.steps + 1))
    for step, numbers in points.items():
        other = found["points"][str(step)]
        assert other.keys() == numbers.keys()
        for key in numbers.keys() - {"data_wait"}:
            assert other[key] == pytest.approx(numbers[key], rel=1e-4), (step, key)
    assert found["step"] == result.step
    weights = torch.load(together / f"{name}-0.pt")["weights"]
    assert_near(result.state, weights)


@pytest.mark.parametrize("name", [*NETWORKS, "resumed"])
def test_all_processes_have_the_same_weights_and_random_state(name: str, together: Path) -> None:
    first, second = (torch.load(together / f"{name}-{rank}.pt") for rank in range(2))
    assert torch.equal(first["random"], second["random"])
    for key, tensor in first["weights"].items():
        assert torch.equal(tensor, second["weights"][key]), key


def test_the_first_process_alone_tells_and_writes(together: Path) -> None:
    assert told(together, "plain", 1)["points"] == {}
    assert told(together, "plain", 1)["history"] == told(together, "plain")["history"]
    assert len(list((together / "plain" / "tensorboard").iterdir())) == 1


def test_a_run_of_one_process_goes_on_in_two(
    alone: dict[str, tuple[TrainResult, Any]], together: Path
) -> None:
    result, points = alone["wide"]
    found = told(together, "resumed")["points"]
    assert min(map(int, found)) == MIDDLE // SETTINGS.checkpoint_every * 4 + 1
    for step, numbers in found.items():
        assert numbers["loss/total"] == pytest.approx(points[int(step)]["loss/total"], rel=1e-4)
    assert_near(result.state, torch.load(together / "resumed-0.pt")["weights"])


def test_a_killed_run_of_two_processes_goes_on_in_one(
    alone: dict[str, tuple[TrainResult, Any]], tmp_path: Path
) -> None:
    killed = launch("die", tmp_path)
    assert killed.returncode != 0
    newest = checkpoints.newest(tmp_path / "killed" / "checkpoints")
    assert newest is not None and newest[1]["step"] < MIDDLE
    result, points = run("wide", tmp_path / "killed")
    undisturbed, expected = alone["wide"]
    assert min(points) == newest[1]["step"] + 1
    for step, numbers in points.items():
        assert numbers["loss/total"] == pytest.approx(expected[step]["loss/total"], rel=1e-4)
    assert_near(undisturbed.state, result.state)


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - NEED_WEIGHTS))
def test_a_loss_is_the_mean_of_its_shares(name: str) -> None:
    terms = open_losses((name,), torch.device("cpu"))
    drawn = torch.Generator().manual_seed(3)
    output, target = torch.rand(2, 4, 3, 24, 24, generator=drawn)

    def loss(rows: slice) -> Tensor:
        return terms(output[rows], target[rows], {name: 1.0}, "")[name]

    halves = (loss(slice(0, 2)) + loss(slice(2, 4))) / 2
    torch.testing.assert_close(loss(slice(None)), halves, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(8), nn.Dropout(0.1)])
def test_what_cannot_be_shared_is_refused(layer: nn.Module) -> None:
    with pytest.raises(ValueError, match=f"1 .{type(layer).__name__}. .* cannot be shared"):
        processes.demand_splittable(nn.Sequential(nn.Conv2d(3, 8, 3), layer))
    processes.demand_splittable(nn.Sequential(nn.InstanceNorm2d(8), nn.Dropout(0.0), DropPath(0.5)))


def test_a_process_of_its_own_changes_nothing() -> None:
    x = torch.rand(4, 3)
    processes.average([x])
    assert processes.share(x).data_ptr() == x.data_ptr() and processes.mean(x) is x
    assert processes.told_by_first(lambda: 3.5, torch.device("cpu")) == 3.5


if __name__ == "__main__":
    one_of_several(sys.argv[1], Path(sys.argv[2]))
