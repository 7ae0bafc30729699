"""The controls that need no network of their own: bicubic, the mean of the experts, the best mix.

They are measured like every other row. HR and LR of the benchmark are kept here too, once for all
rows, because the report shows them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from sr_assets.evaluation.benchmark import BenchmarkImage, benchmark_images, read_pair
from sr_assets.evaluation.measuring import facts, open_further
from sr_assets.evaluation.pixels import encode_png, to_tensor
from sr_assets.evaluation.results import BICUBIC, CONVEX, MEAN, ImageScore, Results, measure
from sr_assets.lineage.stage import StageContext, StageError
from sr_assets.stores.expert_cache import CacheReader
from sr_assets.stores.patches import TRAIN, PatchReader
from sr_assets.stores.whole_images import read_image

if TYPE_CHECKING:
    from torch import Tensor

#: Training samples that the weights of the mix are fitted on, at most.
FIT_SAMPLES = 200


def evaluate_baselines(context: StageContext) -> dict[str, Any]:
    """Writes `<row>/results.json`, `<row>/sr/<picture>`, `hr/` and `lr/`; returns metadata.

    Raises:
        StageError: there is nothing to measure, or nothing to fit the mix on.
    """
    from sr_models.metrics.images import to_uint8

    experts, scale = tuple(context.recipe.experts), context.recipe.scale
    weights = fit_mix(context, experts) if experts else None
    scores: dict[str, list[ImageScore]] = {}
    further = open_further(context.recipe)
    images = benchmark_images(context)
    with context.progress(str(context.ref), len(images)) as advance:
        for image in images:
            lr, hr = read_pair(context.given, image)
            context.output.write_bytes(f"hr/{image.picture}", encode_png(hr))
            context.output.write_bytes(f"lr/{image.picture}", encode_png(lr))
            for row, sr in _pictures(context, image, lr, experts, weights):
                file, rounded = f"sr/{image.picture}", to_uint8(sr[0])
                context.output.write_bytes(f"{row}/{file}", encode_png(rounded))
                score = measure(image.name, file, rounded, hr, scale, lr, further)
                scores.setdefault(row, []).append(score)
            advance(1)
    metadata: dict[str, Any] = {"images": len(images)}
    notes = {MEAN: "equal weights"}
    if weights is not None:
        parts = [f"{e} {w:.2f}" for e, w in zip(experts, weights, strict=True)]
        notes[CONVEX] = ", ".join(parts)
        metadata["convex_weights"] = {
            e: round(float(w), 6) for e, w in zip(experts, weights, strict=True)
        }
        context.output.write_json("convex.json", metadata["convex_weights"])
    for row, found in scores.items():
        note = notes.get(row, "")
        results = Results(row, row, tuple(found), None, note, facts=facts(further))
        context.output.write_json(f"{row}/results.json", results.to_json())
        if (psnr := results.mean["psnr_y"]) is not None:
            metadata[f"psnr_y_{row}"] = psnr
        metadata[f"ssim_y_{row}"] = results.mean["ssim_y"]
    return metadata


def fit_mix(context: StageContext, experts: tuple[str, ...]) -> np.ndarray:
    """Weights of the best fixed mix, fitted on training patches spread evenly over the datasets.

    Raises:
        StageError: no dataset has a training patch.
    """
    from sr_models.fusion.convex import convex_weights, error_products

    try:
        return convex_weights(error_products(_fit_pairs(context, experts)))
    except ValueError as error:
        raise StageError(
            f"evaluation/baselines: {error}: no dataset has a training patch"
        ) from error


def _fit_pairs(
    context: StageContext, experts: tuple[str, ...]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    datasets = context.recipe.training_datasets()
    for place, dataset in enumerate(datasets):
        share = FIT_SAMPLES * (place + 1) // len(datasets) - FIT_SAMPLES * place // len(datasets)
        patches = PatchReader(context.input("silver/patches", dataset))
        caches = [CacheReader(context.input(f"expert/{e}/cache", dataset)) for e in experts]
        train = np.flatnonzero(patches.split == TRAIN)
        chosen = train[np.linspace(0, len(train) - 1, min(share, len(train))).astype(int)]
        for turn, index in enumerate(chosen.tolist()):
            variant = turn % caches[0].variants
            pictures = np.stack([cache.sr(index, variant) for cache in caches])
            yield pictures, patches.hr(index).transpose(2, 0, 1) / np.float32(255)


def _pictures(
    context: StageContext,
    image: BenchmarkImage,
    lr: np.ndarray,
    experts: tuple[str, ...],
    weights: np.ndarray | None,
) -> Iterator[tuple[str, Tensor]]:
    """(row, its SR [1, 3, H, W], not clamped) for every row of the recipe."""
    import torch

    from sr_models.degradations.bicubic import upscale
    from sr_models.fusion.experts import expert_mean

    # In double precision, as the LR is made: no half way value is rounded by accident.
    yield BICUBIC, upscale(to_tensor(lr).double(), context.recipe.scale)
    if weights is None:
        return
    sr = {
        e: torch.from_numpy(
            read_image(context.input(f"expert/{e}/evaluation", context.partition), image.key)
        ).unsqueeze(0)
        for e in experts
    }
    yield MEAN, expert_mean(sr, experts)
    mixed = [float(w) * sr[e] for e, w in zip(experts, weights, strict=True)]
    yield CONVEX, torch.stack(mixed).sum(0)
