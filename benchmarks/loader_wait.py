"""Whether a training step ever waits for data, and what the loader is worth against usual ones.

The share is measured by the product's own training loop; how fast one store is read alone is
`patch_store.py` and `expert_cache.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from cached_stores import CHANNELS, SCALE, Setting, demo_experts, write_cache, write_pictures
from steps import Stopwatch, headline, middle, note, open_parser, paired, positive, turns
from torch import Tensor, nn
from upath import UPath

from sr_assets.output_folder import OutputFolder
from sr_assets.stores.expert_cache import CacheReader, CacheWriter
from sr_assets.stores.pairs import PairReader
from sr_assets.stores.patches import PatchReader
from sr_assets.stores.samples import DatasetStores, Maps, TrainingSamples
from sr_models.fusion.network import FusionNetwork
from sr_models.losses.pixel import l1
from sr_models.networks import build_network
from sr_models.training.determinism import seeded
from sr_models.training.loop import Batch, Task, train
from sr_models.training.settings import TrainSettings

SEED = 42
LIMIT = 0.03  # of the time of a step
PEER, OURS = "peer", "ours"

HELP = """
Trains for a few steps as the product does it, on the CPU, with one reading thread, and prints the
share of the time of these steps that was waiting for data (goal: under 3 %):

  demo fusion   the default fusion of the four small experts, SR and features cached, batch 8, LR 24
  demo student  paragonsr2_realtime against its teacher's cache, batch 8, LR 24
  full fusion   the default fusion, caches of HAT-L, DRCT-L, GRL-B and EDSR-L size (random values),
                batch 1, LR 64, HR 256

Then it reads batches without any training, ours and a usual loader in turn on the same samples:

  patches  random crops of LR and HR pairs out of PNG files in LMDB, by OpenCV (goal: 5.5)
  samples  LR, HR, SR and features of four full-size experts out of one fp32 .pt file a sample, by
           torch.load (goal: 3)

Ours verifies every checksum and delivers the stored integers, which the device makes floating;
the others deliver what they hold. All files are in the page cache. A ratio is peer over ours in CPU
seconds, the median over repeats.
Standard output ends with one line of JSON for each row.
"""
EXAMPLE = """
example:
  OMP_NUM_THREADS=1 python benchmarks/loader_wait.py --threads 1
"""


def main() -> int:
    """Measures all rows; 1 where something needed is missing."""
    parser = open_parser(HELP, EXAMPLE)
    parser.add_argument("--repeats", type=positive, default=5, help="of each loader (5)")
    parser.add_argument("--steps", type=positive, default=20, help="training steps of a row (20)")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        lines = list(measure(options))
    except (FileNotFoundError, ImportError, ValueError) as error:
        print(f"loader_wait: {error}", file=sys.stderr)
        return 1
    print("\n".join(json.dumps(line) for line in lines))
    return 0


def measure(options: argparse.Namespace) -> list[dict[str, object]]:
    """All rows in their order."""
    lines = []
    with tempfile.TemporaryDirectory(prefix="loader-wait-") as name:
        folder = Path(name)
        demo = open_stores(folder / "demo", 32, 32, None)
        experts = tuple(demo.caches)
        channels = {n: (c.feature_shape or (0,))[0] for n, c in demo.caches.items()}
        with seeded(SEED):
            networks: dict[str, nn.Module] = {
                "demo": FusionNetwork(experts, SCALE, channels),
                "student": build_network("paragonsr2_realtime", SCALE, {}),
                "full": FusionNetwork(tuple(CHANNELS), SCALE, CHANNELS),
            }
        samples = TrainingSamples([demo], SCALE, experts)
        lines.append(share("demo fusion", samples, networks["demo"], 8, 24, options.steps, folder))
        taught = DatasetStores(demo.name, demo.patches, demo.pairs, {"hat": demo.caches["hat"]})
        samples, steps = TrainingSamples([taught], SCALE), 10 * options.steps
        lines.append(share("demo student", samples, networks["student"], 8, 24, steps, folder))
        full = open_stores(folder / "full", 12, 64, CHANNELS)
        samples = TrainingSamples([full], SCALE, tuple(CHANNELS))
        lines.append(share("full fusion", samples, networks["full"], 1, 64, options.steps, folder))
        alone = DatasetStores(full.name, full.patches, full.pairs)
        lines.append(
            compare("patches", "LMDB with PNG, OpenCV", TrainingSamples([alone], SCALE), 16, 48,
                    lmdb_loader(full, folder / "lmdb"), options.repeats)
        )  # fmt: skip
        lines.append(
            compare("samples", "torch.load of one fp32 .pt a sample", samples, 8, 64,
                    torch_loader(full, folder / "pt"), options.repeats)
        )  # fmt: skip
    return lines


def open_stores(
    folder: Path, count: int, side: int, channels: Mapping[str, int] | None
) -> DatasetStores:
    """Stores of `count` photo patches of LR side `side`, with caches of the demo's experts, or with
    random ones of so many channels."""
    setting = Setting("", "shipped", count, side, side, 1)
    patch_output, pair_output = write_pictures(setting, folder)
    patches, pairs = PatchReader(patch_output), PairReader(pair_output)
    if channels is None:
        experts = demo_experts(setting, folder)
        caches = {name: write_cache(name, e, pairs, folder) for name, e in experts.items()}
    else:
        caches = {n: random_cache(n, c, patches, folder) for n, c in channels.items()}
    return DatasetStores("photos", patches, pairs, caches)


def random_cache(name: str, channels: int, patches: PatchReader, folder: Path) -> CacheReader:
    """SR that is HR and a little noise, and features of normally distributed values."""
    draw, side = np.random.default_rng(len(name)), patches.size // SCALE
    output = OutputFolder(UPath(folder / "cache" / name))
    writer = CacheWriter(output, len(patches), 1, patches.size, (channels, side), {})
    for number, shard in enumerate(writer.shards):
        hr = patches.hr_batch(np.arange(shard.start, shard.stop)).transpose(0, 3, 1, 2)
        sr = hr.astype(np.float32)[:, None] / 255
        sr += draw.normal(0, 0.01, sr.shape).astype(np.float32)
        features = draw.standard_normal((len(shard), 1, channels, side, side), np.float32)
        writer.write(number, sr, features)
    return CacheReader(output.commit({"metadata": {}}))


def share(
    name: str,
    samples: TrainingSamples,
    network: nn.Module,
    size: int,
    crop: int,
    steps: int,
    folder: Path,
) -> dict[str, object]:
    """Trains for some steps and tells how much of them was waiting."""
    note(f"training: {name}, {steps} steps")
    settings = TrainSettings(
        steps=steps, batch=size, crop=crop, validate_every=steps, checkpoint_every=steps,
        warmup=0, device="cpu",
    )  # fmt: skip

    def forward(running: nn.Module, batch: Batch) -> Tensor:
        if not samples.features:
            return running(batch["lr"])
        sr = {n: batch[f"sr/{n}"] for n in samples.names}
        return running(batch["lr"], sr, {n: batch[f"features/{n}"] for n in samples.features})

    def batches(number: int) -> Batch:
        maps = samples.batch(number, size, crop, SEED)
        return {key: torch.from_numpy(values) for key, values in maps.items()}

    watch = Stopwatch()
    with watch.part(name):
        result = train(
            network,
            Task(forward, lambda sr, batch, step: {"l1": l1(sr, batch["hr"])}),
            batches,
            lambda network: 0.0,
            settings,
            folder / name.replace(" ", "-"),
            report=lambda step, numbers: None,
            advance=lambda n: None,
        )
    found = f"{name}: waited for data {result.data_wait:.2%} of {steps} steps"
    print(f"{found}, {watch.wall[name] / steps:.3f} s a step", flush=True)
    return {
        "name": f"loader_wait_{name.replace(' ', '_')}",
        "share": round(result.data_wait, 4),
        "limit": LIMIT,
        "unit": "share of the wall-clock time of training steps",
        "repeats": steps,
    }


def compare(
    name: str,
    peer: str,
    samples: TrainingSamples,
    size: int,
    crop: int,
    usual: Callable[[int, int, int], object],
    repeats: int,
) -> dict[str, object]:
    """Reads the same number of batches both ways in turn."""
    read: dict[str, Callable[[int, int, int], object]] = {
        PEER: usual,
        OURS: lambda number, size, crop: samples.batch(number, size, crop, SEED),
    }
    count = 4
    times: dict[str, list[Stopwatch]] = {PEER: [], OURS: []}
    for way in read:
        read[way](0, size, crop)  # opens files and compiles
    for repeat, way in turns((PEER, OURS), repeats):
        watch = Stopwatch()
        with watch.part(name):
            for number in range(count):
                read[way](repeat * count + number, size, crop)
        times[way].append(watch)
    line = headline(f"loader_{name}", times, peer, f"{PEER} / {OURS}")
    rate = {way: size * count / middle(watches, "cpu") for way, watches in times.items()}
    found = paired(times, "cpu")
    print(
        f"{name}: {rate[OURS]:.0f} a CPU second, {peer} {rate[PEER]:.0f}; ratio {line['ratio']} "
        f"({min(found):.2f} to {max(found):.2f})",
        flush=True,
    )
    return {**line, "unit": f"CPU seconds of a sample through the loader, {PEER} / {OURS}"}


def lmdb_loader(stores: DatasetStores, folder: Path) -> Callable[[int, int, int], object]:
    """Pairs of PNG files in LMDB, cut and turned, as the usual SR training tools read them."""
    import cv2
    import lmdb

    folder.mkdir()
    count = len(stores.patches) - 1
    with lmdb.open(str(folder), map_size=1 << 30) as base, base.begin(write=True) as writing:
        for i in range(count):
            for key, picture in (("hr", stores.patches.hr(i)), ("lr", stores.pairs.lr(i, 0))):
                png = cv2.imencode(".png", picture[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
                writing.put(f"{key}{i}".encode(), png.tobytes())
    reading = lmdb.open(str(folder), readonly=True, lock=False, readahead=False, meminit=False)

    def picture(key: str) -> np.ndarray:
        with reading.begin(write=False) as transaction:
            data = np.frombuffer(transaction.get(key.encode()), np.uint8)
        return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)

    def batch(number: int, size: int, crop: int) -> Maps:
        draw, made = np.random.default_rng(number), []
        for i in draw.integers(0, count, size):
            maps = {"hr": picture(f"hr{i}"), "lr": picture(f"lr{i}")}
            planar = {key: values.transpose(2, 0, 1) for key, values in maps.items()}
            made.append(cut(draw, planar, crop))
        return {key: np.stack([one[key] for one in made]) for key in made[0]}

    return batch


def torch_loader(stores: DatasetStores, folder: Path) -> Callable[[int, int, int], object]:
    """One file of fp32 tensors a sample, turned and stacked."""
    folder.mkdir()
    count = len(stores.patches) - 1
    for i in range(count):
        maps = {
            "hr": stores.patches.hr(i).transpose(2, 0, 1).astype(np.float32) / 255,
            "lr": stores.pairs.lr(i, 0).transpose(2, 0, 1).astype(np.float32) / 255,
            **{f"sr/{n}": c.sr(i, 0) for n, c in stores.caches.items()},
            **{f"features/{n}": c.features(i, 0) for n, c in stores.caches.items()},
        }
        torch.save({key: torch.from_numpy(v) for key, v in maps.items()}, folder / f"{i}.pt")

    def batch(number: int, size: int, crop: int) -> dict[str, Tensor]:
        draw, made = np.random.default_rng(number), []
        for i in draw.integers(0, count, size):
            maps = torch.load(folder / f"{i}.pt", weights_only=True)
            made.append(cut(draw, {key: v.numpy() for key, v in maps.items()}, crop))
        return {key: torch.from_numpy(np.stack([one[key] for one in made])) for key in made[0]}

    return batch


def cut(draw: np.random.Generator, maps: Maps, crop: int) -> Maps:
    """A random square of crop LR pixels of all maps alike, in a random orientation."""
    side = maps["lr"].shape[-1]
    y, x = draw.integers(0, side - crop + 1, 2)
    turns, mirrored = int(draw.integers(4)), bool(draw.integers(2))
    found = {}
    for key, values in maps.items():
        f = values.shape[-1] // side
        part = values[:, y * f : (y + crop) * f, x * f : (x + crop) * f]
        turned = np.rot90(part, turns, (-2, -1))
        found[key] = turned[..., ::-1] if mirrored else turned
    return found


if __name__ == "__main__":
    sys.exit(main())
