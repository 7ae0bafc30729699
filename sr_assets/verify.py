"""`srd verify`: stored outputs against their digests, and caches against what fills them.

Reading one output again is `stores/verify.py`, running networks again is `recompute.py`; nothing is
repaired here.
"""

from __future__ import annotations

from collections.abc import Callable

import dagster as dg

from sr_assets.graph import Graph
from sr_assets.lineage.progress import terminal_bar
from sr_assets.lineage.records import current_address, current_output
from sr_assets.lineage.stage import Ref
from sr_assets.recompute import is_cache, samples_again
from sr_assets.storage import Output, open_damaged, why_not_whole
from sr_assets.stores.verify import Recompute, Share, output_bytes, verify_output


def verify_outputs(
    graph: Graph,
    instance: dg.DagsterInstance,
    chosen: set[Ref],
    share: Share,
    tell: Callable[[str], None],
) -> dict[str, list[str]]:
    """Verifies the current output of every chosen ref that has been made.

    Args:
        graph: the graph of the recipe.
        instance: where Dagster keeps its records.
        chosen: what to verify.
        share: how many entries of each cache are computed again.
        tell: gets a line an output.

    Returns:
        Output name -> its differences, a line each; an empty list where all is well.

    Raises:
        SchemaError: a newer program wrote an output.
    """
    found: dict[str, list[str]] = {}
    for ref in graph.refs():
        address = current_address(instance, graph, ref) if ref in chosen else None
        if address is None:
            continue
        found[str(ref)] = _differences(graph, instance, ref, address, share)
        tell(f"{ref}: {'differs' if found[str(ref)] else 'as written'}")
    return found


def _differences(
    graph: Graph, instance: dg.DagsterInstance, ref: Ref, address: str, share: Share
) -> list[str]:
    path = graph.folder(ref) / address
    output = open_damaged(path)
    if output is None:
        why = why_not_whole(path) or f"its folder {path} is gone"
        return [f"{why}: run `srd build '{ref}'`"]
    recompute = _recompute(graph, instance, ref, output) if share.amount else None
    with terminal_bar(lambda line: None, f"verifying {ref}", output_bytes(output), "bytes") as bar:
        return verify_output(output, recompute, share, bar)


def _recompute(
    graph: Graph, instance: dg.DagsterInstance, ref: Ref, output: Output
) -> Recompute | None:
    """For a cache: what computes given samples again; None for all else, and for a stale one."""
    if not is_cache(ref):
        return None
    inputs = {parent: current_output(instance, graph, parent) for parent in graph.inputs(ref)}
    whole = {parent: found for parent, found in inputs.items() if found is not None}
    current = {str(parent): found.data_version for parent, found in whole.items()}
    if len(whole) < len(inputs) or output.marker["inputs"] != current:
        return None
    return samples_again(graph.recipe, ref, output, whole)
