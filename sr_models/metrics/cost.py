"""What it costs to run a network: multiply-adds and seconds, each for one megapixel of output.

Quality is `images.py`; which networks are measured, and where the numbers go, is not known here.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import flex_attention
from torch.utils.flop_counter import FlopCounterMode

#: LR side that multiply-adds are counted at (px): whole windows of 8, 12, 16, 24, 32 and 48.
SIDE = 96
#: A megapixel (px).
MEGAPIXEL = 1_000_000

_WARM_UP = 0.1  # seconds in which caches fill and clocks rise
_BUDGET = 1.0  # seconds of repeats
_REPEATS = 15  # at most

#: SR [1, 3, side·scale, side·scale] of LR float32 [1, 3, side, side] in [0, 1].
Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Speed:
    """How fast a network ran, where and on what."""

    seconds: float
    """For one megapixel of output."""
    device: str
    """Name of the processor."""
    threads: int | None
    """CPU threads; None on an accelerator."""
    side: int
    """Of the LR picture (px)."""
    repeats: int
    """Runs that `seconds` is the median of."""


def multiply_adds(
    forward: Forward, scale: int, *, device: torch.device | str = "cpu", side: int = SIDE
) -> int:
    """Multiply-adds for one megapixel (10⁶ px) of output, counted while one LR picture is run.

    Counted are convolutions, matrix products and attention (both of its products), a multiply and
    its add as one. Biases, activations, norms, resampling and Fourier transforms are not. The
    number depends on shapes alone and is the same on every device that the network runs on.

    Args:
        forward: a network, or any function that runs one; nothing is learnt from it.
        scale: upscaling factor.
        device: where `forward` wants its input.
        side: of LR (px). What a network does once a picture, such as global attention to a pooled
            map, is spread over the (side·scale)² px of its output.

    Raises:
        ValueError: `forward` does not enlarge `scale` times.

    >>> multiply_adds(nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2)), 2)
    81000000
    """
    with torch.no_grad(), _flex_attention_uncompiled(), FlopCounterMode(display=False) as counter:
        _run(forward, _picture(side, device), scale)
    return round(counter.get_total_flops() / 2 * MEGAPIXEL / (side * scale) ** 2)


def seconds_per_megapixel(
    forward: Forward, scale: int, *, device: torch.device | str = "cpu", side: int = SIDE
) -> Speed:
    """Seconds for one megapixel (10⁶ px) of output, one picture at a time, on this machine.

    Runs to warm up (and to compile, where a network does), then takes the median of up to 15
    repeats, begun within a second: a network that needs longer is timed once. Copying pictures to
    the device is not timed.

    Args:
        forward, scale, device: as for `multiply_adds`.
        side: of LR (px).

    Raises:
        ValueError: `forward` does not enlarge `scale` times.
    """
    device = torch.device(device)
    lr = _picture(side, device)
    with torch.no_grad():
        warm = _timed(forward, lr, scale)
        while warm < _WARM_UP:
            warm += _timed(forward, lr, scale)
        taken = [_timed(forward, lr, scale)]
        while sum(taken) < _BUDGET and len(taken) < _REPEATS:
            taken.append(_timed(forward, lr, scale))
    return Speed(
        seconds=statistics.median(taken) * MEGAPIXEL / (side * scale) ** 2,
        device=device_name(device),
        threads=torch.get_num_threads() if device.type == "cpu" else None,
        side=side,
        repeats=len(taken),
    )


def device_name(device: torch.device) -> str:
    """What the maker calls the processor behind `device`, as far as the system tells."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return f"{platform.machine()} {device.type}"
    listed = Path("/proc/cpuinfo")  # Linux; `platform` knows the family there at most
    lines = listed.read_text().splitlines() if listed.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), platform.processor() or platform.machine() or "CPU")


@contextmanager
def _flex_attention_uncompiled() -> Iterator[None]:
    """Lets flex attention be counted: it compiles itself, which no counter can look into."""
    before = flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG
    flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = True
    try:
        yield
    finally:
        flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = before


def _picture(side: int, device: torch.device | str) -> Tensor:
    """Noise: zeros would be quicker than pictures on some processors."""
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)


def _run(forward: Forward, lr: Tensor, scale: int) -> None:
    shape, wanted = tuple(forward(lr).shape), (1, 3, lr.shape[-2] * scale, lr.shape[-1] * scale)
    if shape != wanted:
        raise ValueError(
            f"LR {tuple(lr.shape)} became {shape}, not {wanted}: `forward` enlarges {scale} times"
        )


def _timed(forward: Forward, lr: Tensor, scale: int) -> float:
    _wait_for(lr.device)
    started = time.perf_counter()
    _run(forward, lr, scale)
    _wait_for(lr.device)
    return time.perf_counter() - started


def _wait_for(device: torch.device) -> None:
    """Until the device has done what it was told; CPU calls return when they have."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
