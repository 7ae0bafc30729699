"""From a stage to a Dagster asset: dependencies, versions, memoised outputs, metadata, checks.

The only place where a stage meets Dagster; what a stage computes is in `assets/`.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import dagster as dg
from filelock import FileLock

from sr_assets.graph import Graph
from sr_assets.lineage.code_version import code_version, module_digests
from sr_assets.lineage.progress import terminal_bar
from sr_assets.lineage.records import address_of, asset_key, current_output
from sr_assets.lineage.stage import Partitioning, Ref, Stage, StageContext, StageError
from sr_assets.storage import Output, OutputFolder, is_local, open_output

PARTITIONS: dict[Partitioning, dg.DynamicPartitionsDefinition] = {
    "source": dg.DynamicPartitionsDefinition(name="source"),
    "dataset": dg.DynamicPartitionsDefinition(name="dataset"),
    "benchmark": dg.DynamicPartitionsDefinition(name="benchmark"),
}


def to_asset(stage: Stage, graph: Graph) -> dg.AssetsDefinition:
    """The Dagster asset of a stage."""
    version = code_version(stage)

    @dg.asset(
        key=asset_key(Ref(stage.key)),
        description=stage.description,
        group_name=stage.group,
        kinds=set(stage.kinds),
        partitions_def=None if stage.partitions is None else PARTITIONS[stage.partitions],
        deps=list(_dependencies(stage, graph)),
        code_version=version,
        pool=stage.pool,
        check_specs=[
            dg.AssetCheckSpec(name, asset=asset_key(Ref(stage.key)), description=text)
            for name, text in stage.checks.items()
        ],
    )
    def asset(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        partition = context.partition_key if context.has_partition_key else None
        ref = Ref(stage.key, partition)
        if partition not in graph.partitions(stage):
            raise dg.Failure(
                f"{ref}: the recipe has no {stage.partitions} {partition!r}: "
                "add it with `srd add-dataset` or delete the partition",
                allow_retries=False,
            )
        try:
            output, reused = _make(stage, ref, graph, version, context)
        except StageError as error:
            raise dg.Failure(f"{ref}: {error}", allow_retries=False) from error
        return _result(output, reused)

    return asset


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
    with _alone(final):
        if (whole := open_output(final)) is not None:
            return whole, True
        folder = OutputFolder(final)
        origin = {
            "code_version": version,
            "settings": {**stage.settings, **stage.partition_settings(ref.partition)},
            "inputs": {str(r): output.data_version for r, output in inputs.items()},
        }
        started = time.monotonic()
        metadata = stage.run(_stage_context(ref, graph, folder, inputs, origin, context))
        marker = {
            "asset": ref.asset,
            "partition": ref.partition,
            **origin,
            "modules": module_digests(stage.modules),
            "outside": outside,
            "metadata": metadata,
            "seconds": round(time.monotonic() - started, 2),
        }
        return folder.commit(marker), False


def _stage_context(
    ref: Ref,
    graph: Graph,
    folder: OutputFolder,
    inputs: Mapping[Ref, Output],
    origin: Mapping[str, Any],
    context: dg.AssetExecutionContext,
) -> StageContext:
    def observe(points: Mapping[str, float | int]) -> None:
        context.log_event(
            dg.AssetObservation(asset_key(ref), partition=ref.partition, metadata=points)
        )

    def bar(label: str, total: int, unit: str) -> AbstractContextManager[Any]:
        return terminal_bar(context.log.info, label, total, unit)

    return StageContext(graph.recipe, ref, folder, inputs, context.log.info, observe, bar, origin)


def _alone(final: Any) -> AbstractContextManager[Any]:
    """Keeps two processes from making the same output; the lock dies with its process."""
    if is_local(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(str(final.parent / f".{final.name}.lock"))
    import contextlib

    return contextlib.nullcontext()


def _result(output: Output, reused: bool) -> dg.MaterializeResult:
    metadata = dict(output.metadata)
    checks = metadata.pop("checks", [])
    address = output.path.name
    return dg.MaterializeResult(
        data_version=dg.DataVersion(output.data_version),
        metadata={
            **{key: _metadata_value(value) for key, value in metadata.items()},
            "address": address,
            "path": dg.MetadataValue.path(str(output.path)),
            "reused": reused,
            "seconds": output.marker["seconds"],
        },
        check_results=[
            dg.AssetCheckResult(
                check_name=check["name"],
                passed=check["passed"],
                description=check["reason"],
                metadata=check["numbers"],
            )
            for check in checks
        ],
    )


def _metadata_value(value: Any) -> Any:
    """Dagster's form of a stage's JSON metadata; `{"md": text}` and its like name their form."""
    if isinstance(value, dict) and len(value) == 1:
        ((form, inner),) = value.items()
        if form == "md":
            return dg.MetadataValue.md(inner)
        if form == "path":
            return dg.MetadataValue.path(inner)
        if form == "url":
            return dg.MetadataValue.url(inner)
    if isinstance(value, dict | list | tuple):
        return dg.MetadataValue.json(value)
    return dg.MetadataValue.null() if value is None else value
