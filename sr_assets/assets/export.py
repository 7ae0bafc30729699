"""Export: a trained model as the files that people use, each measured beside the network itself.

What makes each kind of file is a module of `exporting/`; whether a model is good enough to be
released is decided in `release.py`.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sr_assets.assets.exporting.opening import open_subject, provenance, weights_digest
from sr_assets.assets.exporting.report import finite, held_back, metadata_of
from sr_assets.assets.exporting.subject import Made, Refused, Subject, file_name
from sr_assets.lineage.slices import network_modules, slice_of
from sr_assets.lineage.stage import Ref, Stage, StageContext, StageError
from sr_assets.recipe.export import Export
from sr_assets.recipe.models import Recipe

if TYPE_CHECKING:
    from sr_models.export.parity import Parity, Reference

__all__ = [
    "DESCRIPTION",
    "REPORT",
    "held_back",
    "onnx_name",
    "provenance",
    "stages",
    "weights_digest",
    "weights_name",
]

#: What the files hold; this is the content of the output.
DESCRIPTION = "description.json"
#: The files, what they are measured to be, those that were held back, and where all come from.
REPORT = "export.json"
_HERE = "sr_assets.assets.exporting"
Maker = Callable[[Subject], Iterator[Made | Refused]]


def stages(recipe: Recipe) -> list[Stage]:
    """One export for each model of the recipe."""
    return [_stage(recipe, name) for name in recipe.models]


def _stage(recipe: Recipe, name: str) -> Stage:
    model = recipe.models[name]
    inputs = [Ref(f"model/{name}/checkpoint")]
    # A fusion means these very experts: their digests belong to its files.
    inputs += [Ref(f"expert/{e}/weights") for e in recipe.experts_of(name)]
    datasets = recipe.training_datasets(model.datasets)
    inputs += [Ref(asset, d) for d in datasets for asset in ("silver/patches", "gold/pairs")]

    def read(partition: str | None) -> Iterable[Ref]:
        return inputs

    makers = [module for module, _ in _makers(recipe.export)]
    return Stage(
        key=f"model/{name}/export",
        description=f"{name} as files for other programs, each measured beside the trained network "
        "on held-out patches.",
        group=f"model_{name}",
        run=partial(_run, name=name),
        modules=("sr_assets.assets.export", *dict.fromkeys(makers), *network_modules(model)),
        kinds=frozenset({"onnx"}),
        inputs=read,
        settings={**slice_of(recipe.export, "export"), f"models.{name}.licence": model.licence},
    )


def _makers(wanted: Export) -> list[tuple[str, str]]:
    """(module, function) of what makes the files of a recipe, in the order of the report.

    Imported by name, so that the code of files that nobody asks for makes no export stale.
    """
    chosen = [
        (True, "weights_files", "make_weights"),
        (wanted.pth, "weights_files", "make_pth"),
        (wanted.fp16, "weights_files", "make_half"),
        (wanted.onnx, "onnx_files", "make_onnx"),
        (wanted.onnx and wanted.fp16, "onnx_files", "make_half_onnx"),
        (wanted.video, "video_files", "make_video"),
        (wanted.whole, "whole_files", "make_whole"),
        (wanted.int8, "int8_files", "make_int8"),
        (wanted.coreml, "coreml_files", "make_coreml"),
        (wanted.tensorrt, "tensorrt_files", "make_tensorrt"),
    ]
    return [(f"{_HERE}.{module}", function) for asked, module, function in chosen if asked]


def weights_name(model: str, scale: int) -> str:
    """File name of the weights."""
    return file_name(model, scale, "safetensors")


def onnx_name(model: str, scale: int) -> str:
    """File name of the fp32 graph."""
    return file_name(model, scale, "onnx", "fp32")


def _run(context: StageContext, name: str) -> dict[str, Any]:
    from sr_models.export.parity import run_reference

    checkpoint = context.input(f"model/{name}/checkpoint")
    origin = provenance(checkpoint)
    with tempfile.TemporaryDirectory() as scratch:
        description, subject = open_subject(context, name, checkpoint, origin, Path(scratch))

        def upscale(index: int) -> Any:
            sample = subject.samples[index]
            return subject.model.upscale(sample.lr, sample.sr, sample.features)

        hr = [sample.hr for sample in subject.samples]
        reference = run_reference(upscale, hr, subject.model.scale)
        done = _write_files(context, subject, reference)
    description["files"] = sorted(done.files)
    context.output.write_json(DESCRIPTION, description)
    report = {
        "files": done.files,
        "held_back": done.held_back,
        "torch": {
            "psnr_y": finite(reference.psnr_y),
            "patches": [finite(score) for score in reference.scores],
            "seconds_per_megapixel": reference.seconds_per_megapixel,
        },
        "measured_on": {
            "samples": len(hr),
            "patches": [sample.name for sample in subject.samples],
            "hr_side": int(hr[0].shape[0]),
            "datasets": list(
                context.recipe.training_datasets(context.recipe.models[name].datasets)
            ),
        },
        "spandrel": done.facts.get("spandrel"),
        "onnx": done.facts.get("onnx"),
        **origin,
    }
    context.output.write_json(REPORT, report, content=False)
    return metadata_of(report, description)


@dataclass
class _Done:
    """What came of the files."""

    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    held_back: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def _write_files(context: StageContext, subject: Subject, reference: Reference) -> _Done:
    """Makes, measures and writes every file; those that fail their gate are held back."""
    from sr_models.export.parity import measure

    done = _Done()
    for module, function in _makers(context.recipe.export):
        make: Maker = getattr(importlib.import_module(module), function)
        for made in make(subject):
            parity = refusal = None
            if isinstance(made, Refused):
                refusal = made.reason
            elif made.run is not None:
                try:
                    parity = measure(made.run, reference)
                    refusal = made.gate.refusal(parity)
                except ValueError as error:
                    refusal = str(error)
            main = made.file == onnx_name(subject.name, subject.model.scale)
            if refusal is not None and made.file == weights_name(subject.name, subject.model.scale):
                raise StageError(f"{made.file}: {refusal}")
            if refusal is not None:
                refusal = refusal.removeprefix(made.file).removeprefix(":").strip()
                context.log(f"{made.file} is held back: {refusal}")
                done.held_back[made.file] = refusal
                if main:
                    done.facts["onnx"] = {"error": refusal}
                continue
            assert isinstance(made, Made)
            digest = context.output.write_bytes(made.file, made.content, content=made.counts)
            facts = dict(made.facts)
            done.facts |= {k: facts.pop(k) for k in ("spandrel",) if k in facts}
            if main:
                done.facts["onnx"] = facts["onnx"]
            done.files[made.file] = {
                "sha256": digest,
                "size": len(made.content),
                "format": made.format,
                "precision": made.precision,
                "backend": made.backend,
                "parity": None if parity is None else _parity(parity),
                **facts,
            }
    return done


def _parity(parity: Parity) -> dict[str, Any]:
    told = asdict(parity)
    patches = [_finite(patch) for patch in told.pop("patches")]
    return {**_finite(told), "patches": patches}


def _finite(numbers: dict[str, float]) -> dict[str, float | None]:
    return {name: finite(value) for name, value in numbers.items()}
