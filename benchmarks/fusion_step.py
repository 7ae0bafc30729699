"""What one training step of our fusion costs beside the original's network, and what it buys.

Both take the same inputs in one process on the CPU; running the experts is not part of a step, see
`cached_vs_live.py` for that.
"""

from __future__ import annotations

import argparse
import json
import sys

import torch
from contestants import ORIGINAL, OURS, PEER, SEED, contestants, parameters
from fusion_psnr import compare_psnr
from original_fusion import FEATURES, SCALE
from steps import (
    BACKWARD,
    FORWARD,
    UPDATE,
    Inputs,
    Stopwatch,
    cost_table,
    headline,
    open_parser,
    positive,
    turns,
)
from torch import Tensor

from sr_assets.lineage.stage import StageError
from sr_assets.recipe.loading import RecipeError
from sr_models.training.settings import TrainSettings

#: LR side of which the original can mirror seven pixels.
SMALLEST = 8

HELP = """
Compares our fusion network with the original's of 1.46 M parameters, on the CPU.

Without --psnr it times one training step: forward, L1, backward and the update, which is clipping,
AdamW and the moving average. Inputs are random: LR, the pictures of four experts and their features
with 180, 180, 180 and 256 channels. After a step of each that does not count, a repeat is one step
of each, and which goes first changes every time. The ratio is the original's CPU seconds, of all
threads, over ours, the median over repeats; other programs on the machine change CPU seconds less
than wall-clock time, which stands beside them. A step of the original takes 5 to 6 CPU seconds at
LR 64x64.

With --psnr it trains both, for as many steps on the same crops, flipped and turned alike, from the
expert caches of a recipe: L1, AdamW, gradients clipped to norm 1, a linear warm-up over a tenth of
the steps, then a cosine, averaged weights. Before the first step and after each quarter both are
measured on the held-out images of the recipe, patch by patch as in training. The original cannot do
without features: for an expert that has none in its cache it gets the expert's picture, one channel
for each of the 48 values that belong to an LR pixel. Caches are looked up as `srd path` does, in
DAGSTER_HOME.

The last line of standard output is JSON. Its ratio is CPU seconds, original over ours; with --psnr
it is the squared error on luma, original over ours, after the last step. More is better for ours.
"""
EXAMPLE = """
examples:
  python benchmarks/fusion_step.py --threads 1
  python benchmarks/fusion_step.py --psnr real-experts.yaml --steps 2000 --crop 32 --batch 2
"""


def main() -> int:
    """Measures what the command line asks for; 1 where something needed is missing."""
    options = parse_options()
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        if options.crop and options.crop < SMALLEST:
            raise ValueError(f"--crop {options.crop}: the original takes {SMALLEST} px or more")
        last, table = compare_psnr(options) if options.psnr else compare_cost(options)
    except (RecipeError, StageError, ValueError) as error:
        print(f"fusion_step: {error}", file=sys.stderr)
        return 1
    if not options.json:
        print(f"{table}\n")
    print(json.dumps(last))
    return 0


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = open_parser(HELP, EXAMPLE)
    parser.add_argument("--batch", type=positive, default=1, help="crops in a batch (1)")
    parser.add_argument(
        "--crop", type=positive, help="side of an LR crop (64, or what a patch of --psnr has)"
    )
    parser.add_argument("--repeats", type=positive, default=5, help="pairs of steps (5)")
    parser.add_argument("--json", action="store_true", help="print the line of JSON alone")
    parser.add_argument(
        "--psnr",
        nargs="?",
        const="demo",
        metavar="RECIPE",
        help="train both from the caches of this recipe, a file or a shipped name (demo)",
    )
    parser.add_argument("--steps", type=positive, default=400, help="with --psnr: steps (400)")
    parser.add_argument(
        "--learning-rate", type=float, default=2e-4, help="with --psnr: the largest (2e-4)"
    )
    parser.add_argument("--ema", type=float, default=0.99, help="with --psnr: decay (0.99)")
    return parser.parse_args()


def compare_cost(options: argparse.Namespace) -> tuple[dict[str, object], str]:
    """Headline and table of the timed steps."""
    crop = options.crop or 64
    rivals = contestants(FEATURES, FEATURES, TrainSettings())
    inputs = random_inputs(options.batch, crop)
    times: dict[str, list[Stopwatch]] = {name: [] for name in rivals}
    for rival in rivals.values():
        rival(inputs, Stopwatch())  # lazy initialisation falls into this one
    for _, name in turns((ORIGINAL, OURS), options.repeats):
        watch = Stopwatch()
        rivals[name](inputs, watch)
        times[name].append(watch)
    title = (
        f"one training step, batch {options.batch}, LR {crop}x{crop}, x{SCALE}, on the CPU\n"
        f"threads: {torch.get_num_threads()}, repeats: {options.repeats} (medians are shown)\n"
        f"{parameters(rivals)}\n"
    )
    table = cost_table(times, {part: part for part in (FORWARD, BACKWARD, UPDATE)})
    last = headline("fusion_step", times, PEER, f"{ORIGINAL} / {OURS}")
    return last, "\n".join([title, *table])


def random_inputs(batch: int, crop: int) -> Inputs:
    """Inputs as the four large experts would give them; a step costs the same with any values."""
    draw = torch.Generator().manual_seed(SEED)

    def values(channels: int, side: int) -> Tensor:
        return torch.rand(batch, channels, side, side, generator=draw)

    return Inputs(
        lr=values(3, crop),
        hr=values(3, SCALE * crop),
        sr={name: values(3, SCALE * crop) for name in FEATURES},
        features={name: values(channels, crop) for name, channels in FEATURES.items()},
    )


if __name__ == "__main__":
    sys.exit(main())
