"""The commands of `srd` about data: what was done to a training sample, what can be removed.

The commands about the graph are in `cli.py`; the work is in `explain.py` and `unneeded.py`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import click

from sr_assets.report.numbers import byte_size


def add_commands(group: click.Group) -> None:
    """Adds the commands to the `srd` group."""
    group.add_command(explain)
    group.add_command(collect)


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
    from sr_assets.upscaling.writing import write_picture

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


@click.command("gc")
@click.option(
    "--recipe", "-r", "recipe_name", default="demo", show_default=True, metavar="R",
    help="A recipe file, or the name of a shipped one.",
)  # fmt: skip
@click.option(
    "--older-than", default=24.0, show_default=True, type=click.FloatRange(min=0), metavar="HOURS",
    help="Keep what was made in the last hours.",
)  # fmt: skip
@click.option(
    "--dropped", is_flag=True,
    help="Also what the recipe no longer has; not where another recipe has the same root.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@click.option("--yes", is_flag=True, help="Remove without asking.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def collect(
    recipe_name: str, older_than: float, dropped: bool, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Removes outputs that nothing needs any more, after showing them and how much they take.

    Kept are current outputs, what the recipe as it is now would use again, and what releases name.
    Recipes that share a root and names of assets take each other's for their own older ones: give
    each a root. Going back to an older recipe is free only until then. Example: srd gc --dry-run
    """
    from sr_assets.graph import build_graph
    from sr_assets.home import open_instance
    from sr_assets.recipe.loading import load_recipe
    from sr_assets.unneeded import find_unneeded, remove

    if as_json and not (dry_run or yes):
        raise click.UsageError("--json asks nothing: give --dry-run or --yes with it")
    graph = build_graph(load_recipe(recipe_name))
    with open_instance() as instance:
        found = find_unneeded(graph, instance, older_than=older_than, dropped=dropped)
    if not as_json:
        for name, items in groupby(found.unneeded, lambda item: (item.name, item.kind)):
            folders = list(items)
            files = sum(item.files for item in folders)
            if name[1] == "uploads":
                click.echo(f"{name[0]}: {_counted(files, 'unfinished upload')}")
                continue
            what = "output" if name[1] == "output" else "half-built folder"
            click.echo(f"{name[0]}: {_counted(len(folders), what)}, {_counted(files, 'file')}")
        for line in _kept_lines(len(found.unknown), len(found.theirs)):
            click.echo(line)
        freed = byte_size(found.bytes_freed)
        click.echo(
            f"{_counted(len(found.unneeded), 'folder')} can go: {freed} freed."
            if found.unneeded
            else "Nothing to remove."
        )
    removed = 0
    if found.unneeded and not dry_run:
        if not yes and not sys.stdin.isatty():
            raise click.UsageError("nothing was removed: give --yes where nobody can be asked")
        if yes or click.confirm("Remove them?"):
            # Somebody may have thought long, and builds may have begun to need some of it.
            with open_instance() as instance:
                again = find_unneeded(graph, instance, older_than=older_than, dropped=dropped)
            removed = remove(replace(found, unneeded=again.shared_with(found)))
            if not as_json:
                click.echo(f"Removed {_counted(removed, 'folder')}.")
    if as_json:
        rows = [
            {"path": str(item.path), "kind": item.kind, "name": item.name, "files": item.files}
            for item in found.unneeded
        ]
        report = {
            "unneeded": rows,
            "bytes_freed": found.bytes_freed,
            "removed": removed,
            "kept_of_others": list(found.theirs),
            "kept_unknown": [str(path) for path in found.unknown],
        }
        click.echo(json.dumps(report, indent=1))


def _kept_lines(unknown: int, theirs: int) -> Iterator[str]:
    """What stays although the recipe does not need it."""
    if theirs:
        yield f"Kept {_counted(theirs, 'current output')} that the recipe does not have: --dropped"
    if unknown:
        yield f"Kept {_counted(unknown, 'folder')} that this Dagster home knows nothing of."


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
