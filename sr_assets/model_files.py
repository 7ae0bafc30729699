"""Which files the word MODEL of a command means: weights, and the ONNX graphs made of them.

Loading them is `model_lookup.py`.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from filelock import FileLock
from upath import UPath

from sr_assets.lineage.stage import StageError
from sr_assets.recipe.models import Recipe
from sr_assets.releases import find_release, place
from sr_assets.storage import cache_folder, open_output
from sr_assets.stores.registry import Release, registry_folder
from sr_assets.stores.release_manifest import MANIFEST

WEIGHTS = (".safetensors", ".pth", ".pt", ".ckpt")


@dataclass(frozen=True)
class ModelFiles:
    """A weights file, and what reads the ONNX files of the same weights: kind -> bytes."""

    weights: Path
    name: str
    graphs: Mapping[str, Callable[[], bytes]]


@contextmanager
def located(model: str, root: UPath) -> Iterator[ModelFiles]:
    """The files of `model`: a file or folder, else `name` or `name@version` in the registry.

    The weights of a release are a verified copy that is there inside the `with` only.

    Raises:
        StageError: there is no such model, or its files are not what was released.
    """
    path = Path(model)
    if path.is_file():
        yield ModelFiles(path, path.stem, _graphs_beside(path))
    elif path.is_dir():
        weights = _weights_in(path)
        yield ModelFiles(weights, _name_of(path), _graphs_beside(weights))
    elif "/" in model or path.suffix in WEIGHTS:
        raise StageError(f"there is no file or folder {model}")
    else:
        release = find_release(root, model)
        name = f"{release.manifest.model}@{release.manifest.version}"
        weights_name = _main_weights(list(release.manifest.files), str(release.path))
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / Path(weights_name).name
            weights.write_bytes(_verified(release, weights_name))
            graphs = {
                kind: partial(_verified, release, file)
                for kind, file in _graph_names(weights_name).items()
                if file in release.manifest.files
            }
            yield ModelFiles(weights, name, graphs)


def from_registry(recipe: Recipe, root: UPath, model: str) -> str:
    """What to call `model` for `located`, which looks for releases below the root alone.

    A release in a registry elsewhere (`release.registry`) is put into a folder of the cache, every
    file checked, once; any other word stays as it is.

    Raises:
        StageError: there is no such release, or its files are not what was released.
    """
    path = Path(model)
    elsewhere = recipe.release.registry is not None and not path.exists()
    if not elsewhere or "/" in model or path.suffix in WEIGHTS:
        return model
    release = find_release(root, model, registry_folder(recipe, root))
    manifest = (release.path / MANIFEST).read_bytes()
    name = f"{release.manifest.model}@{release.manifest.version}"
    folder = cache_folder() / "releases" / hashlib.sha256(manifest).hexdigest()[:24] / name
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / ".lock"):
            place(release.manifest, manifest, lambda file: release.path / file, folder)
    return str(folder)


def read_metadata(path: Path) -> dict[str, str]:
    """String metadata of a safetensors file; none for other files and damaged ones."""
    if path.suffix != ".safetensors":
        return {}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except SafetensorError:
        return {}


def _weights_in(folder: Path) -> Path:
    """The weights file of an output folder or a pulled release."""
    return folder / _main_weights([f.name for f in folder.iterdir()], str(folder))


def _main_weights(names: Sequence[str], where: str) -> str:
    """The one weights file in full precision; a .pth beside a .safetensors is the same again."""
    found = sorted(n for n in names if Path(n).suffix in WEIGHTS and "_fp16." not in n)
    found = [n for n in found if n.endswith(".safetensors")] or found
    if len(found) != 1:
        what = "no weights file" if not found else f"{len(found)} weights files"
        raise StageError(f"{where} holds {what}: name the file")
    return found[0]


def _graph_names(weights: str) -> dict[str, str]:
    """Kind of graph -> its file name beside `weights`."""
    stem = weights.removesuffix(Path(weights).suffix)
    return {kind: f"{stem}_{kind}.onnx" for kind in ("fp32", "int8-cpu")}


def _graphs_beside(weights: Path) -> dict[str, Callable[[], bytes]]:
    beside = {kind: weights.with_name(n) for kind, n in _graph_names(weights.name).items()}
    return {kind: file.read_bytes for kind, file in beside.items() if file.is_file()}


def _name_of(folder: Path) -> str:
    """The model's name: from the marker of an output, else the folder's own."""
    output = open_output(UPath(folder.absolute()))
    return output.marker["asset"].split("/")[1] if output else folder.absolute().name


def _verified(release: Release, name: str) -> bytes:
    """A file of the release, whose digest matches the manifest."""
    data = (release.path / name).read_bytes()
    if hashlib.sha256(data).hexdigest() != release.manifest.files[name].sha256:
        raise StageError(f"{release.path / name} is not what was released: its sha256 differs")
    return data
