"""The Dagster code location: the graph of the recipe that `SRD_RECIPE` names, or of the demo.

Stays light: it imports in under two seconds, and torch only inside assets.
"""

from __future__ import annotations

import os

import dagster as dg

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
    """The Dagster definitions of a graph."""
    return dg.Definitions(
        assets=[to_asset(stage, graph) for stage in graph.stages.values()],
        executor=_EXECUTOR,
    )


@dg.definitions
def defs() -> dg.Definitions:
    """What `dg`, the webserver and the daemon load."""
    graph = build_graph(load_recipe(os.environ.get(RECIPE_VARIABLE, "demo")))
    if os.environ.get("DAGSTER_HOME"):
        with dg.DagsterInstance.get() as instance:
            register_partitions(graph, instance)
    return build_defs(graph)
