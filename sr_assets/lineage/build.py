"""Makes what is stale or missing, level by level, and looks again after each level.

Looking again is the point: an input that was remade with equal content leaves what hangs below it
fresh, and the work stops there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import dagster as dg
from dagster._core.events import RunFailureReason

from sr_assets.graph import Graph, partition_keys
from sr_assets.lineage.code_version import load_code
from sr_assets.lineage.dagster_assets import PARTITIONS
from sr_assets.lineage.plan import Status, survey
from sr_assets.lineage.records import current_output
from sr_assets.lineage.runs import bury_dead_runs, execute
from sr_assets.lineage.stage import Ref, StageError


@dataclass
class BuildResult:
    """What one build did."""

    made: list[Ref] = field(default_factory=list)
    failed: dict[Ref, str] = field(default_factory=dict)
    held_back: list[Ref] = field(default_factory=list)
    """Not tried, because something they are made from failed, or changed meanwhile."""


def register_partitions(graph: Graph, instance: dg.DagsterInstance) -> None:
    """Makes the recipe's datasets and benchmarks known to Dagster."""
    for partitioning, definition in PARTITIONS.items():
        wanted = partition_keys(graph.recipe, partitioning)
        known = set(instance.get_dynamic_partitions(str(definition.name)))
        if new := [key for key in wanted if key not in known]:
            instance.add_dynamic_partitions(str(definition.name), new)


def to_do(statuses: dict[Ref, Status], chosen: set[Ref]) -> list[Status]:
    """What of the chosen outputs is not fresh, inputs first."""
    return [s for ref, s in statuses.items() if ref in chosen and s.state != "fresh"]


def build(
    graph: Graph,
    job: dg.JobDefinition,
    instance: dg.DagsterInstance,
    chosen: set[Ref],
    tell: Callable[[str], None],
) -> BuildResult:
    """Makes everything of `chosen` that is stale or missing, inputs first.

    One failure does not stop what does not depend on it.

    Raises:
        KeyboardInterrupt: somebody stopped it.
    """
    bury_dead_runs(instance)
    register_partitions(graph, instance)
    result = BuildResult()
    while True:
        done = {*result.made, *result.failed}
        open_ones = [s for s in to_do(survey(graph, instance), chosen) if s.ref not in done]
        level = [s for s in open_ones if s.ready]
        if not level:
            result.held_back = [s.ref for s in open_ones]
            return result
        if not done:
            load_code(
                m for s in open_ones for m in graph.stages[s.ref.asset].modules_of(s.ref.partition)
            )
        for group in _same_partition(level):
            for status in group:
                tell(f"{status.ref}: {status.why}")
            _run(graph, job, instance, [s.ref for s in group], result, tell)


def _same_partition(level: list[Status]) -> list[list[Status]]:
    """Groups that may share a run: one partition key each, and no two kinds of partitions."""
    groups: dict[str | None, list[Status]] = {}
    for status in level:
        groups.setdefault(status.ref.partition, []).append(status)
    return list(groups.values())


def _run(
    graph: Graph,
    job: dg.JobDefinition,
    instance: dg.DagsterInstance,
    refs: list[Ref],
    result: BuildResult,
    tell: Callable[[str], None],
) -> None:
    by_kind: dict[str | None, list[Ref]] = {}
    for ref in refs:
        by_kind.setdefault(graph.stages[ref.asset].partitions, []).append(ref)
    for together in by_kind.values():
        run = execute(job, instance, together)
        if any(_was_interrupted(event) for event in run.all_events):
            raise KeyboardInterrupt
        steps = {str(r): r for r in together}
        errors = {e.step_key: _reason(e) for e in run.all_events if e.is_step_failure}
        for ref in steps.values():
            key = job_step(ref)
            if key in errors or (not run.success and _unmade(instance, graph, ref)):
                result.failed[ref] = errors.get(key, "the run ended before it")
                tell(f"{ref}: FAILED: {result.failed[ref]}")
            else:
                result.made.append(ref)
                output = current_output(instance, graph, ref)
                if output is not None:
                    tell(f"{ref}: done in {output.marker['seconds']:.1f} s")


def _was_interrupted(event: dg.DagsterEvent) -> bool:
    """Whether the event ends a run on Ctrl-C, which Dagster keeps to itself."""
    return (
        event.is_job_failure
        and event.job_failure_data.failure_reason is RunFailureReason.UNEXPECTED_TERMINATION
    )


def _unmade(instance: dg.DagsterInstance, graph: Graph, ref: Ref) -> bool:
    return survey(graph, instance)[ref].state != "fresh"


def job_step(ref: Ref) -> str:
    """Key of the step that makes an asset."""
    return ref.asset.replace("/", "__")


def _reason(event: dg.DagsterEvent) -> str:
    """One line that says why a step failed: our own message where the error is ours."""
    error = event.step_failure_data.error
    while error is not None and error.cause is not None and not _is_ours(error.message):
        error = error.cause
    lines = [line for line in (error.message if error else "").splitlines() if line.strip()]
    if not lines:
        return "no reason was recorded"
    return lines[0 if _is_ours(lines[0]) else -1].split(f"{StageError.__name__}: ")[-1].strip()


def _is_ours(message: str) -> bool:
    return f"{StageError.__name__}: " in message.splitlines()[0] if message.strip() else False
