"""Enlarges picture files with a model, tile by tile, one file or a whole folder.

Which network a name means is `model_lookup.py`; measuring what comes out is `compare.py`.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from tqdm import tqdm
from upath import UPath

from sr_assets.lineage.stage import StageError
from sr_assets.model_lookup import Upscaler, load_upscaler
from sr_assets.pictures import BadImage, Pixels, decode_rgb, inspect

if TYPE_CHECKING:
    from torch import Tensor

#: Endings of what can be written, and Pillow's arguments for it.
_FORMATS: dict[str, dict[str, object]] = {
    ".png": {"format": "PNG", "compress_level": 4},
    ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".webp": {"format": "WEBP", "quality": 95, "method": 4},
}
#: Endings of what is taken from a folder.
_READABLE = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"}
    | {".ppm", ".pgm", ".pnm", ".jp2"}
)


@dataclass
class UpscaleReport:
    """What happened to each picture."""

    written: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    """Outputs that were there already."""
    failed: list[tuple[Path, str]] = field(default_factory=list)
    """Inputs that could not be enlarged, and why."""
    megapixels: float = 0.0
    """Of the pictures that were written."""
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """0 when every picture is there now, else 1."""
        return 1 if self.failed else 0


def upscale_files(
    model: str,
    input: Path,  # noqa: A002 - the word of the command
    output: Path,
    *,
    root: str | Path | UPath,
    device: str = "auto",
    tile: int = 256,
    halo: int = 32,
    overwrite: bool = False,
    max_megapixels: float = 120.0,
    tell: Callable[[str], None] = lambda line: None,
) -> UpscaleReport:
    """Enlarges one picture, or every picture of a folder and below it.

    Args:
        model: see `load_upscaler`.
        input: a picture or a folder.
        output: for a picture, a file (PNG, JPEG or WebP by its ending) or a folder; for a folder, a
            folder that gets the same tree. A picture keeps its name; its ending too where it can be
            written, else it becomes .png.
        root: folder of a recipe's outputs.
        device: `auto`, `cpu`, `cuda` or `mps`.
        tile: side of a tile with its halo (LR px).
        halo: context on each side of a tile that is computed and thrown away (LR px).
        overwrite: make outputs that are there again; else they are kept, so that a folder resumes.
        max_megapixels: larger inputs are refused.
        tell: is given a line for every picture.

    Each output is written under a temporary name and renamed, so one that is there is whole.

    Raises:
        StageError: the model, input or output is wrong. A picture that fails is in the report.
    """
    jobs = _jobs(Path(input), Path(output))
    report = UpscaleReport()
    if not overwrite:
        report.skipped = [target for _, target in jobs if target.exists()]
        jobs = [job for job in jobs if not job[1].exists()]
    if report.skipped:
        tell(f"{len(report.skipped)} pictures are there already")
    if not jobs:
        return report
    if halo < 0 or tile <= 2 * halo:
        raise StageError(f"--tile {tile} must be more than twice the halo of {halo} px")
    upscaler = load_upscaler(model, root, device)
    started = time.monotonic()
    total = sum(_pixels(source, max_megapixels) for source, _ in jobs) * upscaler.scale**2
    with tqdm(
        total=total, unit="px", unit_scale=True, desc=upscaler.name, disable=not sys.stderr.isatty()
    ) as bar:
        for source, target in jobs:
            try:
                lr = decode_rgb(source.read_bytes(), max_megapixels)
                sr = upscale_picture(upscaler, lr, tile, halo, bar.update)
                write_picture(sr, target)
            except BadImage as error:
                reason = error.reason
            except (OSError, ValueError, ArithmeticError, MemoryError, RuntimeError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
            else:
                report.written.append(target)
                report.megapixels += sr.shape[0] * sr.shape[1] / 1e6
                tell(f"{target}: {sr.shape[1]}x{sr.shape[0]}")
                continue
            report.failed.append((source, reason))
            tell(f"{source}: {reason}")
    report.seconds = time.monotonic() - started
    return report


def upscale_picture(
    upscaler: Upscaler,
    lr: Pixels,
    tile: int = 256,
    halo: int = 32,
    advance: Callable[[float], object] = lambda pixels: None,
) -> Pixels:
    """Enlarges one picture: uint8 [h, w, 3] -> uint8 [scale h, scale w, 3].

    Args:
        upscaler: as loaded.
        lr: the picture.
        tile: side of a tile with its halo (LR px).
        halo: context that is thrown away (LR px).
        advance: is told the finished pixels of the output after each tile.

    Raises:
        ValueError: the network gave values that are not finite.
    """
    import torch

    from sr_models.inference.tiles import spans, upscale_tiled
    from sr_models.metrics.images import to_uint8

    height, width = lr.shape[:2]
    scale = upscaler.scale
    # Tiles too small for the network's windows lie anywhere: a little less exact, but they fit.
    grid = upscaler.grid if upscaler.grid <= tile - 2 * halo else 1
    tiles = len(spans(height, tile, halo, grid)) * len(spans(width, tile, halo, grid))
    share = height * width * scale**2 / tiles
    planes = torch.from_numpy(np.ascontiguousarray(lr.transpose(2, 0, 1)))[None]

    def forward(piece: Tensor) -> Tensor:
        # Both sides of a large picture stay in 8 bits: a quarter of the memory of floats.
        sr = upscaler.forward(piece.to(upscaler.device).float() / 255)
        return torch.from_numpy(to_uint8(sr)).permute(0, 3, 1, 2)

    def advance_tiles(tiles: int) -> None:
        advance(tiles * share)

    sr = upscale_tiled(forward, planes, scale, tile, halo, advance_tiles, grid)
    return np.ascontiguousarray(sr[0].permute(1, 2, 0).numpy())


def write_picture(pixels: Pixels, target: Path) -> None:
    """Writes uint8 [H, W, 3] as PNG, JPEG or WebP, by the ending of `target`, in one step.

    Raises:
        StageError: another ending.
        OSError: the file cannot be written, or the format holds no picture of this size.
    """
    if target.suffix.lower() not in _FORMATS:
        raise StageError(f"{target}: pictures are written as {', '.join(_FORMATS)}")
    buffer = io.BytesIO()
    try:
        Image.fromarray(pixels).save(buffer, **_FORMATS[target.suffix.lower()])  # type: ignore[arg-type]
    except ValueError as error:  # Pillow's word for a picture that is too large for the format
        raise OSError(f"cannot be written as {target.suffix}: {error}") from error
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _jobs(source: Path, output: Path) -> list[tuple[Path, Path]]:
    """(input, output) of every picture, in a fixed order; no output is an input."""
    jobs = _file_jobs(source, output) if source.is_file() else _folder_jobs(source, output)
    inputs = {path.resolve() for path, _ in jobs}
    for _, target in jobs:
        if target.resolve() in inputs:
            raise StageError(f"{target} is an input itself: name another output")
    return jobs


def _file_jobs(source: Path, output: Path) -> list[tuple[Path, Path]]:
    into_folder = output.is_dir() or not output.suffix
    target = output / _output_name(Path(source.name)) if into_folder else output
    if target.suffix.lower() not in _FORMATS:
        raise StageError(f"{target}: pictures are written as {', '.join(_FORMATS)}")
    return [(source, target)]


def _folder_jobs(source: Path, output: Path) -> list[tuple[Path, Path]]:
    if not source.is_dir():
        raise StageError(f"there is no file or folder {source}")
    if output.is_file():
        raise StageError(f"{output} is a file, but {source} is a folder: name a folder")
    if output.resolve() == source.resolve():
        raise StageError(f"{output} is the input folder itself: name another folder")
    found = [p.relative_to(source) for p in _pictures(source, output.resolve())]
    if not found:
        raise StageError(f"{source} holds no pictures ({', '.join(sorted(_READABLE))})")
    targets = [_output_name(name) for name in found]
    folded = [str(target).casefold() for target in targets]
    return [
        # photo.tif beside photo.png: the full name keeps both.
        (source / name, output / (target if folded.count(key) == 1 else Path(f"{name}.png")))
        for name, target, key in zip(found, targets, folded, strict=True)
    ]


def _pictures(source: Path, output: Path) -> Iterator[Path]:
    below = output.is_relative_to(source.resolve())
    for path in sorted(source.rglob("*")):
        inside = below and path.resolve().is_relative_to(output)  # of an earlier run
        if path.suffix.lower() in _READABLE and path.is_file() and not inside:
            yield path


def _output_name(name: Path) -> Path:
    return name if name.suffix.lower() in _FORMATS else name.with_suffix(".png")


def _pixels(source: Path, max_megapixels: float) -> int:
    """For the bar, from the header alone; a file that cannot be read counts for nothing."""
    try:
        facts = inspect(source, max_megapixels, decode=False)
    except (BadImage, MemoryError):
        return 0
    return facts.width * facts.height
