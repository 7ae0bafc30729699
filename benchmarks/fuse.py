"""What fusing buys: one forward pass of each network that has `fuse()`, before it and after.

How good a network is does not depend on it, and how fast other runtimes are is not measured here.
"""

from __future__ import annotations

import copy
import inspect
import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from steps import Stopwatch, middle, note, open_parser, paired, positive, turns
from torch import Tensor, nn

from sr_models.registry import get_architecture, modules

SEED = 42
APART, FUSED = "apart", "fused"
_WARMING = 2  # passes before the first that counts

HELP = """
Times a forward pass of each network that can be fused, with its branches apart as in training and
after fuse(), on the CPU, in evaluation and inference mode, on random weights and a random image.

Networks are found by asking the registry: every preset with fuse() of at most --largest million
parameters. Weights that a new network has all equal, layer scales above all, are drawn as well, so
that every branch weighs in the output; "rel. diff" is the largest |fused - apart| over the mean of
|apart|.

A repeat is one pass of each form, and which goes first changes every time. Ratios are apart over
fused, the median over repeats, of CPU seconds of all threads, which other programs on the machine
change less than wall-clock time, which stands beside them. The last line of standard output is
JSON; its ratio is the median of those of the networks.
"""
EXAMPLE = """
examples:
  python benchmarks/fuse.py --threads 1
  python benchmarks/fuse.py --networks paragonsr_nano paragonsr_tiny --size 256 --repeats 21
"""


@dataclass(frozen=True)
class Row:
    """One network, measured."""

    name: str
    parameters: dict[str, int]
    cpu: dict[str, float]
    """Median seconds of each form."""
    ratio: float
    wall_ratio: float
    difference: float
    """Largest |fused - apart| over the mean of |apart|."""


def main() -> int:
    """Measures what the command line asks for; 1 where there is nothing to measure."""
    options = parse_options()
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        names = options.networks or fusable(options.scale, options.largest * 1e6)
        if not names:
            raise ValueError(f"no network of at most {options.largest} M parameters has fuse()")
        rows = [measure(name, options) for name in names]
    except ValueError as error:
        print(f"fuse: {error}", file=sys.stderr)
        return 1
    print(
        f"one forward pass at 1x3x{options.size}x{options.size}, x{options.scale}, on the CPU\n"
        f"threads: {torch.get_num_threads()}, repeats: {options.repeats} (medians are shown)\n"
    )
    print("\n".join(table(rows)), end="\n\n")
    last = {
        "name": "fuse",
        "ratio": round(median(row.ratio for row in rows), 2),
        "peer": f"the same {len(rows)} networks before fuse(), branches apart",
        "unit": f"CPU seconds of a forward pass, {APART} / {FUSED}, median of the networks",
        "repeats": options.repeats,
    }
    print(json.dumps(last))
    return 0


def parse_options() -> Namespace:
    """The command line."""
    parser = open_parser(HELP, EXAMPLE)
    parser.add_argument("--networks", nargs="+", metavar="NAME", help="these alone, of any size")
    parser.add_argument("--largest", type=float, default=2.0, help="million parameters (2)")
    parser.add_argument("--scale", type=positive, default=4, help="upscaling factor (4)")
    parser.add_argument("--size", type=positive, default=128, help="side of the LR image (128)")
    parser.add_argument("--repeats", type=positive, default=11, help="pairs of passes (11)")
    return parser.parse_args()


def fusable(scale: int, largest: float) -> list[str]:
    """Registered presets that have `fuse()` and at most so many parameters."""
    names = []
    for name in modules("architecture"):
        make = get_architecture(name)
        if inspect.isclass(make):  # without arguments it is one of its own presets
            continue
        network = make(scale=scale)
        small = sum(p.numel() for p in network.parameters()) <= largest
        if small and callable(getattr(network, "fuse", None)):
            names.append(name)
    return names


def measure(name: str, options: Namespace) -> Row:
    """Times both forms of one network in turn.

    Raises:
        ValueError: there is no such network, or nothing of it can be fused.
    """
    torch.manual_seed(SEED)
    apart = get_architecture(name)(scale=options.scale).eval()
    if not callable(getattr(apart, "fuse", None)):
        raise ValueError(f"{name} has no fuse(): choose another of --networks")
    weigh_all_branches(apart)
    forms = {APART: apart, FUSED: copy.deepcopy(apart).fuse()}
    x = torch.rand(1, 3, options.size, options.size)
    outputs: dict[str, Tensor] = {}
    times: dict[str, list[Stopwatch]] = {APART: [], FUSED: []}
    note(name)
    with torch.inference_mode():
        for form, network in forms.items():
            for _ in range(_WARMING):
                outputs[form] = network(x)
        for _, form in turns((APART, FUSED), options.repeats):
            watch = Stopwatch()
            with watch.part("forward"):
                forms[form](x)
            times[form].append(watch)
    return Row(
        name,
        {form: sum(p.numel() for p in network.parameters()) for form, network in forms.items()},
        {form: middle(times[form], "cpu") for form in forms},
        median(paired(times, "cpu")),
        median(paired(times, "wall")),
        float((outputs[FUSED] - outputs[APART]).abs().max() / outputs[APART].abs().mean()),
    )


def weigh_all_branches(network: nn.Module) -> None:
    """Draws what a new network has all equal: layer scales, norms, statistics of batch norms."""
    for parameter in network.parameters():
        if parameter.numel() > 1 and parameter.unique().numel() == 1:
            nn.init.normal_(parameter)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)


def table(rows: Sequence[Row]) -> list[str]:
    """Lines of a Markdown table, a network a line."""
    header = (
        "network",
        f"{APART} parameters",
        f"{FUSED} parameters",
        f"{APART} CPU s",
        f"{FUSED} CPU s",
        "CPU ratio",
        "wall ratio",
        "rel. diff",
    )
    cells = [
        (
            row.name,
            *(f"{row.parameters[form]:,}" for form in (APART, FUSED)),
            *(f"{row.cpu[form]:.4f}" for form in (APART, FUSED)),
            f"{row.ratio:.2f}",
            f"{row.wall_ratio:.2f}",
            f"{row.difference:.1e}",
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    rules = ["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]
    lines = [_line(header, widths), f"|{'|'.join(rules)}|"]
    return [*lines, *(_line(line, widths) for line in cells)]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    numbers = [f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)][1:]
    return f"| {' | '.join([f'{cells[0]:<{widths[0]}}', *numbers])} |"


if __name__ == "__main__":
    sys.exit(main())
