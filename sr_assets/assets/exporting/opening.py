"""Opening a trained model for export: its network, experts, held-out pairs, and what its files say.

Writing the files is `export.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sr_assets.assets.experts import load_weights
from sr_assets.assets.exporting.samples import read_samples, with_experts
from sr_assets.assets.exporting.subject import NO_LICENCE, Subject
from sr_assets.assets.trained import load_model
from sr_assets.lineage.stage import StageContext, StageError
from sr_assets.storage import Output
from sr_assets.stores.patches import VALIDATION

if TYPE_CHECKING:
    from sr_models.experts.loading import Expert

#: Held-out pairs that every file is measured on.
SAMPLES = 8


def open_subject(
    context: StageContext, name: str, checkpoint: Output, origin: Mapping[str, Any], scratch: Path
) -> tuple[dict[str, Any], Subject]:
    """What the files of a model hold, and what their makers are given.

    Args:
        context: of the export.
        name: of the model.
        checkpoint: its output.
        origin: as `provenance` gives it.
        scratch: an empty folder, there as long as the subject is.

    Raises:
        StageError: weights do not fit, an expert cannot be loaded, or no pair is held out.
    """
    from sr_models.export.fusing import fused_copy
    from sr_models.export.weights import digest_weights, merged_state

    model = load_model(checkpoint)
    state = merged_state(fused_copy(model.network))
    recipe = context.recipe
    datasets = recipe.training_datasets(recipe.models[name].datasets)
    description = {
        "model": name,
        "kind": model.kind,
        "architecture": model.description["architecture"],
        "args": model.description["args"],
        "scale": model.scale,
        "experts": list(model.experts),
        "expert_weights": {
            e: weights_digest(context.input(f"expert/{e}/weights")) for e in model.experts
        },
        "taps": dict(model.taps),
        "parameters": model.description["parameters"],
        "quantisation_aware": model.description.get("quantisation_aware", False),
        "datasets": model.description["datasets"],
        "licence": recipe.models[name].licence,
        "tensors": digest_weights(state),
    }
    experts = {e: _expert(context, e, model.taps.get(e), scratch) for e in model.experts}
    samples = read_samples(context, datasets, SAMPLES, VALIDATION)
    return description, Subject(
        name=name,
        model=model,
        state=state,
        metadata=_metadata(description, origin),
        licence=recipe.models[name].licence,
        samples=with_experts(samples, experts, tuple(model.features)) if experts else samples,
        pairs=partial(read_samples, context, datasets),
        experts=experts,
        scratch=scratch,
        log=context.log,
    )


def _expert(context: StageContext, name: str, module: str | None, scratch: Path) -> Expert:
    from sr_models.experts.running import tapped

    folder = scratch / "experts" / name
    folder.mkdir(parents=True)
    try:
        expert = load_weights(context.input(f"expert/{name}/weights"), folder)
        return expert if module is None else tapped(expert, module)
    except ValueError as error:
        raise StageError(f"experts.{name}: {error}") from error


def _metadata(description: Mapping[str, Any], origin: Mapping[str, Any]) -> dict[str, str]:
    """The strings inside the weights file; `data` and `caches` are JSON, asset -> data version."""
    data = {k: v for k, v in origin["data"].items() if "/cache" not in k}
    caches = {k: v for k, v in origin["data"].items() if k not in data}
    told = {
        k: description[k] for k in ("model", "kind", "architecture", "args", "scale", "licence")
    }
    if description["experts"]:
        told |= {k: description[k] for k in ("experts", "expert_weights", "taps")}
    told["licence"] = told["licence"] or NO_LICENCE
    told |= {"data": data, "caches": caches, "code_version": origin["code_version"] or "unknown"}
    texts = {k: v if isinstance(v, str) else json.dumps(v, sort_keys=True) for k, v in told.items()}
    return {**texts, "format": "pt"}  # what other readers of such files look for


def provenance(checkpoint: Output) -> dict[str, Any]:
    """`data`: what a checkpoint was trained from, asset -> data version; its `code_version`."""
    return {
        "data": dict(checkpoint.marker.get("inputs", {})),
        "code_version": checkpoint.marker.get("code_version"),
    }


def weights_digest(weights: Output) -> str:
    """sha256 of an expert's weights file, as its output says, else the digest of that output."""
    return str(weights.metadata.get("sha256", weights.data_version))
