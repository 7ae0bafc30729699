"""Models side by side on any pictures: the page that a leaderboard has, in one file.

Each picture is taken for HR, reduced by the convention of the reports and enlarged again. Nothing
is recorded: what is to be kept and released is measured by the graph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from upath import UPath

from sr_assets.compare import CompareRow, count_costs, enlarge, load_upscalers, read_hr
from sr_assets.evaluation.gallery import entry, weakest_images
from sr_assets.evaluation.measuring import facts
from sr_assets.evaluation.pixels import decode_png, encode_png
from sr_assets.evaluation.provenance import provenance_of_files
from sr_assets.evaluation.results import BICUBIC, ImageScore, Results, measure, side_by_side
from sr_assets.lineage.stage import StageError
from sr_assets.model_lookup import Upscaler
from sr_assets.pictures import Pixels
from sr_assets.report.embedding import embed, picture_groups
from sr_assets.report.page import Surroundings, render_page

_READABLE = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_CROPS, _CROP_SIZE = 3, 96


def compare_on_page(
    input: Path,  # noqa: A002 - the word of the command
    models: Sequence[str],
    output: Path,
    *,
    root: str | Path | UPath,
    device: str = "auto",
    tile: int = 256,
    halo: int = 32,
    max_megapixels: float = 120.0,
) -> tuple[CompareRow, ...]:
    """Measures bicubic and each model on pictures and writes the page.

    Args:
        input: a picture, or a folder of pictures; each is cropped to a multiple of the scale.
        models: at least one, all of the same scale; see `load_upscaler`.
        output: HTML file with everything inside; large pictures of many inputs are compressed, and
            left out where they would make it larger than 20 MB.
        root: folder of a recipe's outputs.
        device: `auto`, `cpu`, `cuda` or `mps`.
        tile, halo: as in `upscale_picture` (LR px).
        max_megapixels: larger inputs are refused.

    Returns:
        Means over the pictures; an infinite PSNR-Y where every picture equals its original.

    Raises:
        StageError: a picture or a model is wrong, or scales differ.
    """
    files = _files(input)
    upscalers = load_upscalers(models, root, device)
    scale = next(iter(upscalers.values())).scale
    scores: dict[str, list[ImageScore]] = {name: [] for name in (BICUBIC, *upscalers)}
    seconds = dict.fromkeys(scores, 0.0)
    kept: dict[str, bytes] = {}
    megapixels = 0.0
    for name, file in files.items():
        hr = read_hr(file, scale, max_megapixels)
        megapixels += hr.shape[0] * hr.shape[1] / 1e6
        lr, made = enlarge(file, hr, upscalers, tile, halo)
        folder = f"images/{name}"
        pictures: dict[str, Pixels] = {"hr": hr, "lr": lr}
        for row, (sr, took) in made.items():
            pictures[row] = sr
            seconds[row] += took
            scores[row].append(measure(name, f"{folder}/{row}.png", sr, hr, scale, lr))
        kept |= {f"{folder}/{row}.png": encode_png(p) for row, p in pictures.items()}
    title = input.resolve().stem
    results = {
        row: Results(row, BICUBIC if row == BICUBIC else "model", tuple(own), None)
        for row, own in scores.items()
    }
    counts = count_costs(upscalers)
    board = _board(title, scale, results, counts)
    gallery = {title: _gallery(results, kept, scale)}
    speeds = {
        row: {"seconds": s, "total_seconds": s, "devices": [_where(upscalers[row])]}
        for row, took in seconds.items()
        if row in upscalers
        for s in [took / megapixels]
    }
    inside = embed(*picture_groups(board, gallery), kept.__getitem__, beside=False)
    read = {model: path for model in models if (path := Path(model)).is_file()} | files
    around = Surroundings(inside, provenance=provenance_of_files(read))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(render_page(board, gallery, speeds, around), encoding="utf-8")
    return tuple(
        CompareRow(
            row,
            math.inf if score["psnr_y"] is None else score["psnr_y"],
            score["ssim_y"],
            score["colour_offset"],
            seconds[row],
            *counts.get(row, ()),
        )
        for row, score in side_by_side(results).items()
    )


def _where(upscaler: Upscaler) -> str:
    """The processor, as the leaderboard tells it."""
    import torch

    from sr_models.metrics.cost import device_name

    name, threads = device_name(upscaler.device), torch.get_num_threads()
    if upscaler.device.type != "cpu":
        return name
    return f"{name}, {threads} thread{'s' * (threads > 1)}"


def _files(path: Path) -> dict[str, Path]:
    """Name on the page -> file."""
    if not path.is_dir():
        return {path.name: path}
    files = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in _READABLE]
    if not files:
        raise StageError(f"{path} holds no pictures ({', '.join(_READABLE)})")
    return {file.relative_to(path).as_posix(): file for file in files}


def _board(
    title: str, scale: int, results: Mapping[str, Results], counts: Mapping[str, tuple[int, int]]
) -> dict[str, Any]:
    scores = side_by_side(results)
    costs = {row: counts.get(row, (None, None)) for row in results}
    rows = [
        {
            "name": row,
            "kind": own.kind,
            "note": own.note,
            "parameters": costs[row][0],
            "total_parameters": costs[row][0],
            "multiply_adds": costs[row][1],
            "total_multiply_adds": costs[row][1],
            "benchmarks": {title: scores[row]},
        }
        for row, own in results.items()
    ]
    return {"recipe": title, "scale": scale, "rows": rows, "checks": None, "facts": facts(())}


def _gallery(
    results: Mapping[str, Results], kept: dict[str, bytes], scale: int
) -> list[dict[str, Any]]:
    """What `render_page` calls the images; their thumbnails and crops are added to `kept`."""
    weak = weakest_images({row: {"": own.images} for row, own in results.items()})
    listed = results[BICUBIC].images
    found = []
    for index, image in enumerate(listed):
        folder = f"images/{image.name}"
        pictures = {row: decode_png(kept[f"{folder}/{row}.png"]) for row in ("hr", "lr", *results)}
        found.append(
            entry(
                folder,
                pictures,
                {row: own.images[index] for row, own in results.items()},
                weak.get(("", image.name), ()),
                kept.__setitem__,
                scale=scale,
                crops=_CROPS,
                crop_size=_CROP_SIZE,
            )
        )
    return found
