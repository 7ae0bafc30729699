"""The automation condition of every asset: it asks for what is stale or missing and can be made.

What is stale is decided by `lineage/plan.py` alone, for the command line as for this.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import dagster as dg
from dagster._core.definitions.events import AssetKeyPartitionKey
from dagster._core.events import RunFailureReason
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES
from dagster._core.storage.tags import PARTITION_NAME_TAG, RUN_FAILURE_REASON_TAG
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
_MOST_RUNS = 500  # interrupted or failed ones, the newest, that are looked at
#: How often one state is asked for when its runs end without a failed step, and how long after the
#: end of the first; the wait doubles from try to try, which makes two hours of them all.
TRIES, FIRST_WAIT = 8, 60.0  # -, seconds


@dataclass(frozen=True)
class Crash:
    """A run that failed without a failed step: its process died, or it could not load the code."""

    run_id: str
    ended: float
    """Seconds since 1970."""


class Asked(NamedTuple):
    """How a partition was last asked for; the cursor keeps it."""

    state: str
    """Fingerprint of what it was to be made from."""
    crash: str | None
    """Id of the newest crash that was known then."""
    tries: int
    """How often it has been asked for in this state."""


@dataclass(frozen=True)
class Wanted:
    """What one look at the graph found."""

    ready: Mapping[Ref, str]
    """What is not fresh although all it is made from is -> fingerprint of what it is made from."""
    waiting: Set[Ref]
    """What is not fresh and cannot be made yet, or is in an unfinished run."""
    crashes: Mapping[Ref, Crash] = field(default_factory=dict)
    """What is ready and whose newest failed run was a crash."""


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
    crashes = _crashes(instance, ready.keys())
    return Wanted(ready, {status.ref for status in late} - ready.keys(), crashes)


def ask(
    wanted: Wanted,
    asset: str,
    partitions: Sequence[str | None],
    asked: Mapping[str, Asked],
    now: float,
) -> tuple[list[str | None], dict[str, Asked]]:
    """The partitions of one asset to ask for now, and what has been asked for then.

    Args:
        wanted: what `look` found.
        asset: its key.
        partitions: those that Dagster knows; `[None]` for an asset that has none.
        asked: partition ("" for none) -> how it was last asked for.
        now: seconds since 1970.

    Each state is asked for once, and again, `TRIES` times at most, after a run that crashed. A
    fresh output is forgotten, so that it is asked for again when it is deleted or when the recipe
    goes back to what failed earlier.
    """
    chosen: list[str | None] = []
    kept: dict[str, Asked] = {}
    for partition in partitions:
        ref, name = Ref(asset, partition), partition or ""
        state, last = wanted.ready.get(ref), asked.get(name)
        if state is not None:
            crash = wanted.crashes.get(ref)
            tries = 0 if last is None or last.state != state else last.tries
            if last is None or tries == 0 or _is_to_be_tried_again(last, crash, now):
                chosen.append(partition)
                last = Asked(state, crash.run_id if crash else None, tries + 1)
            kept[name] = last
        elif ref in wanted.waiting and last is not None:
            kept[name] = last
    return chosen, kept


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
        now = context.evaluation_time.timestamp()
        to_make, kept = ask(wanted, "/".join(key.path), partitions, _read(context.cursor), now)
        if not to_make:
            chosen = context.get_empty_subset()
        elif not partitioned:
            chosen = context.candidate_subset
        else:
            chosen = view.get_asset_subset_from_asset_partitions(
                key, {AssetKeyPartitionKey(key, partition) for partition in to_make}
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
    runs = instance.get_runs(filters=dg.RunsFilter(tags={INTERRUPTED: "true"}), limit=_MOST_RUNS)
    return {ref: run.run_id for run in reversed(runs) for ref in _refs(run)}


def _crashes(instance: dg.DagsterInstance, ready: Set[Ref]) -> dict[Ref, Crash]:
    """The newest failed run of each output that is ready, where it has no failed step.

    What ends so: a process that was killed, and a recipe or code that could not be read when the
    run, or its step, was started. Dagster records no event of a step then.
    """
    if not ready:
        return {}
    failed = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE])
    found: dict[Ref, Crash] = {}
    seen: set[Ref] = set()
    for record in instance.get_run_records(failed, limit=_MOST_RUNS):  # newest first
        run = record.dagster_run
        refs = {ref for ref in _refs(run) if ref in ready} - seen
        seen |= refs
        if refs and not _has_failed_step(instance, run):
            found |= dict.fromkeys(refs, Crash(run.run_id, record.end_time or 0.0))
    return found


def _has_failed_step(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    if run.tags.get(RUN_FAILURE_REASON_TAG) == RunFailureReason.STEP_FAILURE.value:
        return True
    # The tag is missing where the process was killed after its step had failed.
    failure = dg.DagsterEventType.STEP_FAILURE
    return bool(instance.get_records_for_run(run.run_id, of_type=failure, limit=1).records)


def _is_to_be_tried_again(last: Asked, crash: Crash | None, now: float) -> bool:
    if crash is None or crash.run_id == last.crash or last.tries >= TRIES:
        return False
    return now >= crash.ended + FIRST_WAIT * 2 ** (last.tries - 1)


def _read(cursor: str | None) -> dict[str, Asked]:
    entries = json.loads(cursor) if cursor else {}
    # Cursors of earlier versions held fingerprints alone: what they say is asked for once more.
    return {name: Asked(*entry) for name, entry in entries.items() if isinstance(entry, list)}


def _refs(run: dg.DagsterRun) -> list[Ref]:
    partition = run.tags.get(PARTITION_NAME_TAG)
    return [Ref("/".join(key.path), partition) for key in run.asset_selection or ()]
