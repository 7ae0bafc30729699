"""Enlarges a folder whose pictures are the frames of one clip, each after the one before.

How frames are enlarged is `sequences.py`; folders of pictures that have nothing to do with each
other are `files.py`.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
from tqdm import tqdm

from sr_assets.lineage.stage import StageError
from sr_assets.pictures import Pixels
from sr_assets.srgb import BadImage
from sr_assets.upscaling.files import UpscaleReport
from sr_assets.upscaling.formats import named
from sr_assets.upscaling.jobs import STREAM, Job, find_jobs
from sr_assets.upscaling.reading import Picture, load_vips, open_picture
from sr_assets.upscaling.sequences import Sequence
from sr_assets.upscaling.writing import encode
from sr_models.one_line import one_line


def upscale_frames(
    sequence: Sequence,
    source: Path,
    target: Path,
    *,
    format: str | None = None,  # noqa: A002 - the word of the command
    quality: int | None = None,
    overwrite: bool = False,
    max_megapixels: float = 120.0,
    tell: Callable[[str], None] = lambda line: None,
) -> UpscaleReport:
    """Enlarges the frames of a folder in the order of their names, `2.png` before `10.png`.

    Frames that are there already are kept; what follows them comes out as if nothing had
    stopped. Frames are 8-bit colour or grey and come out as 8-bit RGB.

    Args:
        sequence: that enlarges the frames.
        source: folder or pattern.
        target: folder.
        format: of what is written; None for that of each frame, where it can be.
        quality: 1 to 100, of jpeg, webp and avif.
        overwrite: make frames that are there again.
        max_megapixels: larger frames are refused.
        tell: is given a line for every frame.

    Raises:
        StageError: the input or output is wrong, or a frame cannot be read: what follows it would
            not be what it should.
    """
    wanted = None if format is None else named(format)
    jobs = sorted(find_jobs(source, target, wanted), key=lambda job: _in_order(job.source))
    if STREAM in (jobs[0].source, jobs[0].target):
        raise StageError("--temporal needs a folder of frames or a video")
    report = UpscaleReport()
    started = time.monotonic()
    last: Job | None = None  # that was skipped
    with tqdm(
        total=len(jobs), unit="frame", desc=sequence.enlarger.upscaler.name,
        disable=not sys.stderr.isatty(),
    ) as bar:  # fmt: skip
        for job in jobs:
            bar.update(1)
            if job.target.exists() and not overwrite:
                report.skipped.append(job.target)
                last = job
                continue
            if last is not None:
                sequence.see(_pixels(_opened(last, max_megapixels), last))
                last = None
            picture = _opened(job, max_megapixels)
            try:
                sr = sequence.enlarge(_pixels(picture, job))
                _write(sr, job, quality, picture)
            except (OSError, ValueError, RuntimeError) as error:
                reason = one_line(error)
                raise StageError(f"{job.source}: {reason}") from error
            report.written.append(job.target)
            report.megapixels += sr.shape[0] * sr.shape[1] / 1e6
            tell(f"{job.target}: {sr.shape[1]}x{sr.shape[0]}")
    report.seconds = time.monotonic() - started
    return report


def _in_order(path: Path) -> list[tuple[int, int, str]]:
    """Numbers in names go by their value."""
    parts = re.split(r"(\d+)", str(path))
    return [(1, int(p), p) if p.isdecimal() else (0, 0, p) for p in parts if p]


def _opened(job: Job, max_megapixels: float) -> Picture:
    try:
        return open_picture(job.source, max_megapixels)
    except (BadImage, OSError) as error:
        reason = error.reason if isinstance(error, BadImage) else str(error)
        raise StageError(f"{job.source}: {reason}; a frame of a clip cannot be left out") from error


def _pixels(picture: Picture, job: Job) -> Pixels:
    if picture.alpha or picture.depth != 8:
        what = "transparency" if picture.alpha else "16 bits a sample"
        raise StageError(f"{job.source} has {what}: frames are 8-bit colour or grey")
    try:
        samples = picture.read(0, picture.size[0], 0, picture.size[1])
    except BadImage as error:
        raise StageError(f"{job.source}: {error.reason}") from error
    return cast(Pixels, np.repeat(samples, 3, 2) if samples.shape[2] == 1 else samples)


def _write(sr: Pixels, job: Job, quality: int | None, like: Picture) -> None:
    image = load_vips().Image.new_from_array(sr).copy(interpretation="srgb")
    # A grey frame's profile does not fit colour.
    same = like.image.bands == 3
    encode(image, job.target, job.format, quality, like.image if same else None)
