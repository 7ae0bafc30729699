"""Weights as safetensors, fp32 and fp16, and as `.pth`: what spandrel and this project load.

Graphs are made by the modules beside this one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from sr_assets.assets.exporting.subject import Made, Refused, Subject
from sr_assets.lineage.stage import StageError

if TYPE_CHECKING:
    from torch import Tensor

    from sr_models.export.parity import Run

#: Largest accepted difference between the network and what is loaded from its weights.
TOLERANCE = 1e-5
#: Lowest accepted PSNR-Y (dB) of a half-precision file to the network.
HALF_PSNR = 60.0


def make_weights(subject: Subject) -> Iterator[Made | Refused]:
    """The fp32 safetensors file, which everything else is measured beside.

    Raises:
        StageError: the library or spandrel reads other weights or another function from it.
    """
    from sr_models.export.parity import Gate
    from sr_models.export.weights import serialise_weights

    content = serialise_weights(subject.state, subject.metadata)
    _check_tensors(content, subject.state)
    yield Made(
        subject.file("safetensors"),
        content,
        "safetensors",
        "fp32",
        "torch",
        _runner(subject, "safetensors", content),
        Gate(max_difference=TOLERANCE),
        {} if subject.model.experts else {"spandrel": _check_with_spandrel(subject, content)},
        # It names the code that trained it. Code that trains the same weights is no new content.
        counts=False,
    )


def make_pth(subject: Subject) -> Iterator[Made | Refused]:
    """The fp32 `.pth` file."""
    from sr_models.export.parity import Gate
    from sr_models.export.weights import serialise_pth

    content = serialise_pth(subject.state)
    yield Made(
        subject.file("pth"),
        content,
        "pth",
        "fp32",
        "torch",
        _runner(subject, "pth", content),
        Gate(max_difference=TOLERANCE),
    )


def make_half(subject: Subject) -> Iterator[Made | Refused]:
    """The fp16 safetensors file; its parity is that of fp16 weights computed with in fp32."""
    from sr_models.export.parity import Gate
    from sr_models.export.weights import serialise_weights

    file = subject.file("safetensors", "fp16")
    try:
        content = serialise_weights(subject.state, subject.metadata, half=True)
    except ValueError as error:
        yield Refused(file, str(error))
        return
    yield Made(
        file,
        content,
        "safetensors",
        "fp16",
        "torch, computing in fp32",
        _runner(subject, "safetensors", content),
        Gate(psnr_y_to_torch=HALF_PSNR),
        counts=False,
    )


def _check_tensors(content: bytes, state: Mapping[str, Tensor]) -> None:
    """Reads the file back with the official library."""
    import torch
    from safetensors.torch import load

    read = load(content)
    for name, value in state.items():
        if not torch.equal(read[name], value.to(read[name].dtype)):
            raise StageError(f"tensor {name!r} changes when it is written: it is not fp32")


def _check_with_spandrel(subject: Subject, content: bytes) -> dict[str, object]:
    from sr_models.experts.loading import load_expert
    from sr_models.export.spandrel_check import check_with_spandrel

    path = subject.scratch / subject.file("safetensors")
    path.write_bytes(content)
    try:
        report = check_with_spandrel(path, subject.model.network)
        multiple = load_expert(path).multiple
    except (ValueError, RuntimeError) as error:
        raise StageError(str(error)) from error
    if report.scale != subject.model.scale or not report.max_difference <= TOLERANCE:
        raise StageError(
            f"{path.name}: spandrel loads it as {report.architecture} x{report.scale}, which "
            f"differs from the trained network by {report.max_difference:.2g}: the weights do not "
            "tell `network.args`"
        )
    return {**asdict(report), "multiple": multiple}


def _runner(subject: Subject, ending: str, content: bytes) -> Run:
    """What others make of the file: through spandrel, or for a fusion through this project."""
    path = subject.scratch / f"measured.{ending}"
    path.write_bytes(content)
    if subject.model.experts:
        return _fusion_runner(subject, ending, content)
    from sr_models.experts.loading import load_expert
    from sr_models.experts.running import run_expert

    expert = load_expert(path)
    return lambda index: run_expert(expert, subject.samples[index].lr, batch=1).sr


def _fusion_runner(subject: Subject, ending: str, content: bytes) -> Run:
    import io
    from dataclasses import replace

    import torch
    from safetensors.torch import load

    from sr_models.fusion.build import build_fusion

    model = subject.model
    told = model.description
    network = build_fusion(told["architecture"], model.experts, model.scale, told["args"])
    state = (
        load(content)
        if ending == "safetensors"
        else torch.load(io.BytesIO(content), weights_only=True)["params"]
    )
    network.load_state_dict(state, strict=True)
    loaded = replace(model, network=network.float().eval())

    def run(index: int) -> Tensor:
        sample = subject.samples[index]
        return loaded.upscale(sample.lr, sample.sr, sample.features)

    return run
