"""From the word MODEL of a command to a network that enlarges pictures.

MODEL is a release, an output folder of the graph, a pulled folder or any weights file that spandrel
loads (`model_files.py`). Reading pictures and cutting them into tiles is `upscale.py`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upath import UPath

from sr_assets.backend_choice import Choice, recall, this_machine
from sr_assets.lineage.stage import StageError
from sr_assets.model_files import WEIGHTS, ModelFiles, located, read_metadata
from sr_assets.storage import Output, cache_folder, is_local, open_output

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from sr_models.experts.loading import Expert
    from sr_models.inference.backends.backend import Subject


#: Words for a backend that was measured.
_CHOSEN = ("auto", "exact")


@dataclass(frozen=True)
class Upscaler:
    """A network that is ready to run."""

    name: str
    scale: int
    device: torch.device
    forward: Callable[[Tensor], Tensor]
    """float32 [1, 3, h, w] in [0, 1] on `device` -> [1, 3, scale h, scale w], not clamped."""
    grid: int = 1
    """Tiles start at multiples of it (LR px)."""
    network: nn.Module | None = None
    """The network alone, fused and in eval mode; None for a fusion, which runs its experts too."""
    backend: str = "torch"
    """What computes `forward`: a name of `sr_models/inference/backends`."""


@dataclass(frozen=True)
class LoadedNetwork:
    """A single network, ready for any backend."""

    name: str
    subject: Subject
    digest: str
    """sha256 of its tensors."""
    device: torch.device


def load_upscaler(
    model: str, root: str | Path | UPath, device: str = "auto", backend: str = "auto"
) -> Upscaler:
    """The network that `model` names.

    Args:
        model: a file or folder, else `name` or `name@version` in the registry below `root`.
        root: folder of a recipe's outputs; a fusion finds its experts' weights there.
        device: `auto`, `cpu`, `cuda` or `mps`.
        backend: a name of `sr_models/inference/backends`; or `auto`, what `srd bench` found to be
            fastest here, or `exact`, the fastest that is fp32 up to rounding, each channels-last
            where nothing was measured. A fusion runs in torch.

    Raises:
        StageError: there is no such model, it cannot be loaded, a fusion lacks an expert, or the
            backend cannot run it here.
    """
    chosen = _device(device)
    with located(model, UPath(root)) as found:
        metadata = read_metadata(found.weights)
        if _is_fusion(metadata):
            if backend not in (*_CHOSEN, "torch"):
                raise StageError(
                    f"{found.name} is a fusion, which runs its experts in torch: leave "
                    f"--backend {backend} out"
                )
            return _fusion(found.weights, metadata, found.name, UPath(root), chosen)
        network = _network(found, chosen)
    expert = network.subject.expert
    name, forward = _open(network, backend)
    return Upscaler(
        network.name,
        expert.scale,
        chosen,
        forward,
        expert.multiple,
        network=expert.model,
        backend=name,
    )


def load_network(model: str, root: str | Path | UPath, device: str = "auto") -> LoadedNetwork:
    """The single network that `model` names, for whoever opens backends; else as `load_upscaler`.

    Raises:
        StageError: as there, or it is a fusion.
    """
    chosen = _device(device)
    with located(model, UPath(root)) as found:
        if _is_fusion(read_metadata(found.weights)):
            raise StageError(
                f"{found.name} is a fusion, which runs its experts in torch: there are no backends "
                "to choose from; take a student"
            )
        return _network(found, chosen)


def _device(name: str) -> torch.device:
    from sr_models.device import pick_device

    try:
        return pick_device(name)
    except ValueError as error:
        raise StageError(str(error)) from error


def _is_fusion(metadata: Mapping[str, str]) -> bool:
    return "experts" in metadata or metadata.get("kind") in ("gate", "fusion")


def _network(found: ModelFiles, device: torch.device) -> LoadedNetwork:
    from sr_models.experts.loading import load_expert
    from sr_models.export.fusing import fused_copy
    from sr_models.export.weights import digest_weights
    from sr_models.inference.backends.backend import Subject

    try:
        expert = load_expert(found.weights)
    except (ValueError, FileNotFoundError) as error:
        raise StageError(str(error)) from error
    expert = dataclasses.replace(expert, model=fused_copy(expert.model))
    digest = digest_weights(expert.model.state_dict())
    subject = Subject(expert.to(device), found.graphs, cache_folder() / "onnx")
    return LoadedNetwork(found.name, subject, digest, device)


def _open(network: LoadedNetwork, backend: str) -> tuple[str, Callable[[Tensor], Tensor]]:
    """The name of the backend that is taken, and the network in it."""
    from sr_models.inference.backends.backend import BackendError, open_backend
    from sr_models.inference.backends.catalogue import UNMEASURED, find_backend

    name = backend
    if backend in _CHOSEN:
        unmeasured = Choice(UNMEASURED.name, UNMEASURED.name)
        choice = recall(network.digest, this_machine(network.device)) or unmeasured
        name = choice.default if backend == "auto" else choice.exact
    try:
        return name, open_backend(find_backend(name), network.subject)
    except BackendError as error:
        if backend not in _CHOSEN:
            raise StageError(str(error)) from error
        warnings.warn(f"{error}; {UNMEASURED.name} instead", stacklevel=3)
        return UNMEASURED.name, open_backend(UNMEASURED, network.subject)


def _fusion(
    path: Path, metadata: Mapping[str, str], name: str, root: UPath, device: torch.device
) -> Upscaler:
    """A fusion with its experts run live, tile by tile."""
    import torch
    from safetensors.torch import load_file

    from sr_models.experts.running import run_expert, tapped
    from sr_models.fusion.build import build_fusion

    told = _description(path, metadata)
    names, digests, taps = tuple(told["experts"]), told["expert_weights"], told["taps"]
    experts = {e: _expert(e, digests.get(e), name, root).to(device) for e in names}
    experts |= {e: tapped(experts[e], module) for e, module in taps.items()}
    try:
        fusion = build_fusion(told["architecture"], names, int(told["scale"]), told["args"])
        fusion.load_state_dict(load_file(path), strict=True)
    except (RuntimeError, ValueError) as error:
        raise StageError(f"{path.name}: its tensors do not fit a fusion of {names}") from error
    fusion.to(device).eval()

    def forward(lr: Tensor) -> Tensor:
        with torch.inference_mode():
            made = {e: run_expert(x, lr, batch=1, features=e in taps) for e, x in experts.items()}
            pictures = {e: out.sr for e, out in made.items()}
            features = {e: out.features for e, out in made.items() if out.features is not None}
            return fusion(lr, pictures, features) if taps else fusion(lr, pictures)

    grid = math.lcm(getattr(fusion, "grid", 1), *(x.multiple for x in experts.values()))
    return Upscaler(name, fusion.scale, device, forward, grid)


def _description(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """What a fusion says of itself and its experts, in its file or beside a checkpoint."""
    if "experts" in metadata:
        keys = ("experts", "expert_weights", "args", "scale")
        told = {key: json.loads(metadata[key]) for key in keys}
        taps = json.loads(metadata.get("taps", "{}"))
        return {**told, "architecture": metadata["architecture"], "taps": taps}
    beside = path.with_name("model.json")
    if not beside.exists():
        raise StageError(f"{path.name} is a fusion without the names of its experts")
    return {"expert_weights": {}, "taps": {}, **json.loads(beside.read_text(encoding="utf-8"))}


def _expert(name: str, digest: str | None, fusion: str, root: UPath) -> Expert:
    """The very weights that the fusion was exported with; the newest where it does not say."""
    from sr_models.experts.loading import load_expert

    made = _expert_outputs(root / "expert" / name / "weights")
    fitting = [o for o in made if digest in (None, o.metadata.get("sha256", o.data_version))]
    if not fitting:
        which = "" if digest is None else f" with sha256 {digest[:12]}..."
        raise StageError(
            f"{fusion} is a fusion that runs expert {name}: no weights{which} in "
            f"{root}/expert/{name}/weights: run `srd build 'expert/{name}/weights'` with the "
            "recipe that trained it"
        )
    output = fitting[-1]
    file = next(n for n in output.marker["files"] if Path(n).suffix in WEIGHTS)
    try:
        if is_local(output.path):
            return load_expert(str(output.path / file))
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch) / file
            copy.write_bytes(output.read_bytes(file))
            return load_expert(copy)
    except ValueError as error:
        raise StageError(f"expert {name}: {error}") from error


def _expert_outputs(folder: UPath) -> list[Output]:
    """Whole outputs below an asset's folder, the newest last."""
    try:
        found = [open_output(f) for f in folder.iterdir() if not f.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    whole = [output for output in found if output is not None]
    return sorted(whole, key=lambda o: (o.path / "srd.json").stat().st_mtime)
