"""The commands of `srd` about data: what was done to a training sample.

The commands about the graph are in `cli.py`; the work is in `explain.py`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click


def add_commands(group: click.Group) -> None:
    """Adds the commands to the `srd` group."""
    group.add_command(explain)


@click.command()
@click.argument("dataset")
@click.argument("index", type=int)
@click.option("--variant", "-k", default=0, show_default=True, help="Version of the patch.")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), metavar="FILE.png",
    help="Write a picture of every step.",
)  # fmt: skip
@click.option(
    "--recipe", "-r", "recipe_name", default="demo", show_default=True, metavar="R",
    help="A recipe file, or the name of a shipped one.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain(
    dataset: str, index: int, variant: int, output: Path | None, recipe_name: str, as_json: bool
) -> None:
    """Shows how LR of one patch was made: HR, each step with its numbers, and LR.

    INDEX is the number of the patch in silver/patches[DATASET]. The steps are read from the store
    and done again; exit code 1 when they give other bytes than it holds. Example: srd explain
    photos 17 -o steps.png
    """
    from sr_assets.explain import explain_sample, explained_json, explained_lines
    from sr_assets.explain_sheet import contact_sheet
    from sr_assets.graph import build_graph
    from sr_assets.home import open_instance
    from sr_assets.recipe.loading import load_recipe
    from sr_assets.upscale import write_picture

    graph = build_graph(load_recipe(recipe_name))
    with open_instance() as instance:
        found = explain_sample(graph, instance, dataset, index, variant)
    if output is not None:
        write_picture(contact_sheet(found), output)
    if as_json:
        click.echo(json.dumps(explained_json(found), indent=1))
    else:
        for line in explained_lines(found):
            click.echo(line)
        if output is not None:
            click.echo(f"picture: {output}")
        elif sys.stdout.isatty():
            click.echo("A picture of every step: --output FILE.png")
    raise SystemExit(1 if found.same is False else 0)
