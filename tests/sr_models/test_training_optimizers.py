"""Every optimiser against its equations, written here in float64 and by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from sr_models.training.optimizers import (
    DEFAULT_BETAS,
    evaluation_weights,
    is_schedule_free,
    make_optimizer,
)
from sr_models.training.settings import Optimizer, TrainSettings

NAMES = get_args(Optimizer)
SCHEDULE_FREE = [name for name in NAMES if name.endswith("_schedule_free")]
STEPS, EPS = 6, 1e-8
#: Of each step: a warm-up of three steps.
RATES = [0.01, 0.02, 0.03, 0.03, 0.03, 0.03]
START = [[0.5, -1.0], [2.0, 0.25]]


def settings(name: str, **changes: object) -> TrainSettings:
    schedule = "constant" if name in SCHEDULE_FREE else "cosine"
    return replace(TrainSettings(optimizer=name, schedule=schedule), **changes)  # type: ignore


class Weights(nn.Module):
    """One matrix, in float64 so that only equations can differ."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor(START, dtype=torch.float64))


def gradients(scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    shape = (STEPS, 2, 2)
    return list(scale * torch.randn(shape, generator=generator, dtype=torch.float64))


def walk(name: str, decay: float = 0.0, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """The weights in training and those to keep, after all steps."""
    weights = Weights()
    optimizer = make_optimizer(weights, settings(name, weight_decay=decay))
    for rate, gradient in zip(RATES, gradients(scale), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        weights.matrix.grad = gradient.clone()
        optimizer.step()
        optimizer.zero_grad()
    with evaluation_weights(optimizer):
        kept = weights.matrix.detach().clone()
    return weights.matrix.detach().clone(), kept


def adam(decay: float, decoupled: bool) -> tuple[Tensor, Tensor]:
    """Kingma & Ba 2015; the decay decoupled as of Loshchilov & Hutter 2019."""
    b1, b2 = DEFAULT_BETAS[2]
    w = torch.tensor(START, dtype=torch.float64)
    m, n = torch.zeros_like(w), torch.zeros_like(w)
    for k, (lr, g) in enumerate(zip(RATES, gradients(), strict=True), start=1):
        if decoupled:
            w = w * (1 - lr * decay)
        else:
            g = g + decay * w
        m = b1 * m + (1 - b1) * g
        n = b2 * n + (1 - b2) * g**2
        w = w - lr * (m / (1 - b1**k)) / (torch.sqrt(n / (1 - b2**k)) + EPS)
    return w, w


def adan(decay: float) -> tuple[Tensor, Tensor]:
    """Xie et al. 2022, algorithm 1; betas are factors of the old value, 1 - beta of the paper.

    With these, the paper's g + (1 - beta2)(g - g_before) is g + b2 (g - g_before); the authors'
    program corrects all three averages for their start at zero.
    """
    b1, b2, b3 = DEFAULT_BETAS[3]
    w = torch.tensor(START, dtype=torch.float64)
    m, v, n = torch.zeros_like(w), torch.zeros_like(w), torch.zeros_like(w)
    before = gradients()[0]
    for k, (lr, g) in enumerate(zip(RATES, gradients(), strict=True), start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * (g - before)
        n = b3 * n + (1 - b3) * (g + b2 * (g - before)) ** 2
        step = m / (1 - b1**k) + b2 * v / (1 - b2**k)
        w = (w - lr * step / (torch.sqrt(n / (1 - b3**k)) + EPS)) / (1 + lr * decay)
        before = g
    return w, w


def schedule_free(
    direction: Callable[[int, Tensor], Tensor], b1: float, decay: float, decoupled: bool = True
) -> tuple[Tensor, Tensor]:
    """Defazio et al. 2024, algorithm 1, with weights lr_max^2: z, x and y each written out."""
    z = torch.tensor(START, dtype=torch.float64)
    x, y, total = z.clone(), z.clone(), 0.0
    for k, (lr, g) in enumerate(zip(RATES, gradients(), strict=True), start=1):
        if decoupled:
            z = z - lr * (direction(k, g) + decay * y)
        else:
            z = z - lr * direction(k, g + decay * y)
        weight = max(RATES[:k]) ** 2
        total += weight
        x = (1 - weight / total) * x + weight / total * z
        y = (1 - b1) * z + b1 * x
    return y, x


def scaled() -> Callable[[int, Tensor], Tensor]:
    """g over the root of its averaged square: what Adam without its momentum moves by."""
    b2, n = DEFAULT_BETAS[2][1], torch.zeros(2, 2, dtype=torch.float64)

    def direction(k: int, g: Tensor) -> Tensor:
        nonlocal n
        n = b2 * n + (1 - b2) * g**2
        return g / (torch.sqrt(n / (1 - b2**k)) + EPS)

    return direction


def scaled_ahead() -> Callable[[int, Tensor], Tensor]:
    """The same of Adan: without the momentum of g, with that of its change."""
    _, b2, b3 = DEFAULT_BETAS[3]
    v = n = torch.zeros(2, 2, dtype=torch.float64)
    before: Tensor | None = None

    def direction(k: int, g: Tensor) -> Tensor:
        nonlocal v, n, before
        change = g - (g if before is None else before)
        before = g
        v = b2 * v + (1 - b2) * change
        n = b3 * n + (1 - b3) * (g + b2 * change) ** 2
        return (g + b2 * v / (1 - b2**k)) / (torch.sqrt(n / (1 - b3**k)) + EPS)

    return direction


EQUATIONS: dict[str, Callable[[float], tuple[Tensor, Tensor]]] = {
    "adamw": lambda decay: adam(decay, decoupled=True),
    "adam": lambda decay: adam(decay, decoupled=False),
    "adan": adan,
    "adamw_schedule_free": lambda decay: schedule_free(scaled(), DEFAULT_BETAS[2][0], decay),
    "adam_schedule_free": lambda decay: schedule_free(
        scaled(), DEFAULT_BETAS[2][0], decay, decoupled=False
    ),
    "adan_schedule_free": lambda decay: schedule_free(scaled_ahead(), DEFAULT_BETAS[3][0], decay),
}


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", NAMES)
def test_steps_are_those_of_the_equations(name: str, decay: float) -> None:
    for ours, expected in zip(walk(name, decay), EQUATIONS[name](decay), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_the_scale_of_the_gradients_does_not_matter(name: str) -> None:
    small, large = walk(name, scale=1e-2), walk(name, scale=1e3)
    for a, b in zip(small, large, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_step_is_as_long_as_the_warmup_says(name: str) -> None:
    """In schedule-free ones too, where a broken warm-up only entered the weights."""
    weights = Weights()
    optimizer = make_optimizer(weights, settings(name))
    for group in optimizer.param_groups:
        group["lr"] = 1e-5
    weights.matrix.grad = gradients()[0]
    before = weights.matrix.detach().clone()
    optimizer.step()
    moved = (weights.matrix.detach() - before).abs()
    assert moved.tolist() == [[pytest.approx(1e-5, rel=1e-3)] * 2] * 2


@pytest.mark.parametrize("name", NAMES)
def test_it_goes_to_the_minimum(name: str) -> None:
    weights, target = Weights(), torch.tensor([[1.0, -2.0], [0.0, 3.0]], dtype=torch.float64)
    optimizer = make_optimizer(weights, settings(name, learning_rate=0.02))
    first = float((weights.matrix.detach() - target).square().sum())
    for _ in range(400):
        optimizer.zero_grad()
        (weights.matrix - target).square().sum().backward()
        optimizer.step()
    with evaluation_weights(optimizer):
        assert float((weights.matrix.detach() - target).square().sum()) < 1e-2 * first


@pytest.mark.parametrize("name", NAMES)
def test_one_dimensional_parameters_do_not_decay(name: str) -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    optimizer = make_optimizer(network, settings(name, weight_decay=0.5, learning_rate=0.1))
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for n, p in network.named_parameters():
        assert torch.equal(p, before[n]) == (p.ndim == 1), n


@pytest.mark.parametrize("name", SCHEDULE_FREE)
def test_looking_at_the_evaluation_weights_leaves_every_bit(name: str) -> None:
    weights = Weights()
    optimizer = make_optimizer(weights, settings(name, learning_rate=0.1))
    for gradient in gradients():
        weights.matrix.grad = gradient
        optimizer.step()
    training = weights.matrix.detach().clone()
    with evaluation_weights(optimizer):
        assert not torch.equal(weights.matrix, training)
        if name != "adan_schedule_free":
            with pytest.raises(Exception, match="not in train mode"):
                optimizer.step()
        else:
            with pytest.raises(RuntimeError, match="evaluation mode"):
                optimizer.step()
    assert torch.equal(weights.matrix, training)
    assert is_schedule_free(optimizer)


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_number_of_betas_is_named(name: str) -> None:
    count = 3 if name.startswith("adan") else 2
    with pytest.raises(ValueError, match=f"optimizer {name} takes {count}"):
        make_optimizer(Weights(), settings(name, betas=(0.9,) * (5 - count)))
    given = make_optimizer(Weights(), settings(name, betas=(0.8,) * count))
    assert tuple(given.param_groups[0]["betas"]) == (0.8,) * count
    assert not math.isnan(float(walk(name)[0].sum()))
