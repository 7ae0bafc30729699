"""The commands of `srd` about releases: releases, pull, publish.

The work is in `releases.py` and `hub/`; `cli_models.py` adds them to the `srd` group.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from sr_assets.lineage.stage import StageError

_RECIPE = click.option(
    "--recipe", "-r", "recipe_name", default="demo", show_default=True, metavar="R",
    help="The recipe whose releases are meant: a file, or the name of a shipped one.",
)  # fmt: skip
_ENDPOINT = click.option(
    "--endpoint", metavar="URL", help="The hub; HF_ENDPOINT or huggingface.co when left out."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _places(recipe_name: str) -> tuple[Any, Any, Any]:
    """The recipe, its root, and its registry."""
    from sr_assets.recipe.loading import load_recipe
    from sr_assets.storage import root_of
    from sr_assets.stores.registry import registry_folder

    recipe = load_recipe(recipe_name)
    root = root_of(recipe.name, recipe.root)
    return recipe, root, registry_folder(recipe, root)


@click.command()
@_RECIPE
@_JSON
def releases(recipe_name: str, as_json: bool) -> None:
    """Lists released versions, the highest of each model last.

    Example: srd releases --recipe my.yaml
    """
    from sr_assets.releases import list_releases

    _, root, registry = _places(recipe_name)
    found = list_releases(root, registry)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(r) for r in found], indent=1))
        return
    if not found:
        click.echo("Nothing is released yet: srd build")
    for r in found:
        scores = ", ".join(f"{b} {v:.2f} dB" for b, v in r.psnr_y.items() if v is not None)
        size = f"{r.bytes / 1e6:.1f} MB"
        click.echo(f"{r.name:24} {r.architecture} x{r.scale}  {size:>8}  {r.created}  {scores}")


@click.command()
@click.argument("name")
@click.option("--to", type=click.Path(path_type=Path), help="Folder; NAME-VERSION when left out.")
@click.option("--offline", is_flag=True, help="Of a hub's release: from the cache alone.")
@_ENDPOINT
@_RECIPE
@click.option("--json", "as_json", is_flag=True, help="Print the files as JSON.")
def pull(
    name: str,
    to: Path | None,
    offline: bool,
    endpoint: str | None,
    recipe_name: str,
    as_json: bool,
) -> None:
    """Fetches the files of a release, every digest verified.

    NAME or NAME@VERSION is in the recipe's registry, OWNER/NAME or OWNER/NAME@VERSION on the hub.
    A version may be cut short: @1 is the newest 1.x, none the newest of all.

    Example: srd pull me/student@v1.2.0 --to models/
    """
    try:
        if "/" in name:
            from sr_assets.hub.pulling import pull_from_hub
            from sr_assets.hub.repository import repository

            place, _, version = name.partition("@")
            files = pull_from_hub(repository(place, endpoint, offline=offline), version, to)
        else:
            from sr_assets.releases import pull as pull_release

            _, root, registry = _places(recipe_name)
            files = pull_release(root, name, to, registry)
    except OSError as error:
        raise StageError(str(error)) from error
    if as_json:
        click.echo(json.dumps([str(f) for f in files], indent=1))
        return
    for file in files:
        click.echo(file)


@click.command()
@click.argument("name")
@click.argument("repository", required=False, metavar="[OWNER/NAME]")
@click.option("--private", is_flag=True, help="Create the repository so that only you see it.")
@click.option("--dry-run", is_flag=True, help="Tell what would be done, and do nothing.")
@_ENDPOINT
@_RECIPE
def publish(
    name: str,
    repository: str | None,
    private: bool,
    dry_run: bool,
    endpoint: str | None,
    recipe_name: str,
) -> None:
    """Puts release NAME or NAME@VERSION on the hub: one commit and a tag, as HF_TOKEN's account.

    OWNER/NAME is `release.hub` of the recipe when left out. One that was interrupted is finished by
    the same command. Example: srd publish student me/student-x4 --dry-run
    """
    from sr_assets.hub.publishing import carry_out, plan_publishing
    from sr_assets.hub.repository import repository as open_repository
    from sr_assets.releases import find_release

    recipe, root, registry = _places(recipe_name)
    release = find_release(root, name, registry)
    where = repository or recipe.release.repository(release.manifest.model)
    if where is None:
        raise StageError("release.hub: the recipe names no repository: name OWNER/NAME")
    plan = plan_publishing(release, open_repository(where, endpoint), private=private)
    for line in plan.lines():
        click.echo(line)
    if dry_run:
        click.echo("Nothing was done: --dry-run")
        return
    if plan.todo != "nothing":
        commit = carry_out(plan, lambda line: click.echo(line, err=True))
        click.echo(f"{where}@{plan.tag} is published: commit {commit[:12]}")
