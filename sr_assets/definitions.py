"""The Dagster code location: the graph of the recipe that `SRD_RECIPE` names, or of the demo.

Stays light: it imports in under two seconds, and torch only inside assets.
"""

from __future__ import annotations

import os

import dagster as dg

from sr_assets.automation.failures import failure_sensor
from sr_assets.automation.freshness import StaleOnce, freshness_sensor
from sr_assets.automation.hub_revisions import hub_sensor
from sr_assets.automation.inbox import inbox_sensor
from sr_assets.automation.names import AUTOMATION_VARIABLE
from sr_assets.automation.nightly import nightly_asset, nightly_schedule
from sr_assets.automation.refresh import refresh_job
from sr_assets.graph import Graph, build_graph
from sr_assets.lineage.build import register_partitions
from sr_assets.lineage.dagster_assets import to_asset
from sr_assets.recipe.loading import load_recipe

RECIPE_VARIABLE = "SRD_RECIPE"
#: A process a step, forked from one that has imported Dagster but none of our code: a step must run
#: the code that is there when it starts, since that is what its code version is computed from.
_EXECUTOR = dg.multiprocess_executor.configured(
    {"start_method": {"forkserver": {"preload_modules": ["dagster"]}}}
)


def build_defs(graph: Graph) -> dg.Definitions:
    """The Dagster definitions of a graph alone: what `srd build` runs."""
    return dg.Definitions(
        assets=[to_asset(stage, graph) for stage in graph.stages.values()],
        executor=_EXECUTOR,
    )


def code_location(graph: Graph, recipe_name: str, running: bool) -> dg.Definitions:
    """The Dagster definitions of a graph with its sensors, its schedule and its jobs.

    Args:
        graph: of the recipe.
        recipe_name: of a shipped recipe, or a file; the sensors read it again at every tick.
        running: whether sensors and schedule run until somebody switches them off, or the other
            way round.
    """
    recipe = graph.recipe
    status = dg.DefaultSensorStatus.RUNNING if running else dg.DefaultSensorStatus.STOPPED
    condition = StaleOnce(lambda: build_graph(load_recipe(recipe_name)))
    assets = [to_asset(stage, graph, condition) for stage in graph.stages.values()]
    nightly = bool(recipe.benchmarks)
    return dg.Definitions(
        assets=[*assets, *([nightly_asset(graph)] if nightly else [])],
        executor=_EXECUTOR,
        jobs=[refresh_job(graph, assets, _EXECUTOR)],
        schedules=[nightly_schedule(graph, running)] if nightly else [],
        sensors=[
            freshness_sensor(assets, status),
            inbox_sensor(lambda: load_recipe(recipe_name), recipe_name, status),
            hub_sensor(lambda: load_recipe(recipe_name), status),
            failure_sensor(recipe.name, recipe.automation.webhook, running),
        ],
    )


@dg.definitions
def defs() -> dg.Definitions:
    """What `dg`, the webserver and the daemon load."""
    recipe_name = os.environ.get(RECIPE_VARIABLE, "demo")
    graph = build_graph(load_recipe(recipe_name))
    if os.environ.get("DAGSTER_HOME"):
        with dg.DagsterInstance.get() as instance:
            register_partitions(graph, instance)
    return code_location(graph, recipe_name, os.environ.get(AUTOMATION_VARIABLE) == "on")
