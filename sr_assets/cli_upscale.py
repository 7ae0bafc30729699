"""The command `srd upscale`, which enlarges picture files with a finished model.

It parses words and prints; the work is in `upscaling/`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from sr_assets.upscaling.formats import NAMES

_EXAMPLES = """\b
Examples:
  srd upscale student photo.jpg photo-x4.png
  srd upscale student@1.2.0 holiday/ holiday-x4/ --format webp --quality 90
  srd upscale net.safetensors 'scans/**/*.tif' large/ --depth 16 --max-megapixels 1000
  srd upscale student clip.mp4 clip-x4.mp4 --temporal
  srd upscale student photo.jpg photo-x4.png --perceptual --perceptual-alpha 0.3
  curl -s https://example.org/a.png | srd upscale student - - --format avif > a.avif
"""


class _AutoOrNumber(click.ParamType):
    """A whole number, or `auto`, which is None."""

    name = "auto|N"

    def convert(self, value: Any, param: Any, ctx: Any) -> int | None:
        """Parses the word."""
        return None if value == "auto" else click.IntRange(min=0).convert(value, param, ctx)


@click.command(epilog=_EXAMPLES)
@click.argument("model")
@click.argument("input_path", metavar="INPUT", type=click.Path(path_type=Path))
@click.argument("output_path", metavar="OUTPUT", type=click.Path(path_type=Path))
@click.option(
    "--recipe",
    "-r",
    "recipe_name",
    default="demo",
    show_default=True,
    metavar="R",
    help="The recipe whose releases are meant: a file, or the name of a shipped one.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(NAMES),
    help="What is written. Left out, the ending of OUTPUT or of each picture says it.",
)
@click.option(
    "--quality",
    type=click.IntRange(1, 100),
    help="Of jpeg and webp (95 when left out) and avif (85); 100 is lossless for the last two.",
)
@click.option(
    "--depth",
    type=click.Choice(["auto", "8", "16"]),
    default="auto",
    show_default=True,
    help="Bits a sample; auto is that of the input. avif writes 12 for 16.",
)
@click.option("--self-ensemble", is_flag=True, help="Mean of eight flips and turns: 8x the work.")
@click.option(
    "--temporal",
    is_flag=True,
    help="INPUT is a video or the frames of one: each is blended with the one before (ParagonSR2).",
)
@click.option(
    "--perceptual",
    is_flag=True,
    help="Refine what MODEL makes by diffusion (TSD-SR), for looks and not for PSNR; needs weights "
    "of your own. The recipe's `perceptual:` of that model says how.",
)
@click.option(
    "--perceptual-alpha",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="Share of MODEL's own picture in the refined one; 1 is that picture bit by bit.",
)
@click.option("--overwrite", is_flag=True, help="Make outputs again that are there already.")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    default="auto",
    show_default=True,
    help="auto takes a GPU where there is one.",
)
@click.option(
    "--backend",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="What computes; auto is what srd bench found fastest here, else torch.",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    show_default=True,
    help="Refused for architectures not known to bear it; auto: the backend's.",
)
@click.option(
    "--tile",
    type=_AutoOrNumber(),
    default="auto",
    show_default=True,
    help="Side of a tile with its halo (LR px); auto goes by the memory that is free.",
)
@click.option(
    "--halo",
    type=_AutoOrNumber(),
    default="auto",
    show_default=True,
    help="Context discarded at a tile's sides (LR px); auto is as far as the model sees.",
)
@click.option(
    "--max-megapixels",
    type=click.FloatRange(min=0, min_open=True),
    default=120.0,
    show_default=True,
    help="Larger inputs are refused.",
)
def upscale(
    model: str,
    input_path: Path,
    output_path: Path,
    recipe_name: str,
    format_: str | None,
    depth: str,
    temporal: bool,
    perceptual: bool,
    perceptual_alpha: float | None,
    **options: Any,
) -> None:
    """Enlarges pictures of any size with MODEL, in memory that depends on the tile alone.

    MODEL is a release (NAME or NAME@VERSION), a checkpoint folder, or any file that spandrel loads.

    INPUT is a picture, a folder, a quoted pattern, or - for standard input; OUTPUT a file, a
    folder, or - for standard output. A folder keeps its tree, and goes on where it was interrupted.

    Grey stays grey, 16 bits stay 16 bits where the format holds them; transparency, ICC profile,
    EXIF and XMP are kept. A video keeps its sound and the times of its frames.

    Tiles of a model that looks at a bounded surrounding give what the whole picture gives; for
    others the difference is measured and printed.
    """
    from sr_assets.model_files import from_registry
    from sr_assets.recipe.loading import load_recipe
    from sr_assets.storage import root_of
    from sr_assets.upscaling.clips import upscale_clip
    from sr_assets.upscaling.files import upscale_files
    from sr_assets.upscaling.jobs import STREAM
    from sr_assets.upscaling.refining import perceptual_of
    from sr_assets.upscaling.videos import is_video

    recipe = load_recipe(recipe_name)
    root = root_of(recipe.name, recipe.root)
    clip = temporal or is_video(input_path)
    if perceptual_alpha is not None and not perceptual:
        raise click.UsageError("--perceptual-alpha is for --perceptual: add it")
    if perceptual and clip:
        raise click.UsageError("--perceptual refines pictures: what it draws flickers in a video")
    refined = perceptual_of(recipe, model, perceptual_alpha) if perceptual else None
    model = from_registry(recipe, root, model)
    try:
        run = (
            partial(upscale_clip, temporal=temporal)
            if clip
            else partial(upscale_files, perceptual=refined)
        )
        report = run(
            model, input_path, output_path,
            root=root,
            format=format_,
            depth=None if depth == "auto" else int(depth),
            tell=_tell,
            **options,
        )  # fmt: skip
    except KeyboardInterrupt:
        click.echo("srd: stopped; the same command goes on from here", err=True)
        raise SystemExit(130) from None
    rate = report.megapixels / report.seconds if report.seconds else 0.0
    click.echo(
        f"{len(report.written)} written, {len(report.skipped)} already there, "
        f"{len(report.failed)} failed; {report.megapixels:.2f} megapixels, {rate:.2f} a second",
        err=output_path == STREAM,
    )
    if report.failed:
        raise SystemExit(1)


def _tell(line: str) -> None:
    """A line on stderr, above the bar where there is one."""
    import sys

    from tqdm import tqdm

    with tqdm.external_write_mode(file=sys.stderr):
        click.echo(line, err=True)
