"""Small stores to train on, and stages run on them without Dagster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from upath import UPath

from sr_assets.lineage.stage import Ref, Stage, StageContext
from sr_assets.output_folder import OutputFolder
from sr_assets.recipe.models import Recipe
from sr_assets.storage import Output
from sr_assets.stores.expert_cache import CacheWriter
from sr_assets.stores.pairs import PairWriter
from sr_assets.stores.patches import PatchPositions, PatchWriter
from sr_models.degradations.bicubic import downscale_uint8

SIDE, IMAGES, PER_IMAGE = 32, 3, 4


class Outputs:
    """The outputs of one small graph, and stages run on them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.made: dict[Ref, Output] = {}

    def folder(self, ref: Ref, name: str) -> OutputFolder:
        return OutputFolder(UPath(self.root) / ref.asset / (ref.partition or "") / name)

    def commit(
        self, ref: Ref, folder: OutputFolder, metadata: Mapping[str, Any] | None = None
    ) -> Output:
        self.made[ref] = folder.commit({"metadata": dict(metadata or {})})
        return self.made[ref]

    def run(
        self,
        stage: Stage,
        recipe: Recipe,
        name: str = "address",
        partition: str | None = None,
        advanced: Callable[[int], None] = lambda n: None,
        observed: list[dict[str, Any]] | None = None,
        said: list[str] | None = None,
    ) -> Output:
        ref = Ref(stage.key, partition)

        @contextmanager
        def bar(label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
            yield advanced

        folder = self.folder(ref, name)
        context = StageContext(
            recipe=recipe,
            ref=ref,
            output=folder,
            inputs={parent: self.made[parent] for parent in stage.inputs(partition)},
            log=lambda text: None if said is None else said.append(text),
            observe=lambda points: None if observed is None else observed.append(dict(points)),
            bar=bar,
        )
        return self.commit(ref, folder, stage.run(context))


def small_outputs(
    root: Path, scale: int, experts: Sequence[str], channels: int | None = None
) -> Outputs:
    """Patches, pairs and the caches of experts that are HR with noise of their own.

    With `channels`, the caches also hold features: noise that follows LR.
    """
    outputs = Outputs(root)
    draw = np.random.default_rng(0)
    count = IMAGES * PER_IMAGE
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    waves = [np.sin(x * a / 9 + y * b / 9) for a, b in draw.uniform(-3, 3, (count * 3, 2))]
    hr = np.stack(waves).reshape(count, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    hr = np.rint(127.5 + 100 * hr).astype(np.uint8)
    image = np.repeat(np.arange(IMAGES, dtype=np.int32), PER_IMAGE)
    positions = PatchPositions(
        image=image,
        y=np.tile(np.arange(PER_IMAGE, dtype=np.int32) // 2 * SIDE, IMAGES),
        x=np.tile(np.arange(PER_IMAGE, dtype=np.int32) % 2 * SIDE, IMAGES),
        split=(image == 0).astype(np.uint8),
    )
    ref = Ref("silver/patches", "photos")
    folder = outputs.folder(ref, "address")
    patches = PatchWriter(folder, positions, SIDE, [f"{i}.png" for i in range(IMAGES)], {})
    patches.write(0, hr)
    outputs.commit(ref, folder)

    ref = Ref("gold/pairs", "photos")
    folder = outputs.folder(ref, "address")
    pairs = PairWriter(folder, count, 1, SIDE // scale, {})
    pairs.write(0, np.stack([downscale_uint8(one, scale) for one in hr])[:, None])
    outputs.commit(ref, folder)

    for name in experts:
        ref = Ref(f"expert/{name}/cache", "photos")
        folder = outputs.folder(ref, "address")
        shape = None if channels is None else (channels, SIDE // scale)
        cache = CacheWriter(folder, count, 1, SIDE, shape, {})
        sr = hr.transpose(0, 3, 1, 2).astype(np.float32) / 255
        noisy = (sr + draw.normal(0, 0.03, sr.shape).astype(np.float32))[:, None]
        if channels is None:
            cache.write(0, noisy)
        else:
            drawn = draw.normal(size=(count, 1, channels, SIDE // scale, SIDE // scale))
            cache.write(0, noisy, drawn.astype(np.float32))
        outputs.commit(ref, folder)
    return outputs
