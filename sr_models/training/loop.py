"""The training loop: optimiser steps, averaged weights, validation, curves and exact resume.

Networks, data and what is measured come from outside; the loop never looks into a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from sr_models.training import checkpoints
from sr_models.training.curves import open_curves
from sr_models.training.determinism import deterministic, seeded
from sr_models.training.devices import open_accelerator
from sr_models.training.ema import Ema
from sr_models.training.prefetch import prefetched
from sr_models.training.run import Run
from sr_models.training.schedule import learning_rate
from sr_models.training.settings import TrainSettings

Batch = dict[str, Tensor]

SMALLEST_SCALE = 2.0**-14  # of the fp16 gradient scaler: thirty halvings below its start


@dataclass(frozen=True)
class Task:
    """What is trained: how a batch goes through the network and what is minimised."""

    forward: Callable[[nn.Module, Batch], Tensor]  # -> SR [B, 3, H, W], run in mixed precision
    losses: Callable[[Tensor, Batch], dict[str, Tensor]]  # named weighted terms; the sum counts


@dataclass(frozen=True)
class TrainResult:
    """The weights to ship (averaged, on the CPU), where they come from, and the way there."""

    state: dict[str, Tensor]
    step: int  # the optimiser step these weights come from
    psnr_y: float | None  # of these weights
    history: list[dict[str, float]]  # a validation each: step, psnr_y, total, learning_rate
    steps: int  # optimiser steps of the whole run


class NonFiniteLoss(RuntimeError):  # noqa: N818
    """A loss term, the gradient norm or the validation PSNR is infinite or no number."""

    def __init__(self, term: str, step: int, value: float) -> None:
        super().__init__(
            f"{term} is {value} at step {step}: lower learning_rate or set clip, or use fp32"
        )
        self.term, self.step = term, step


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

    `batches(i)` is a pure function of the micro-batch number that returns CPU tensors; it runs on
    another thread. `validate` gets the averaged copy of the network in evaluation mode, on the
    training device, and returns its PSNR-Y in dB. `report(step, numbers)` gets what goes to
    TensorBoard: `loss/<term>`, `loss/total`, `learning_rate`, `gradient_norm` every `log_every`
    steps and `psnr_y` at each validation. `advance(n)` is told finished steps; its first call of a
    resumed run brings the steps done before.

    Writes `work/checkpoints` and `work/tensorboard`. A run that was killed at any moment and
    called again ends, on a CPU, with the same bytes as one that was not; a finished run returns
    at once. `network` is trained in place and ends with the raw weights of the last step.

    Raises NonFiniteLoss naming the term and the step, and CheckpointMismatchError when `work`
    holds a run with other settings or another network.
    """
    accelerator = open_accelerator(settings.device, settings.precision)
    folder = work / "checkpoints"
    with deterministic(), seeded(settings.seed):
        network.to(accelerator.device).train()
        ema = Ema(network, settings.ema)
        optimizer = accelerator.prepare(make_optimizer(network, settings))
        run = Run(network, ema, optimizer, accelerator.scaler, settings)
        if saved := checkpoints.newest(folder):
            run.restore(*saved)
            advance(run.step)

        micro = range(run.step * settings.accumulate, settings.steps * settings.accumulate)
        source = batches if accelerator.device.type != "cuda" else _pinned(batches)
        writer = open_curves(work / "tensorboard", first_step=run.step + 1)
        with writer, prefetched(source, micro) as upcoming:
            for step in range(run.step, settings.steps):
                rate = learning_rate(step, settings)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                done = step + 1
                sums: dict[str, Tensor] = {}
                for _ in range(settings.accumulate):
                    batch = _moved(next(upcoming), accelerator.device)
                    with accelerator.autocast():
                        output = task.forward(network, batch)
                    terms = task.losses(output.float(), batch)
                    if not terms:
                        raise ValueError("no loss term has a weight: set one above 0")
                    loss = torch.stack(list(terms.values())).sum() / settings.accumulate
                    accelerator.backward(loss)
                    for name, term in terms.items():
                        part = term.detach() / settings.accumulate
                        sums[name] = sums[name] + part if name in sums else part
                norm = accelerator.clip_grad_norm_(
                    network.parameters(), settings.clip or float("inf")
                )
                numbers = _numbers(sums, norm, rate)
                _require_finite(numbers, done, accelerator.scaler)
                optimizer.step()
                optimizer.zero_grad()
                ema.update(network, step)
                run.step = done
                advance(1)

                last = done == settings.steps
                if done % settings.log_every == 0 or last:
                    _publish(writer, report, done, numbers)
                if done % settings.validate_every == 0 or last:
                    psnr_y = _validated(validate, ema, settings.seed, done)
                    if run.remember(psnr_y, numbers["loss/total"], rate):
                        checkpoints.save_best(folder, done, psnr_y, ema.state())
                        checkpoints.prune_best(folder, [at for _, at in run.best])
                    _publish(writer, report, done, {"psnr_y": psnr_y})
                if done % settings.checkpoint_every == 0 or done in settings.milestones or last:
                    writer.flush()  # the points up to a checkpoint are not drawn again
                    checkpoints.save(folder, done, run.content())
                    checkpoints.prune(folder, settings.keep_last, settings.milestones)

    state, shipped = run.shipped()
    return TrainResult(state, int(shipped["step"]), shipped["psnr_y"], run.history, settings.steps)


def make_optimizer(network: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW over what is trainable; biases, norms and other 1-D parameters do not decay."""
    trainable = [p for p in network.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError("the network has no trainable parameter")
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas)


def _pinned(batches: Callable[[int], Batch]) -> Callable[[int], Batch]:
    return lambda i: {name: tensor.pin_memory() for name, tensor in batches(i).items()}


def _moved(batch: Batch, device: torch.device) -> Batch:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def _numbers(sums: Mapping[str, Tensor], norm: Tensor, rate: float) -> dict[str, float]:
    """All numbers of a step, with one transfer from the device."""
    *terms, gradient_norm = torch.stack([*(t.float() for t in sums.values()), norm]).tolist()
    numbers = {f"loss/{name}": value for name, value in zip(sums, terms, strict=True)}
    return {
        **numbers,
        "loss/total": sum(terms),
        "learning_rate": rate,
        "gradient_norm": gradient_norm,
    }


def _require_finite(
    numbers: Mapping[str, float], step: int, scaler: torch.amp.GradScaler | None
) -> None:
    for name, value in numbers.items():
        if math.isfinite(value):
            continue
        # fp16 finds its scale by overflowing: such a step is skipped and the scale halved.
        if name == "gradient_norm" and scaler and scaler.get_scale() >= SMALLEST_SCALE:
            continue
        raise NonFiniteLoss(name.removeprefix("loss/"), step, value)


def _publish(
    writer: SummaryWriter,
    report: Callable[[int, Mapping[str, float]], None],
    step: int,
    numbers: Mapping[str, float],
) -> None:
    for name, value in numbers.items():
        writer.add_scalar(name, value, step)
    report(step, numbers)


def _validated(validate: Callable[[nn.Module], float], ema: Ema, seed: int, step: int) -> float:
    # Validation draws from a random state of its own, so it cannot touch the training.
    with seeded(seed), torch.no_grad():
        psnr_y = float(validate(ema.network))
    ema.network.eval()
    if math.isnan(psnr_y):
        raise NonFiniteLoss("validation PSNR-Y", step, psnr_y)
    return psnr_y
