"""`srd verify`: stored outputs against their digests, and expert caches against the experts.

Reading one output again is `stores/verify.py`; nothing is repaired here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np

from sr_assets.graph import Graph
from sr_assets.lineage.progress import terminal_bar
from sr_assets.lineage.records import current_output
from sr_assets.lineage.stage import Ref
from sr_assets.storage import Output
from sr_assets.stores.expert_cache import SR_STEP, CacheReader
from sr_assets.stores.pairs import PairReader
from sr_assets.stores.shards import DamagedStoreError
from sr_assets.stores.verify import Recompute, output_bytes, verify_output

#: Between the stored fixed point and a new forward pass: half a step of rounding, and the last bits
#: in which processors and batch sizes differ; bf16 has only eight of them.
_TOLERANCE = {"fp32": SR_STEP, "bf16": 4 / 255}


def verify_outputs(
    graph: Graph,
    instance: dg.DagsterInstance,
    chosen: set[Ref],
    sample: int,
    tell: Callable[[str], None],
) -> dict[str, list[str]]:
    """Verifies the current output of every chosen ref that has been made.

    Args:
        graph: the graph of the recipe.
        instance: where Dagster keeps its records.
        chosen: what to verify.
        sample: how many entries of each expert cache are computed again.
        tell: gets a line an output.

    Returns:
        Output name -> its differences, a line each; an empty list where all is well.
    """
    found: dict[str, list[str]] = {}
    for ref in graph.refs():
        output = current_output(instance, graph, ref) if ref in chosen else None
        if output is None:
            continue
        recompute = _recompute(graph, instance, ref, output) if sample else None
        with terminal_bar(
            lambda line: None, f"verifying {ref}", output_bytes(output), "bytes"
        ) as bar:
            found[str(ref)] = verify_output(output, sample, recompute, bar)
        tell(f"{ref}: {'differs' if found[str(ref)] else 'as written'}")
    return found


def _recompute(
    graph: Graph, instance: dg.DagsterInstance, ref: Ref, output: Output
) -> Recompute | None:
    """For an expert cache: what runs the expert again on given samples; None for all else."""
    kind, _, rest = ref.asset.partition("/")
    name, _, what = rest.partition("/")
    if kind != "expert" or what != "cache":
        return None
    weights = current_output(instance, graph, Ref(f"expert/{name}/weights"))
    pairs = current_output(instance, graph, Ref("gold/pairs", ref.partition))
    made_from = output.marker["inputs"]
    if weights is None or pairs is None:
        return None
    if made_from != {str(Ref(f"expert/{name}/weights")): weights.data_version,
                     str(Ref("gold/pairs", ref.partition)): pairs.data_version}:  # fmt: skip
        return None  # a stale cache: its inputs are no longer the current ones
    dtype = graph.recipe.experts[name].dtype

    def differences(indices: Sequence[int]) -> Iterator[str]:
        yield from _rerun(output, pairs, weights, indices, dtype, graph.recipe.compute.device)

    return differences


def _rerun(
    cache: Output, pairs: Output, weights: Output, indices: Sequence[int], dtype: Any, device: str
) -> Iterator[str]:
    import torch

    from sr_assets.assets.experts import load_weights
    from sr_models.device import pick_device
    from sr_models.experts.running import run_expert

    reader, source = CacheReader(cache), PairReader(pairs)
    with tempfile.TemporaryDirectory() as scratch:
        expert = load_weights(weights, Path(scratch)).to(pick_device(device))
        for index in indices:
            try:
                stored = reader.sr(index, 0)
            except DamagedStoreError:
                continue  # told already, with its file
            lr = torch.from_numpy(source.lr(index, 0)).permute(2, 0, 1)[None].float() / 255
            again = run_expert(expert, lr, dtype=dtype, batch=1, features=False).sr[0].cpu().numpy()
            worst = float(np.abs(again - stored).max())
            if worst > _TOLERANCE[dtype]:
                yield f"sample {index}: the expert now gives another picture (by {worst:.4f})"
