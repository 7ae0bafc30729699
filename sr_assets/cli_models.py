"""The command `srd compare`, and the list of all commands about finished models.

The others are in `cli_upscale.py` and `cli_releases.py`; the work is in `compare.py`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import click

from sr_assets.cli_releases import publish, pull, releases
from sr_assets.cli_upscale import upscale

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
    for command in (upscale, compare, releases, publish, pull):
        group.add_command(command)


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
    from sr_assets.compare import compare_files, table_lines
    from sr_assets.compare_page import compare_on_page
    from sr_assets.model_files import from_registry
    from sr_assets.recipe.loading import load_recipe
    from sr_assets.storage import root_of

    recipe = load_recipe(recipe_name)
    root = root_of(recipe.name, recipe.root)
    models = tuple(from_registry(recipe, root, model) for model in models)
    given: dict[str, Any] = {"root": root, "device": device, "tile": tile, "halo": halo}
    if output.suffix.lower() == ".html":
        measured = compare_on_page(input_path, models, output, **given)
    else:
        measured = compare_files(input_path, models, output, **given).rows
    if as_json:
        rows = [dataclasses.asdict(row) for row in measured]
        for row in rows:  # JSON has no infinity: a picture equal to the original has no PSNR
            row["psnr_y"] = row["psnr_y"] if math.isfinite(row["psnr_y"]) else None
        click.echo(json.dumps(rows, indent=1))
        return
    click.echo("\n".join([*table_lines(measured), f"written: {output}"]))
