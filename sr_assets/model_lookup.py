"""From the word MODEL of a command to a network that enlarges pictures.

MODEL is a release, an output folder of the graph, a pulled folder or any weights file that spandrel
loads. Reading pictures and cutting them into tiles is `upscale.py`.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upath import UPath

from sr_assets.lineage.stage import StageError
from sr_assets.releases import find_release
from sr_assets.storage import Output, is_local, open_output
from sr_assets.stores.registry import Release

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sr_models.experts.loading import Expert

_WEIGHTS = (".safetensors", ".pth", ".pt", ".ckpt")


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


def load_upscaler(model: str, root: str | Path | UPath, device: str = "auto") -> Upscaler:
    """The network that `model` names.

    Args:
        model: a file or folder, else `name` or `name@version` in the registry below `root`.
        root: folder of a recipe's outputs; a fusion finds its experts' weights there.
        device: `auto`, `cpu`, `cuda` or `mps`.

    Raises:
        StageError: there is no such model, it cannot be loaded, or a fusion lacks an expert.
    """
    from sr_models.device import pick_device

    try:
        chosen = pick_device(device)
    except ValueError as error:
        raise StageError(str(error)) from error
    path = Path(model)
    if path.is_file():
        return _from_file(path, path.stem, UPath(root), chosen)
    if path.is_dir():
        return _from_file(_weights_in(path), _name_of(path), UPath(root), chosen)
    if "/" in model or path.suffix in _WEIGHTS:
        raise StageError(f"there is no file or folder {model}")
    release = find_release(root, model)
    name = f"{release.manifest.model}@{release.manifest.version}"
    with tempfile.TemporaryDirectory() as folder:
        return _from_file(_verified(release, Path(folder)), name, UPath(root), chosen)


def _weights_in(folder: Path) -> Path:
    """The one weights file of an output folder or a pulled release."""
    found = sorted(f for f in folder.iterdir() if f.suffix in _WEIGHTS)
    if len(found) != 1:
        what = "no weights file" if not found else f"{len(found)} weights files"
        raise StageError(f"{folder} holds {what}: name the file")
    return found[0]


def _name_of(folder: Path) -> str:
    """The model's name: from the marker of an output, else the folder's own."""
    output = open_output(UPath(folder.absolute()))
    return output.marker["asset"].split("/")[1] if output else folder.absolute().name


def _verified(release: Release, scratch: Path) -> Path:
    """A copy of the release's weights whose digest matches the manifest."""
    for name, entry in release.manifest.files.items():
        if name.endswith(".safetensors"):
            data = (release.path / name).read_bytes()
            if hashlib.sha256(data).hexdigest() != entry.sha256:
                raise StageError(
                    f"{release.path / name} is not what was released: its sha256 differs"
                )
            copy = scratch / Path(name).name
            copy.write_bytes(data)
            return copy
    raise StageError(f"{release.path} holds no weights file")


def _from_file(path: Path, name: str, root: UPath, device: torch.device) -> Upscaler:
    from sr_models.experts.loading import load_expert

    metadata = _metadata(path)
    if "experts" in metadata or metadata.get("kind") in ("gate", "fusion"):
        return _fusion(path, metadata, name, root, device)
    try:
        expert = load_expert(path).to(device)
    except (ValueError, FileNotFoundError) as error:
        raise StageError(str(error)) from error
    return Upscaler(name, expert.scale, device, _runner(expert), expert.multiple)


def _metadata(path: Path) -> dict[str, str]:
    """String metadata of a safetensors file; none for other files and damaged ones."""
    if path.suffix != ".safetensors":
        return {}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except SafetensorError:
        return {}


def _runner(expert: Expert) -> Callable[[Tensor], Tensor]:
    from sr_models.experts.running import run_expert

    return lambda lr: run_expert(expert, lr, batch=1).sr


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
    file = next(n for n in output.marker["files"] if Path(n).suffix in _WEIGHTS)
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
