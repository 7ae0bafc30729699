"""The pictures of the report for one image: all rows beside the original, a thumbnail, and crops.

It cuts, measures and hands over files. What is compared is `leaderboard.py` and `compare.py`
decide; how it is laid out is `report/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sr_assets.evaluation.crops import choose_crops, weakest_square
from sr_assets.evaluation.pixels import encode_png
from sr_assets.evaluation.results import BICUBIC, CONVEX, MEAN, ImageScore

#: Puts a file (path relative to the page, content) beside the page.
Put = Callable[[str, bytes], object]
#: Rows that no network of their own made, and the two originals.
_NO_NETWORK = ("hr", "lr", BICUBIC, MEAN, CONVEX)
_THUMB = 256  # side that holds a thumbnail (px)
_WEAKEST = 3  # images a row is shown at its weakest on


def entry(
    folder: str,
    pictures: Mapping[str, np.ndarray],
    scores: Mapping[str, ImageScore],
    weak: Iterable[str],
    put: Put,
    *,
    scale: int,
    crops: int,
    crop_size: int,
) -> dict[str, Any]:
    """What `render_page` calls an image; thumbnail and crops are handed to `put`.

    Args:
        folder: of the image's files, relative to the page; `<row>.png`, `hr.png` and `lr.png` are
            put there by the caller.
        pictures: uint8 [H, W, 3] by `hr`, `lr` ([H / scale, W / scale, 3]) and row name.
        scores: of every row.
        weak: rows that are shown at their weakest on this image.
        put: takes every file.
        scale: upscaling factor.
        crops, crop_size: how many squares at most, and their side (px).
    """
    first = next(iter(scores.values()))
    return {
        "name": first.name,
        "width": first.width,
        "height": first.height,
        "hr": f"{folder}/hr.png",
        "lr": f"{folder}/lr.png",
        "thumb": _write_thumb(folder, pictures["hr"], put),
        "rows": {row: _cell(folder, row, score) for row, score in scores.items()},
        "crops": _write_crops(folder, pictures, put, scale, crops, crop_size),
        "weak": [_write_weak(folder, row, pictures, put, scale, crop_size) for row in weak],
    }


def weakest_images(
    rows: Mapping[str, Mapping[str, Sequence[ImageScore]]],
) -> dict[tuple[str, str], list[str]]:
    """(Benchmark, image name) -> the rows that are shown at their weakest there.

    For every row with a network: the few images with the smallest gain of PSNR-Y over bicubic.

    Args:
        rows: row name -> benchmark -> its images, the same and in the same order in every row.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for row, benchmarks in rows.items():
        if row in _NO_NETWORK:
            continue
        gains = [
            (own.psnr_y - anchor.psnr_y, benchmark, own.name)
            for benchmark, images in benchmarks.items()
            for own, anchor in zip(images, rows[BICUBIC][benchmark], strict=True)
            if own.psnr_y is not None and anchor.psnr_y is not None
        ]
        for _, benchmark, name in sorted(gains)[:_WEAKEST]:
            found.setdefault((benchmark, name), []).append(row)
    return found


def _cell(folder: str, row: str, score: ImageScore) -> dict[str, Any]:
    return {
        "src": f"{folder}/{row}.png",
        "psnr_y": score.psnr_y,
        "ssim_y": score.ssim_y,
        "metrics": dict(score.metrics),
    }


def _write_thumb(folder: str, hr: np.ndarray, put: Put) -> str:
    from PIL import Image

    thumb = Image.fromarray(hr)
    thumb.thumbnail((_THUMB, _THUMB), Image.Resampling.LANCZOS)
    file = f"{folder}/thumb-hr.png"  # no row has a hyphen in its name
    put(file, encode_png(np.asarray(thumb)))
    return file


def _write_crops(
    folder: str,
    pictures: Mapping[str, np.ndarray],
    put: Put,
    scale: int,
    count: int,
    size: int,
) -> list[dict[str, Any]]:
    """Cuts the same squares out of every picture, HR first, where the networks differ most."""
    networks = [p for row, p in pictures.items() if row not in _NO_NETWORK]
    compared = networks if len(networks) > 1 else [*networks, pictures[BICUBIC], pictures["hr"]]
    return [
        _square(f"{folder}/crop{number + 1}", pictures, list(pictures), place, scale, put)
        for number, place in enumerate(choose_crops(compared, size, count, scale))
    ]


def _write_weak(
    folder: str, row: str, pictures: Mapping[str, np.ndarray], put: Put, scale: int, size: int
) -> dict[str, Any]:
    place = weakest_square(pictures[row], pictures[BICUBIC], pictures["hr"], size, scale)
    shown = ("lr", BICUBIC, row, "hr")
    return {"row": row, **_square(f"{folder}/weak-{row}", pictures, shown, place, scale, put)}


def _square(
    stem: str,
    pictures: Mapping[str, np.ndarray],
    rows: Sequence[str],
    place: tuple[int, int, int],
    scale: int,
    put: Put,
) -> dict[str, Any]:
    """One square of the given rows, each measured against HR's."""
    from sr_models.metrics.images import psnr_y

    x, y, side = place
    original = pictures["hr"][y : y + side, x : x + side]
    cells = []
    for row in rows:
        shrink = scale if row == "lr" else 1
        piece = pictures[row][
            y // shrink : (y + side) // shrink, x // shrink : (x + side) // shrink
        ]
        src = f"{stem}-{row}.png"
        put(src, encode_png(np.ascontiguousarray(piece)))
        measured = row not in ("hr", "lr") and not np.array_equal(piece, original)
        psnr = psnr_y(piece, original, 0) if measured else None
        cells.append({"row": row, "src": src, "psnr_y": psnr})
    return {"x": x, "y": y, "size": side, "cells": cells}
