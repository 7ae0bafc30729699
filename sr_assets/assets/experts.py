"""Experts: `expert/<name>/weights`, verified and recognised, and `expert/<name>/cache`, its output.

Running a network is `sr_models/experts/`, the layout of a cache is `stores/expert_cache.py`.
"""

from __future__ import annotations

import hashlib
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sr_assets.lineage.slices import network_modules, slice_of
from sr_assets.lineage.stage import Ref, Stage, StageContext, StageError
from sr_assets.recipe.models import BuiltinWeights, Expert, FileWeights, HubWeights, Recipe
from sr_assets.storage import Output, is_local
from sr_assets.stores.expert_cache import CacheWriter
from sr_assets.stores.pairs import PairReader

if TYPE_CHECKING:
    from sr_models.experts.loading import Expert as LoadedExpert

#: Weights that ship with the package.
SHIPPED = Path(__file__).resolve().parents[1] / "weights"
_CARD = "expert.json"


def stages(recipe: Recipe) -> list[Stage]:
    """The two stages of every expert of the recipe."""
    return [
        stage for name in recipe.experts for stage in (_weights(recipe, name), _cache(recipe, name))
    ]


def load_weights(output: Output, scratch: Path) -> LoadedExpert:
    """The expert in an output of `expert/<name>/weights`, on the CPU.

    Args:
        output: a whole output of that stage.
        scratch: folder for a copy of the file, where the output is not on this machine.
    """
    from sr_models.experts.loading import load_expert

    file = next(n for n in output.marker["files"] if n != _CARD)
    source = output.path / file
    if is_local(source):
        return load_expert(str(source))
    copy = scratch / file
    copy.write_bytes(source.read_bytes())
    return load_expert(copy)


def _weights(recipe: Recipe, name: str) -> Stage:
    expert = recipe.experts[name]
    described = slice_of(expert, f"experts.{name}", without=("features", "dtype"))
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
    context.output.write_json(_CARD, card, content=False)
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
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        raise StageError(
            f"experts.{name}.source: {source.file} of {source.repo}@{source.revision} cannot be "
            f"fetched ({reason}): check repo, file, revision and the network"
        ) from error


def _cache(recipe: Recipe, name: str) -> Stage:
    expert = recipe.experts[name]
    weights = Ref(f"expert/{name}/weights")
    return Stage(
        key=f"expert/{name}/cache",
        description=f"What expert {name} makes of every LR image, computed once and quantised.",
        group=f"expert_{name}",
        run=partial(_make_cache, name),
        modules=(
            "sr_assets.assets.experts",
            "sr_models.experts.running",
            "sr_models.device",
            *network_modules(expert),
        ),
        kinds=frozenset({"zarr", "pytorch"}),
        partitions="dataset",
        inputs=lambda p: (Ref("gold/pairs", p), weights),
        settings={
            f"experts.{name}.features": expert.features,
            f"experts.{name}.dtype": expert.dtype,
        },
        pool="gpu",
    )


def _make_cache(name: str, context: StageContext) -> dict[str, Any]:
    from sr_models.device import pick_device

    wanted = context.recipe.experts[name]
    weights = context.input(f"expert/{name}/weights")
    pairs = PairReader(context.input("gold/pairs", context.partition))
    try:
        device = pick_device(context.recipe.compute.device)
    except ValueError as error:
        raise StageError(f"compute.device: {error}") from error
    expert = tap(load_weights(weights, context.output.work).to(device), name, wanted)
    if wanted.dtype == "bf16" and not expert.bf16_safe:
        raise StageError(
            f"experts.{name}.dtype: {expert.architecture} does not work in bf16: use fp32"
        )
    writer = CacheWriter(
        context.output,
        len(pairs),
        pairs.variants,
        pairs.size * expert.scale,
        (expert.feature_channels, pairs.size)
        if wanted.features and expert.feature_channels
        else None,
        {
            "expert": name,
            "architecture": expert.architecture,
            "weights_sha256": weights.read_json(_CARD)["sha256"],
            "dtype": wanted.dtype,
            "tap": expert.feature_module if wanted.features else None,
            "provenance": dict(context.origin),
        },
    )
    started, made = time.monotonic(), 0
    waiting = [i for i in range(len(writer.shards)) if not writer.finished(i)]
    if len(waiting) < len(writer.shards):
        context.log(
            f"{len(writer.shards) - len(waiting)} of {len(writer.shards)} shards are finished"
        )
    total = sum(len(writer.shards[i]) for i in waiting) * pairs.variants
    with context.progress(f"{context.ref}", total) as advance:
        for shard in waiting:
            sr, features = _run_shard(name, context, expert, pairs, writer.shards[shard], advance)
            writer.write(shard, sr, features)
            made += len(sr) * pairs.variants
    seconds = time.monotonic() - started
    return {
        "images": len(pairs) * pairs.variants,
        "device": str(device),
        **({"images_per_second": round(made / seconds, 3)} if made else {}),
        **writer.error(),
    }


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


def _run_shard(
    name: str,
    context: StageContext,
    expert: LoadedExpert,
    pairs: PairReader,
    samples: range,
    advance: Any,
) -> tuple[np.ndarray, np.ndarray | None]:
    """The expert's SR [n,K,3,S,S] and features [n,K,C,s,s] of one shard, float32.

    Batches start anew in every shard, so that what is in one does not depend on a resume.
    """
    import torch

    from sr_models.experts.running import ExpertMemoryError, NonFiniteOutputError, run_expert

    wanted = context.recipe.experts[name]
    every = [(index, variant) for index in samples for variant in range(pairs.variants)]
    batch, start = wanted.batch, 0
    pictures: list[np.ndarray] = []
    maps: list[np.ndarray] = []
    while start < len(every):
        chunk = every[start : start + batch]
        lr = torch.from_numpy(np.stack([pairs.lr(i, k) for i, k in chunk]))
        lr = lr.permute(0, 3, 1, 2).float() / 255
        try:
            asked = bool(wanted.features)
            out = run_expert(expert, lr, dtype=wanted.dtype, batch=batch, features=asked)
        except NonFiniteOutputError as error:
            index, variant = chunk[error.index]
            raise StageError(
                f"experts.{name}: patch {index}, variant {variant} of {context.partition} gives a "
                f"value that is not finite in {wanted.dtype}: "
                + ("set dtype to fp32" if wanted.dtype != "fp32" else "the weights are broken")
            ) from error
        except ExpertMemoryError as error:
            raise StageError(f"experts.{name}: {error}") from error
        pictures.append(out.sr.cpu().numpy())
        if out.features is not None:
            maps.append(out.features.cpu().numpy())
        start += len(chunk)
        batch = out.batch
        advance(len(chunk))
    shape = (len(samples), pairs.variants)
    sr = np.concatenate(pictures)
    features = np.concatenate(maps) if maps else None
    return (
        sr.reshape(*shape, *sr.shape[1:]),
        None if features is None else features.reshape(*shape, *features.shape[1:]),
    )
