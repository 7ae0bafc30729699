"""What Dagster remembers of each output, and where that output is now.

Dagster's latest materialisation names the current output; its marker on disk says what it was made
from. There is no second database.
"""

from __future__ import annotations

import dagster as dg

from sr_assets.graph import Graph
from sr_assets.lineage.code_version import digest_of
from sr_assets.lineage.stage import Ref, Stage
from sr_assets.storage import Output, open_output


def asset_key(ref: Ref) -> dg.AssetKey:
    """The Dagster key of an output's asset."""
    return dg.AssetKey(ref.asset.split("/"))


def current_address(instance: dg.DagsterInstance, ref: Ref) -> str | None:
    """Address that the latest materialisation of `ref` names, or None when there was none."""
    found = instance.fetch_materializations(
        dg.AssetRecordsFilter(
            asset_key=asset_key(ref),
            asset_partitions=None if ref.partition is None else [ref.partition],
        ),
        limit=1,
    ).records
    if not found or (event := found[0].asset_materialization) is None:
        return None
    value = event.metadata.get("address")
    return None if value is None else str(value.value)


def current_output(instance: dg.DagsterInstance, graph: Graph, ref: Ref) -> Output | None:
    """The current output of `ref` in this graph's root; None when it was never made or is gone."""
    address = current_address(instance, ref)
    return None if address is None else open_output(graph.folder(ref) / address)


def address_of(
    stage: Stage, ref: Ref, code_version: str, inputs: dict[Ref, Output], outside: dict[str, str]
) -> str:
    """Where the output belongs: a digest of its code version and all that it is made from."""
    return digest_of(
        {
            "code_version": code_version,
            "partition_settings": dict(stage.partition_settings(ref.partition)),
            "outside": outside,
            "inputs": {str(r): output.data_version for r, output in inputs.items()},
        }
    )
