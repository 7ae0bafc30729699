"""The automation condition of every asset: it asks for what is stale or missing and can be made.

What is stale is decided by `lineage/plan.py` alone, for the command line as for this.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import dagster as dg
from dagster._core.definitions.events import AssetKeyPartitionKey
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES
from dagster._core.storage.tags import PARTITION_NAME_TAG
from dagster._utils.warnings import disable_dagster_warnings

from sr_assets.automation.names import INTERRUPTED, REFRESH
from sr_assets.graph import Graph
from sr_assets.lineage.build import register_partitions
from sr_assets.lineage.code_version import code_version, digest_of
from sr_assets.lineage.plan import Status, survey
from sr_assets.lineage.records import address_of
from sr_assets.lineage.stage import Ref

SENSOR = "keep_fresh"
_EVERY = 30  # seconds
_MOST_INTERRUPTED = 500  # runs, the newest, that are looked at


@dataclass(frozen=True)
class Wanted:
    """What one look at the graph found."""

    ready: Mapping[Ref, str]
    """What is not fresh although all it is made from is -> fingerprint of what it is made from."""
    waiting: Set[Ref]
    """What is not fresh and cannot be made yet, or is in an unfinished run."""


def look(graph: Graph, instance: dg.DagsterInstance) -> Wanted:
    """What of the graph should be made now, and what later."""
    statuses = survey(graph, instance)
    late = [status for status in statuses.values() if status.state != "fresh"]
    if not late:
        return Wanted({}, frozenset())
    busy, everything = _busy(instance)
    interrupted = _interrupted(instance)
    ready = {
        status.ref: digest_of(
            [_made_from(graph, status.ref, statuses), interrupted.get(status.ref)]
        )
        for status in late
        if status.ready and status.ref not in busy and not everything
    }
    return Wanted(ready, {status.ref for status in late} - ready.keys())


def ask(
    wanted: Wanted, asset: str, partitions: Sequence[str | None], asked: Mapping[str, str]
) -> tuple[list[str | None], dict[str, str]]:
    """The partitions of one asset to ask for now, and what has been asked for then.

    Args:
        wanted: what `look` found.
        asset: its key.
        partitions: those that Dagster knows; `[None]` for an asset that has none.
        asked: partition ("" for none) -> fingerprint that it was last asked for with.

    Each state is asked for once. A fresh output is forgotten, so that it is asked for again when it
    is deleted or when the recipe goes back to what failed earlier.
    """
    now: list[str | None] = []
    kept: dict[str, str] = {}
    for partition in partitions:
        ref, name = Ref(asset, partition), partition or ""
        fingerprint = wanted.ready.get(ref)
        if fingerprint is not None:
            kept[name] = fingerprint
            if asked.get(name) != fingerprint:
                now.append(partition)
        elif ref in wanted.waiting and name in asked:
            kept[name] = asked[name]
    return now, kept


class StaleOnce(dg.AutomationCondition[dg.AssetKey]):
    """True for the partitions that are stale or missing and ready, once for each state."""

    def __init__(self, load: Callable[[], Graph]) -> None:
        self._load = load
        self._seen: tuple[Any, Wanted] | None = None

    @property
    def name(self) -> str:
        """What the UI calls it; the cursor hangs on it."""
        return "stale_once"

    @property
    def description(self) -> str:
        """What the UI says of it."""
        return "stale or missing, all it is made from is fresh, and not asked for in this state yet"

    def evaluate(self, context: Any) -> dg.AutomationResult[dg.AssetKey]:
        """Which partitions of one asset to ask for; the assets of a tick share one look."""
        view, key = context.asset_graph_view, context.key
        wanted = self._look(view)
        partitioned = context.asset_graph.get(key).is_partitioned
        partitions: list[str | None] = [None]
        if partitioned:
            partitions = sorted(context.candidate_subset.expensively_compute_partition_keys())
        asked = json.loads(context.cursor) if context.cursor else {}
        now, kept = ask(wanted, "/".join(key.path), partitions, asked)
        if not now:
            chosen = context.get_empty_subset()
        elif not partitioned:
            chosen = context.candidate_subset
        else:
            chosen = view.get_asset_subset_from_asset_partitions(
                key, {AssetKeyPartitionKey(key, partition) for partition in now}
            )
        return dg.AutomationResult(context, chosen, cursor=json.dumps(kept))

    def _look(self, view: Any) -> Wanted:
        """One look a tick: all assets of a tick are shown the same view."""
        if self._seen is None or self._seen[0] is not view:
            graph = self._load()
            # For the next tick: this one has read the partitions already.
            register_partitions(graph, view.instance)
            self._seen = (view, look(graph, view.instance))
        return self._seen[1]


def freshness_sensor(
    assets: Sequence[dg.AssetsDefinition], status: dg.DefaultSensorStatus
) -> dg.AutomationConditionSensorDefinition:
    """The sensor that evaluates the condition of these assets, a run a partition."""
    with disable_dagster_warnings():  # that `use_user_code_server` is beta
        return dg.AutomationConditionSensorDefinition(
            SENSOR,
            target=dg.AssetSelection.assets(*assets),
            description="Makes what is stale or missing, level by level: `srd build`, on and on.",
            default_status=status,
            minimum_interval_seconds=_EVERY,
            emit_backfills=False,
            use_user_code_server=True,
        )


def _made_from(graph: Graph, ref: Ref, statuses: Mapping[Ref, Status]) -> str:
    """The address that an output would get now."""
    stage = graph.stages[ref.asset]
    inputs = {r: o for r in graph.inputs(ref) if (o := statuses[r].output) is not None}
    return address_of(stage, ref, code_version(stage), inputs, dict(stage.outside(ref.partition)))


def _busy(instance: dg.DagsterInstance) -> tuple[set[Ref], bool]:
    """What unfinished runs make, and whether one of them makes everything."""
    runs = instance.get_runs(filters=dg.RunsFilter(statuses=list(NOT_FINISHED_STATUSES)))
    return {ref for run in runs for ref in _refs(run)}, any(r.job_name == REFRESH for r in runs)


def _interrupted(instance: dg.DagsterInstance) -> dict[Ref, str]:
    """The newest run of each output that ended because the UI was stopped, not by a failure."""
    runs = instance.get_runs(
        filters=dg.RunsFilter(tags={INTERRUPTED: "true"}), limit=_MOST_INTERRUPTED
    )
    return {ref: run.run_id for run in reversed(runs) for ref in _refs(run)}


def _refs(run: dg.DagsterRun) -> list[Ref]:
    partition = run.tags.get(PARTITION_NAME_TAG)
    return [Ref("/".join(key.path), partition) for key in run.asset_selection or ()]
