"""What the expert cache is worth: one fusion training step from it against one with live experts.

Both read the same crops and do the same optimiser step; how good a fusion gets is not measured.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor
from upath import UPath

from sr_assets.assets.experts import SHIPPED
from sr_assets.pictures import decode_rgb
from sr_assets.recipe.loading import load_recipe
from sr_assets.recipe.models import BuiltinWeights, GateModel, PlainModel
from sr_assets.sources import find
from sr_assets.storage import Output, OutputFolder
from sr_assets.stores.expert_cache import SR_STEP, CacheReader, CacheWriter
from sr_assets.stores.pairs import PairReader, PairWriter
from sr_assets.stores.patches import TRAIN, VALIDATION, PatchPositions, PatchReader, PatchWriter
from sr_assets.stores.samples import DatasetStores, TrainingSamples
from sr_models.degradations.bicubic import downscale_uint8
from sr_models.experts.loading import Expert, load_expert
from sr_models.experts.presets import EXPERTS_X4
from sr_models.experts.running import run_expert
from sr_models.export.weights import serialise_weights
from sr_models.fusion.gate import GateFusion
from sr_models.losses.pixel import loss_terms
from sr_models.networks import build_network, describe
from sr_models.training.ema import Ema
from sr_models.training.loop import make_optimizer
from sr_models.training.settings import TrainSettings

SCALE = 4
SEED = 42
READ, STEP = "read the batch", "fusion step"
#: CPU seconds of a training step, for one 64x64 LR patch, of a fusion network of 1.4 M parameters
#: and 388 GFLOP: seven phases where the gate has a few convolutions. Measured on one core.
LARGE_FUSION_STEP = 6.0

#: A cached step takes milliseconds, and in training one follows the other: the middle one counts.
CACHED_RUNS = 5

HELP = """
Measures one training step of the fusion network (kind: gate), both ways in turn, on the CPU:

  live    read LR and HR from their stores, run all experts on LR, do the step
  cached  read LR, HR and every expert's SR from their stores, do the step

The step is forward, L1, backward, clipping, AdamW and the moving average. Reading goes through the
product's stores, with decompression, every checksum, crops and flips; files are in the page cache,
but no patch is kept in memory from one step to the next. The caches are first written from what
the experts said, read back and compared. Reading comes before the step here; training reads ahead
on another thread and keeps 512 MB of patches in memory, so the ratio is on the low side.

sizes
  demo  the four small experts that ship with the package; patches, batch and crop of `srd demo`
  full  HAT-L, DRCT-L, GRL-B and EDSR-L with random weights (a step costs the same with any),
        batch 1, LR 64x64: about 40 CPU seconds for each time all experts run, which is repeats + 1
        times, and 2 GiB of memory

A repeat is one live step and the middle one of five cached steps on the same batch. The ratio is
live over cached, the median over repeats. It counts CPU seconds of all threads, which other
programs on the machine change far less than wall-clock time, which stands beside it. Standard
output ends with one line of JSON for each size that was measured, the full size last.
"""
EXAMPLE = """
example:
  python benchmarks/cached_vs_live.py --size full --repeats 2 --threads 1
"""


@dataclass(frozen=True)
class Setting:
    """One size of the measurement; sides are of LR (px)."""

    size: str
    weights: str
    batch: int
    patch: int
    crop: int
    repeats: int


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


def main() -> int:
    """Measures what the command line asks for; 1 where something needed is missing."""
    options = parse_options()
    if options.threads:
        torch.set_num_threads(options.threads)
    recipe = load_recipe("demo")
    model = recipe.models["fusion"]
    assert isinstance(model, GateModel)
    patch = recipe.silver.patch_size // SCALE
    settings = {
        "demo": Setting("demo", "shipped", model.train.batch, patch, model.train.crop, 15),
        "full": Setting("full", "random", 1, 64, 64, 2),
    }
    headlines = []
    torch.manual_seed(SEED)
    try:
        for size in ("demo", "full") if options.size == "both" else (options.size,):
            setting = adjusted(settings[size], options)
            with tempfile.TemporaryDirectory(prefix="cached-vs-live-") as folder:
                build = demo_experts if size == "demo" else full_experts
                headlines.append(measure(setting, build(setting, Path(folder)), Path(folder)))
    except (FileNotFoundError, ValueError) as error:
        print(f"cached_vs_live: {error}", file=sys.stderr)
        return 1
    for headline in headlines:
        print(json.dumps(headline))
    return 0


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=HELP, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=("demo", "full", "both"), default="both")
    parser.add_argument("--batch", type=positive, help="crops in a batch (demo 8, full 1)")
    parser.add_argument("--crop", type=positive, help="side of an LR crop (demo 24, full 64)")
    parser.add_argument("--repeats", type=positive, help="pairs of steps (demo 15, full 2)")
    parser.add_argument("--threads", type=positive, help="of torch; its own default if left out")
    parser.add_argument(
        "--random-weights",
        action="store_true",
        help="demo: the same networks with random weights, where the shipped files are missing",
    )
    return parser.parse_args()


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def adjusted(setting: Setting, options: argparse.Namespace) -> Setting:
    """The setting with what the command line says instead."""
    crop = options.crop or setting.crop
    return replace(
        setting,
        weights="random" if options.random_weights else setting.weights,
        batch=options.batch or setting.batch,
        patch=max(setting.patch, crop),
        crop=crop,
        repeats=options.repeats or setting.repeats,
    )


def demo_experts(setting: Setting, folder: Path) -> dict[str, Expert]:
    """The four experts of the demo recipe.

    Raises:
        FileNotFoundError: weights that should ship with the package are not there.
    """
    sources = {name: e.source for name, e in load_recipe("demo").experts.items()}
    names = {n: s.name for n, s in sources.items() if isinstance(s, BuiltinWeights)}
    if setting.weights == "random":
        trained = load_recipe("demo_experts").models
        models = {n: trained[name.removesuffix(f"_x{SCALE}")] for n, name in names.items()}
        return {
            n: random_expert(folder, m.network.architecture, m.network.args)
            for n, m in models.items()
            if isinstance(m, PlainModel)
        }
    files = {n: SHIPPED / f"{name}.safetensors" for n, name in names.items()}
    if missing := [f"{SHIPPED.name}/{f.name}" for f in files.values() if not f.is_file()]:
        raise FileNotFoundError(
            f"sr_assets lacks {', '.join(missing)}: install a package that ships them, or measure "
            f"with --random-weights or --size full"
        )
    return {name: load_expert(file) for name, file in files.items()}


def full_experts(_: Setting, folder: Path) -> dict[str, Expert]:
    """HAT-L, DRCT-L, GRL-B and EDSR-L with random weights."""
    experts = {}
    for name, preset in EXPERTS_X4.items():
        note(f"building {name}, {preset.parameters / 1e6:.1f} M parameters")
        experts[name] = random_expert(folder, preset.architecture, preset.args)
    return experts


def random_expert(folder: Path, architecture: str, args: Mapping[str, object]) -> Expert:
    """Random weights, by way of a file, so that it is loaded like any other expert."""
    file = folder / "random.safetensors"
    file.write_bytes(serialise_weights(build_network(architecture, SCALE, args).state_dict(), {}))
    expert = load_expert(file)
    file.unlink()
    return expert


def measure(setting: Setting, experts: Mapping[str, Expert], folder: Path) -> dict[str, object]:
    """Runs the pairs of steps, prints the table and returns the headline."""
    patches, pairs = write_pictures(setting, folder)
    without = DatasetStores("photos", PatchReader(patches), PairReader(pairs))
    caches = {name: write_cache(name, e, without.pairs, folder) for name, e in experts.items()}
    cached = DatasetStores("photos", without.patches, without.pairs, caches)
    stores = {"live": without, "cached": cached}
    step = FusionStep(tuple(experts))
    run_step(setting, cached, {}, step)  # lazy initialisation falls into this one
    times: dict[str, list[Stopwatch]] = {"live": [], "cached": []}
    for repeat in range(setting.repeats):
        # Each goes first every other time: what drifts while this runs hits both alike.
        for way in ("live", "cached") if repeat % 2 == 0 else ("cached", "live"):
            note(f"{setting.size}: repeat {repeat + 1} of {setting.repeats}, {way}")
            live = experts if way == "live" else {}
            runs = 1 if live else CACHED_RUNS
            watches = [run_step(setting, stores[way], live, step, repeat) for _ in range(runs)]
            times[way].append(sorted(watches, key=lambda w: sum(w.cpu.values()))[runs // 2])
    return report(setting, experts, times, describe(step.network))


def write_pictures(setting: Setting, folder: Path) -> tuple[Output, Output]:
    """Patch and pair stores of `batch` training patches, and the held-out one they must have."""
    hr = photo_patches(setting.batch + 1, setting.patch * SCALE)
    n = len(hr)
    zeros, split = np.zeros(n, np.int32), np.full(n, TRAIN, np.uint8)
    split[-1] = VALIDATION
    folders = [OutputFolder(UPath(folder / name)) for name in ("patches", "pairs")]
    positions = PatchPositions(np.arange(n, dtype=np.int32), zeros, zeros, split)
    names = [str(i) for i in range(n)]
    patches = PatchWriter(folders[0], positions, setting.patch * SCALE, names, {})
    for i, shard in enumerate(patches.shards):
        patches.write(i, hr[shard.start : shard.stop])
    pairs = PairWriter(folders[1], n, 1, setting.patch, {})
    for i, shard in enumerate(pairs.shards):
        pairs.write(i, np.stack([downscale_uint8(hr[s], SCALE)[None] for s in shard]))
    patch_output, pair_output = (f.commit({"metadata": {}}) for f in folders)
    return patch_output, pair_output


def photo_patches(count: int, side: int) -> np.ndarray:
    """uint8 [count, side, side, 3], spread evenly over the photos of the demo recipe.

    Raises:
        ValueError: the photos do not hold as many without overlap.
    """
    source = load_recipe("demo").datasets["photos"].source
    photos = [decode_rgb(file.path.read_bytes(), 100) for file in find(source, "photos").files]
    found = [
        photo[y : y + side, x : x + side]
        for photo in photos
        for y in range(0, photo.shape[0] - side + 1, side)
        for x in range(0, photo.shape[1] - side + 1, side)
    ]
    if len(found) < count:
        raise ValueError(
            f"the demo photos hold {len(found)} patches of {side} px, {count} are wanted: lower "
            f"--batch or --crop"
        )
    return np.stack([found[i * len(found) // count] for i in range(count)])


def write_cache(name: str, expert: Expert, pairs: PairReader, folder: Path) -> CacheReader:
    """The cache of what one expert says about every training patch, written and opened."""
    count = len(pairs) - 1
    note(f"caching {name}")
    lr = np.stack([pairs.lr(i, 0) for i in range(count)])
    said = run_expert(expert, tensor(lr).permute(0, 3, 1, 2).float() / 255).sr.numpy()
    # Nothing ever reads the held-out patch, so no expert time is spent on it.
    sr = np.concatenate([said, np.zeros_like(said[:1])])[:, None]
    output = OutputFolder(UPath(folder / "cache" / name))
    writer = CacheWriter(output, len(pairs), 1, pairs.size * SCALE, None, {"expert": name})
    for i, shard in enumerate(writer.shards):
        writer.write(i, sr[shard.start : shard.stop])
    reader = CacheReader(output.commit({"metadata": {}}))
    error = float(np.abs(reader.sr_batch(range(count), [0] * count) - said).max())
    if error > SR_STEP:
        raise ValueError(f"the cache of {name} is off by {error:.1e}, more than {SR_STEP:.1e}")
    return reader


class FusionStep:
    """The gate with its optimiser and moving average, stepped as the training loop does it."""

    def __init__(self, experts: tuple[str, ...]) -> None:
        self.settings = TrainSettings()
        self.network = GateFusion(experts, SCALE).train()
        self.optimizer = make_optimizer(self.network, self.settings)
        self.ema = Ema(self.network, self.settings.ema)
        self.steps = 0

    def __call__(self, lr: Tensor, hr: Tensor, sr: Mapping[str, Tensor]) -> None:
        """One optimiser step on a batch."""
        terms = loss_terms(self.network(lr, sr), hr, {"l1": 1.0})
        torch.stack(list(terms.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.network, self.steps)
        self.steps += 1


def run_step(
    setting: Setting,
    dataset: DatasetStores,
    live: Mapping[str, Expert],
    step: FusionStep,
    number: int = 0,
) -> Stopwatch:
    """One step on batch `number`: SR comes from the caches of `dataset` and from `live` experts."""
    watch = Stopwatch()
    samples = TrainingSamples([dataset], SCALE)  # a new one has kept no patch in memory
    with watch.part(READ):
        arrays = samples.batch(number, setting.batch, setting.crop, SEED)
        batch = {key: tensor(array) for key, array in arrays.items()}
    sr = {name: batch[f"sr/{name}"] for name in dataset.caches}
    for name, expert in live.items():
        with watch.part(name):
            sr[name] = run_expert(expert, batch["lr"]).sr
    with watch.part(STEP):
        step(batch["lr"], batch["hr"], sr)
    return watch


def report(
    setting: Setting,
    experts: Mapping[str, Expert],
    times: Mapping[str, list[Stopwatch]],
    parameters: int,
) -> dict[str, object]:
    """Prints the table of one size and returns its headline."""
    weights = f"{setting.weights} weights"
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1 << 30 if sys.platform == "darwin" else 1 << 20
    )
    print(
        f"{setting.size}: {len(experts)} experts ({weights}), a gate of {parameters:,} parameters, "
        f"batch {setting.batch}, LR {setting.crop}x{setting.crop} out of "
        f"{setting.patch}x{setting.patch}, x{SCALE}\n"
        f"on the CPU, threads: {torch.get_num_threads()}, repeats: {setting.repeats} (medians are "
        f"shown), {memory:.1f} GiB of memory at most\n"
    )
    print(f"| {'part':<27} | live CPU s | cached CPU s | live wall s | cached wall s |")
    print(f"|{'-' * 29}|-----------:|-------------:|------------:|--------------:|")
    for part in (READ, *experts, STEP):
        label = part
        if part in experts:
            label = f"{part}, {experts[part].parameters / 1e6:.2f} M parameters"
        print(row(label, *(middle(times[w], c, part) for c in ("cpu", "wall") for w in times)))
    print(row("whole step", *(middle(times[w], c) for c in ("cpu", "wall") for w in times)))
    print()
    ratios = {clock: paired(times, clock) for clock in ("cpu", "wall")}
    for clock, name in (("cpu", "CPU"), ("wall", "wall-clock")):
        middle_one, low, high = (pick(ratios[clock]) for pick in (median, min, max))
        print(f"live / cached, {name} seconds: {middle_one:.1f} ({low:.1f} to {high:.1f})")
    print(f"\n{outlook(setting, times)}\n", flush=True)
    return {
        "name": f"cached_vs_live_{setting.size}",
        "ratio": round(median(ratios["cpu"]), 2),
        "peer": f"the same fusion step with {len(experts)} live experts, {weights}",
        "unit": "CPU seconds of a step, live / cached",
        "repeats": setting.repeats,
    }


def outlook(setting: Setting, times: Mapping[str, list[Stopwatch]]) -> str:
    """What the ratio is made of, and what it would be elsewhere: computed from the medians."""
    whole = {way: middle(times[way], "cpu") for way in ("live", "cached")}
    read = {way: middle(times[way], "cpu", READ) for way in whole}
    small = {way: middle(times[way], "cpu", STEP) for way in whole}
    large = LARGE_FUSION_STEP * setting.batch * (setting.crop / 64) ** 2

    def ratio(cost: Callable[[str], float]) -> str:
        return f"{cost('live') / cost('cached'):.1f}"

    share = read["cached"] / whole["cached"]
    return (
        f"Reading is {share:.0%} of the cached step. Computed from these numbers:\n"
        f"- all patches in memory, so that nothing is read: {ratio(lambda w: whole[w] - read[w])}\n"
        f"- a fusion network of 1.4 M parameters, {large:.2f} CPU s a step, instead of the gate: "
        f"{ratio(lambda w: whole[w] - small[w] + large)}"
    )


def row(label: str, *cells: float) -> str:
    """One line of the table; a part that a way does not have is a dash."""
    shown = ["-" if math.isnan(c) else f"{c:.4f}" if c < 1 else f"{c:.2f}" for c in cells]
    return (
        f"| {label:<27} | "
        + " | ".join(
            f"{text:>{width}}" for text, width in zip(shown, (10, 12, 11, 13), strict=True)
        )
        + " |"
    )


def middle(watches: list[Stopwatch], clock: str, part: str | None = None) -> float:
    """Median seconds of one part, NaN where there is no such part, or of the whole step."""
    spent = [getattr(watch, clock) for watch in watches]
    if part is None:
        return median(sum(parts.values()) for parts in spent)
    return median(parts.get(part, math.nan) for parts in spent)


def paired(times: Mapping[str, list[Stopwatch]], clock: str) -> list[float]:
    """Live over cached, one ratio for each repeat."""
    return [
        sum(getattr(live, clock).values()) / sum(getattr(cached, clock).values())
        for live, cached in zip(times["live"], times["cached"], strict=True)
    ]


def tensor(array: np.ndarray) -> Tensor:
    """The same numbers for torch."""
    return torch.from_numpy(array)


def note(text: str) -> None:
    """Says what is going on, beside the results."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
