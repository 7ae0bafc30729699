"""What one training step of our fusion costs beside the original's network, and what it buys.

Both take the same inputs in one process on the CPU; running the experts is not part of a step, see
`cached_vs_live.py` for that.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

import torch
import torch.nn.functional as F
from original_fusion import FEATURES, SCALE, OriginalFusion
from torch import Tensor, nn

from sr_assets.assets.validation import validation_psnr
from sr_assets.graph import Graph, build_graph
from sr_assets.home import open_instance
from sr_assets.lineage.records import current_output
from sr_assets.lineage.stage import Ref, StageError
from sr_assets.recipe.loading import RecipeError, load_recipe
from sr_assets.storage import Output
from sr_assets.stores.expert_cache import CacheReader
from sr_assets.stores.pairs import PairReader
from sr_assets.stores.patches import PatchReader
from sr_assets.stores.samples import DatasetStores, TrainingSamples
from sr_models.fusion.experts import expert_mean
from sr_models.fusion.network import FusionNetwork
from sr_models.training.ema import Ema
from sr_models.training.schedule import learning_rate
from sr_models.training.settings import TrainSettings

SEED = 42
ORIGINAL, OURS = "original", "ours"
#: LR side of which the original can mirror seven pixels.
SMALLEST = 8
FORWARD, BACKWARD, UPDATE = "forward and L1", "backward", "AdamW"

HELP = """
Compares our fusion network with the original's of 1.46 M parameters, on the CPU.

Without --psnr it times one training step: forward, L1, backward, AdamW. Inputs are random: LR, the
pictures of four experts and their features with 180, 180, 180 and 256 channels. After a step of
each that does not count, a repeat is one step of each, and which goes first changes every time. The
ratio is the original's CPU seconds, of all threads, over ours, the median over repeats; other
programs on the machine change CPU seconds less than wall-clock time, which stands beside them. A
step of the original takes 5 to 6 CPU seconds at LR 64x64.

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


@dataclass(frozen=True)
class Inputs:
    """What a step of either network takes."""

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


class Contestant:
    """A network with its optimiser and averaged weights."""

    def __init__(self, network: nn.Module, settings: TrainSettings) -> None:
        self.network = network.train()
        self.settings = settings
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate)
        self.parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)

    def step(self, inputs: Inputs) -> Stopwatch:
        """One optimiser step, timed."""
        watch = Stopwatch()
        with watch.part(FORWARD):
            loss = F.l1_loss(self.network(inputs.lr, inputs.sr, inputs.features), inputs.hr)
        with watch.part(BACKWARD):
            loss.backward()
        with watch.part(UPDATE):
            if self.settings.clip:
                nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return watch

    def set_rate(self, step: int) -> None:
        """The learning rate of optimiser step number `step`."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.settings)


def main() -> int:
    """Measures what the command line asks for; 1 where something needed is missing."""
    options = parse_options()
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        if options.crop and options.crop < SMALLEST:
            raise ValueError(f"--crop {options.crop}: the original takes {SMALLEST} px or more")
        headline, table = compare_psnr(options) if options.psnr else compare_cost(options)
    except (RecipeError, StageError, ValueError) as error:
        print(f"fusion_step: {error}", file=sys.stderr)
        return 1
    if not options.json:
        print(f"{table}\n")
    print(json.dumps(headline))
    return 0


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=HELP, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=positive, default=1, help="crops in a batch (1)")
    parser.add_argument(
        "--crop", type=positive, help="side of an LR crop (64, or what a patch of --psnr has)"
    )
    parser.add_argument("--repeats", type=positive, default=5, help="pairs of steps (5)")
    parser.add_argument("--threads", type=positive, help="of torch; its own default if left out")
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


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def contestants(
    channels: Mapping[str, int], cached: Mapping[str, int], settings: TrainSettings
) -> dict[str, Contestant]:
    """Both networks, fresh: the original over all `channels`, ours over what is `cached`."""
    builders: dict[str, Callable[[], nn.Module]] = {
        ORIGINAL: lambda: OriginalFusion(channels),
        OURS: lambda: FusionNetwork(tuple(channels), SCALE, cached),
    }
    found = {}
    for name, build in builders.items():
        torch.manual_seed(SEED)
        found[name] = Contestant(build(), settings)
    return found


def compare_cost(options: argparse.Namespace) -> tuple[dict[str, object], str]:
    """Headline and table of the timed steps."""
    crop = options.crop or 64
    rivals = contestants(FEATURES, FEATURES, TrainSettings(clip=0.0))
    inputs = random_inputs(options.batch, crop)
    times: dict[str, list[Stopwatch]] = {name: [] for name in rivals}
    for rival in rivals.values():
        rival.step(inputs)  # lazy initialisation falls into this one
    for repeat in range(options.repeats):
        # Each goes first every other time: what drifts while this runs hits both alike.
        for name in (ORIGINAL, OURS) if repeat % 2 == 0 else (OURS, ORIGINAL):
            note(f"repeat {repeat + 1} of {options.repeats}, {name}")
            times[name].append(rivals[name].step(inputs))
    title = (
        f"one training step, batch {options.batch}, LR {crop}x{crop}, x{SCALE}, on the CPU\n"
        f"threads: {torch.get_num_threads()}, repeats: {options.repeats} (medians are shown)\n"
        f"parameters: {ORIGINAL} {rivals[ORIGINAL].parameters:,}, "
        f"{OURS} {rivals[OURS].parameters:,}\n"
    )
    return cost_report(times, title)


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


def cost_report(times: Mapping[str, list[Stopwatch]], title: str) -> tuple[dict[str, object], str]:
    """Headline and table; the ratio is the median of those of the repeats."""
    lines = [
        title,
        f"| {'part':<14} | original CPU s | ours CPU s | original wall s | ours wall s |",
        f"|{'-' * 16}|---------------:|-----------:|----------------:|------------:|",
    ]
    widths = (14, 10, 15, 11)
    for part in (FORWARD, BACKWARD, UPDATE, None):
        seconds = [middle(times[n], c, part) for c in ("cpu", "wall") for n in (ORIGINAL, OURS)]
        cells = [f"{s:>{width}.3f}" for s, width in zip(seconds, widths, strict=True)]
        lines.append(f"| {part or 'whole step':<14} | {' | '.join(cells)} |")
    lines.append("")
    ratios = {clock: paired(times, clock) for clock in ("cpu", "wall")}
    for clock, name in (("cpu", "CPU"), ("wall", "wall-clock")):
        found = ratios[clock]
        lines.append(
            f"original / ours, {name} seconds: {median(found):.2f} "
            f"({min(found):.2f} to {max(found):.2f})"
        )
    headline: dict[str, object] = {
        "name": "fusion_step",
        "ratio": round(median(ratios["cpu"]), 2),
        "peer": "the original's fusion network of 1.46 M parameters",
        "unit": "CPU seconds of a training step, original / ours",
        "repeats": len(ratios["cpu"]),
    }
    return headline, "\n".join(lines)


def middle(watches: Sequence[Stopwatch], clock: str, part: str | None) -> float:
    """Median seconds of one part, or of the whole step."""
    spent = [getattr(watch, clock) for watch in watches]
    return median(sum(parts.values()) if part is None else parts[part] for parts in spent)


def paired(times: Mapping[str, list[Stopwatch]], clock: str) -> list[float]:
    """Original over ours, one ratio for each repeat."""
    return [
        sum(getattr(original, clock).values()) / sum(getattr(ours, clock).values())
        for original, ours in zip(times[ORIGINAL], times[OURS], strict=True)
    ]


def compare_psnr(options: argparse.Namespace) -> tuple[dict[str, object], str]:
    """Headline and table of PSNR-Y at equal steps.

    Raises:
        RecipeError: the recipe cannot be read.
        StageError: a cache has not been made.
        ValueError: the recipe has nothing to fuse or another scale, or the crop is too large.
    """
    graph = build_graph(load_recipe(options.psnr))
    samples, cached = open_samples(graph)
    experts = tuple(graph.recipe.experts)
    channels = {name: cached.get(name, 3 * SCALE * SCALE) for name in experts}
    patch = samples.datasets[0].pairs.size
    crop = options.crop or min(64, patch)
    settings = TrainSettings(
        steps=options.steps,
        learning_rate=options.learning_rate,
        warmup=options.steps // 10,
        ema=options.ema,
    )
    rivals = contestants(channels, cached, settings)
    averaged = {name: Ema(rival.network, settings.ema) for name, rival in rivals.items()}

    def upscale(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        pictures = {"mean": expert_mean(inputs_of(batch, experts, cached, OURS).sr, experts)}
        for name, ema in averaged.items():
            found = []
            # One at a time: a map of the original's is 75 MB for an LR of 96x96.
            for i in range(len(batch["lr"])):
                one = {key: maps[i : i + 1] for key, maps in batch.items()}
                inputs = inputs_of(one, experts, cached, name)
                found.append(ema.network(inputs.lr, inputs.sr, inputs.features))
            pictures[name] = torch.cat(found)
        return pictures

    found = {0: validated(samples, upscale, 0)}
    seconds = dict.fromkeys(rivals, 0.0)
    quarters = {max(1, options.steps * quarter // 4) for quarter in (1, 2, 3, 4)}
    for step in range(options.steps):
        arrays = samples.batch(step, options.batch, crop, SEED)
        batch = {key: torch.from_numpy(array) for key, array in arrays.items()}
        for name, rival in rivals.items():
            rival.set_rate(step)
            watch = rival.step(inputs_of(batch, experts, cached, name))
            averaged[name].update(rival.network, step)
            seconds[name] += sum(watch.cpu.values()) / options.steps
        if step + 1 in quarters:
            found[step + 1] = validated(samples, upscale, step + 1)
    title = (
        f"PSNR-Y (dB) on the held-out images of {graph.recipe.name}, batch {options.batch}, "
        f"LR {crop}x{crop}, {len(samples)} samples\n"
        f"parameters: {', '.join(f'{n} {r.parameters:,}' for n, r in rivals.items())}; "
        f"features in the cache of: {', '.join(cached) or 'no expert'}\n"
    )
    return psnr_report(found, seconds, title)


def validated(
    samples: TrainingSamples,
    upscale: Callable[[dict[str, Tensor]], Mapping[str, Tensor]],
    step: int,
) -> dict[str, float]:
    """PSNR-Y (dB) of every row on the held-out images."""
    found = validation_psnr(samples, upscale, "cpu")
    note(f"after {step} steps: " + ", ".join(f"{row} {psnr:.3f}" for row, psnr in found.items()))
    return found


def open_samples(graph: Graph) -> tuple[TrainingSamples, dict[str, int]]:
    """The training samples of a recipe and the channels of the features that its caches hold."""
    recipe = graph.recipe
    if recipe.scale != SCALE or not recipe.experts:
        raise ValueError(
            f"recipe {recipe.name} has scale {recipe.scale} and {len(recipe.experts)} experts: "
            f"the original is for scale {SCALE} and fuses what experts say"
        )
    with open_instance() as instance:

        def made(asset: str, dataset: str) -> Output:
            ref = Ref(asset, dataset)
            output = current_output(instance, graph, ref)
            if output is None:
                raise StageError(f"{ref} has not been made: run `srd build 'expert/*/cache'`")
            return output

        stores = [
            DatasetStores(
                dataset,
                PatchReader(made("silver/patches", dataset)),
                PairReader(made("gold/pairs", dataset)),
                {n: CacheReader(made(f"expert/{n}/cache", dataset)) for n in recipe.experts},
            )
            for dataset in recipe.training_datasets()
        ]
    shapes = {name: cache.feature_shape for name, cache in stores[0].caches.items()}
    cached = {name: shape[0] for name, shape in shapes.items() if shape}
    return TrainingSamples(stores, SCALE, tuple(cached)), cached


def inputs_of(
    batch: Mapping[str, Tensor], experts: Sequence[str], cached: Mapping[str, int], name: str
) -> Inputs:
    """A batch as one of the networks takes it; see the help about experts without features."""
    sr = {expert: batch[f"sr/{expert}"] for expert in experts}
    features = {expert: batch[f"features/{expert}"] for expert in cached}
    if name == ORIGINAL:
        spread = {e: F.pixel_unshuffle(sr[e], SCALE) for e in experts if e not in cached}
        features = {**features, **spread}
    return Inputs(batch["lr"], batch.get("hr", batch["lr"]), sr, features)


def psnr_report(
    found: Mapping[int, Mapping[str, float]], seconds: Mapping[str, float], title: str
) -> tuple[dict[str, object], str]:
    """Headline and table of the PSNR-Y at each step count."""
    rows = ("mean", ORIGINAL, OURS)
    lines = [
        title,
        f"| {'steps':>6} | {' | '.join(f'{row:>8}' for row in rows)} | ours - original |",
        f"|{'-' * 7}:|{'|'.join('-' * 9 + ':' for _ in rows)}|----------------:|",
    ]
    for step, psnr in found.items():
        cells = " | ".join(f"{psnr[row]:8.3f}" for row in rows)
        lines.append(f"| {step:>6} | {cells} | {psnr[OURS] - psnr[ORIGINAL]:+15.3f} |")
    spent = ", ".join(f"{name} {value:.3f}" for name, value in seconds.items())
    lines += ["", f"CPU seconds of a step: {spent}"]
    last = found[max(found)]
    headline: dict[str, object] = {
        "name": "fusion_psnr",
        "ratio": round(10 ** ((last[OURS] - last[ORIGINAL]) / 10), 3),
        "peer": "the original's fusion network of 1.46 M parameters",
        "unit": f"squared error on luma after {max(found)} steps, original / ours",
        "repeats": 1,
    }
    return headline, "\n".join(lines)


def note(text: str) -> None:
    """Says what is going on, beside the results."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
