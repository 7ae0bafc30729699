"""What Dagster remembers of each output, and where that output is now.

Dagster's latest materialisation in a root names the current output; its marker on disk says what it
was made from. There is no second database.
"""

from __future__ import annotations

from collections.abc import Iterator

import dagster as dg

from sr_assets.graph import Graph
from sr_assets.lineage.code_version import digest_of, module_digests
from sr_assets.lineage.stage import Ref, Stage
from sr_assets.storage import Output, open_output

_PAGE = 100  # records that are read at a time


def asset_key(ref: Ref) -> dg.AssetKey:
    """The Dagster key of an output's asset."""
    return dg.AssetKey(ref.asset.split("/"))


def current_addresses(instance: dg.DagsterInstance, graph: Graph) -> dict[Ref, str]:
    """`current_address` of every output of the graph that has one.

    The latest records of all partitions of an asset are read together: a few queries an asset,
    not one an output.
    """
    found: dict[Ref, str] = {}
    for stage in graph.stages.values():
        refs = [Ref(stage.key, partition) for partition in graph.partitions(stage)]
        latest = {} if stage.partitions is None else _latest_by_partition(instance, refs)
        for ref in refs:
            if stage.partitions is not None and ref not in latest:
                continue  # never made
            named = _named(latest[ref]) if ref in latest else None
            if named is not None and named[1] == str(graph.folder(ref) / named[0]):
                found[ref] = named[0]
            elif (address := current_address(instance, graph, ref)) is not None:
                found[ref] = address
    return found


def current_address(instance: dg.DagsterInstance, graph: Graph, ref: Ref) -> str | None:
    """Address that the latest materialisation of `ref` in this graph's root names.

    Recipes with roots of their own may share a Dagster home, and with it the records of an asset.
    Where none is in this root, it is the latest of all: the root may have been moved. None when
    there is none at all.
    """
    latest: str | None = None
    for address, path in addresses_and_paths(instance, ref):
        if path == str(graph.folder(ref) / address):
            return address
        latest = latest or address
    return latest


def addresses_and_paths(instance: dg.DagsterInstance, ref: Ref) -> Iterator[tuple[str, str]]:
    """Address and path of every materialisation of `ref` that names them, latest first."""
    records = dg.AssetRecordsFilter(
        asset_key=asset_key(ref),
        asset_partitions=None if ref.partition is None else [ref.partition],
    )
    cursor, limit = None, 1  # nearly always the first one is enough
    while True:
        page = instance.fetch_materializations(records, limit=limit, cursor=cursor)
        yield from filter(None, map(_named, page.records))
        if not page.has_more:
            return
        cursor, limit = page.cursor, _PAGE


def current_output(instance: dg.DagsterInstance, graph: Graph, ref: Ref) -> Output | None:
    """The current output of `ref` in this graph's root; None when it was never made or is gone."""
    address = current_address(instance, graph, ref)
    return None if address is None else open_output(graph.folder(ref) / address)


def address_of(
    stage: Stage, ref: Ref, code_version: str, inputs: dict[Ref, Output], outside: dict[str, str]
) -> str:
    """Where the output belongs: a digest of its code version and all that it is made from."""
    made_from = {
        "code_version": code_version,
        "partition_settings": dict(stage.partition_settings(ref.partition)),
        "outside": outside,
        "inputs": {str(r): output.data_version for r, output in inputs.items()},
    }
    if own := stage.partition_modules(ref.partition):
        made_from["partition_modules"] = module_digests(own)
    return digest_of(made_from)


def _latest_by_partition(
    instance: dg.DagsterInstance, refs: list[Ref]
) -> dict[Ref, dg.EventLogRecord]:
    """The latest materialisation of each of some partitions of one asset."""
    if not refs:
        return {}
    key = asset_key(refs[0])
    ids = instance.get_latest_storage_id_by_partition(
        key, dg.DagsterEventType.ASSET_MATERIALIZATION
    )
    keys = {ref.partition for ref in refs}
    wanted = [identity for partition, identity in ids.items() if partition in keys]
    found: dict[Ref, dg.EventLogRecord] = {}
    for start in range(0, len(wanted), _PAGE):
        some = wanted[start : start + _PAGE]
        page = instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=key, storage_ids=some), limit=len(some)
        )
        found |= {Ref(refs[0].asset, record.partition_key): record for record in page.records}
    return found


def _named(record: dg.EventLogRecord) -> tuple[str, str] | None:
    """Address and path that a materialisation names; None for one that was reported by hand."""
    metadata = record.asset_materialization.metadata if record.asset_materialization else {}
    if "address" not in metadata or "path" not in metadata:
        return None
    return str(metadata["address"].value), str(metadata["path"].value)
