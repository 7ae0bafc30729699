"""The job `refresh_stale`: what `srd build` does, from the Jobs page of the UI.

The order of the work and the early cut-off are those of `lineage/build.py`.
"""

from collections.abc import Sequence

import dagster as dg

from sr_assets.automation.names import REFRESH
from sr_assets.graph import Graph
from sr_assets.lineage.build import build

_NAMED = 5  # failed outputs in the message


def refresh_job(
    graph: Graph, assets: Sequence[dg.AssetsDefinition], executor: dg.ExecutorDefinition
) -> dg.JobDefinition:
    """The job over the assets of a graph.

    Each group of outputs that can be made at once is a run of its own, inside the process of the
    job, so that materialisations, checks and pools are those of any other run.
    """

    @dg.op(description="Makes what is stale or missing, level by level, and looks again.")
    def make_what_is_stale(context: dg.OpExecutionContext) -> None:
        job = dg.Definitions(assets=assets).resolve_implicit_global_asset_job_def()
        result = build(graph, job, context.instance, set(graph.refs()), context.log.info)
        context.log.info(f"Made {len(result.made)} outputs." if result.made else "All was fresh.")
        if result.failed:
            reasons = [f"{ref}: {why}" for ref, why in list(result.failed.items())[:_NAMED]]
            raise dg.Failure(
                f"{len(result.failed)} failed, {len(result.held_back)} that need them were not "
                f"tried: {'; '.join(reasons)}",
                allow_retries=False,
            )

    @dg.job(
        name=REFRESH,
        description="Makes everything that is stale or missing, as `srd build` does.",
        executor_def=executor,
    )
    def job() -> None:
        make_what_is_stale()

    return job
