"""Models side by side on one picture: a labelled picture and the numbers beneath it.

The input is taken for HR: it is reduced by the convention of the reports and enlarged again. The
page of several pictures is `compare_page.py`.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from upath import UPath

from sr_assets.evaluation.results import BICUBIC, CONVEX, MEAN, smallest_side
from sr_assets.lineage.stage import StageError
from sr_assets.model_lookup import Upscaler, load_upscaler
from sr_assets.pictures import BadImage, Pixels, decode_rgb
from sr_assets.report.numbers import count, decibels, giga, three_figures
from sr_assets.upscaling.enlarging import upscale_picture
from sr_assets.upscaling.writing import write_picture

_BAR = 22  # px of a label above its panel
_GAP = 4  # px between panels
_RESERVED = (BICUBIC, MEAN, CONVEX, "hr", "lr")


@dataclass(frozen=True)
class CompareRow:
    """One way to enlarge the reduced picture."""

    name: str
    psnr_y: float
    """dB; infinite where the picture equals the original."""
    ssim_y: float
    colour_offset: tuple[float, float, float]
    """Mean of SR minus HR for red, green and blue (grey levels)."""
    seconds: float
    """Of all pictures together."""
    parameters: int | None = None
    """Of all networks that run, a fusion's experts included; None for bicubic."""
    multiply_adds: int | None = None
    """For one megapixel (10⁶ px) of output."""


@dataclass(frozen=True)
class CompareReport:
    """The picture that was written and what was measured on the whole image."""

    output: Path
    scale: int
    width: int
    height: int
    """Of the measured HR (px)."""
    rows: tuple[CompareRow, ...]


def compare_files(
    input: Path,  # noqa: A002 - the word of the command
    models: Sequence[str],
    output: Path,
    *,
    root: str | Path | UPath,
    device: str = "auto",
    tile: int = 256,
    halo: int = 32,
    panel: int = 384,
    max_megapixels: float = 120.0,
) -> CompareReport:
    """Reduces a picture, enlarges it with bicubic and each model, and measures and shows them.

    Args:
        input: the picture that is taken for HR; cropped to a multiple of the scale.
        models: at least one, all of the same scale; see `load_upscaler`.
        output: PNG, JPEG or WebP file with the panels HR, bicubic and each model in a row.
        root: folder of a recipe's outputs.
        device: `auto`, `cpu`, `cuda` or `mps`.
        tile: side of a tile with its halo (LR px).
        halo: context on each side of a tile that is thrown away (LR px).
        panel: largest side of a panel (px); of a larger picture the part that the ways differ in
            most is shown, at full size.
        max_megapixels: larger inputs are refused.

    Raises:
        StageError: the picture or a model is wrong, or scales differ.
    """
    from sr_models.metrics.images import colour_offset, psnr_y, ssim_y

    upscalers = load_upscalers(models, root, device)
    scale = next(iter(upscalers.values())).scale
    hr = read_hr(input, scale, max_megapixels)
    _, pictures = enlarge(input, hr, upscalers, tile, halo)
    counts = count_costs(upscalers)
    rows = tuple(
        CompareRow(
            name,
            psnr_y(sr, hr, scale),
            ssim_y(sr, hr, scale),
            colour_offset(sr, hr),
            seconds,
            *counts.get(name, ()),
        )
        for name, (sr, seconds) in pictures.items()
    )
    labels = ["HR", *(f"{row.name}  {_decibels(row.psnr_y)}" for row in rows)]
    write_picture(_sheet(labels, [hr, *(sr for sr, _ in pictures.values())], panel), output)
    return CompareReport(output, scale, hr.shape[1], hr.shape[0], rows)


def table_lines(rows: Sequence[CompareRow]) -> list[str]:
    """The rows for a terminal; names of up to 44 characters fit into 100 columns."""
    width = max(len(row.name) for row in rows)
    lines = [f"{'':{width}}  PSNR-Y dB  SSIM-Y  parameters  G mult-adds/MP  seconds"]
    for row in rows:
        psnr = decibels(row.psnr_y) if math.isfinite(row.psnr_y) else "identical"
        size = count(row.parameters) if row.parameters else ""
        work = giga(row.multiply_adds) if row.multiply_adds else ""
        lines.append(
            f"{row.name:{width}}  {psnr:>9}  {row.ssim_y:.4f}  {size:>10}  {work:>14}"
            f"  {three_figures(row.seconds):>7}"
        )
    return lines


def load_upscalers(
    models: Sequence[str], root: str | Path | UPath, device: str
) -> dict[str, Upscaler]:
    """The networks that `models` name, by a name that no other has, all of one scale, in torch.

    Raises:
        StageError: there is none, one cannot be loaded, or scales differ.
    """
    if not models:
        raise StageError("name at least one model")
    found: dict[str, Upscaler] = {}
    for model in models:
        # As evaluations run it: a faster backend may round more.
        upscaler = load_upscaler(model, root, device, backend="torch")
        first = next(iter(found.values()), upscaler)
        if upscaler.scale != first.scale:
            raise StageError(
                f"{upscaler.name} enlarges {upscaler.scale} times and {first.name} {first.scale}: "
                "compare models of one scale"
            )
        name, number = upscaler.name, 1
        while name in (*found, *_RESERVED):
            number += 1
            name = f"{upscaler.name} ({number})"
        found[name] = upscaler
    return found


def enlarge(
    path: Path, hr: Pixels, upscalers: Mapping[str, Upscaler], tile: int, halo: int
) -> tuple[Pixels, dict[str, tuple[Pixels, float]]]:
    """LR of `hr`, and by name what bicubic and each network make of it, with the seconds it took.

    Raises:
        StageError: a network fails on the picture.
    """
    import torch

    from sr_models.degradations.bicubic import downscale_uint8, upscale
    from sr_models.metrics.images import to_uint8

    scale = next(iter(upscalers.values())).scale
    lr = downscale_uint8(hr, scale)
    started = time.monotonic()
    planes = torch.from_numpy(lr.transpose(2, 0, 1).astype(np.float32) / 255)[None]
    found = {BICUBIC: (to_uint8(upscale(planes, scale))[0], time.monotonic() - started)}
    for name, upscaler in upscalers.items():
        started = time.monotonic()
        try:
            picture = upscale_picture(upscaler, lr, tile, halo)
        except (ValueError, ArithmeticError, RuntimeError) as error:
            raise StageError(f"{name} on {path}: {error}") from error
        found[name] = (picture, time.monotonic() - started)
    return lr, found


def count_costs(upscalers: Mapping[str, Upscaler]) -> dict[str, tuple[int, int]]:
    """Name -> parameters and multiply-adds for a megapixel of output of all that runs.

    Those that fail on a picture of 96x96 px are left out.
    """
    from sr_models.metrics import closed
    from sr_models.metrics.cost import SIDE

    found = {}
    for name, upscaler in upscalers.items():
        side = math.ceil(SIDE / upscaler.grid) * upscaler.grid
        with contextlib.suppress(ValueError, ArithmeticError, RuntimeError):
            counted = closed.count(
                upscaler.forward, upscaler.scale, device=upscaler.device, side=side
            )
            if counted:
                found[name] = (counted.parameters, counted.multiply_adds)
    return found


def read_hr(path: Path, scale: int, max_megapixels: float) -> Pixels:
    """A picture, cropped to a multiple of the scale.

    Raises:
        StageError: it is missing, broken, too large or too small to be measured.
    """
    try:
        hr = decode_rgb(path.read_bytes(), max_megapixels)
    except FileNotFoundError as error:
        raise StageError(f"there is no file {path}") from error
    except (BadImage, OSError) as error:
        raise StageError(f"{path}: {error}") from error
    height, width = (side - side % scale for side in hr.shape[:2])
    if min(height, width) < smallest_side(scale):
        raise StageError(
            f"{path} is {hr.shape[1]}x{hr.shape[0]}: measuring at x{scale} needs sides of "
            f"{smallest_side(scale)} px"
        )
    return np.ascontiguousarray(hr[:height, :width])


def _decibels(value: float) -> str:
    return f"{value:.2f} dB" if math.isfinite(value) else "identical"


def _sheet(labels: Sequence[str], pictures: Sequence[Pixels], panel: int) -> Pixels:
    """The panels in a row, each with its label above it."""
    top, left = _most_different(pictures[1:], panel)
    crops = [picture[top : top + panel, left : left + panel] for picture in pictures]
    height, width = crops[0].shape[:2]
    font = ImageFont.load_default(13)
    step = max(width, *(math.ceil(font.getlength(label)) + 8 for label in labels)) + _GAP
    sheet = Image.new("RGB", (step * len(crops) - _GAP, height + _BAR), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (label, crop) in enumerate(zip(labels, crops, strict=True)):
        draw.text((index * step + 4, 3), label, fill="black", font=font)
        sheet.paste(Image.fromarray(np.ascontiguousarray(crop)), (index * step, _BAR))
    return np.asarray(sheet)


def _most_different(pictures: Sequence[Pixels], side: int) -> tuple[int, int]:
    """Top and left of the square in which the pictures differ most, on a grid of side / 4."""
    height, width = pictures[0].shape[:2]
    spread = np.zeros((height, width), np.float32)
    for picture in pictures[1:]:
        difference = picture.astype(np.float32) - pictures[0]
        spread = np.maximum(spread, np.square(difference).mean(2))
    sums = np.pad(spread.cumsum(0, np.float64).cumsum(1), ((1, 0), (1, 0)))
    step = max(side // 4, 1)
    best = (-1.0, 0, 0)
    for top in _starts(height, side, step):
        for left in _starts(width, side, step):
            bottom, right = min(top + side, height), min(left + side, width)
            inside = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
            if inside > best[0]:
                best = (float(inside), top, left)
    return best[1], best[2]


def _starts(size: int, side: int, step: int) -> list[int]:
    return [0] if size <= side else [*range(0, size - side, step), size - side]
