"""The command `srd bench`: which backend is fastest for a model on this machine.

Measuring is `bench.py`, keeping the choice `backend_choice.py`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import click


def add_commands(group: click.Group) -> None:
    """Adds the command to the `srd` group."""
    group.add_command(bench)


@click.command()
@click.argument("model")
@click.argument("images", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--recipe", "-r", "recipe_name", default="demo", show_default=True, metavar="R",
    help="The recipe whose releases are meant: a file, or the name of a shipped one.",
)  # fmt: skip
@click.option(
    "--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda", "mps"])
)
@click.option(
    "--backend", "backends", multiple=True, metavar="NAME",
    help="Only this one beside torch; may be given again.",
)  # fmt: skip
@click.option("--tile", default=256, show_default=True, help="Side of a tile (LR px).")
@click.option(
    "--halo", default=32, show_default=True, help="Border that neighbouring tiles share (LR px)."
)
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--output", "-o", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.json",
    help="Where the report goes; bench-MODEL.json in this folder when left out.",
)  # fmt: skip
def bench(
    model: str,
    images: tuple[Path, ...],
    recipe_name: str,
    device: str,
    backends: tuple[str, ...],
    tile: int,
    halo: int,
    repeats: int,
    output: Path | None,
) -> None:
    """Measures every backend with MODEL on this machine and remembers the fastest.

    Four shipped photos, one tile together, and each of the IMAGES are enlarged in turns by torch,
    ONNX Runtime, OpenVINO and whatever else is installed, and compared with torch in fp32.
    `srd upscale` then takes the fastest that loses at most 0.005 dB; an int8 file only when its
    --backend asks. Example: srd bench fusion_student photo.png
    """
    from sr_assets.backend_choice import remember
    from sr_assets.bench import bench as measure
    from sr_assets.bench_report import as_json, table
    from sr_assets.model_files import from_registry
    from sr_assets.recipe.loading import load_recipe
    from sr_assets.storage import root_of

    recipe = load_recipe(recipe_name)
    root = root_of(recipe.name, recipe.root)
    report = measure(
        from_registry(recipe, root, model),
        images,
        root=root,
        device=device,
        tile=tile,
        halo=halo,
        repeats=repeats,
        backends=backends,
        tell=lambda line: click.echo(line, err=True),
    )
    for line in table(report):
        click.echo(line)
    choice = report.choice()
    click.echo(f"fastest: {choice.default}; fastest of the exact ones: {choice.exact}")
    if backends:
        click.echo("Nothing is remembered, since not every backend was measured.")
    else:
        kept = remember(report.network.digest, report.machine, choice)
        click.echo(f"srd upscale takes {choice.default} from now on ({kept}).")
    name = re.sub(r"[^\w.@-]+", "_", report.network.name)
    output = Path(f"bench-{name}.json") if output is None else output
    output.write_text(json.dumps(as_json(report), indent=1) + "\n", encoding="utf-8")
    click.echo(f"Report: {output}")
