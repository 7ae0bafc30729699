"""Expert caches: `expert/<name>/cache`, what an expert makes of every LR image, shard by shard.

The layout of a cache is `stores/expert_cache.py`; where shards are computed is `executor.py`.
"""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sr_assets.assets.experts import CARD, load_weights, tap
from sr_assets.executor import Advance, Worker, compute_shards
from sr_assets.lineage.slices import network_modules
from sr_assets.lineage.stage import Given, Ref, Stage, StageContext, StageError
from sr_assets.recipe.models import Recipe
from sr_assets.stores.cache_coding import CacheCoder, CodedShard
from sr_assets.stores.expert_cache import CacheWriter
from sr_assets.stores.pairs import PairReader

if TYPE_CHECKING:
    from sr_models.experts.loading import Expert as LoadedExpert


def stages(recipe: Recipe) -> list[Stage]:
    """The cache of every expert of the recipe, partitioned by dataset."""
    return [_cache(recipe, name) for name in recipe.experts]


def _cache(recipe: Recipe, name: str) -> Stage:
    expert = recipe.expert_as_cached(name)
    weights = Ref(f"expert/{name}/weights")
    return Stage(
        key=f"expert/{name}/cache",
        description=f"What expert {name} makes of every LR image, computed once and quantised.",
        group=f"expert_{name}",
        run=partial(_make_cache, name),
        modules=(
            "sr_assets.assets.expert_caches",
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
            f"experts.{name}.cache": expert.cache,
        },
        pool="gpu",
    )


def _make_cache(name: str, context: StageContext) -> dict[str, Any]:
    pairs = PairReader(context.input("gold/pairs", context.partition))
    writer = _open_writer(name, context, pairs)
    waiting = [i for i in range(len(writer.shards)) if not writer.finished(i)]
    if len(waiting) < len(writer.shards):
        context.log(
            f"{len(writer.shards) - len(waiting)} of {len(writer.shards)} shards are finished"
        )
    images = {shard: len(writer.shards[shard]) * pairs.variants for shard in waiting}
    worker = partial(_open_worker, name, context.given, writer.coder)
    devices, started = set(), time.monotonic()

    def take(shard: int, result: tuple[CodedShard, str]) -> None:
        coded, device = result
        writer.put(shard, coded)
        devices.add(device)

    with context.progress(f"{context.ref}", sum(images.values())) as advance:
        compute_shards(context, images, worker, take, advance)
    seconds = time.monotonic() - started
    measured = {
        "device": ", ".join(sorted(devices)),
        "images_per_second": round(sum(images.values()) / seconds, 3),
    }
    return {
        "images": len(pairs) * pairs.variants,
        **(measured if images else {}),
        **writer.error(),
    }


def _open_writer(name: str, context: StageContext, pairs: PairReader) -> CacheWriter:
    """The cache as it will be; the expert is only looked at, and not kept in memory."""
    wanted = context.recipe.expert_as_cached(name)
    expert = _load(name, context.given)
    if wanted.dtype == "bf16" and not expert.bf16_safe:
        raise StageError(
            f"experts.{name}.dtype: {expert.architecture} does not work in bf16: use fp32"
        )
    return CacheWriter(
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
            "weights_sha256": context.input(f"expert/{name}/weights").read_json(CARD)["sha256"],
            "dtype": wanted.dtype,
            "tap": expert.feature_module if wanted.features else None,
            "provenance": dict(context.origin),
        },
        wanted.cache,
    )


def _load(name: str, given: Given) -> LoadedExpert:
    """The expert on the CPU, with the features that the recipe asks for."""
    with tempfile.TemporaryDirectory() as scratch:
        loaded = load_weights(given.input(f"expert/{name}/weights"), Path(scratch))
    return tap(loaded, name, given.recipe.expert_as_cached(name))


def _open_worker(
    name: str, given: Given, coder: CacheCoder, device: str
) -> Worker[tuple[CodedShard, str]]:
    """What computes and encodes one shard, and says on which device."""
    from sr_models.device import pick_device

    try:
        place = pick_device(device)
    except ValueError as error:
        raise StageError(f"compute.device: {error}") from error
    pairs = PairReader(given.input("gold/pairs", given.partition))
    expert = _load(name, given).to(place)

    def work(shard: int, advance: Advance) -> tuple[CodedShard, str]:
        samples = coder.shards[shard]
        sr, features = _run_shard(name, given, expert, pairs, samples, advance)
        return coder.encode(shard, sr, features), str(place)

    return work


def _run_shard(
    name: str,
    given: Given,
    expert: LoadedExpert,
    pairs: PairReader,
    samples: range,
    advance: Advance,
) -> tuple[np.ndarray, np.ndarray | None]:
    """The expert's SR [n,K,3,S,S] and features [n,K,C,s,s] of one shard, float32.

    Batches start anew in every shard, so that what is in one does not depend on a resume.
    """
    import torch

    from sr_models.experts.running import ExpertMemoryError, NonFiniteOutputError, run_expert

    wanted = given.recipe.expert_as_cached(name)
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
                f"experts.{name}: patch {index}, variant {variant} of {given.partition} gives a "
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
