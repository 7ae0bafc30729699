"""Timed training steps of fusion networks, and the table and ratio of two that are compared.

What goes into a step and which two are compared is the business of the scripts beside this file.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor, nn

from sr_models.losses.registry import open_losses
from sr_models.training.ema import Ema
from sr_models.training.optimizers import make_optimizer
from sr_models.training.schedule import learning_rate
from sr_models.training.settings import TrainSettings

FORWARD, BACKWARD, UPDATE = "forward and L1", "backward", "update"
_LOSS = {"l1": 1.0}
_CLOCKS = {"cpu": "CPU", "wall": "wall-clock"}


@dataclass(frozen=True)
class Inputs:
    """A batch: LR and HR, and what each expert made of LR."""

    lr: Tensor
    hr: Tensor
    sr: Mapping[str, Tensor]
    features: Mapping[str, Tensor]


@dataclass
class Stopwatch:
    """CPU and wall seconds of one step, part by part."""

    cpu: dict[str, float] = field(default_factory=dict)
    wall: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Times what runs inside, all threads of this process."""
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        self.cpu[name] = time.process_time() - cpu
        self.wall[name] = time.perf_counter() - wall


class FusionStep:
    """A fusion network that is trained as the training loop does it, one timed step a call."""

    def __init__(self, network: nn.Module, settings: TrainSettings) -> None:
        self.network = network.train()
        self.averaged = Ema(network, settings.ema)
        self.parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
        self._settings = settings
        self._optimizer = make_optimizer(network, settings)
        self._losses = open_losses(_LOSS, torch.device("cpu"))
        self._done = 0

    def __call__(self, inputs: Inputs, watch: Stopwatch) -> None:
        """One optimiser step; `watch` gets its three parts."""
        with watch.part(FORWARD):
            output = self.network(inputs.lr, inputs.sr, inputs.features)
            loss = torch.stack(list(self._losses(output, inputs.hr, _LOSS).values())).sum()
        with watch.part(BACKWARD):
            loss.backward()
        with watch.part(UPDATE):
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate(self._done, self._settings)
            nn.utils.clip_grad_norm_(self.network.parameters(), self._settings.clip)
            self._optimizer.step()
            self._optimizer.zero_grad()
            self.averaged.update(self.network, self._done)
        self._done += 1


def turns(names: Sequence[str], repeats: int) -> Iterator[tuple[int, str]]:
    """(repeat, name): each name once a repeat, and which goes first changes every time.

    What drifts while it runs hits both alike.
    """
    for repeat in range(repeats):
        for name in names if repeat % 2 == 0 else names[::-1]:
            note(f"repeat {repeat + 1} of {repeats}, {name}")
            yield repeat, name


def cost_table(times: Mapping[str, Sequence[Stopwatch]], labels: Mapping[str, str]) -> list[str]:
    """Lines of a Markdown table: median seconds of each part and of a step, then the ratios.

    Args:
        times: two names, each with a step a repeat; the ratios are the first over the second.
        labels: parts in their order, and what the table calls them.
    """
    columns = [f"{name} {clock} s" for clock in ("CPU", "wall") for name in times]
    width = max(map(len, (*labels.values(), "whole step")))
    lines = [
        f"| {'part':<{width}} | {' | '.join(columns)} |",
        f"|{'-' * (width + 2)}|{'|'.join('-' * (len(c) + 1) + ':' for c in columns)}|",
    ]
    for part, label in [*labels.items(), (None, "whole step")]:
        seconds = [middle(times[name], clock, part) for clock in _CLOCKS for name in times]
        cells = [f"{_shown(s):>{len(c)}}" for s, c in zip(seconds, columns, strict=True)]
        lines.append(f"| {label:<{width}} | {' | '.join(cells)} |")
    lines.append("")
    for clock, name in _CLOCKS.items():
        found = paired(times, clock)
        lines.append(
            f"{' / '.join(times)}, {name} seconds: {median(found):.2f} "
            f"({min(found):.2f} to {max(found):.2f})"
        )
    return lines


def headline(
    name: str, times: Mapping[str, Sequence[Stopwatch]], peer: str, unit: str
) -> dict[str, object]:
    """What the last line of a script says; the ratio is the median of those of the repeats."""
    ratios = paired(times, "cpu")
    return {
        "name": name,
        "ratio": round(median(ratios), 2),
        "peer": peer,
        "unit": f"CPU seconds of a training step, {unit}",
        "repeats": len(ratios),
    }


def middle(watches: Sequence[Stopwatch], clock: str, part: str | None = None) -> float:
    """Median seconds of one part, NaN where there is no such part, or of the whole step."""
    spent = [getattr(watch, clock) for watch in watches]
    if part is None:
        return median(sum(parts.values()) for parts in spent)
    return median(parts.get(part, math.nan) for parts in spent)


def paired(times: Mapping[str, Sequence[Stopwatch]], clock: str) -> list[float]:
    """The first name's step over the second's, one ratio for each repeat."""
    return [
        sum(getattr(slow, clock).values()) / sum(getattr(fast, clock).values())
        for slow, fast in zip(*times.values(), strict=True)
    ]


def _shown(seconds: float) -> str:
    if math.isnan(seconds):
        return "-"
    return f"{seconds:.4f}" if seconds < 1 else f"{seconds:.2f}"


def open_parser(description: str, examples: str) -> argparse.ArgumentParser:
    """A command line whose help keeps its lines, with the options of every script."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--threads", type=positive, help="of torch; its own default if left out")
    return parser


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def note(text: str) -> None:
    """Says what is going on, beside the results."""
    print(text, file=sys.stderr, flush=True)
