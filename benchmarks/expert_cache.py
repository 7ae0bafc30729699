"""What the expert cache is worth against one torch file an image, and what its integers cost.

How fast batches come out of the training loader is `loader_wait.py`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean, median, pstdev

import numpy as np
import torch
from cached_stores import CHANNELS, SCALE, Setting, demo_experts, write_pairs
from patch_store import photo_patches
from steps import Stopwatch, note, open_parser, paired, positive, turns
from torch import Tensor
from upath import UPath

from sr_assets.assets.trained import LoadedModel, load_model
from sr_assets.output_folder import OutputFolder
from sr_assets.storage import open_output
from sr_assets.stores.expert_cache import CacheReader, CacheWriter
from sr_assets.stores.fixed_point import PRESETS, PresetName
from sr_assets.stores.pairs import PairReader
from sr_assets.stores.patches import TRAIN, PatchReader
from sr_models.degradations.bicubic import downscale_uint8
from sr_models.experts.running import run_expert
from sr_models.metrics.images import psnr_y, to_uint8

PT = "torch.load of one fp32 .pt an image"
ORIGINAL = "torch.load of the original's two fp32 .pt an image, LR and HR in both"
SEED = 42
Said = dict[str, tuple[Tensor, Tensor]]
"""SR [N, 3, S, S] and features [N, C, s, s] of each expert."""

HELP = """
Runs the four experts of the demo on 256x256 patches of a folder of photos and stores what they say
(SR and features) in caches of every preset, and as one fp32 .pt file an image. Does the same with
features of as many channels as full-size experts have (random mixtures of theirs), and there also
as the original stores a sample: one .pt for HAT and one for the rest, LR and HR in both. Compares:

  bytes    .pt over ours                      (goal: default at least 4, small at least 5)
  read     CPU seconds of whole samples, SR and features of all experts, in random order, checksums
           verified, ours as stored integers; against the original's files also LR and HR, out of
           our stores of patches and pairs    (goal: default at least 7 against the original's)
  PSNR-Y   of the mean of the experts' SR, and of a trained fusion where --fusion names its output,
           from what was stored against what the experts said (goal: below 0.001 dB)

A read ratio is peer over ours in CPU seconds, the median over repeats. Standard output ends with
one line of JSON for each.
"""
EXAMPLE = """
example:
  python benchmarks/expert_cache.py PHOTOS --fusion data/demo/model/fusion/checkpoint/ADDRESS
"""


def main() -> int:
    """Measures what the command line asks for; 1 where something is missing."""
    parser = open_parser(HELP, EXAMPLE)
    parser.add_argument("photos", type=Path, help="folder of photos")
    parser.add_argument("--patches", type=positive, default=32)
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument("--fusion", type=Path, help="output of a fusion trained on these experts")
    options = parser.parse_args()
    try:
        hr = photo_patches(options.photos, options.patches)
        fusion = None
        if options.fusion:
            output = open_output(UPath(options.fusion))
            if output is None:
                raise ValueError(f"{options.fusion} is no whole output")
            fusion = load_model(output)
        with tempfile.TemporaryDirectory() as folder:
            lines = measure(hr, fusion, Path(folder), options.repeats)
    except (ValueError, FileNotFoundError) as error:
        print(f"expert_cache: {error}", file=sys.stderr)
        return 1
    print("\n".join(json.dumps(line) for line in lines))
    return 0


def measure(
    hr: np.ndarray, fusion: LoadedModel | None, folder: Path, repeats: int
) -> list[dict[str, object]]:
    """Sizes, reads and PSNR-Y of every preset, as the lines that end the output."""
    lr = np.stack([downscale_uint8(patch, SCALE) for patch in hr])
    planar = torch.from_numpy(lr).permute(0, 3, 1, 2).float() / 255
    said: Said = {}
    for name, expert in demo_experts(Setting("", "shipped", 1, 64, 64, 1), folder).items():
        note(f"running {name}")
        out = run_expert(expert, planar, features=True)
        assert out.features is not None
        said[name] = out.sr, out.features
    truth = _fused(fusion, planar, dict_of(said, 0), dict_of(said, 1), hr)
    lines: list[dict[str, object]] = []
    for preset, caches in _compared(said, folder / "demo", "", repeats, lines).items():
        every, first = range(len(hr)), [0] * len(hr)
        sr = {n: torch.from_numpy(c.sr_batch(every, first)) for n, c in caches.items()}
        features = {n: torch.from_numpy(c.features_batch(every, first)) for n, c in caches.items()}
        for what, scores in _fused(fusion, planar, sr, features, hr).items():
            changes = [a - b for a, b in zip(scores, truth[what], strict=True)]
            spread = pstdev(changes) / len(changes) ** 0.5
            print(
                f"{preset}: PSNR-Y of the {what} {fmean(scores):.4f}, change {fmean(changes):+.5f} "
                f"dB, standard error {spread:.5f}"
            )
    draw = torch.Generator().manual_seed(SEED)
    full = {
        name: (sr, _mixed(features, CHANNELS[name], draw)) for name, (sr, features) in said.items()
    }
    made = _compared(full, folder / "full", "_full", repeats, lines)
    _against_original(full, made, (lr, hr), folder / "original", repeats, lines)
    return lines


def _mixed(features: Tensor, channels: int, draw: torch.Generator) -> Tensor:
    """As many channels out of what an expert says: as smooth as its own, and as hard to pack."""
    count = features.shape[1]
    weights = torch.randn(channels, count, generator=draw) / count**0.5
    return torch.einsum("dc,nchw->ndhw", weights, features)


def _compared(
    said: Said, folder: Path, kind: str, repeats: int, lines: list[dict[str, object]]
) -> dict[PresetName, dict[str, CacheReader]]:
    """Bytes and reads of every preset against one .pt an image; the caches."""
    pt = folder / "pt"
    pt.mkdir(parents=True)
    count = len(next(iter(said.values()))[0])
    for index in range(count):
        sample = {name: (sr[index].clone(), f[index].clone()) for name, (sr, f) in said.items()}
        torch.save(sample, pt / f"{index}.pt")
    made: dict[PresetName, dict[str, CacheReader]] = {}
    for preset in PRESETS:
        note(f"reading {preset}{kind}")
        made[preset] = caches = {
            n: _cache(folder / preset / n, preset, *p) for n, p in said.items()
        }
        ratio = _size(pt) / _size(folder / preset)
        lines.append(_line(f"expert_cache_bytes{kind}_{preset}", ratio, PT, "bytes", 1))
        work: dict[str, Callable[[int], object]] = {
            "peer": lambda index: torch.load(pt / f"{index}.pt", weights_only=True),
            "ours": _reading(caches),
        }
        lines.append(_line(f"expert_cache_read{kind}_{preset}", _read(work, count, repeats), PT,
                           "CPU seconds", repeats))  # fmt: skip
    return made


def _against_original(
    said: Said,
    made: Mapping[PresetName, Mapping[str, CacheReader]],
    pictures: tuple[np.ndarray, np.ndarray],
    folder: Path,
    repeats: int,
    lines: list[dict[str, object]],
) -> None:
    """Reads of whole samples with LR and HR, against files as the original writes them."""
    folder.mkdir()
    lr, hr = (torch.from_numpy(p).permute(0, 3, 1, 2).float() / 255 for p in pictures)
    parts = {"hat_part": ["hat"], "rest_part": [name for name in said if name != "hat"]}
    for index in range(len(hr)):
        for part, names in parts.items():
            sample = {
                "outputs": {name: said[name][0][index].clone() for name in names},
                "features": {name: said[name][1][index].clone() for name in names},
                "lr": lr[index].clone(),
                "hr": hr[index].clone(),
            }
            torch.save(sample, folder / f"{index}_{part}.pt")
    written = write_pairs(*pictures, np.full(len(hr), TRAIN, np.uint8), folder)
    patches, pairs = PatchReader(written[0]), PairReader(written[1])
    room = patches.hr_batch([0]), pairs.lr_batch([0], [0])
    for preset, caches in made.items():
        note(f"reading {preset} with LR and HR")
        read = _reading(caches)

        def ours(index: int, read: Callable[[int], object] = read) -> None:
            patches.hr_batch([index], room[0])
            pairs.lr_batch([index], [0], room[1])
            read(index)

        work: dict[str, Callable[[int], object]] = {
            "peer": lambda index: [
                torch.load(folder / f"{index}_{part}.pt", weights_only=True) for part in parts
            ],
            "ours": ours,
        }
        lines.append(_line(f"expert_cache_read_original_{preset}", _read(work, len(hr), repeats),
                           ORIGINAL, "CPU seconds", repeats))  # fmt: skip


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def dict_of(said: Said, which: int) -> dict[str, Tensor]:
    """SR (0) or features (1) of every expert."""
    return {name: pair[which] for name, pair in said.items()}


def _cache(folder: Path, preset: PresetName, sr: Tensor, features: Tensor) -> CacheReader:
    count, channels, side, _ = features.shape
    output = OutputFolder(UPath(folder))
    writer = CacheWriter(output, count, 1, sr.shape[-1], (channels, side), {}, preset)
    for number, shard in enumerate(writer.shards):
        part = slice(shard.start, shard.stop)
        writer.write(number, sr[part, None].numpy(), features[part, None].numpy())
    return CacheReader(output.commit({"metadata": {}}))


def _reading(caches: Mapping[str, CacheReader]) -> Callable[[int], None]:
    """Reads one sample into memory that is there."""
    room = {
        name: (cache.sr_stored_batch([0], [0]), cache.features_stored_batch([0], [0])[0])
        for name, cache in caches.items()
    }

    def read(index: int) -> None:
        for name, cache in caches.items():
            sr, features = room[name]
            cache.sr_stored_batch([index], [0], out=sr)
            cache.features_stored_batch([index], [0], out=features)

    return read


def _read(work: Mapping[str, Callable[[int], object]], count: int, repeats: int) -> float:
    order = np.random.default_rng(SEED).permutation(count)
    times: dict[str, list[Stopwatch]] = {name: [] for name in work}
    for _, name in turns(tuple(work), repeats):
        watch = Stopwatch()
        with watch.part("read"):
            for index in order:
                work[name](int(index))
        times[name].append(watch)
    return median(paired(times, "cpu"))


def _fused(
    fusion: LoadedModel | None,
    lr: Tensor,
    sr: Mapping[str, Tensor],
    features: Mapping[str, Tensor],
    hr: np.ndarray,
) -> dict[str, list[float]]:
    """PSNR-Y of every patch, of the mean and of the fusion."""
    pictures = {"mean": torch.stack(list(sr.values())).mean(0)}
    if fusion is not None:
        wanted = {name: features[name] for name in fusion.features}
        pictures["fusion"] = torch.cat(
            [
                fusion.upscale(
                    lr[i : i + 1],
                    {name: x[i : i + 1] for name, x in sr.items()},
                    {name: x[i : i + 1] for name, x in wanted.items()},
                )
                for i in range(len(lr))
            ]
        )
    return {
        name: [
            psnr_y(to_uint8(picture), truth, SCALE)
            for picture, truth in zip(batch, hr, strict=True)
        ]
        for name, batch in pictures.items()
    }


def _line(name: str, ratio: float, peer: str, unit: str, repeats: int) -> dict[str, object]:
    return {"name": name, "ratio": round(ratio, 3), "peer": peer, "unit": unit, "repeats": repeats}


if __name__ == "__main__":
    sys.exit(main())
