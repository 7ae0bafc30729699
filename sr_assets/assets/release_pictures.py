"""Before and after: strips of a benchmark's pictures that a release may show.

Only pictures whose licence lets anybody pass them on are cut; where they are shown is the card's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from sr_assets.evaluation.crops import choose_crops
from sr_assets.evaluation.pixels import decode_png, encode_png
from sr_assets.evaluation.results import BICUBIC, Results, results_from_json
from sr_assets.lineage.stage import StageContext
from sr_assets.recipe.models import Recipe
from sr_assets.recipe.sources import BuiltinSource
from sr_assets.report.licences import FREE_LICENCES, hub_licence
from sr_assets.report.model_card import Picture

_SIDE = 192  # of a square (px)
_GAP = 6  # white between squares (px)


def shown_benchmarks(recipe: Recipe) -> tuple[str, ...]:
    """Benchmarks whose pictures a card may show: photos that ship with scikit-image, free ones."""
    return tuple(
        name
        for name, benchmark in recipe.benchmarks.items()
        if isinstance(benchmark.source, BuiltinSource)
        or hub_licence(benchmark.licence) in FREE_LICENCES
    )


def strips(context: StageContext, model: str) -> dict[str, tuple[Picture, bytes]]:
    """File name -> what it shows, and the PNG: LR, bicubic, the model and HR side by side.

    Of each benchmark the image on which the model gains most over bicubic, and the one on which it
    gains least, each where the pictures differ most.
    """
    found: dict[str, tuple[Picture, bytes]] = {}
    for benchmark in shown_benchmarks(context.recipe):
        own = context.input(f"model/{model}/evaluation", benchmark)
        baselines = context.input("evaluation/baselines", benchmark)
        results = results_from_json(json.loads(own.read_bytes("results.json")))
        anchor = results_from_json(json.loads(baselines.read_bytes(f"{BICUBIC}/results.json")))
        for number, (image, gain) in enumerate(_chosen(results, anchor), 1):
            file = next(i.picture for i in results.images if i.name == image)
            name = file.removeprefix("sr/")
            pictures = {
                "lr": decode_png(baselines.read_bytes(f"lr/{name}")),
                BICUBIC: decode_png(baselines.read_bytes(f"{BICUBIC}/{file}")),
                "sr": decode_png(own.read_bytes(file)),
                "hr": decode_png(baselines.read_bytes(f"hr/{name}")),
            }
            licence = context.recipe.benchmarks[benchmark].licence
            picture = Picture(f"assets/{benchmark}_{number}.png", benchmark, image, gain, licence)
            found[picture.file] = (picture, encode_png(_strip(pictures, context.recipe.scale)))
    return found


def _chosen(own: Results, bicubic: Results) -> list[tuple[str, float]]:
    """(Image, gain in dB): the largest gain first, then the smallest; one where there is one."""
    anchor = {image.name: image.psnr_y for image in bicubic.images}
    gains = sorted(
        ((image.psnr_y - other, image.name) for image in own.images
         if image.psnr_y is not None and (other := anchor.get(image.name)) is not None),
        reverse=True,
    )  # fmt: skip
    ends = gains[:1] + gains[1:][-1:]
    return [(name, gain) for gain, name in ends]


def _strip(pictures: Mapping[str, np.ndarray], scale: int) -> np.ndarray:
    """uint8 [side, 4 side + gaps, 3]: the same square of each; LR enlarged by repeating pixels."""
    large = [pictures[row] for row in ("sr", BICUBIC, "hr")]
    side = min(_SIDE, *large[0].shape[:2]) // scale * scale
    places = choose_crops(large, side, 1, scale)
    x, y, side = places[0] if places else (0, 0, side)
    small = pictures["lr"][y // scale : (y + side) // scale, x // scale : (x + side) // scale]
    squares = [small.repeat(scale, 0).repeat(scale, 1)]
    squares += [pictures[row][y : y + side, x : x + side] for row in (BICUBIC, "sr", "hr")]
    gap = np.full((side, _GAP, 3), 255, np.uint8)
    parts = [part for square in squares for part in (square, gap)][:-1]
    return np.concatenate(parts, axis=1)
