"""Enlarges what moves: a video file, or a folder of frames with `--temporal`."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from upath import UPath

from sr_assets.lineage.stage import StageError
from sr_assets.upscaling.files import UpscaleReport
from sr_assets.upscaling.frame_folders import upscale_frames
from sr_assets.upscaling.precision import load_enlarger
from sr_assets.upscaling.sequences import Sequence
from sr_assets.upscaling.videos import is_video, load_av, upscale_video_file


def upscale_clip(
    model: str,
    input: Path,  # noqa: A002 - the word of the command
    output: Path,
    *,
    root: str | Path | UPath,
    temporal: bool,
    device: str = "auto",
    backend: str = "auto",
    dtype: str = "auto",
    tile: int | None = None,
    halo: int | None = None,
    self_ensemble: bool = False,
    format: str | None = None,  # noqa: A002 - the word of the command
    quality: int | None = None,
    depth: int | None = None,
    overwrite: bool = False,
    max_megapixels: float = 120.0,
    tell: Callable[[str], None] = lambda line: None,
) -> UpscaleReport:
    """Enlarges one clip; arguments as `upscale_files` where they have its names.

    Args:
        model: see `load_upscaler`.
        input: a video file, or with `temporal` a folder or pattern of frames.
        output: a video file, or a folder; a folder gets a video under its own name.
        root: folder of a recipe's outputs.
        temporal: each frame with the features of the one before, which ParagonSR2 can.
        device: `auto`, `cpu`, `cuda` or `mps`.
        backend: see `load_upscaler`.
        dtype: `auto`, `fp32`, `bf16` or `fp16`.
        tile: side of a tile with its halo (LR px); not with `temporal`.
        halo: context on each side of a tile (LR px); not with `temporal`.
        self_ensemble: the mean of the eight flips and transposes.
        format: of frames in a folder.
        quality: 1 to 100.
        depth: 8 bits a sample, whatever the input has.
        overwrite: make what is there again.
        max_megapixels: larger frames are refused.
        tell: is given a line for what is worth saying.

    Raises:
        StageError: model, input or output is wrong, or a frame cannot be enlarged.
    """
    if depth not in (None, 8):
        raise StageError(f"--depth {depth}: frames are written in 8 bits a sample")
    if temporal:
        if tile is not None or halo is not None:
            raise StageError("--temporal runs frames whole: leave --tile and --halo out")
        if backend not in ("auto", "torch"):
            raise StageError(f"--temporal runs on torch alone: leave --backend {backend} out")
        backend = "torch"
    started = time.monotonic()
    loaded = partial(load_enlarger, model, root, device, backend, dtype, self_ensemble)
    if not is_video(input):
        sequence = Sequence(loaded(), True)
        return upscale_frames(
            sequence, input, output, format=format, quality=quality, overwrite=overwrite,
            max_megapixels=max_megapixels, tell=tell,
        )  # fmt: skip
    if not input.is_file():
        raise StageError(f"there is no file {input}")
    if format is not None:
        raise StageError("--format is for pictures: the ending of OUTPUT says how a video is kept")
    target = output / input.with_suffix(".mp4").name if _is_folder(output) else output
    if target.resolve() == input.resolve():
        raise StageError(f"{target} is the input itself: name another output")
    if target.exists() and not overwrite:
        tell(f"{target} is there already")
        return UpscaleReport(skipped=[target])
    load_av()
    sequence = Sequence(loaded(), temporal, tile, halo)
    made = upscale_video_file(
        sequence, input, target, quality=quality, max_megapixels=max_megapixels, tell=tell
    )
    tell(f"{target}: {made.frames} frames of {made.width}x{made.height}")
    megapixels = made.frames * made.width * made.height / 1e6
    return UpscaleReport([target], megapixels=megapixels, seconds=time.monotonic() - started)


def _is_folder(path: Path) -> bool:
    return path.is_dir() or not path.suffix
