"""The training loop on a network of a few hundred weights.

Run as a script it trains into a folder and kills itself: what the resume tests start.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import safetensors.torch
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from sr_models.export.weights import merged_state
from sr_models.losses.pixel import charbonnier, l1
from sr_models.networks import build_network
from sr_models.training import checkpoints
from sr_models.training.determinism import seeded
from sr_models.training.loop import Batch, NonFiniteLoss, Task, TrainResult, train
from sr_models.training.optimizers import make_optimizer
from sr_models.training.run import CheckpointMismatchError
from sr_models.training.settings import Optimizer, TrainSettings
from sr_models.training.stages import stage_at

SETTINGS = TrainSettings(
    steps=10,
    batch=2,
    accumulate=2,
    learning_rate=1e-2,
    min_learning_rate=1e-4,
    warmup=2,
    weight_decay=0.01,
    ema=0.9,
    select="best",
    validate_every=5,
    checkpoint_every=3,
    log_every=1,
    device="cpu",
)


def tiny_network(seed: int = 1, width: int = 8) -> nn.Module:
    with seeded(seed):
        return nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.Dropout(0.3),
            nn.Conv2d(width, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )


def make_batch(i: int) -> Batch:
    generator = torch.Generator().manual_seed(1000 + i)
    hr = torch.rand(2, 3, 16, 16, generator=generator)
    return {"lr": nn.functional.avg_pool2d(hr, 2), "hr": hr}


def two_terms(sr: Tensor, batch: Batch, step: int) -> dict[str, Tensor]:
    return {"l1": 0.5 * l1(sr, batch["hr"]), "charbonnier": 0.5 * charbonnier(sr, batch["hr"])}


def two_stages(sr: Tensor, batch: Batch, step: int) -> dict[str, Tensor]:
    """L1, then from step 4 also its square."""
    terms = {"l1": l1(sr, batch["hr"])}
    if stage_at(step, [4]):
        terms["l2"] = 0.5 * (sr - batch["hr"]).square().mean()
    return terms


TASK = Task(lambda network, batch: network(batch["lr"]), two_terms)
STAGED = Task(TASK.forward, two_stages)


def measure(network: nn.Module) -> float:
    batch = make_batch(-1)
    error = (network(batch["lr"]) - batch["hr"]).square().mean()
    # Draws on purpose: a validation must not disturb the training's random numbers.
    return float(-10 * torch.log10(error)) + 0 * float(torch.rand(1))


def run(
    work: Path,
    settings: TrainSettings = SETTINGS,
    *,
    network: nn.Module | None = None,
    task: Task = TASK,
    batches: Callable[[int], Batch] = make_batch,
    validate: Callable[[nn.Module], float] = measure,
    report: Callable[[int, Mapping[str, float]], None] = lambda step, numbers: None,
    advance: Callable[[int], None] = lambda n: None,
) -> TrainResult:
    network = network or tiny_network()
    return train(network, task, batches, validate, settings, work, report=report, advance=advance)


def last_content(work: Path) -> dict[str, object]:
    found = checkpoints.newest(work / "checkpoints")
    assert found is not None
    return found[1]


def assert_same(a: object, b: object, where: str = "") -> None:
    if isinstance(a, Tensor):
        assert isinstance(b, Tensor) and torch.equal(a, b), where
    elif isinstance(a, dict):
        assert isinstance(b, dict) and a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert isinstance(b, list | tuple) and len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


def outcome(result: TrainResult) -> dict[str, object]:
    """What a run must end with, however it went: everything but its clock."""
    return {name: value for name, value in vars(result).items() if name != "data_wait"}


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def train_and_die(moment: str, optimizer: str, work: Path) -> None:
    """Train as `run` does and kill the process at `moment`."""
    done, validations = 0, 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        if moment == "step" and done == 5:  # after the checkpoint of step 4
            kill()
        if moment == "first step" and done == 2:  # before there is a checkpoint
            kill()

    def validate(network: nn.Module) -> float:
        nonlocal validations
        validations += 1
        if moment == "validation" and validations == 2:
            kill()
        return measure(network)

    really_replace = Path.replace

    def replace_file(self: Path, target: Path) -> Path:
        if moment == "checkpoint" and target.name == "step-00000006.pt":
            kill()
        if moment == "weights" and target.name == "step-00000006.safetensors":
            really_replace(self, target)
            kill()
        return really_replace(self, target)

    Path.replace = replace_file  # type: ignore[method-assign]
    settings = staged_settings(optimizer)
    run(work, settings, task=STAGED, validate=validate, advance=advance)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainResult, Path]:
    work = tmp_path_factory.mktemp("undisturbed")
    return run(work), work


@pytest.mark.parametrize(
    ("moment", "optimizer"),
    [
        ("step", "adamw"),
        ("first step", "adam"),
        ("validation", "adan_schedule_free"),
        ("checkpoint", "adamw_schedule_free"),
        ("weights", "adan"),
    ],
)
def test_killed_run_ends_with_the_same_bytes(moment: str, optimizer: str, tmp_path: Path) -> None:
    settings, work, tmp_path = staged_settings(optimizer), tmp_path / "whole", tmp_path / "killed"
    expected = run(work, settings, task=STAGED)
    command = [sys.executable, __file__, moment, optimizer, str(tmp_path)]
    died = subprocess.run(command, capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    steps: list[int] = []
    result = run(tmp_path, settings, task=STAGED, advance=steps.append)
    assert sum(steps) == 10
    assert (len(steps) < 10) == (moment != "first step"), "resumed where there was a checkpoint"
    assert_same(outcome(result), outcome(expected))
    assert_same(last_content(tmp_path), last_content(work))
    assert names_in(tmp_path) == names_in(work)
    assert_points_are_single(tmp_path)


OPTIMIZERS = get_args(Optimizer)


def staged_settings(optimizer: str) -> TrainSettings:
    constant = optimizer.endswith("_schedule_free")
    return replace(
        SETTINGS,
        optimizer=optimizer,
        schedule="constant" if constant else "cosine_restarts",
        restart_first=3,
        learning_rate=1e-3,
        validate_every=3,
        checkpoint_every=2,
    )


def names_in(work: Path) -> list[str]:
    return sorted(f.name for f in (work / "checkpoints").iterdir())


class StoppedError(Exception):
    """Stands in for a kill: nothing after it runs."""


def stopped_at(step: int) -> Callable[[int], None]:
    done = 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        if done == step:
            raise StoppedError

    return advance


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_stopped_run_ends_with_the_same_bytes_whatever_the_optimiser(
    optimizer: str, tmp_path: Path
) -> None:
    settings = staged_settings(optimizer)
    whole = run(tmp_path / "whole", settings, task=STAGED)
    # Goes on from step 2, before the second stage of the loss begins, and from 4, where it does.
    for step in (3, 5):
        with pytest.raises(StoppedError):
            run(tmp_path / "cut", settings, task=STAGED, advance=stopped_at(step))
    told: list[int] = []
    resumed = run(tmp_path / "cut", settings, task=STAGED, advance=told.append)
    assert told[0] == 4
    assert_same(outcome(resumed), outcome(whole))
    ours, theirs = last_content(tmp_path / "cut"), last_content(tmp_path / "whole")
    assert_same(ours, theirs)
    assert ours["optimizer"]["state"], "its state is part of what was compared"  # type: ignore[index]
    assert names_in(tmp_path / "cut") == names_in(tmp_path / "whole")


@pytest.mark.parametrize("optimizer", [o for o in OPTIMIZERS if o.endswith("_schedule_free")])
def test_schedule_free_ships_the_averaged_iterates(optimizer: str, tmp_path: Path) -> None:
    network, settings = tiny_network(), replace(staged_settings(optimizer), ema=0.0, select="last")
    result = run(tmp_path, settings, network=network)
    twin = make_optimizer(network, settings)
    twin.load_state_dict(last_content(tmp_path)["optimizer"])  # type: ignore[arg-type]
    raw = {name: p.detach().clone() for name, p in network.named_parameters()}
    twin.eval()  # type: ignore[attr-defined]
    for name, p in network.named_parameters():
        assert torch.equal(result.state[name], p)
        assert not torch.equal(p, raw[name]), "the weights in training are others"


def test_how_often_somebody_looks_does_not_change_a_schedule_free_run(tmp_path: Path) -> None:
    settings = replace(staged_settings("adan_schedule_free"), select="last")
    once = run(tmp_path / "once", replace(settings, checkpoint_every=10))
    often = run(tmp_path / "often", replace(settings, checkpoint_every=1))
    assert_same(once.state, often.state)


def test_the_curves_follow_the_stages(tmp_path: Path) -> None:
    run(tmp_path, task=STAGED)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("loss/l1")] == list(range(1, 11))
    assert [e.step for e in events.Scalars("loss/l2")] == list(range(5, 11))


def test_frozen_parameters_are_in_memory_once(tmp_path: Path) -> None:
    network = tiny_network()
    network[0].requires_grad_(False)
    before = network[0].weight.detach().clone()

    def validate(averaged: nn.Module) -> float:
        assert averaged[0].weight is network[0].weight
        assert averaged[3].weight is not network[3].weight
        return measure(averaged)

    result = run(tmp_path, network=network, validate=validate)
    assert torch.equal(result.state["0.weight"], before)
    weights = tmp_path / "checkpoints" / result.kept[0]
    assert set(safetensors.torch.load_file(weights)) == set(network.state_dict())


def test_merged_kernels_in_saved_weights_are_those_of_the_step(tmp_path: Path) -> None:
    """SPAN keeps a merged kernel beside its branches, which nothing refreshes in training."""
    with seeded(1):
        network = build_network("SPAN", 2, {"feature_channels": 8})

    def validate(averaged: nn.Module) -> float:
        averaged(make_batch(0)["lr"])
        return 1.0

    settings = replace(SETTINGS, steps=3, milestones=(2,), learning_rate=0.1)
    run(tmp_path, settings, network=network, validate=validate)
    state = safetensors.torch.load_file(tmp_path / "checkpoints" / "step-00000002.safetensors")
    network.load_state_dict(state)
    assert_same(dict(sorted(state.items())), dict(sorted(merged_state(network).items())))


@pytest.mark.slow
def test_a_compiled_run_keeps_the_names_and_learns_the_same(tmp_path: Path) -> None:
    def plain() -> nn.Module:  # dropout draws differently in compiled code
        with seeded(1):
            return nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2))

    settings = replace(SETTINGS, steps=3)
    expected = run(tmp_path / "plain", settings, network=plain())
    result = run(tmp_path / "compiled", replace(settings, compile=True), network=plain())
    assert result.state.keys() == expected.state.keys()
    for name, tensor in result.state.items():
        torch.testing.assert_close(tensor, expected.state[name], rtol=1e-3, atol=1e-4)


def test_a_machine_without_a_compiler_is_told(tmp_path: Path) -> None:
    script = (
        "import torch; from sr_models.training.compiling import compiled\n"
        "compiled(torch.nn.Linear(1, 1), torch.device('cpu'))"
    )
    nothing = {"CXX": "/nowhere/c++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "PATH": "/nowhere"}
    failed = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, **nothing},
    )
    assert failed.returncode == 1
    assert "ValueError: compile: torch.compile does not work on cpu here" in failed.stderr
    assert "set compile to false" in failed.stderr


def assert_points_are_single(work: Path) -> None:
    events = EventAccumulator(str(work / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("loss/l1")] == list(range(1, 11))
    assert [e.step for e in events.Scalars("psnr_y")] == [3, 6, 9, 10]


def test_learns(tmp_path: Path) -> None:
    totals: list[float] = []

    def report(step: int, numbers: Mapping[str, float]) -> None:
        if "loss/total" in numbers:
            totals.append(numbers["loss/total"])

    settings = replace(SETTINGS, steps=60, validate_every=30)
    result = run(tmp_path, settings, report=report)
    assert sum(totals[-5:]) < 0.7 * sum(totals[:5])
    assert result.history[-1]["psnr_y"] > result.history[0]["psnr_y"]
    assert [h["step"] for h in result.history] == [30, 60]


def test_finished_run_returns_at_once(undisturbed: tuple[TrainResult, Path]) -> None:
    expected, work = undisturbed
    told: list[int] = []

    def no_batches(i: int) -> Batch:
        raise AssertionError("a finished run reads no batch")

    result = run(work, batches=no_batches, advance=told.append)
    assert_same(outcome(result), outcome(expected))
    assert told == [10]


def test_validation_sees_the_averaged_weights_in_evaluation_mode(tmp_path: Path) -> None:
    network = tiny_network()
    seen: list[dict[str, Tensor]] = []

    def validate(averaged: nn.Module) -> float:
        assert not any(m.training for m in averaged.modules())
        assert all(m.training for m in network.modules())
        assert not torch.equal(averaged[0].weight, network[0].weight)
        seen.append({k: v.clone() for k, v in averaged.state_dict().items()})
        return 10.0 - len(seen)

    best = run(tmp_path / "a", network=network, validate=validate)
    assert (best.step, best.psnr_y) == (5, 9.0)
    assert_same(best.state, seen[0])
    network, seen = tiny_network(), []
    last = run(tmp_path / "b", replace(SETTINGS, select="last"), network=network, validate=validate)
    assert (last.step, last.psnr_y) == (10, 8.0)
    assert_same(last.state, seen[1])
    assert not any(tensor.requires_grad for tensor in last.state.values())


def test_ema_zero_ships_the_raw_weights(tmp_path: Path) -> None:
    network = tiny_network()
    result = run(tmp_path, replace(SETTINGS, ema=0.0, select="last"), network=network)
    assert_same(result.state, dict(network.state_dict()))


def test_accumulation_equals_a_larger_batch(tmp_path: Path) -> None:
    def pair(i: int) -> Batch:
        a, b = make_batch(2 * i), make_batch(2 * i + 1)
        return {name: torch.cat([a[name], b[name]]) for name in a}

    def plain() -> nn.Module:  # without batch statistics and dropout
        network = tiny_network()
        return nn.Sequential(network[0], *list(network)[3:])

    settings = replace(SETTINGS, steps=4, select="last")
    first, second = plain(), plain()
    run(tmp_path / "a", settings, network=first)
    run(tmp_path / "b", replace(settings, accumulate=1), network=second, batches=pair)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_clipping_limits_what_the_optimiser_gets(tmp_path: Path) -> None:
    norms: list[float] = []

    def report(step: int, numbers: Mapping[str, float]) -> None:
        norms.extend(v for k, v in numbers.items() if k == "gradient_norm")

    def first_moment(name: str, clip: float) -> float:
        run(tmp_path / name, replace(SETTINGS, steps=1, clip=clip), report=report)
        state = last_content(tmp_path / name)["optimizer"]["state"]  # type: ignore[index]
        return float(sum(s["exp_avg"].square().sum() for s in state.values()) ** 0.5) / 0.1

    assert first_moment("clipped", 1e-3) == pytest.approx(1e-3, rel=1e-2)
    assert first_moment("free", 0.0) == pytest.approx(norms[1], rel=1e-3)
    assert norms[0] == norms[1] > 1e-3, "the curve shows the norm before clipping"


def test_one_dimensional_parameters_do_not_decay(tmp_path: Path) -> None:
    task = Task(TASK.forward, lambda sr, batch, step: {"zero": 0 * sr.sum()})
    network, before = tiny_network(), tiny_network()
    settings = replace(SETTINGS, weight_decay=0.5)
    run(tmp_path, settings, network=network, task=task)
    for now, then in zip(network.parameters(), before.parameters(), strict=True):
        if now.ndim > 1:
            assert (now.abs() <= then.abs()).all() and now.norm() < then.norm()
        else:
            assert torch.equal(now, then)


def test_non_finite_term_is_named_and_no_checkpoint_holds_it(tmp_path: Path) -> None:
    def poisoned(i: int) -> Batch:
        batch = make_batch(i)
        return {**batch, "hr": batch["hr"] * float("nan")} if i == 2 * 6 + 1 else batch

    def losses(sr: Tensor, batch: Batch, step: int) -> dict[str, Tensor]:
        return {"flat": sr.mean() ** 2, "my_l1": l1(sr, batch["hr"])}

    network = tiny_network()
    with pytest.raises(NonFiniteLoss, match=r"my_l1 is nan at step 7\b"):
        run(tmp_path, network=network, task=Task(TASK.forward, losses), batches=poisoned)
    assert all(p.isfinite().all() for p in network.parameters())
    assert last_content(tmp_path)["step"] == 6


def test_non_finite_gradient_is_named(tmp_path: Path) -> None:
    task = Task(TASK.forward, lambda sr, batch, step: {"root": (0 * sr).sum().sqrt()})
    with pytest.raises(NonFiniteLoss, match="gradient_norm is nan at step 1"):
        run(tmp_path, task=task)


def test_validation_that_is_no_number_stops(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLoss, match="validation PSNR-Y is nan at step 5"):
        run(tmp_path, validate=lambda network: float("nan"))


def test_no_loss_term_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no loss term"):
        run(tmp_path, task=Task(TASK.forward, lambda sr, batch, step: {}))


def test_other_settings_in_the_folder_are_an_error(tmp_path: Path) -> None:
    run(tmp_path, replace(SETTINGS, steps=3))
    with pytest.raises(CheckpointMismatchError, match=r"steps 3 -> 4, learning_rate 0.01 -> 0.02"):
        run(tmp_path, replace(SETTINGS, steps=4, learning_rate=0.02))
    run(tmp_path, replace(SETTINGS, steps=3, checkpoint_every=1, keep_last=5, log_every=7))


def test_another_network_in_the_folder_is_an_error(tmp_path: Path) -> None:
    run(tmp_path, replace(SETTINGS, steps=3))
    with pytest.raises(CheckpointMismatchError, match=r"another network \(0.weight"):
        run(tmp_path, replace(SETTINGS, steps=3), network=tiny_network(width=4))


def test_damaged_newest_checkpoint_falls_back(
    undisturbed: tuple[TrainResult, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(StoppedError):
        run(tmp_path, advance=stopped_at(7))
    newest = tmp_path / "checkpoints" / "step-00000006.pt"
    stored = bytearray(newest.read_bytes())
    stored[len(stored) // 2] ^= 1
    newest.write_bytes(stored)
    told: list[int] = []
    result = run(tmp_path, advance=told.append)
    assert told[0] == 5
    assert "step-00000006.pt" in caplog.text
    assert_same(outcome(result), outcome(undisturbed[0]))


def test_keeps_the_best_the_last_and_milestones(tmp_path: Path) -> None:
    scores = iter([3.0, 9.0, 5.0, 9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    settings = replace(
        SETTINGS, validate_every=1, checkpoint_every=4, keep_best=2, keep_last=3, milestones=(7,)
    )
    result = run(tmp_path, settings, validate=lambda network: next(scores))
    # Of steps 1, 2, 4, 7, 8, 10 (every fourth, among the best at the time, a milestone, the last).
    steps = (2, 4, 7, 8, 10)
    kinds = ("pt", "safetensors")
    assert names_in(tmp_path) == [f"step-{s:08d}.{kind}" for s in steps for kind in kinds]
    assert result.step == 2, "of equals, the earlier"
    assert result.kept == tuple(f"step-{s:08d}.safetensors" for s in (2, 4, 7))


def test_each_checkpoint_is_also_averaged_weights(tmp_path: Path) -> None:
    result = run(tmp_path, replace(SETTINGS, pth=True, keep_best=1))
    folder = tmp_path / "checkpoints"
    stem = folder / f"step-{result.step:08d}"
    weights = safetensors.torch.load_file(stem.with_suffix(".safetensors"))
    assert_same(dict(sorted(weights.items())), dict(sorted(result.state.items())))
    pth = torch.load(stem.with_suffix(".pth"), weights_only=True)
    assert_same(pth, {"params": dict(result.state)})
    assert set(result.kept) == {f"{stem.name}.pth", f"{stem.name}.safetensors"}
    content = checkpoints.load(stem.with_suffix(".pt"))
    assert_same(dict(content["ema"]), dict(result.state))


def test_the_best_of_before_a_resume_still_counts(tmp_path: Path) -> None:
    settings = replace(SETTINGS, validate_every=2, checkpoint_every=3, keep_best=2)
    with pytest.raises(StoppedError):
        run(tmp_path, settings, advance=stopped_at(4), validate=lambda network: 9.0)
    scores = iter([4.0, 6.0, 5.0, 3.0])  # of steps 4, 6, 8, 10
    result = run(tmp_path, settings, validate=lambda network: next(scores))
    assert (result.step, result.psnr_y) == (2, 9.0)
    assert set(result.kept) == {"step-00000002.safetensors", "step-00000006.safetensors"}


def test_curves_equal_what_is_reported(tmp_path: Path) -> None:
    told: dict[str, list[tuple[int, float]]] = {}

    def report(step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            told.setdefault(name, []).append((step, value))

    run(tmp_path, replace(SETTINGS, log_every=4), report=report)
    terms = {"loss/l1", "loss/charbonnier", "loss/total"}
    assert told.keys() == terms | {"learning_rate", "gradient_norm", "data_wait", "psnr_y"}
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name, points in told.items():
        drawn = events.Scalars(name)
        assert [e.step for e in drawn] == [step for step, _ in points]
        assert [e.value for e in drawn] == pytest.approx([value for _, value in points], rel=1e-6)
    assert [step for step, _ in told["learning_rate"]] == [4, 8, 10]
    assert told["learning_rate"][-1][1] == pytest.approx(1e-4)


def test_one_process_trains_with_several_precisions(
    undisturbed: tuple[TrainResult, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        half = run(tmp_path / "half", replace(SETTINGS, precision="bf16"))
    assert "precision bf16: cpu does not have it" in caplog.text
    assert_same(half.state, undisturbed[0].state)
    assert_same(run(tmp_path / "full").state, undisturbed[0].state)


def test_unknown_device_names_the_choices(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'tpu' is not one of"):
        run(tmp_path, replace(SETTINGS, device="tpu"))


def test_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    run(tmp_path, replace(SETTINGS, steps=2))
    assert torch.equal(torch.rand(3), expected)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_trains_and_resumes_on_cuda(precision: str, tmp_path: Path) -> None:
    settings = replace(SETTINGS, device="cuda", precision=precision)

    def task_measure(network: nn.Module) -> float:
        batch = {k: v.cuda() for k, v in make_batch(-1).items()}
        return float(-10 * torch.log10((network(batch["lr"]) - batch["hr"]).square().mean()))

    def stop(n: int) -> None:
        raise KeyboardInterrupt

    whole = run(tmp_path / "a", settings, validate=task_measure)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", settings, validate=task_measure, advance=stop)
    again = run(tmp_path / "b", settings, validate=task_measure)
    assert again.psnr_y == pytest.approx(whole.psnr_y, abs=0.05)


if __name__ == "__main__":
    train_and_die(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
