"""Enlarges picture files with a model: one, a folder, a pattern or a stream, of any size.

Memory depends on the tile: pictures are read in tiles and their rows lie on disk until they are
encoded. Measuring what comes out is `sr_assets/compare.py`.
"""

from __future__ import annotations

import functools
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm
from upath import UPath

from sr_assets.lineage.stage import StageError
from sr_assets.perceptual import demand_files
from sr_assets.pictures import inspect
from sr_assets.recipe.perceptual import Perceptual
from sr_assets.srgb import BadImage
from sr_assets.upscaling.alpha import REACH, with_hidden_colours_filled
from sr_assets.upscaling.enlarging import Enlarger
from sr_assets.upscaling.formats import Format, named
from sr_assets.upscaling.jobs import STREAM, Job, find_jobs, missing
from sr_assets.upscaling.planning import SMALLEST_TILE, Plan, measured_difference, plan_tiles
from sr_assets.upscaling.precision import load_enlarger
from sr_assets.upscaling.reading import Picture, open_picture
from sr_assets.upscaling.refining import refining
from sr_assets.upscaling.writing import Scratch, encode, finished, scratch_beside
from sr_models.one_line import one_line

if TYPE_CHECKING:
    from sr_models.inference.streaming import Cut

Tell = Callable[[str], None]


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


@dataclass(frozen=True)
class Output:
    """What is asked of the files that are written."""

    depth: int | None = None
    """8 or 16 bits a sample; None for that of the input, where the format holds it."""
    quality: int | None = None
    """1 to 100 for lossy formats; None for the usual one."""

    def depth_of(self, picture: Picture, kind: Format) -> int:
        """Bits a sample of the file for this picture."""
        wanted = picture.depth if self.depth is None else self.depth
        if wanted == 16 and not kind.deep:
            if self.depth == 16:
                raise BadImage(f"{kind.name} holds 8 bits a sample: write png, tiff or avif")
            return 8
        return wanted


def upscale_files(
    model: str,
    input: str | Path,  # noqa: A002 - the word of the command
    output: str | Path,
    *,
    root: str | Path | UPath,
    device: str = "auto",
    backend: str = "auto",
    dtype: str = "auto",
    tile: int | None = None,
    halo: int | None = None,
    self_ensemble: bool = False,
    perceptual: Perceptual | None = None,
    format: str | None = None,  # noqa: A002 - the word of the command
    quality: int | None = None,
    depth: int | None = None,
    overwrite: bool = False,
    max_megapixels: float = 120.0,
    tell: Tell = lambda line: None,
) -> UpscaleReport:
    """Enlarges one picture, or every picture of a folder or pattern.

    Args:
        model: see `load_upscaler`.
        input: a picture, a folder, a pattern such as `scans/**/*.tif`, or `-` for standard input.
        output: for one picture a file, a folder, or `-` for standard output; for several a folder
            that gets the same tree. A picture keeps its name; its ending too where it can be
            written, else it becomes .png.
        root: folder of a recipe's outputs.
        device: `auto`, `cpu`, `cuda` or `mps`.
        backend: see `load_upscaler`.
        dtype: `auto`, `fp32`, `bf16` or `fp16`; see `load_enlarger`.
        tile: side of a tile with its halo (LR px); None chooses by what the network sees and the
            memory there is.
        halo: context on each side of a tile that is computed and thrown away (LR px); None takes
            what the network sees.
        self_ensemble: the mean of the eight flips and transposes.
        perceptual: refine what the model makes by diffusion, for looks; None leaves it.
        format: of what is written: png, jpeg, webp, tiff or avif; None for what the name says.
        quality: 1 to 100, of jpeg, webp and avif.
        depth: 8 or 16 bits a sample; None for that of the input.
        overwrite: make outputs that are there again; else they are kept, so that a folder resumes.
        max_megapixels: larger inputs are refused.
        tell: is given a line for every picture.

    Each output is written under a temporary name and renamed, so one that is there is whole.

    Raises:
        StageError: the model, input or output is wrong. A picture that fails is in the report.
    """
    wanted = None if format is None else named(format)
    jobs = find_jobs(Path(input), Path(output), wanted)
    report = UpscaleReport()
    if not overwrite:
        there, jobs = jobs, list(missing(jobs))
        report.skipped = [job.target for job in there if job not in jobs]
    if report.skipped:
        tell(f"{len(report.skipped)} pictures are there already")
    if not jobs:
        return report
    if tile is not None and tile <= 2 * (halo or 0):
        raise StageError(f"--tile {tile} must be more than twice the halo of {halo or 0} px")
    if perceptual is not None:
        demand_files(perceptual)
    enlarger = load_enlarger(model, root, device, backend, dtype, self_ensemble)
    if perceptual is not None:
        enlarger = refining(enlarger, perceptual, device)
    started = time.monotonic()

    @functools.cache
    def plan() -> Plan:
        found = plan_tiles(enlarger.upscaler, tile, halo, REACH)
        tell(found.told)
        return found

    with tempfile.TemporaryDirectory() as streams:
        jobs = [_received(job, Path(streams)) for job in jobs]
        total = sum(_pixels(job.source, max_megapixels) for job in jobs)
        with tqdm(
            total=total * enlarger.upscaler.scale**2,
            unit="px",
            unit_scale=True,
            desc=enlarger.upscaler.name,
            disable=not sys.stderr.isatty(),
        ) as bar:
            run = _Run(
                enlarger,
                plan,
                SMALLEST_TILE if tile is None else tile,
                Output(depth, quality),
                max_megapixels,
                bar.update,
                tell,
            )
            for job in jobs:
                _one(run, job, Path(streams), report)
    report.seconds = time.monotonic() - started
    return report


@dataclass
class _Run:
    """What all pictures of a call have in common."""

    enlarger: Enlarger
    plan: Callable[[], Plan]
    """Made for the first picture that asks for more than one tile: it runs the network."""
    whole: int
    """Pictures up to this side run whole (LR px)."""
    output: Output
    max_megapixels: float
    advance: Callable[[float], object]
    tell: Tell
    compared: bool = False
    """Whether tiles were compared with the whole."""


def _received(job: Job, streams: Path) -> Job:
    """Standard input goes to a file first: most formats cannot be read forwards alone."""
    if job.source != STREAM:
        return job
    path = streams / "standard input"
    with path.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    return Job(path, job.target, job.format)


def _pixels(source: Path, max_megapixels: float) -> int:
    """For the bar, from the header alone; a file that cannot be read counts for nothing."""
    try:
        facts = inspect(source, max_megapixels, decode=False)
    except (BadImage, MemoryError):
        return 0
    return facts.width * facts.height


def _one(run: _Run, job: Job, streams: Path, report: UpscaleReport) -> None:
    """One picture, written or put among the failed."""
    name = STREAM if job.source.parent == streams else job.source
    to_stream = job.target == STREAM
    target = streams / f"standard output{job.format.suffixes[0]}" if to_stream else job.target
    told = functools.partial(_tell_of, name, run.tell)
    try:
        height, width = _enlarged(run, job.source, target, job.format, told)
        if to_stream:
            with target.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()
    except BadImage as error:
        reason = error.reason
    except (OSError, ValueError, ArithmeticError, MemoryError, RuntimeError) as error:
        reason = one_line(error)
    else:
        report.written.append(job.target)
        report.megapixels += height * width / 1e6
        run.tell(f"{job.target}: {width}x{height}")
        return
    report.failed.append((name, reason))
    told(reason)


def _tell_of(name: Path, tell: Tell, line: str) -> None:
    tell(f"{name}: {line}")


def _enlarged(run: _Run, source: Path, target: Path, kind: Format, tell: Tell) -> tuple[int, int]:
    """Height and width of what was written to `target`."""
    picture = open_picture(source, run.max_megapixels)
    depth = run.output.depth_of(picture, kind)
    scale = run.enlarger.upscaler.scale
    height, width = (side * scale for side in picture.size)
    if max(height, width) > kind.largest_side:
        raise BadImage(
            f"{width}x{height} is more than the {kind.largest_side} px a side that {kind.name} "
            "holds: write png or tiff"
        )
    for note in picture.notes:
        tell(note)
    opaque = picture.opaque
    filled = picture
    if picture.alpha and not opaque:
        if not kind.alpha:
            tell(f"{kind.name} holds no transparency: laid on white")
        filled = Picture(with_hidden_colours_filled(picture.image), True)
    with scratch_beside(target, height, width, picture.image.bands, depth) as scratch:
        _fill(run, filled, opaque, scratch)
        made = finished(scratch)
        encode(made.image, target, kind, run.output.quality, picture.image, made.forget)
    return height, width


def _fill(run: _Run, picture: Picture, opaque: bool, scratch: Scratch) -> None:
    """Enlarges the picture into the scratch file: whole where that is little, else in tiles."""
    from sr_models.experts.running import ExpertMemoryError
    from sr_models.inference.streaming import Cut, upscale_streamed

    upscaler = run.enlarger.upscaler

    def run_in(cut: Cut) -> None:
        upscale_streamed(
            lambda samples: run.enlarger.samples(samples, picture.alpha, opaque),
            picture.read,
            scratch.rows,
            picture.size,
            upscaler.scale,
            cut,
            run.advance,
            lambda cut: run.tell(f"memory does not suffice: now tiles of {cut.tile} px"),
        )

    if max(picture.size) <= run.whole:
        # What the network sees, which takes a while to measure, does not matter then.
        try:
            return run_in(Cut.whole(*picture.size, upscaler.grid))
        except ExpertMemoryError:
            pass
    run_in(_cut(run, picture))


def _cut(run: _Run, picture: Picture) -> Cut:
    """How a picture is cut that does not run whole."""
    plan = run.plan()
    if not (plan.exact or run.compared or plan.cut.count(*picture.size) == 1):
        run.compared = True
        colours = picture.image.extract_band(0, n=picture.image.bands - picture.alpha)
        read = Picture(colours, False).read
        run.tell(measured_difference(run.enlarger, read, picture.size, plan.cut))
    return plan.cut
