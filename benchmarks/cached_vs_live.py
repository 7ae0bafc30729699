"""What the expert cache is worth: one fusion training step from it against one with live experts.

Both read the same crops and do the same optimiser step; how good a fusion gets is not measured.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from cached_stores import (
    SCALE,
    Setting,
    demo_experts,
    full_experts,
    write_cache,
    write_pictures,
)
from steps import (
    BACKWARD,
    FORWARD,
    UPDATE,
    FusionStep,
    Inputs,
    Stopwatch,
    cost_table,
    headline,
    middle,
    open_parser,
    paired,
    positive,
    turns,
)

from sr_assets.recipe.loading import load_recipe
from sr_assets.stores.pairs import PairReader
from sr_assets.stores.patches import PatchReader
from sr_assets.stores.samples import DatasetStores, TrainingSamples
from sr_models.experts.loading import Expert
from sr_models.experts.running import run_expert
from sr_models.fusion.network import FusionNetwork
from sr_models.training.settings import TrainSettings
from sr_models.training.stored import dequantised

SEED = 42
LIVE, CACHED = "live", "cached"
READ = "read the batch"

HELP = """
Measures one training step of a fusion (kind: fusion, in its default shape, with the features of all
experts), both ways in turn, on the CPU:

  live    read LR and HR from their stores, run all experts on LR, do the step
  cached  read LR, HR and every expert's SR and features from their stores, do the step

The step is forward, L1, backward, clipping, AdamW and the moving average. Reading goes through the
product's stores, with decompression, every checksum, crops, flips and the way from the stored
integers to floats; files are in the page cache. The caches are first written from what the experts
said, read back and compared. Reading comes before the step here; training reads ahead on another
thread, so the ratio is on the low side.

sizes
  demo  the four small experts that ship with the package; patches, batch and crop of `srd demo`
  full  HAT-L, DRCT-L, GRL-B and EDSR-L with random weights (a step costs the same with any),
        batch 1, LR 64x64: about 40 CPU seconds for each time all experts run, which is repeats + 1
        times, and 2 GiB of memory

A repeat is one step of each way on the same batch, and which goes first changes every time. The
ratio is live over cached, the median over repeats. It counts CPU seconds of all threads, which
other programs on the machine change far less than wall-clock time, which stands beside it. Standard
output ends with one line of JSON for each size that was measured, the full size last.
"""
EXAMPLE = """
example:
  python benchmarks/cached_vs_live.py --size full --repeats 2 --threads 1
"""


def main() -> int:
    """Measures what the command line asks for; 1 where something needed is missing."""
    options = parse_options()
    if options.threads:
        torch.set_num_threads(options.threads)
    recipe = load_recipe("demo")
    trained = recipe.models["fusion"].train
    patch = recipe.silver.patch_size // SCALE
    settings = {
        "demo": Setting("demo", "shipped", trained.batch, patch, trained.crop, 5),
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
    for line in headlines:
        print(json.dumps(line))
    return 0


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = open_parser(HELP, EXAMPLE)
    parser.add_argument("--size", choices=("demo", "full", "both"), default="both")
    parser.add_argument("--batch", type=positive, help="crops in a batch (demo 8, full 1)")
    parser.add_argument("--crop", type=positive, help="side of an LR crop (demo 24, full 64)")
    parser.add_argument("--repeats", type=positive, help="pairs of steps (demo 5, full 2)")
    parser.add_argument(
        "--random-weights",
        action="store_true",
        help="demo: the same networks with random weights, where the shipped files are missing",
    )
    return parser.parse_args()


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


def measure(setting: Setting, experts: Mapping[str, Expert], folder: Path) -> dict[str, object]:
    """Runs the pairs of steps, prints the table and returns the headline."""
    patches, pairs = write_pictures(setting, folder)
    without = DatasetStores("photos", PatchReader(patches), PairReader(pairs))
    caches = {name: write_cache(name, e, without.pairs, folder) for name, e in experts.items()}
    cached = DatasetStores("photos", without.patches, without.pairs, caches)
    channels = {name: e.feature_channels or 0 for name, e in experts.items()}
    step = FusionStep(FusionNetwork(tuple(experts), SCALE, channels), TrainSettings())
    run_step(setting, cached, {}, step, 0)  # lazy initialisation falls into this one
    times: dict[str, list[Stopwatch]] = {LIVE: [], CACHED: []}
    for repeat, way in turns((LIVE, CACHED), setting.repeats):
        dataset, live = (without, experts) if way == LIVE else (cached, {})
        times[way].append(run_step(setting, dataset, live, step, repeat))
    return report(setting, experts, times, step.parameters)


def run_step(
    setting: Setting,
    dataset: DatasetStores,
    live: Mapping[str, Expert],
    step: FusionStep,
    number: int,
) -> Stopwatch:
    """One step on batch `number`: from the caches of `dataset`, and from `live` experts."""
    watch = Stopwatch()
    samples = TrainingSamples([dataset], SCALE, features=tuple(dataset.caches))
    with watch.part(READ):
        arrays = samples.batch(number, setting.batch, setting.crop, SEED)
        batch = dequantised({key: torch.from_numpy(array) for key, array in arrays.items()})
    sr = {name: batch[f"sr/{name}"] for name in dataset.caches}
    features = {name: batch[f"features/{name}"] for name in dataset.caches}
    for name, expert in live.items():
        with watch.part(name):
            said = run_expert(expert, batch["lr"], features=True)
            assert said.features is not None
            # Clones, as in training: tensors of inference mode cannot be part of a gradient.
            sr[name], features[name] = said.sr.clone(), said.features.clone()
    step(Inputs(batch["lr"], batch["hr"], sr, features), watch)
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
        f"{setting.size}: {len(experts)} experts ({weights}), a fusion of {parameters:,} "
        f"parameters, batch {setting.batch}, LR {setting.crop}x{setting.crop} out of "
        f"{setting.patch}x{setting.patch}, x{SCALE}\n"
        f"on the CPU, threads: {torch.get_num_threads()}, repeats: {setting.repeats} (medians are "
        f"shown), {memory:.1f} GiB of memory at most\n"
    )
    named = {n: f"{n}, {e.parameters / 1e6:.2f} M parameters" for n, e in experts.items()}
    parts = {READ: READ, **named, **{part: part for part in (FORWARD, BACKWARD, UPDATE)}}
    print("\n".join([*cost_table(times, parts), "", outlook(times), ""]), flush=True)
    peer = f"the same fusion step with {len(experts)} live experts, {weights}"
    return headline(f"cached_vs_live_{setting.size}", times, peer, f"{LIVE} / {CACHED}")


def outlook(times: Mapping[str, list[Stopwatch]]) -> str:
    """How much of the cached step is reading, and the ratio without it."""
    unread = {
        way: [Stopwatch({p: s for p, s in w.cpu.items() if p != READ}) for w in watches]
        for way, watches in times.items()
    }
    share = middle(times[CACHED], "cpu", READ) / middle(times[CACHED], "cpu")
    return (
        f"Reading is {share:.1%} of the cached step; hidden by a thread that reads ahead, "
        f"live / cached is {median(paired(unread, 'cpu')):.2f}."
    )


if __name__ == "__main__":
    sys.exit(main())
