"""What `cached_vs_live.py` reads and runs: stores of photo patches, experts and their caches.

Everything is written into a folder that the caller throws away; nothing is timed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from steps import note
from upath import UPath

from sr_assets.assets.experts import SHIPPED
from sr_assets.output_folder import OutputFolder
from sr_assets.pictures import decode_rgb
from sr_assets.recipe.loading import load_recipe
from sr_assets.recipe.models import BuiltinWeights
from sr_assets.recipe.networks import PlainModel
from sr_assets.recipe.sources import BuiltinSource
from sr_assets.sources.builtin import photos as builtin_photos
from sr_assets.storage import Output
from sr_assets.stores.expert_cache import CacheReader, CacheWriter
from sr_assets.stores.fixed_point import SR_STEP
from sr_assets.stores.pairs import PairReader, PairWriter
from sr_assets.stores.patches import TRAIN, VALIDATION, PatchPositions, PatchWriter
from sr_models.degradations.bicubic import downscale_uint8
from sr_models.experts.loading import Expert, load_expert
from sr_models.experts.presets import EXPERTS_X4
from sr_models.experts.running import run_expert
from sr_models.export.weights import serialise_weights
from sr_models.networks import build_network

SCALE = 4
#: Of the full-size experts' features.
CHANNELS = {"hat": 180, "drct": 180, "grl": 180, "edsr": 256}
_DATASET = "photos"


@dataclass(frozen=True)
class Setting:
    """One size of the measurement; sides are of LR (px)."""

    size: str
    weights: str
    batch: int
    patch: int
    crop: int
    repeats: int


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


def write_pictures(setting: Setting, folder: Path) -> tuple[Output, Output]:
    """Patch and pair stores of `batch` training patches, and the held-out one they must have."""
    hr = photo_patches(setting.batch + 1, setting.patch * SCALE)
    split = np.full(len(hr), TRAIN, np.uint8)
    split[-1] = VALIDATION
    lr = np.stack([downscale_uint8(patch, SCALE) for patch in hr])
    return write_pairs(lr, hr, split, folder)


def write_pairs(
    lr: np.ndarray, hr: np.ndarray, split: np.ndarray, folder: Path
) -> tuple[Output, Output]:
    """Patch and pair stores of uint8 LR [N, s, s, 3] and HR [N, S, S, 3]; `split` is [N]."""
    n, zeros = len(hr), np.zeros(len(hr), np.int32)
    folders = [OutputFolder(UPath(folder / name)) for name in ("patches", "pairs")]
    positions = PatchPositions(np.arange(n, dtype=np.int32), zeros, zeros, split)
    patches = PatchWriter(folders[0], positions, hr.shape[1], [str(i) for i in range(n)], {})
    for i, shard in enumerate(patches.shards):
        patches.write(i, hr[shard.start : shard.stop])
    pairs = PairWriter(folders[1], n, 1, lr.shape[1], {})
    for i, shard in enumerate(pairs.shards):
        pairs.write(i, lr[shard.start : shard.stop, None])
    patch_output, pair_output = (f.commit({"metadata": {}}) for f in folders)
    return patch_output, pair_output


def photo_patches(count: int, side: int) -> np.ndarray:
    """uint8 [count, side, side, 3], spread evenly over the photos of the demo recipe.

    Raises:
        ValueError: the photos do not hold as many without overlap.
    """
    source = load_recipe("demo").datasets[_DATASET].source
    assert isinstance(source, BuiltinSource)
    files = builtin_photos(source.images, _DATASET)
    photos = [decode_rgb(file.path.read_bytes(), 100) for file in files]
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
    """The cache of one expert's SR and features of every training patch, written and opened.

    Raises:
        ValueError: what is read is further from what the expert said than rounding allows.
    """
    count = len(pairs) - 1
    note(f"caching {name}")
    lr = np.stack([pairs.lr(i, 0) for i in range(count)])
    planar = torch.from_numpy(lr).permute(0, 3, 1, 2).float() / 255
    said = run_expert(expert, planar, features=True)
    assert said.features is not None
    sr, features = said.sr.numpy(), said.features.numpy()
    output = OutputFolder(UPath(folder / "cache" / name))
    shape = (features.shape[1], pairs.size)
    writer = CacheWriter(output, len(pairs), 1, pairs.size * SCALE, shape, {"expert": name})
    # Nothing ever reads the held-out patch, so no expert time is spent on it.
    whole = [np.concatenate([part, np.zeros_like(part[:1])])[:, None] for part in (sr, features)]
    for i, shard in enumerate(writer.shards):
        writer.write(i, *(part[shard.start : shard.stop] for part in whole))
    reader = CacheReader(output.commit({"metadata": {}}))
    _demand_equal(name, "SR", reader.sr_batch(range(count), [0] * count), sr, SR_STEP)
    step = np.abs(features).max((-2, -1), keepdims=True) / 127
    _demand_equal(
        name, "features", reader.features_batch(range(count), [0] * count), features, step
    )
    return reader


def _demand_equal(
    name: str, what: str, read: np.ndarray, said: np.ndarray, step: float | np.ndarray
) -> None:
    """Equal but for rounding to whole steps."""
    error = np.abs(read - said)
    if (error > step).any():
        raise ValueError(f"the {what} in the cache of {name} are off by {error.max():.1e}")
