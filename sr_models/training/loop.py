"""The training loop: optimiser steps, averaged weights, validation, curves and exact resume.

Networks, data and what is measured come from outside; the loop never looks into a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from sr_models import processes
from sr_models.training import checkpoints
from sr_models.training.compiling import compiled
from sr_models.training.curves import open_curves
from sr_models.training.determinism import deterministic, seeded
from sr_models.training.devices import DevicePolicy, find_policy, opened
from sr_models.training.ema import Ema
from sr_models.training.optimizers import evaluation_weights, make_optimizer
from sr_models.training.points import NonFiniteLoss, publish, require_finite, step_numbers
from sr_models.training.prefetch import prefetched
from sr_models.training.run import Run
from sr_models.training.schedule import learning_rate
from sr_models.training.settings import TrainSettings
from sr_models.training.stored import dequantised
from sr_models.training.waiting import DataWait

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Task:
    """What is trained: how a batch goes through the network and what is minimised."""

    forward: Callable[[nn.Module, Batch], Tensor]
    """-> SR [B, 3, H, W], run in mixed precision; the module may be a compiled view."""
    losses: Callable[[Tensor, Batch, int], dict[str, Tensor]]
    """(SR as float32, batch, number of the optimiser step, from 0) -> named weighted terms, whose
    sum is minimised. Other steps may have other terms."""


@dataclass(frozen=True)
class TrainResult:
    """The weights to ship (averaged, on the CPU), where they come from, and the way there."""

    state: dict[str, Tensor]
    step: int  # the optimiser step these weights come from
    psnr_y: float | None  # of these weights
    history: list[dict[str, float]]  # a validation each: step, psnr_y, total, learning_rate
    steps: int  # optimiser steps of the whole run
    kept: tuple[str, ...]  # files in work/checkpoints: weights of the best steps and milestones
    data_wait: float  # share of the time of this process's steps that was waiting for batches


def train(
    network: nn.Module,
    task: Task,
    batches: Callable[[int], Batch],
    validate: Callable[[nn.Module], float],
    settings: TrainSettings,
    work: Path,
    *,
    report: Callable[[int, Mapping[str, float]], None],
    advance: Callable[[int], None],
) -> TrainResult:
    """Train `network` for `settings.steps` optimiser steps, or go on where `work` was left.

    `batches(i)` is a pure function of the micro-batch number that returns CPU tensors, floating or
    as stored (see `stored.dequantised`); it runs on another thread where the device allows it.
    `validate` gets the averaged copy of the network in evaluation mode, on the training device, and
    returns its PSNR-Y in dB. `report(step, numbers)`
    gets what goes to TensorBoard: `loss/<term>`, `loss/total`, `learning_rate`, `gradient_norm` and
    `data_wait`, the share of the time since the last such point that steps waited for batches,
    every `log_every` steps, and `psnr_y` at each validation. `advance(n)` is told finished steps;
    its first call of a resumed run brings the steps done before.

    Writes `work/tensorboard` and `work/checkpoints`, where the last `keep_last` checkpoints, the
    `keep_best` of best PSNR-Y and all milestones are kept, each as a state to go on from and as
    averaged weights (see `checkpoints.save`). A run that was killed at any moment and called again
    ends, on a CPU, with the same bytes as one that was not; a finished run returns at once.
    `network` is trained in place and ends with the raw weights of the last step.

    Where several processes call this (see `sr_models.processes`), `batches` gives each its share of
    a batch, and losses are means over samples: gradients and losses are averaged, so that all take
    the step that one process with whole batches takes, but for rounding. The first validates,
    reports and writes; what it writes does not tell their number.

    Raises NonFiniteLoss naming the term and the step, CheckpointMismatchError when `work` holds a
    run with other settings or another network, and ValueError when the device, the optimiser's
    settings or the compiler cannot be used.
    """
    policy, folder = find_policy(settings.device, settings.precision), work / "checkpoints"
    with deterministic(), seeded(settings.seed), opened(policy) as accelerator:
        network.to(accelerator.device).train()
        ema = Ema(network, settings.ema)
        raw_optimizer = make_optimizer(network, settings)
        optimizer = accelerator.prepare(raw_optimizer)
        run = Run(network, ema, optimizer, accelerator.scaler, settings)
        if saved := checkpoints.newest(folder):
            run.restore(*saved)
            advance(run.step)

        runner = compiled(network, accelerator.device) if settings.compile else network
        micro = range(run.step * settings.accumulate, settings.steps * settings.accumulate)
        writes = processes.rank() == 0 and run.step < settings.steps
        curves = open_curves(work / "tensorboard", run.step + 1) if writes else nullcontext()
        wait = DataWait()
        with (
            curves as writer,
            prefetched(_source(batches, policy), micro, policy.ahead) as upcoming,
        ):
            for step in range(run.step, settings.steps):
                with wait.step():
                    rate = learning_rate(step, settings)
                    for group in optimizer.param_groups:
                        group["lr"] = rate
                    done = step + 1
                    sums: dict[str, Tensor] = {}
                    for _ in range(settings.accumulate):
                        batch = dequantised(_moved(wait.take(upcoming), accelerator.device))
                        with accelerator.autocast():
                            output = task.forward(runner, batch)
                        terms = task.losses(output.float(), batch, step)
                        if not terms:
                            raise ValueError("no loss term has a weight: set one above 0")
                        loss = torch.stack(list(terms.values())).sum() / settings.accumulate
                        accelerator.backward(loss)
                        for name, term in terms.items():
                            part = term.detach() / settings.accumulate
                            sums[name] = sums[name] + part if name in sums else part
                    gradients = [p.grad for p in network.parameters() if p.grad is not None]
                    processes.average([*gradients, *sums.values()])
                    norm = accelerator.clip_grad_norm_(
                        network.parameters(), settings.clip or float("inf")
                    )
                    numbers = step_numbers(sums, norm, rate)
                    require_finite(numbers, done, accelerator.scaler)
                    optimizer.step()
                    optimizer.zero_grad()
                    with evaluation_weights(raw_optimizer):
                        ema.update(network, step)
                    run.step = done
                advance(1)

                last, among_best = done == settings.steps, False
                if done % settings.log_every == 0 or last:
                    publish(writer, report, done, {**numbers, "data_wait": wait.lap()})
                if done % settings.validate_every == 0 or last:
                    measured = partial(_validated, validate, ema, settings.seed, done)
                    psnr_y = processes.told_by_first(measured, accelerator.device)
                    among_best = run.remember(psnr_y, numbers["loss/total"], rate)
                    publish(writer, report, done, {"psnr_y": psnr_y})
                due = done % settings.checkpoint_every == 0 or done in settings.milestones
                if writer and (due or among_best or last):
                    writer.flush()  # the points up to a checkpoint are not drawn again
                    checkpoints.save(folder, done, run.content(), ema.state(), pth=settings.pth)
                    checkpoints.prune(folder, settings.keep_last, run.kept())

    state, shipped = run.shipped()
    kept = tuple(file.name for file in checkpoints.weights_files(folder, run.kept()))
    return TrainResult(
        state,
        int(shipped["step"]),
        shipped["psnr_y"],
        run.history,
        settings.steps,
        kept,
        wait.share,
    )


def _source(batches: Callable[[int], Batch], policy: DevicePolicy) -> Callable[[int], Batch]:
    if not policy.pinned:
        return batches
    return lambda i: {name: tensor.pin_memory() for name, tensor in batches(i).items()}


def _moved(batch: Batch, device: torch.device) -> Batch:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def _validated(validate: Callable[[nn.Module], float], ema: Ema, seed: int, step: int) -> float:
    # Validation draws from a random state of its own, so it cannot touch the training.
    with seeded(seed), torch.no_grad():
        psnr_y = float(validate(ema.network))
    ema.network.eval()
    if math.isnan(psnr_y):
        raise NonFiniteLoss("validation PSNR-Y", step, psnr_y)
    return psnr_y
