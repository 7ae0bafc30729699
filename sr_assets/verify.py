"""`srd verify`: stored outputs against their digests, and expert caches against the experts.

Reading one output again is `stores/verify.py`; nothing is repaired here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import dagster as dg
import numpy as np

from sr_assets.graph import Graph
from sr_assets.lineage.progress import terminal_bar
from sr_assets.lineage.records import current_address, current_output
from sr_assets.lineage.stage import Ref
from sr_assets.recipe.models import Recipe
from sr_assets.storage import Output, open_damaged, why_not_whole
from sr_assets.stores.expert_cache import CacheReader
from sr_assets.stores.fixed_point import SR_STEP
from sr_assets.stores.pairs import PairReader
from sr_assets.stores.verify import Recompute, Share, output_bytes, verify_output

#: Between the stored fixed point and a new forward pass: half a step of rounding, and the last bits
#: in which processors and batch sizes differ; bf16 has only eight of them.
_TOLERANCE = {"fp32": SR_STEP, "bf16": 4 / 255}
#: The same for features, in steps: 1/127 of the largest of the sample's channel.
_STEPS = {"fp32": 1.0, "bf16": 8.0}


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
        share: how many entries of each expert cache are computed again.
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
    recipe = graph.recipe

    def differences(indices: Sequence[int]) -> Iterator[str]:
        yield from _rerun(recipe, name, output, pairs, weights, indices)

    return differences


def _rerun(
    recipe: Recipe,
    name: str,
    cache: Output,
    pairs: Output,
    weights: Output,
    indices: Sequence[int],
) -> Iterator[str]:
    import torch

    from sr_assets.assets.experts import load_weights, tap
    from sr_models.device import pick_device
    from sr_models.experts.running import run_expert

    wanted = recipe.expert_as_cached(name)
    try:
        reader, source = CacheReader(cache), PairReader(pairs)
    except OSError:
        return  # told already, with its file
    with tempfile.TemporaryDirectory() as scratch:
        expert = load_weights(weights, Path(scratch)).to(pick_device(recipe.compute.device))
        asked = reader.feature_shape is not None
        expert = tap(expert, name, wanted) if asked else expert
        for index in indices:
            variant = index % reader.variants
            try:
                stored, lr = reader.sr(index, variant), source.lr(index, variant)
                maps = reader.features(index, variant) if asked else None
            except OSError:
                continue  # told already, with its file
            batch = torch.from_numpy(lr).permute(2, 0, 1)[None].float() / 255
            again = run_expert(expert, batch, dtype=wanted.dtype, batch=1, features=asked)
            where = f"sample {index}, variant {variant}"
            worst = float(np.abs(again.sr[0].cpu().numpy() - stored).max())
            if not worst <= _TOLERANCE[wanted.dtype]:  # nor is a NaN
                yield (
                    f"sr, {where}: the expert now gives another picture (by {worst:.4f} of the "
                    "range)"
                )
            if maps is None or again.features is None:
                continue
            steps = _steps_apart(again.features[0].cpu().numpy(), maps)
            if not steps <= _STEPS[wanted.dtype]:
                yield f"features, {where}: the expert now gives others (by {steps:.1f} steps)"


def _steps_apart(again: np.ndarray, stored: np.ndarray) -> float:
    """Largest difference of features [C, s, s], in steps of the channel; NaN where one is."""
    step = np.abs(stored).max((-2, -1), keepdims=True) / 127
    return float((np.abs(again - stored) / np.where(step > 0, step, 1)).max())
