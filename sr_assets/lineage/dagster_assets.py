"""From a stage to a Dagster asset: dependencies, versions, memoised outputs, metadata, checks.

The only place where a stage meets Dagster; what a stage computes is in `assets/`.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import dagster as dg
from filelock import FileLock, Timeout
from upath import UPath

from sr_assets.building_lock import holder
from sr_assets.disk import StorageError, make_folder, told
from sr_assets.graph import Graph
from sr_assets.lineage.code_version import code_version, load_code, module_digests
from sr_assets.lineage.parents import end_with_run
from sr_assets.lineage.progress import shown, terminal_bar
from sr_assets.lineage.records import address_of, asset_key, current_output
from sr_assets.lineage.stage import Partitioning, Ref, Stage, StageContext, StageError
from sr_assets.lineage.together import run_together
from sr_assets.output_folder import OutputFolder, building_folder
from sr_assets.storage import Output, is_local, open_output
from sr_assets.stores.schema import SchemaError

PARTITIONS: dict[Partitioning, dg.DynamicPartitionsDefinition] = {
    "source": dg.DynamicPartitionsDefinition(name="source"),
    "dataset": dg.DynamicPartitionsDefinition(name="dataset"),
    "benchmark": dg.DynamicPartitionsDefinition(name="benchmark"),
}

_SILENT = 2.0
"""Seconds that a process waits for another before it says so."""

#: How a stage's metadata names a form that JSON has not.
_FORMS: dict[str, Callable[[Any], Any]] = {
    "md": dg.MetadataValue.md,
    "path": dg.MetadataValue.path,
    "url": dg.MetadataValue.url,
}
#: Numbers that say what a model is, not how it does: as text, since Dagster plots every number and
#: plots of constants would bury the curves.
_FACTS = (
    "bytes",
    "feature_channels",
    "lr_side",
    "multiple",
    "parameters",
    "scale",
    "step",
    "steps",
)


def to_asset(
    stage: Stage, graph: Graph, condition: dg.AutomationCondition[dg.AssetKey] | None = None
) -> dg.AssetsDefinition:
    """The Dagster asset of a stage, made by itself when `condition` says so."""
    version = code_version(stage)

    @dg.asset(
        key=asset_key(Ref(stage.key)),
        description=stage.description,
        group_name=stage.group,
        kinds=set(stage.kinds),
        metadata={"recipe": _table(stage.settings)} if stage.settings else {},
        partitions_def=None if stage.partitions is None else PARTITIONS[stage.partitions],
        deps=list(_dependencies(stage, graph)),
        code_version=version,
        pool=stage.pool,
        automation_condition=condition,
        check_specs=[
            dg.AssetCheckSpec(name, asset=asset_key(Ref(stage.key)), description=text)
            for name, text in stage.checks.items()
        ],
    )
    def asset(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        end_with_run()
        partition = context.partition_key if context.has_partition_key else None
        ref = Ref(stage.key, partition)
        if partition not in graph.partitions(stage):
            raise dg.Failure(
                f"{ref}: recipe {graph.recipe.name} has no {stage.partitions} {partition!r}: add "
                "it with `srd add-dataset`, or leave the partition to the recipe it belongs to",
                allow_retries=False,
            )
        try:
            output, reused = _make(stage, ref, graph, version, context)
        except StageError as error:
            raise dg.Failure(f"{ref}: {error}", allow_retries=False) from error
        except (StorageError, SchemaError) as error:
            reason = StageError(str(error))  # one line that is ours, as the command line shows it
            raise dg.Failure(f"{ref}: {reason}", allow_retries=False) from reason
        return _result(output, reused)

    return asset


def _table(settings: Mapping[str, Any]) -> dg.MetadataValue:
    """The recipe fields that decide the asset's content."""
    rows = [f"| {field} | `{json.dumps(value)}` |" for field, value in settings.items()]
    return dg.MetadataValue.md("\n".join(["| field | value |", "|---|---|", *rows]))


def _dependencies(stage: Stage, graph: Graph) -> Iterator[dg.AssetDep]:
    """Edges of the asset, with the partitions that each really reads."""
    keys: dict[str, set[str]] = {}
    same: dict[str, bool] = {}
    for partition in graph.partitions(stage):
        for ref in graph.inputs(Ref(stage.key, partition)):
            read = keys.setdefault(ref.asset, set())
            if ref.partition is not None:
                read.add(ref.partition)
            same[ref.asset] = same.get(ref.asset, True) and ref.partition == partition
    for asset, read in keys.items():
        mapping: dg.PartitionMapping | None = None
        if graph.stages[asset].partitions is not None:
            mapping = (
                dg.IdentityPartitionMapping()
                if same[asset]
                else dg.SpecificPartitionsPartitionMapping(sorted(read))
            )
        yield dg.AssetDep(asset_key(Ref(asset)), partition_mapping=mapping)


def _make(
    stage: Stage, ref: Ref, graph: Graph, version: str, context: dg.AssetExecutionContext
) -> tuple[Output, bool]:
    """The output of `ref` for its current inputs, and whether it was found whole already."""
    inputs: dict[Ref, Output] = {}
    for parent in graph.inputs(ref):
        output = current_output(context.instance, graph, parent)
        if output is None:
            raise StageError(f"its input {parent} has not been made: run `srd build '{parent}'`")
        inputs[parent] = output
    outside = dict(stage.outside(ref.partition))
    final = graph.folder(ref) / address_of(stage, ref, version, inputs, outside)
    if (whole := open_output(final)) is not None:
        return whole, True
    with told(building_folder(final)), _alone(final, shown(context.log.info)):
        if (whole := open_output(final)) is not None:
            return whole, True
        folder = OutputFolder(final)
        origin = {
            "code_version": version,
            "settings": {**stage.settings, **stage.partition_settings(ref.partition)},
            "inputs": {str(r): output.data_version for r, output in inputs.items()},
        }
        load_code(stage.modules_of(ref.partition))
        started = time.monotonic()
        metadata = stage.run(_stage_context(ref, graph, folder, inputs, origin, context))
        marker = {
            "asset": ref.asset,
            "partition": ref.partition,
            **origin,
            "modules": module_digests(stage.modules_of(ref.partition)),
            "outside": outside,
            "metadata": metadata,
            "seconds": round(time.monotonic() - started, 2),
        }
        if is_local(final):
            return folder.commit(marker), False
        size = sum(entry["size"] for entry in folder.files.values())
        with terminal_bar(context.log.info, f"{ref} to {graph.root}", size, "bytes") as sent:
            return folder.commit(marker, sent), False


def _stage_context(
    ref: Ref,
    graph: Graph,
    folder: OutputFolder,
    inputs: Mapping[Ref, Output],
    origin: Mapping[str, Any],
    context: dg.AssetExecutionContext,
) -> StageContext:
    latest: dict[str, float | int] = {}

    def observe(points: Mapping[str, float | int]) -> None:
        # All that is known each time: Dagster breaks a curve at every event that lacks its key.
        latest.update(points)
        context.log_event(
            dg.AssetObservation(asset_key(ref), partition=ref.partition, metadata=dict(latest))
        )

    def bar(label: str, total: int, unit: str) -> AbstractContextManager[Any]:
        return terminal_bar(context.log.info, label, total, unit)

    log = shown(context.log.info)
    together = partial(run_together, context, folder.work / "together")
    return StageContext(graph.recipe, ref, folder, inputs, log, observe, bar, origin, together)


@contextmanager
def _alone(final: UPath, tell: Callable[[str], None]) -> Iterator[None]:
    """Keeps two processes from making the same output; the lock dies with its process.

    The second one waits, and then finds what the first has made.
    """
    folder = building_folder(final)
    make_folder(folder.parent)
    lock = FileLock(folder.with_suffix(".lock"))
    try:
        held = lock.acquire(timeout=_SILENT)
    except Timeout:
        tell(f"{final} is being built by {holder(folder)}: waiting for its end")
        held = lock.acquire()
    with held:
        yield


def _result(output: Output, reused: bool) -> dg.MaterializeResult:
    metadata = dict(output.metadata)
    checks = metadata.pop("checks", [])
    return dg.MaterializeResult(
        data_version=dg.DataVersion(output.data_version),
        metadata={
            **_displayed(metadata),
            "took": dg.MetadataValue.text(f"{output.marker['seconds']:.1f} s"),
            "reused": reused,
            "path": dg.MetadataValue.path(str(output.path)),
            "address": output.path.name,
        },
        check_results=[
            dg.AssetCheckResult(
                check_name=check["name"],
                passed=check["passed"],
                description=check["reason"],
                metadata=_displayed(check["numbers"]),
            )
            for check in checks
        ],
    )


def _displayed(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Dagster's form of a stage's JSON metadata: tables first, and nothing that says nothing."""
    said = {key: value for key, value in metadata.items() if value not in (None, [], {})}
    tables = [key for key, value in said.items() if _form_of(value) is not None]
    return {key: _metadata_value(key, said[key]) for key in dict.fromkeys([*tables, *said])}


def _metadata_value(key: str, value: Any) -> Any:
    """One value as Dagster shows it; `{"md": text}` and its like name their form."""
    if (form := _form_of(value)) is not None:
        return _FORMS[form](value[form])
    if isinstance(value, dict | list | tuple):
        return dg.MetadataValue.json(value)
    if isinstance(value, bool | str):
        return value
    if key in _FACTS:
        return dg.MetadataValue.text(f"{value:,}")
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _form_of(value: Any) -> str | None:
    """The form that a stage named, if it named one."""
    return next((f for f in _FORMS if isinstance(value, dict) and list(value) == [f]), None)
