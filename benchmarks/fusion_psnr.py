"""PSNR-Y of our fusion and of the original's after as many training steps on the same crops.

The command line is that of `fusion_step.py`; running the experts is the business of `srd build`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from contestants import ORIGINAL, OURS, PEER, SEED, contestants, parameters
from original_fusion import SCALE
from steps import Inputs, Stopwatch, note
from torch import Tensor

from sr_assets.assets.validation import validation_psnr
from sr_assets.graph import Graph, build_graph
from sr_assets.home import open_instance
from sr_assets.lineage.records import current_output
from sr_assets.lineage.stage import Ref, StageError
from sr_assets.recipe.loading import load_recipe
from sr_assets.storage import Output
from sr_assets.stores.expert_cache import CacheReader
from sr_assets.stores.pairs import PairReader
from sr_assets.stores.patches import PatchReader
from sr_assets.stores.samples import DatasetStores, TrainingSamples
from sr_models.fusion.experts import expert_mean
from sr_models.training.settings import TrainSettings
from sr_models.training.stored import dequantised


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

    def upscale(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        pictures = {"mean": expert_mean(inputs_of(batch, experts, cached, OURS).sr, experts)}
        for name, rival in rivals.items():
            found = []
            # One at a time: a map of the original's is 75 MB for an LR of 96x96.
            for i in range(len(batch["lr"])):
                one = {key: maps[i : i + 1] for key, maps in batch.items()}
                inputs = inputs_of(one, experts, cached, name)
                network = rival.averaged.network
                found.append(network(inputs.lr, inputs.sr, inputs.features))
            pictures[name] = torch.cat(found)
        return pictures

    found = {0: validated(samples, upscale, 0)}
    seconds = dict.fromkeys(rivals, 0.0)
    quarters = {max(1, options.steps * quarter // 4) for quarter in (1, 2, 3, 4)}
    for step in range(options.steps):
        arrays = samples.batch(step, options.batch, crop, SEED)
        batch = dequantised({key: torch.from_numpy(array) for key, array in arrays.items()})
        for name, rival in rivals.items():
            watch = Stopwatch()
            rival(inputs_of(batch, experts, cached, name), watch)
            seconds[name] += sum(watch.cpu.values()) / options.steps
        if step + 1 in quarters:
            found[step + 1] = validated(samples, upscale, step + 1)
    title = (
        f"PSNR-Y (dB) on the held-out images of {graph.recipe.name}, batch {options.batch}, "
        f"LR {crop}x{crop}, {len(samples)} samples\n"
        f"{parameters(rivals)}; "
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
        "peer": PEER,
        "unit": f"squared error on luma after {max(found)} steps, original / ours",
        "repeats": 1,
    }
    return headline, "\n".join(lines)
