"""What Dagster remembers of each output, and where that output is now.

Dagster's latest materialisation in a root names the current output; its marker on disk says what it
was made from. There is no second database.
"""

from __future__ import annotations

import dagster as dg

from sr_assets.graph import Graph
from sr_assets.lineage.code_version import digest_of, module_digests
from sr_assets.lineage.stage import Ref, Stage
from sr_assets.storage import Output, open_output

_PAGE = 100  # records that are read at a time


def asset_key(ref: Ref) -> dg.AssetKey:
    """The Dagster key of an output's asset."""
    return dg.AssetKey(ref.asset.split("/"))


def current_address(instance: dg.DagsterInstance, graph: Graph, ref: Ref) -> str | None:
    """Address that the latest materialisation of `ref` in this graph's root names.

    Recipes with roots of their own may share a Dagster home, and with it the records of an asset.
    Where none is in this root, it is the latest of all: the root may have been moved. None when
    there is none at all.
    """
    records = dg.AssetRecordsFilter(
        asset_key=asset_key(ref),
        asset_partitions=None if ref.partition is None else [ref.partition],
    )
    latest: str | None = None
    cursor, limit = None, 1  # nearly always the first one
    while True:
        page = instance.fetch_materializations(records, limit=limit, cursor=cursor)
        for record in page.records:
            metadata = record.asset_materialization.metadata if record.asset_materialization else {}
            if "address" not in metadata or "path" not in metadata:
                continue  # reported by hand
            address = str(metadata["address"].value)
            if str(metadata["path"].value) == str(graph.folder(ref) / address):
                return address
            latest = latest or address
        if not page.has_more:
            return latest
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
