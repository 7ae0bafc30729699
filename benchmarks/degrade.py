"""What a `realworld` sample costs beside Real-ESRGAN's way of making one, in torch with DiffJPEG.

The peer is `torch_degrade.py`; whether a degradation is worth training on is not measured here.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import count, repeat
from statistics import fmean, median

import numpy as np
import skimage.data
import torch
from steps import Stopwatch, note, open_parser, paired, positive, turns
from torch_degrade import SCALE, STAGES, degrade_batch

from sr_models.degradations.drawing import Drawn, draw, sample_key
from sr_models.degradations.presets import PRESETS
from sr_models.degradations.second_order import degrade, pictures

SEED = 42
TORCH, OURS = "torch", "ours"
BATCH, SIDE = 16, 256
PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")
PEER = "the torch-and-DiffJPEG way of Real-ESRGAN"
_PROCESS = PRESETS["realworld"]
_SECOND_PASS = 4  # steps of `realworld` come before it
_DRAWING = "drawing"
_STEPS = {"blur": "blur", "resize": "resize", "gaussian": "Gaussian noise"}
_STEPS |= {"poisson": "Poisson noise", "jpeg": "JPEG"}
_WHOLE = "degrade"

HELP = """
Compares the CPU seconds of a `realworld` sample, 256x256 HR to 64x64 LR, made both ways in turn:

  torch  Real-ESRGAN's (torch_degrade.py): batches of 16 through grouped convolutions with 21x21
         kernels, F.interpolate, torch's random numbers and DiffJPEG, from float32 to float32
  ours   the product's: a sample at a time, from uint8 to uint8

Both have the probabilities and ranges of `realworld`. As in the original, a batch shares what
Real-ESRGAN draws once for it: blur or none, resize mode and factor, kind of noise, order of sinc
and JPEG. The sharpening of HR and the queue are left out, and what the original does not have:
Lanczos, and chroma other than 4:2:0. Where its code is not the original's, it costs less: kernels
have no denormal numbers, which would make some convolutions four times slower on a CPU.

Photos are crops from scikit-image. A repeat is 16 times --batches samples each way, of the same
photos, and which way goes first changes every time; one repeat before them does not count. What
batches share makes the ratio of a repeat uncertain where there are few; all takes two minutes. The
second table has a sample that goes through the stage, and the average sample; that of ours is from
a run of its own, and each of its stages includes the conversion to uint8 after it.

--gold compares wall-clock seconds instead: --patches patches, degraded by one thread and by as many
as there are cores, in a ThreadPoolExecutor as `gold/pairs` does it, without reading and writing.

Here torch has one thread where --threads is left out: more only make it spend more CPU seconds.

The last line of standard output is JSON. Its ratio is torch over ours, the median over repeats, of
CPU seconds of all threads; with --gold it is one thread over all.
"""
EXAMPLE = """
examples:
  python benchmarks/degrade.py
  python benchmarks/degrade.py --gold --patches 1000
"""


def main() -> int:
    """Measures what the command line asks for."""
    options = parse_options()
    torch.set_num_threads(options.threads or 1)
    last, lines = compare_gold(options) if options.gold else compare_ways(options)
    print("\n".join(lines), end="\n\n")
    print(json.dumps(last))
    return 0


def parse_options() -> Namespace:
    """The command line."""
    parser = open_parser(HELP, EXAMPLE)
    parser.add_argument("--batches", type=positive, default=32, help="in a repeat (32)")
    parser.add_argument("--repeats", type=positive, help="pairs (5, with --gold 3)")
    parser.add_argument("--gold", action="store_true", help="how many patches scale with cores")
    parser.add_argument("--patches", type=positive, default=1000, help="with --gold (1000)")
    parser.add_argument("--cores", type=positive, help="with --gold (all that it may use)")
    return parser.parse_args()


def compare_ways(options: Namespace) -> tuple[dict[str, object], list[str]]:
    """Headline and tables of the two ways."""
    repeats, samples = options.repeats or 5, options.batches * BATCH
    batches: list[Stopwatch] = []
    ways: dict[str, Callable[[range], Stopwatch]] = {
        TORCH: partial(time_torch, stages=batches),
        OURS: time_ours,
    }
    note("one repeat that does not count")
    for way in ways.values():
        way(range(samples))
    batches.clear()
    times: dict[str, list[Stopwatch]] = {name: [] for name in ways}
    for turn, name in turns(tuple(ways), repeats):
        first = (turn + 1) * samples
        times[name].append(ways[name](range(first, first + samples)))
    note("stages of ours")
    lines = [
        f"realworld, {SIDE}x{SIDE} HR to {SIDE // SCALE}x{SIDE // SCALE} LR, on the CPU",
        f"threads: {torch.get_num_threads()}, repeats: {repeats} of {samples} samples each way",
        "",
        *cost_table(times, samples),
        "",
        *stage_table(batches, time_stages(range(samples))),
    ]
    last = {
        "name": "degrade",
        "ratio": round(median(paired(times, "cpu")), 2),
        "peer": PEER,
        "unit": f"CPU seconds of a realworld sample, {SIDE}x{SIDE} HR, {TORCH} / {OURS}",
        "repeats": repeats,
    }
    return last, lines


def photo(number: int) -> np.ndarray:
    """A crop, uint8 [256, 256, 3]; the same number is the same crop."""
    rng = np.random.default_rng((SEED, number))
    whole = _whole(PHOTOS[number % len(PHOTOS)])
    top, left = (rng.integers(extent - SIDE + 1) for extent in whole.shape[:2])
    return np.ascontiguousarray(whole[top : top + SIDE, left : left + SIDE])


@cache
def _whole(name: str) -> np.ndarray:
    return getattr(skimage.data, name)()


def key(number: int) -> bytes:
    """What decides how our way degrades a photo."""
    return sample_key(SEED, hashlib.sha256(b"%d" % number).digest(), 0)


def time_torch(photos: range, stages: list[Stopwatch]) -> Stopwatch:
    """Degrades in batches; `stages` gets the watch of each."""
    rng = np.random.default_rng((SEED, photos.start))
    pixels = torch.from_numpy(np.stack([photo(number) for number in photos]))
    batches = (pixels.permute(0, 3, 1, 2).float() / 255).contiguous().split(BATCH)
    whole = Stopwatch()
    with whole.part(_WHOLE):
        for batch in batches:
            stages.append(Stopwatch())
            degrade_batch(batch, rng, stages[-1])
    return whole


def time_ours(photos: range) -> Stopwatch:
    """Degrades a photo at a time."""
    pixels = [photo(number) for number in photos]
    whole = Stopwatch()
    with whole.part(_WHOLE):
        for number, hr in zip(photos, pixels, strict=True):
            degrade(hr, _PROCESS, SCALE, key(number))
    return whole


def time_stages(photos: range) -> list[Stopwatch]:
    """One watch a photo, with those of `STAGES` that it goes through, and drawing."""
    watches = []
    for number in photos:
        hr, watch = photo(number), Stopwatch()
        with watch.part(_DRAWING):
            steps = draw(_PROCESS, SIDE, SIDE, SCALE, key(number))
        done: Iterator[object] = pictures(hr, steps, key(number))
        for step in steps:
            with watch.part(stage(step)):
                next(done)
        watches.append(watch)
    return watches


def stage(step: Drawn) -> str:
    """What the table calls a step."""
    if step.op == "sinc":
        return step.op
    turn = "first" if step.position < _SECOND_PASS else "second"
    return f"{turn} {_STEPS[step.kind if step.op == 'noise' else step.op]}"


def cost_table(times: Mapping[str, Sequence[Stopwatch]], samples: int) -> list[str]:
    """Lines of a Markdown table, a way a line: mean ms of a sample; then the ratios."""
    lines = ["| way   | CPU ms | wall ms |", "|-------|-------:|--------:|"]
    for name, watches in times.items():
        cpu = 1e3 * fmean(watch.cpu[_WHOLE] for watch in watches) / samples
        wall = 1e3 * fmean(watch.wall[_WHOLE] for watch in watches) / samples
        lines.append(f"| {name:<5} | {cpu:>6.2f} | {wall:>7.2f} |")
    found = paired(times, "cpu")
    extent = f"({min(found):.2f} to {max(found):.2f})"
    return [*lines, "", f"{' / '.join(times)}, CPU seconds: {median(found):.2f} {extent}"]


def stage_table(batches: Sequence[Stopwatch], photos: Sequence[Stopwatch]) -> list[str]:
    """Lines of a Markdown table, a stage a line: CPU ms of a sample there, and on average."""
    columns = [f"{name}, {what}" for name in (TORCH, OURS) for what in ("there", "average")]
    names = (_DRAWING, *STAGES)
    width = max(map(len, names))
    lines = [
        f"| {'CPU ms a sample':<{width}} | {' | '.join(columns)} |",
        f"|{'-' * (width + 2)}|{'|'.join('-' * (len(c) + 1) + ':' for c in columns)}|",
    ]
    for name in names:
        cells = [*_spent(batches, name, BATCH), *_spent(photos, name, 1)]
        shown = [f"{cell:>{len(c)}}" for cell, c in zip(cells, columns, strict=True)]
        lines.append(f"| {name:<{width}} | {' | '.join(shown)} |")
    return lines


def _spent(watches: Sequence[Stopwatch], name: str, samples: int) -> tuple[str, str]:
    found = [1e3 * watch.cpu[name] / samples for watch in watches if name in watch.cpu]
    if not found:
        return "-", "-"
    return f"{fmean(found):.3f}", f"{sum(found) / len(watches):.3f}"


def compare_gold(options: Namespace) -> tuple[dict[str, object], list[str]]:
    """Headline and table of one thread and many."""
    repeats = options.repeats or 3
    cores = options.cores or usable_cores()
    threads = {"one thread": 1, f"{cores} threads": cores}
    pixels = [photo(number) for number in range(options.patches)]
    note("a tenth that does not count")
    wall_and_cpu(pixels[: -(-options.patches // 10)], cores)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in threads}
    for _, name in turns(tuple(threads), repeats):
        found[name].append(wall_and_cpu(pixels, threads[name]))
    ratios = [one[0] / many[0] for one, many in zip(*found.values(), strict=True)]
    ratio = median(ratios)
    lines = [f"{options.patches} patches, repeats: {repeats} (medians are shown)", ""]
    lines += ["| threads    | wall s | CPU s |", "|------------|-------:|------:|"]
    for name, times in found.items():
        wall, cpu = (median(clock) for clock in zip(*times, strict=True))
        lines.append(f"| {name:<10} | {wall:>6.2f} | {cpu:>5.2f} |")
    lines += [
        "",
        f"one thread / {cores} threads, wall-clock seconds: {ratio:.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}), efficiency {ratio / cores:.0%}",
    ]
    last = {
        "name": "degrade_gold",
        "ratio": round(ratio, 2),
        "peer": "one thread",
        "unit": f"wall-clock seconds of {options.patches} patches, one thread / {cores} threads",
        "repeats": repeats,
    }
    return last, lines


def usable_cores() -> int:
    """Cores that this process may use, where the system says so; else all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def wall_and_cpu(pixels: Sequence[np.ndarray], threads: int) -> tuple[float, float]:
    """Wall-clock and CPU seconds of degrading all patches on so many threads."""
    watch = Stopwatch()
    with watch.part(_WHOLE), ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(degrade, pixels, repeat(_PROCESS), repeat(SCALE), map(key, count())):
            pass
    return watch.wall[_WHOLE], watch.cpu[_WHOLE]


if __name__ == "__main__":
    sys.exit(main())
