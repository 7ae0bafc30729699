"""Experts: `expert/<name>/weights`, fetched, verified and recognised.

What they make of every LR image is `expert_caches.py`; running a network is `sr_models/experts/`.
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sr_assets.lineage.slices import network_modules, slice_of
from sr_assets.lineage.stage import Stage, StageContext, StageError
from sr_assets.recipe.models import BuiltinWeights, Expert, FileWeights, HubWeights, Recipe
from sr_assets.storage import Output, is_local
from sr_models.one_line import one_line

if TYPE_CHECKING:
    from sr_models.experts.loading import Expert as LoadedExpert

#: Weights that ship with the package.
SHIPPED = Path(__file__).resolve().parents[1] / "weights"
CARD = "expert.json"


def stages(recipe: Recipe) -> list[Stage]:
    """The weights of every expert of the recipe."""
    return [_weights(recipe, name) for name in recipe.experts]


def load_weights(output: Output, scratch: Path) -> LoadedExpert:
    """The expert in an output of `expert/<name>/weights`, on the CPU.

    Args:
        output: a whole output of that stage.
        scratch: folder for a copy of the file, where the output is not on this machine.
    """
    from sr_models.experts.loading import load_expert

    file = next(n for n in output.marker["files"] if n != CARD)
    source = output.path / file
    if is_local(source):
        return load_expert(str(source))
    copy = scratch / file
    copy.write_bytes(source.read_bytes())
    return load_expert(copy)


def tap(expert: LoadedExpert, name: str, wanted: Expert) -> LoadedExpert:
    """The expert with the features that the recipe asks for, if it asks for any.

    Raises:
        StageError: it has no such features.
    """
    from sr_models.experts.running import tapped

    if not wanted.features:
        return expert
    if wanted.features is True and expert.feature_channels is None:
        raise StageError(
            f"experts.{name}.features: {expert.architecture} has no conv_after_body to take "
            f"features from: set it to false, or name a module"
        )
    if wanted.features is True:
        return expert
    try:
        return tapped(expert, wanted.features)
    except ValueError as error:
        raise StageError(f"experts.{name}.features: {error}") from error


def _weights(recipe: Recipe, name: str) -> Stage:
    expert = recipe.experts[name]
    described = slice_of(expert, f"experts.{name}", without=("features", "dtype", "cache"))
    return Stage(
        key=f"expert/{name}/weights",
        description=f"Weights of expert {name}: fetched, their digest verified, recognised.",
        group=f"expert_{name}",
        run=partial(_make_weights, name),
        modules=(
            "sr_assets.assets.experts",
            "sr_models.experts.loading",
            *network_modules(expert),
        ),
        kinds=frozenset(
            {"safetensors" if isinstance(expert.source, BuiltinWeights) else "pytorch"}
        ),
        settings={**described, "scale": recipe.scale},
        outside=lambda _: _fingerprint(expert),
    )


def _fingerprint(expert: Expert) -> dict[str, str]:
    """Tells a changed local file; what a hub holds under a revision does not change."""
    if isinstance(expert.source, BuiltinWeights):
        file = SHIPPED / f"{expert.source.name}.safetensors"
        there = file.is_file()  # small, and installing the package again changes its time
        return {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest()[:16] if there else "missing"
        }
    if isinstance(expert.source, FileWeights):
        file = Path(expert.source.path)
        if not file.is_file():
            return {str(file): "missing"}
        status = file.stat()
        return {str(file): f"{status.st_size}-{status.st_mtime_ns}"}
    return {}


def _make_weights(name: str, context: StageContext) -> dict[str, Any]:
    expert = context.recipe.experts[name]
    source = _find(name, expert)
    file = f"weights{source.suffix.lower()}"
    sha256 = context.output.take(source, file, link=False)
    try:
        return _recognise(name, context, file, sha256)
    except BaseException:
        context.output.discard(file)  # a later run may find a file of another kind
        raise


def _recognise(name: str, context: StageContext, file: str, sha256: str) -> dict[str, Any]:
    from sr_models.experts.loading import load_expert
    from sr_models.registry import modules_of

    recipe, expert = context.recipe, context.recipe.experts[name]
    if expert.sha256 not in (None, sha256):
        raise StageError(
            f"experts.{name}.sha256 is {expert.sha256}, but the file has {sha256}: fetch the file "
            f"again, or correct the digest if you trust it"
        )
    try:
        loaded = load_expert(context.output.path / file)
    except ValueError as error:
        raise StageError(f"experts.{name}.source: {error}") from error
    if expert.architecture not in (None, loaded.architecture):
        raise StageError(
            f"experts.{name}.architecture is {expert.architecture}, but the file holds "
            f"{loaded.architecture}"
        )
    if expert.architecture is None and modules_of(loaded.architecture, {}):
        raise StageError(
            f"experts.{name}.architecture is missing: the file holds {loaded.architecture}, whose "
            f"code is ours and decides when this is stale: set it to {loaded.architecture}"
        )
    if loaded.scale != recipe.scale:
        raise StageError(
            f"experts.{name}: these weights enlarge {loaded.scale} times, but scale is "
            f"{recipe.scale}"
        )
    card = {
        "architecture": loaded.architecture,
        "scale": loaded.scale,
        "parameters": loaded.parameters,
        "sha256": sha256,
        "licence": expert.licence,
        "feature_channels": loaded.feature_channels,
        "multiple": loaded.multiple,
    }
    # Beside the content: another licence text is no reason to run the expert again.
    context.output.write_json(CARD, card, content=False)
    context.log(f"{name}: {loaded.architecture}, {loaded.parameters:,} parameters, {sha256[:12]}")
    return card


def _find(name: str, expert: Expert) -> Path:
    source = expert.source
    if isinstance(source, BuiltinWeights):
        file = SHIPPED / f"{source.name}.safetensors"
        if not file.is_file():
            shipped = ", ".join(sorted(f.stem for f in SHIPPED.glob("*.safetensors"))) or "nothing"
            raise StageError(
                f"experts.{name}.source.name: no weights {source.name!r} ship with this package; "
                f"there is: {shipped}"
            )
        return file
    if isinstance(source, FileWeights):
        file = Path(source.path)
        if not file.is_file():
            raise StageError(
                f"experts.{name}.source.path: {file.name} is missing: put the weights of {name} at "
                f"{file}, or point the field at the file you have"
            )
        return file
    return _download(name, source)


def _download(name: str, source: HubWeights) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(source.repo, source.file, revision=source.revision))
    except Exception as error:  # its HTTP library and its own errors share no base class
        raise StageError(
            f"experts.{name}.source: {source.file} of {source.repo}@{source.revision} cannot be "
            f"fetched ({one_line(error)}): check repo, file, revision and the network"
        ) from error
