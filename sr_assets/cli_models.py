"""The commands of `srd` about finished models: upscale, compare, releases, pull.

The commands about the graph are in `cli.py`; the work is in `upscale.py`, `compare.py` and
`releases.py`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import click

from sr_assets.lineage.stage import StageError

_ROOT = click.option(
    "--recipe", "-r", "recipe_name", default="demo", show_default=True, metavar="R",
    help="The recipe whose releases are meant: a file, or the name of a shipped one.",
)  # fmt: skip
_DEVICE = click.option(
    "--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda", "mps"])
)
_TILE = click.option("--tile", default=256, show_default=True, help="Side of a tile (LR px).")
_HALO = click.option(
    "--halo", default=32, show_default=True, help="Border that neighbouring tiles share (LR px)."
)


def add_commands(group: click.Group) -> None:
    """Adds the commands to the `srd` group."""
    for command in (upscale, compare, releases, pull):
        group.add_command(command)


def _root(recipe_name: str) -> Any:
    from sr_assets.recipe.loading import load_recipe
    from sr_assets.storage import root_of

    recipe = load_recipe(recipe_name)
    return root_of(recipe.name, recipe.root)


@click.command()
@click.argument("model")
@click.argument("input_path", metavar="INPUT", type=click.Path(path_type=Path))
@click.argument("output_path", metavar="OUTPUT", type=click.Path(path_type=Path))
@_ROOT
@_DEVICE
@_TILE
@_HALO
@click.option("--overwrite", is_flag=True, help="Make outputs again that are there already.")
def upscale(
    model: str,
    input_path: Path,
    output_path: Path,
    recipe_name: str,
    device: str,
    tile: int,
    halo: int,
    overwrite: bool,
) -> None:
    """Enlarges a picture, or every picture of a folder, with MODEL.

    MODEL is a release (NAME or NAME@VERSION), a checkpoint folder, or any file that spandrel loads.
    A folder that was interrupted goes on. Example: srd upscale student holiday/ holiday-x4/
    """
    from sr_assets.upscale import upscale_files

    report = upscale_files(
        model, input_path, output_path,
        root=_root(recipe_name), device=device, tile=tile, halo=halo, overwrite=overwrite,
        tell=lambda line: click.echo(line, err=True),
    )  # fmt: skip
    rate = report.megapixels / report.seconds if report.seconds else 0.0
    click.echo(
        f"{len(report.written)} written, {len(report.skipped)} already there, "
        f"{len(report.failed)} failed; {report.megapixels:.2f} megapixels, {rate:.2f} a second"
    )
    if report.failed:
        raise SystemExit(1)


@click.command()
@click.argument("input_path", metavar="INPUT", type=click.Path(path_type=Path))
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option(
    "--output", "-o", default="compare.png", show_default=True, type=click.Path(path_type=Path)
)
@_ROOT
@_DEVICE
@_TILE
@_HALO
@click.option("--json", "as_json", is_flag=True, help="Print the metrics as JSON.")
def compare(
    input_path: Path,
    models: tuple[str, ...],
    output: Path,
    recipe_name: str,
    device: str,
    tile: int,
    halo: int,
    as_json: bool,
) -> None:
    """Reduces INPUT, enlarges it with bicubic and each MODEL, and shows them side by side.

    A MODEL is a release or any file of weights that spandrel loads. An output .html is one page
    with slider, crops and error maps; its INPUT may be a folder of pictures.

    Example: srd compare photos/ fusion weights.pth -o compare.html
    """
    from sr_assets.compare import compare_files
    from sr_assets.compare_page import compare_on_page

    given: dict[str, Any] = {
        "root": _root(recipe_name), "device": device, "tile": tile, "halo": halo,
    }  # fmt: skip
    if output.suffix.lower() == ".html":
        measured = compare_on_page(input_path, models, output, **given)
    else:
        measured = compare_files(input_path, models, output, **given).rows
    rows = [dataclasses.asdict(row) for row in measured]
    for row in rows:  # JSON has no infinity: a picture equal to the original has no PSNR
        row["psnr_y"] = row["psnr_y"] if math.isfinite(row["psnr_y"]) else None
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    width = max(len(row["name"]) for row in rows)
    click.echo(f"{'':{width}}  PSNR-Y dB  SSIM-Y")
    for row in rows:
        value = row["psnr_y"]
        psnr = "identical" if value is None else f"{value:9.2f}"
        click.echo(f"{row['name']:{width}}  {psnr}  {row['ssim_y']:.4f}")
    click.echo(f"written: {output}")


@click.command()
@_ROOT
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def releases(recipe_name: str, as_json: bool) -> None:
    """Lists released versions, newest last.

    Example: srd releases --recipe my.yaml
    """
    from sr_assets.releases import list_releases

    found = list_releases(_root(recipe_name))
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(r) for r in found], indent=1))
        return
    if not found:
        click.echo("Nothing is released yet: srd build")
    for r in found:
        scores = ", ".join(f"{b} {v:.2f} dB" for b, v in r.psnr_y.items() if v is not None)
        size = f"{r.bytes / 1e6:.1f} MB"
        click.echo(f"{r.name:20} {r.architecture} x{r.scale}  {size:>8}  {r.created}  {scores}")


@click.command()
@click.argument("name")
@click.option("--to", type=click.Path(path_type=Path), help="Folder; NAME-VERSION when left out.")
@_ROOT
@click.option("--json", "as_json", is_flag=True, help="Print the files as JSON.")
def pull(name: str, to: Path | None, recipe_name: str, as_json: bool) -> None:
    """Fetches the files of release NAME or NAME@VERSION, every digest verified.

    Example: srd pull student@1 --to models/
    """
    from sr_assets.releases import pull as pull_release

    try:
        files = pull_release(_root(recipe_name), name, to)
    except OSError as error:
        raise StageError(str(error)) from error
    if as_json:
        click.echo(json.dumps([str(f) for f in files], indent=1))
        return
    for file in files:
        click.echo(file)
