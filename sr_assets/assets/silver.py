"""Silver: HR patches cut from the images of bronze, split into training and validation by image.

Decoding is bronze's and `sr_assets.pictures`' business, what LR looks like is gold's.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from sr_assets.ahead import ahead
from sr_assets.assets.bronze import KEY as BRONZE
from sr_assets.assets.bronze import load_images, read_image
from sr_assets.assets.overlap import KEY as OVERLAP
from sr_assets.assets.overlap import load_overlap
from sr_assets.assets.patch_grid import detail, grid, held_out, patches_at, positions_of
from sr_assets.assets.selection import select, size_of
from sr_assets.disk import write_whole
from sr_assets.lineage.slices import slice_of
from sr_assets.lineage.stage import Ref, Stage, StageContext, StageError
from sr_assets.pictures import Pixels
from sr_assets.recipe.models import Recipe, Silver
from sr_assets.storage import Output
from sr_assets.stores.manifest import ManifestRow
from sr_assets.stores.patches import TRAIN, PatchWriter

KEY = "silver/patches"

_NAMES_SHOWN = 20


def stages(recipe: Recipe) -> list[Stage]:
    """The one stage of silver, partitioned by dataset."""

    def inputs(partition: str | None) -> list[Ref]:
        return [Ref(BRONZE, partition), Ref(OVERLAP, partition)]

    return [
        Stage(
            key=KEY,
            description="HR patches as pixels, each with its place in its image and its split.",
            group="silver",
            run=_run,
            modules=("sr_assets.assets.silver",),
            kinds=frozenset({"zarr"}),
            partitions="dataset",
            inputs=inputs,
            settings={**slice_of(recipe.silver, "silver"), "seed": recipe.seed},
        )
    ]


def _run(context: StageContext) -> dict[str, Any]:
    silver, bronze = context.recipe.silver, context.input(BRONZE, context.partition)
    overlaps = load_overlap(context.input(OVERLAP, context.partition))
    chosen = select(load_images(bronze), overlaps, silver, context.partition)
    rows = chosen.rows
    for line in chosen.small[:_NAMES_SHOWN]:
        context.log(f"left out {line}: silver.min_side is {silver.min_side}")
    for line in chosen.overlapping[:_NAMES_SHOWN]:
        context.log(f"left out: {line}")

    validation = held_out([r.sha256 for r in rows], silver.validation_share, context.recipe.seed)
    corners = [_corners(row, silver, row.sha256 in validation) for row in rows]
    planned = sum(map(len, corners))
    if silver.min_detail > 0:
        training = [i for i, row in enumerate(rows) if row.sha256 not in validation]
        corners = _with_detail(context, bronze, rows, corners, training)
    positions = positions_of(rows, corners, validation)
    writer = PatchWriter(
        context.output,
        positions,
        silver.patch_size,
        [row.path for row in rows],
        dict(context.origin),
    )
    _cut(context, bronze, rows, corners, writer)

    train = int(np.count_nonzero(positions.split == TRAIN))
    return {
        "patches": len(positions),
        "train": train,
        "validation": len(positions) - train,
        "without_detail": planned - len(positions),
        "images": len(rows),
        "validation_images": len(validation),
        "left_out": len(chosen.small),
        "left_out_images": chosen.small[:_NAMES_SHOWN],
        "overlapping": len(chosen.overlapping),
        "overlapping_images": chosen.overlapping[:_NAMES_SHOWN],
    }


def _corners(row: ManifestRow, silver: Silver, validation: bool) -> np.ndarray:
    height, width = size_of(row)
    # Without overlap a whole validation image can be put together from its patches.
    stride = silver.patch_size if validation else silver.stride
    return grid(height, width, silver.patch_size, stride)


def _with_detail(
    context: StageContext,
    bronze: Output,
    rows: list[ManifestRow],
    corners: list[np.ndarray],
    training: list[int],
) -> list[np.ndarray]:
    """The corners without those of training patches that have too little detail.

    The verdicts are kept beside the output that is being built, so that a run which goes on after
    a kill does not decode everything twice.
    """
    silver = context.recipe.silver

    def measure(i: int) -> list[float]:
        pixels = _pixels(context, bronze, rows[i])
        return [detail(patch) for patch in patches_at(pixels, corners[i], silver.patch_size)]

    file = context.output.work / "detail.json"
    if not file.exists():
        measured = {}
        with context.progress(f"detail of {context.ref}", len(training)) as advance:
            work = ahead(context.recipe.compute.workers, measure, training)
            for i, values in zip(training, work, strict=True):
                measured[rows[i].path] = values
                advance(1)
        write_whole(file, json.dumps(measured).encode())
    measured = json.loads(file.read_text())
    kept = list(corners)
    for i in training:
        kept[i] = corners[i][np.array(measured[rows[i].path]) >= silver.min_detail]
    if not any(len(kept[i]) for i in training):
        values = [value for i in training for value in measured[rows[i].path]]
        raise StageError(
            f"silver.min_detail {silver.min_detail:g}: none of {len(values)} training patches of "
            f"{context.partition} ({silver.patch_size} px, from {len(training)} images of at least "
            f"silver.min_side {silver.min_side}) has that, the best {max(values):.2f}; lower it"
        )
    return kept


def _cut(
    context: StageContext,
    bronze: Output,
    rows: list[ManifestRow],
    corners: list[np.ndarray],
    writer: PatchWriter,
) -> None:
    """Writes every shard that is not there yet, with the pixels of one shard in memory at a time.

    Patches are in the order of the images, so a shard is full before the next one is begun.
    """
    size = context.recipe.silver.patch_size
    step = len(writer.shards[0])
    open_shards = {s for s in range(len(writer.shards)) if not writer.finished(s)}
    ends = np.cumsum([len(c) for c in corners])
    needed = [
        i
        for i, (end, c) in enumerate(zip(ends, corners, strict=True))
        if any(n // step in open_shards for n in range(end - len(c), end))
    ]

    def decode(i: int) -> Pixels:
        return _pixels(context, bronze, rows[i])

    total = sum(len(writer.shards[s]) for s in open_shards)
    hr = np.empty((step, size, size, 3), np.uint8)
    with context.progress(str(context.ref), total, "patches") as advance:
        images = ahead(context.recipe.compute.workers, decode, needed)
        for i, pixels in zip(needed, images, strict=True):
            first = int(ends[i]) - len(corners[i])
            for n, patch in enumerate(patches_at(pixels, corners[i], size), start=first):
                shard = n // step
                if shard not in open_shards:
                    continue
                samples = writer.shards[shard]
                hr[n - samples.start] = patch
                if n == samples[-1]:
                    writer.write(shard, hr[: len(samples)])
                    advance(len(samples))


def _pixels(context: StageContext, bronze: Output, row: ManifestRow) -> Pixels:
    pixels = read_image(bronze, row, context.recipe.bronze.max_megapixels)
    if pixels.shape[:2] != size_of(row):
        raise StageError(
            f"{row.path} is {pixels.shape[1]}x{pixels.shape[0]} px but the manifest says "
            f"{row.width}x{row.height}; run `srd build {BRONZE}`"
        )
    return pixels
