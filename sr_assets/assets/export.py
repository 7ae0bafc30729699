"""Export: a trained model as the files that people use, each checked against the network itself.

Whether a model is good enough to be released is decided in `release.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sr_assets.assets.trained import load_model
from sr_assets.lineage.slices import network_modules
from sr_assets.lineage.stage import Ref, Stage, StageContext, StageError
from sr_assets.recipe.models import Recipe
from sr_assets.storage import Output

if TYPE_CHECKING:
    from torch import Tensor

    from sr_assets.assets.trained import LoadedModel

#: What the files hold; this is the content of the output.
DESCRIPTION = "description.json"
#: File names, checks of them, and where they come from.
REPORT = "export.json"
#: What files say of a model whose recipe states no licence.
NO_LICENCE = "not stated"
#: Largest accepted difference between the network and what spandrel loads from its file.
SPANDREL_TOLERANCE = 1e-5


def stages(recipe: Recipe) -> list[Stage]:
    """One export for each model of the recipe."""
    return [_stage(recipe, name) for name in recipe.models]


def _stage(recipe: Recipe, name: str) -> Stage:
    model = recipe.models[name]
    inputs = [Ref(f"model/{name}/checkpoint")]
    # A fusion means these very experts: their digests belong to its files.
    inputs += [Ref(f"expert/{e}/weights") for e in recipe.experts_of(name)]

    def run(context: StageContext) -> dict[str, Any]:
        return _run(context, name)

    def read(partition: str | None) -> Iterable[Ref]:
        return inputs

    return Stage(
        key=f"model/{name}/export",
        description=f"{name} as safetensors and ONNX, checked against the trained network.",
        group=f"model_{name}",
        run=run,
        modules=("sr_assets.assets.export", *network_modules(model)),
        kinds=frozenset({"onnx"}),
        inputs=read,
        settings={
            "export.onnx": recipe.export.onnx,
            f"models.{name}.licence": model.licence,
        },
    )


def weights_name(model: str, scale: int) -> str:
    """File name of the weights."""
    return f"{model}_x{scale}.safetensors"


def onnx_name(model: str, scale: int) -> str:
    """File name of the fp32 graph."""
    return f"{model}_x{scale}_fp32.onnx"


def _run(context: StageContext, name: str) -> dict[str, Any]:
    from sr_models.export.fusing import fused_copy
    from sr_models.export.weights import digest_weights, merged_state, serialise_weights

    checkpoint = context.input(f"model/{name}/checkpoint")
    model = load_model(checkpoint)
    state = merged_state(fused_copy(model.network))
    experts = {e: weights_digest(context.input(f"expert/{e}/weights")) for e in model.experts}
    description = {
        "model": name,
        "kind": model.kind,
        "architecture": model.description["architecture"],
        "args": model.description["args"],
        "scale": model.scale,
        "experts": list(model.experts),
        "expert_weights": experts,
        "taps": dict(model.taps),
        "parameters": model.description["parameters"],
        "quantisation_aware": model.description.get("quantisation_aware", False),
        "datasets": model.description["datasets"],
        "licence": context.recipe.models[name].licence,
        "tensors": digest_weights(state),
    }
    origin = provenance(checkpoint)
    content = serialise_weights(state, _metadata(description, origin))
    _check_tensors(content, state)
    # The file names the code that trained it. Code that trains the same weights is no new content:
    # the data version rests on the digest of the tensors in the description instead.
    weights = weights_name(name, model.scale)
    context.output.write_bytes(weights, content, content=False)
    context.output.write_json(DESCRIPTION, description)
    spandrel = None if model.experts else _check_with_spandrel(context, weights, model)
    onnx = _write_onnx(context, name, model, spandrel) if context.recipe.export.onnx else None
    report = {
        "files": _files(context, (weights, onnx_name(name, model.scale))),
        "spandrel": spandrel,
        "onnx": onnx,
        **origin,
    }
    context.output.write_json(REPORT, report, content=False)
    return _stage_metadata(report, description)


def provenance(checkpoint: Output) -> dict[str, Any]:
    """`data`: what a checkpoint was trained from, asset -> data version; its `code_version`."""
    return {
        "data": dict(checkpoint.marker.get("inputs", {})),
        "code_version": checkpoint.marker.get("code_version"),
    }


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


def weights_digest(weights: Output) -> str:
    """sha256 of an expert's weights file, as its output says, else the digest of that output."""
    return str(weights.metadata.get("sha256", weights.data_version))


def _check_tensors(content: bytes, state: Mapping[str, Tensor]) -> None:
    """Reads the file back with the official library."""
    import torch
    from safetensors.torch import load

    read = load(content)
    for name, value in state.items():
        if not torch.equal(read[name], value.to(read[name].dtype)):
            raise StageError(f"tensor {name!r} changes when it is written: it is not fp32")


def _check_with_spandrel(context: StageContext, file: str, model: LoadedModel) -> dict[str, Any]:
    from sr_models.experts.loading import load_expert
    from sr_models.export.spandrel_check import check_with_spandrel

    path = context.output.path / file
    try:
        report = check_with_spandrel(path, model.network)
        multiple = load_expert(path).multiple
    except (ValueError, RuntimeError) as error:
        raise StageError(str(error)) from error
    if report.scale != model.scale or not report.max_difference <= SPANDREL_TOLERANCE:
        raise StageError(
            f"{file}: spandrel loads it as {report.architecture} x{report.scale}, which differs "
            f"from the trained network by {report.max_difference:.2g}: the weights do not tell "
            "`network.args`"
        )
    return {**asdict(report), "multiple": multiple}


def _write_onnx(
    context: StageContext, name: str, model: LoadedModel, spandrel: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Writes the graph; a network that no graph can hold gets a reason instead."""
    import tempfile

    from sr_models.export.onnx import (
        OnnxExportError,
        OnnxPackagesError,
        export_fusion_onnx,
        export_onnx,
    )

    file = onnx_name(name, model.scale)
    properties = {
        "model": name,
        "architecture": str(model.description["architecture"]),
        "licence": context.recipe.models[name].licence or NO_LICENCE,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / file
        try:
            if model.experts:
                report = export_fusion_onnx(
                    model.network,
                    model.experts,
                    model.features,
                    model.scale,
                    path,
                    metadata=properties,
                )
            else:
                multiple = int(spandrel["multiple"]) if spandrel else 1
                report = export_onnx(
                    model.network, model.scale, multiple, path, metadata=properties
                )
        except OnnxPackagesError as error:
            raise StageError(str(error)) from error
        except OnnxExportError as error:
            context.log(f"{name}: no ONNX file: {error}")
            return {"error": str(error)}
        context.output.write_bytes(file, path.read_bytes())
    return {**asdict(report), "max_difference": report.max_difference}


def _files(context: StageContext, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    found = {}
    for name in names:
        path = context.output.path / name
        if path.exists():
            data = path.read_bytes()
            found[name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    return found


def _stage_metadata(report: Mapping[str, Any], description: Mapping[str, Any]) -> dict[str, Any]:
    lines = ["| file | kB | sha256 |", "|---|---|---|"]
    for name, file in report["files"].items():
        lines.append(f"| {name} | {file['size'] / 1000:.1f} | `{file['sha256'][:16]}` |")
    numbers: dict[str, Any] = {
        "architecture": description["architecture"],
        "parameters": description["parameters"],
        "bytes": sum(file["size"] for file in report["files"].values()),
        "files": {"md": "\n".join(lines)},
    }
    if report["spandrel"]:
        numbers["spandrel_difference"] = report["spandrel"]["max_difference"]
    if report["onnx"]:
        onnx = report["onnx"]
        if "error" in onnx:
            numbers["onnx"] = onnx["error"]
        else:
            numbers["onnx_difference"] = onnx["max_difference"]
    return numbers
