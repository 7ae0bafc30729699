"""The `srd` command: the graph from a terminal.

Each command parses its words, calls one function and prints; what is computed is elsewhere. The
commands about finished models are in `cli_models.py`.
"""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable
from typing import Any

import click

from sr_assets.lineage.stage import StageError
from sr_assets.recipe.loading import RecipeError

RECIPE = click.option(
    "--recipe", "-r", "recipe_name", default="demo", show_default=True, metavar="R",
    help="A recipe file, or the name of a shipped one.",
)  # fmt: skip
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class _Commands(click.Group):
    """Turns our own errors into one line on stderr and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RecipeError as error:
            click.echo(f"srd: {error}", err=True)
            ctx.exit(2)
        except StageError as error:
            click.echo(f"srd: {error}", err=True)
            ctx.exit(1)
        except OSError as error:
            if error.errno == errno.EPIPE:  # click ends quietly when nobody reads on
                raise
            click.echo(f"srd: {error}", err=True)
            ctx.exit(1)
        except Exception as error:
            from sr_assets.home_disk import refusal

            line = refusal(error)
            if line is None:
                raise
            click.echo(f"srd: {line}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("srd: stopped; `srd build` goes on from here", err=True)
            ctx.exit(130)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of the work, not of the alphabet


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sr-distillery")
def main() -> None:
    """Turns frozen super-resolution experts into small networks that people can deploy.

    \b
    Start here:
      srd demo                          from shipped photos to a released model
      srd status --recipe my.yaml       what is fresh, stale or missing, and why
      srd build --recipe my.yaml        makes what is stale or missing
      srd ui                            the graph in a browser
    """


@main.command()
def demo() -> None:
    """Builds the demo from nothing to a released model and prints where to look.

    A second run does nothing and says so. Example: srd demo
    """
    from sr_assets.report.terminal import leaderboard_lines

    with _Project("demo") as project:
        _build(project, set(project.graph.refs()))
        for line in leaderboard_lines(project.graph, project.instance):
            click.echo(line)


@main.command()
@RECIPE
@AS_JSON
def status(recipe_name: str, as_json: bool) -> None:
    """Lists every asset and partition: fresh, stale or missing, and why.

    Example: srd status --recipe my.yaml
    """
    from sr_assets.lineage.plan import survey

    with _Project(recipe_name) as project:
        statuses = list(survey(project.graph, project.instance).values())
    if as_json:
        rows = [
            {
                "asset": s.ref.asset,
                "partition": s.ref.partition,
                "state": s.state,
                "why": s.why,
                "path": None if s.output is None else str(s.output.path),
                "data_version": None if s.output is None else s.output.data_version,
            }
            for s in statuses
        ]
        click.echo(json.dumps(rows, indent=1))
        return
    colours = {"fresh": "green", "stale": "yellow", "missing": "red"}
    width = max((len(str(s.ref)) for s in statuses), default=0)
    for s in statuses:
        state = click.style(f"{s.state:8}", fg=colours[s.state])
        click.echo(f"{s.ref!s:{width}}  {state} {s.why}".rstrip())
    behind = sum(s.state != "fresh" for s in statuses)
    click.echo(
        f"{behind} of {len(statuses)} to make: srd build" if behind else "Everything is fresh."
    )


@main.command()
@click.argument("selection", nargs=-1)
@RECIPE
@click.option("--dry-run", is_flag=True, help="Only list what would be made.")
@AS_JSON
def build(selection: tuple[str, ...], recipe_name: str, dry_run: bool, as_json: bool) -> None:
    """Makes what is stale or missing, inputs first, through Dagster.

    SELECTION limits it to assets and what they are made from: asset keys, `key[partition]` or
    patterns. Examples: srd build --recipe my.yaml --dry-run; srd build 'expert/*/cache'
    """
    from sr_assets.lineage.build import to_do
    from sr_assets.lineage.plan import survey

    if as_json and not dry_run:
        raise click.UsageError("--json prints the plan: give --dry-run with it")
    with _Project(recipe_name) as project:
        graph = project.graph
        chosen = graph.select(list(selection)) if selection else set(graph.refs())
        if not dry_run:
            _build(project, chosen)
            return
        todo = to_do(survey(graph, project.instance), chosen)
    if as_json:
        rows = [
            {"asset": s.ref.asset, "partition": s.ref.partition, "state": s.state, "why": s.why}
            for s in todo
        ]
        click.echo(json.dumps(rows, indent=1))
        return
    for s in todo:
        click.echo(f"{s.ref}: {s.state}: {s.why}")
    click.echo(f"{len(todo)} to make." if todo else "Everything is fresh: nothing to make.")


@main.command("add-dataset")
@click.argument("name")
@click.argument("source")
@click.option("--benchmark", is_flag=True, help="Register it for evaluation, not for training.")
@click.option("--lr", metavar="SOURCE", help="The dataset's own LR images, matched by name.")
@RECIPE
def add_dataset(name: str, source: str, benchmark: bool, lr: str | None, recipe_name: str) -> None:
    """Registers SOURCE as dataset NAME, a new partition of the graph.

    Its caches can then be filled with `srd backfill NAME`; a model trains on it when the recipe
    says so. SOURCE is one of these, with an Example of each:

    \b
      a folder                 srd add-dataset holiday ~/photos/holiday
      a hub dataset            srd add-dataset lsdir hub:owner/name@1f0c9b2
      a zip or tar file        srd add-dataset scans ~/scans.tar.zst
      a .txt file of URLs      srd add-dataset wild urls.txt

    The revision of a hub dataset is a commit, tag or branch, main when it is left out; the other
    fields of a source can be set in the recipe. With LR of its own:
    srd add-dataset pairs ~/pairs/HR --lr ~/pairs/LR
    """
    from sr_assets.lineage.added import BRANCH, register

    with _Project(recipe_name) as project:
        added = register(project.recipe, name, source, benchmark=benchmark, lr=lr)
    with _Project(recipe_name) as project:
        project.register_partitions()
    for part in (added.source, added.lr):
        if part is not None and part.kind == "hub" and part.revision == BRANCH:
            click.echo(
                f"{part.repo} is taken from its branch {BRANCH}, which moves; "
                "name a commit for the same images for ever."
            )
    click.echo(f"{name} is registered; fill it with: srd backfill {name}")


@main.command()
@click.argument("name")
@RECIPE
def backfill(name: str, recipe_name: str) -> None:
    """Makes a dataset's bronze, silver, gold and expert caches, or a benchmark's bronze.

    Example: srd backfill holiday
    """
    from sr_assets.lineage.stage import Ref

    with _Project(recipe_name) as project:
        graph = project.graph
        partitioned = [
            Ref(s.key, name)
            for s in graph.stages.values()
            if name in graph.partitions(s) and not s.key.startswith(("model/", "evaluation/"))
        ]
        if not partitioned:
            known = ", ".join([*graph.recipe.datasets, *graph.recipe.benchmarks])
            raise StageError(
                f"no dataset {name!r}; there are: {known}; see `srd add-dataset --help`"
            )
        chosen = graph.select(
            [str(ref) for ref in partitioned if not ref.asset.endswith("/evaluation")]
        )
        _build(project, chosen)


@main.command()
@RECIPE
@click.option("--port", default=3000, show_default=True, help="Port on localhost.")
def ui(recipe_name: str, port: int) -> None:
    """Starts the Dagster UI on localhost, with schedules and sensors running.

    Example: srd ui --recipe my.yaml --port 3000
    """
    from sr_assets.ui import serve

    raise SystemExit(serve(recipe_name, port, click.echo))


@main.command()
@click.argument("asset")
@click.argument("partition", required=False)
@RECIPE
@AS_JSON
def path(asset: str, partition: str | None, recipe_name: str, as_json: bool) -> None:
    """Prints the folder of an asset's current output.

    Example: srd path expert/hat/cache photos
    """
    from sr_assets.lineage.records import current_output
    from sr_assets.lineage.stage import Ref

    with _Project(recipe_name) as project:
        ref = project.find(asset, partition)
        output = current_output(project.instance, project.graph, Ref(ref.asset, ref.partition))
    if output is None:
        raise StageError(f"{ref} has not been made: run `srd build '{ref}'`")
    if as_json:
        click.echo(json.dumps({"path": str(output.path), "data_version": output.data_version}))
    else:
        click.echo(output.path)


@main.command()
@click.argument("selection", nargs=-1)
@RECIPE
@click.option(
    "--recompute", "--sample", "recompute", default="8", show_default=True, metavar="COUNT|PERCENT",
    help="Entries of each cache to compute again.",
)  # fmt: skip
@AS_JSON
def verify(selection: tuple[str, ...], recipe_name: str, recompute: str, as_json: bool) -> None:
    """Reads stored outputs again, compares every digest, and recomputes a sample of every cache.

    SELECTION as for `srd build`; everything that is made when left out. Exit code 1 when something
    differs. Example: srd verify 'expert/*/cache' --recompute 1%
    """
    from sr_assets.stores.verify import parse_share
    from sr_assets.verify import verify_outputs

    try:
        share = parse_share(recompute)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--recompute") from None
    with _Project(recipe_name) as project:
        graph = project.graph
        chosen = graph.select(list(selection)) if selection else set(graph.refs())
        tell: Tell = (lambda line: None) if as_json else _tell
        found = verify_outputs(graph, project.instance, chosen, share, tell)
    if as_json:
        click.echo(json.dumps(found, indent=1))
    bad = {name: lines for name, lines in found.items() if lines}
    if not as_json:
        for name, lines in bad.items():
            for line in lines:
                click.echo(f"{name}: {line}")
        click.echo(f"{len(found) - len(bad)} of {len(found)} outputs are as they were written.")
    raise SystemExit(1 if bad else 0)


class _Project:
    """A recipe, its graph and an open Dagster instance."""

    def __init__(self, recipe_name: str) -> None:
        from sr_assets.graph import build_graph
        from sr_assets.recipe.loading import load_recipe

        self.recipe = load_recipe(recipe_name)
        self.graph = build_graph(self.recipe)

    def __enter__(self) -> _Project:
        from sr_assets.home import open_instance

        self.instance = open_instance()
        self.instance.__enter__()
        return self

    def __exit__(self, *details: Any) -> None:
        self.instance.__exit__(*details)

    def register_partitions(self) -> None:
        from sr_assets.lineage.build import register_partitions

        register_partitions(self.graph, self.instance)

    def find(self, asset: str, partition: str | None) -> Any:
        """The one output that the words name."""
        refs = [r for r in self.graph.refs() if r.asset == asset]
        if not refs:
            raise StageError(f"no asset {asset!r}; there are: {', '.join(self.graph.stages)}")
        if partition is None and len(refs) == 1:
            return refs[0]
        for ref in refs:
            if ref.partition == partition:
                return ref
        keys = ", ".join(str(r.partition) for r in refs)
        raise StageError(f"{asset} needs one of its partitions: {keys}")


def _build(project: _Project, chosen: Any) -> None:
    """Builds, tells what happened, and ends with exit code 1 when something was left to do."""
    from sr_assets.definitions import build_defs
    from sr_assets.lineage.build import build as build_graph_outputs

    job = build_defs(project.graph).resolve_implicit_global_asset_job_def()
    result = build_graph_outputs(project.graph, job, project.instance, chosen, _tell)
    if result.failed:
        held = (
            f"; {len(result.held_back)} that need them were not tried" if result.held_back else ""
        )
        click.echo(f"srd: {len(result.failed)} failed{held}", err=True)
        raise SystemExit(1)
    if result.held_back:
        click.echo(
            f"srd: {len(result.held_back)} outputs wait for inputs that changed meanwhile: "
            "run srd build again",
            err=True,
        )
        raise SystemExit(1)
    click.echo(
        f"Made {len(result.made)} outputs." if result.made else "Everything is fresh: no step ran."
    )


def _tell(line: str) -> None:
    """A line of progress, above a bar where there is one."""
    from tqdm import tqdm

    with tqdm.external_write_mode(file=sys.stdout):
        click.echo(line)


Tell = Callable[[str], None]

from sr_assets import cli_bench, cli_data, cli_export, cli_models  # noqa: E402  (the group must exist first)

cli_data.add_commands(main)
cli_models.add_commands(main)
cli_bench.add_commands(main)
cli_export.add_commands(main)
