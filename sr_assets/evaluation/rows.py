"""Evaluating a row, an expert or a model: every image upscaled and measured, and what tiles cost.

Which network it is, `experts.py` and `models.py` say; where images are computed is `executor.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from sr_assets.disk import write_whole
from sr_assets.evaluation.benchmark import BenchmarkImage, benchmark_images, read_pair
from sr_assets.evaluation.measuring import facts, open_further
from sr_assets.evaluation.pixels import encode_png
from sr_assets.evaluation.results import ImageScore, Results, measure, score_from_json
from sr_assets.evaluation.tiling import LARGEST, Overlap, tiles_note
from sr_assets.executor import Advance, Worker, compute_shards
from sr_assets.lineage.stage import Given, StageContext
from sr_assets.output_folder import OutputFolder
from sr_assets.stores.whole_images import put_files

if TYPE_CHECKING:
    from pathlib import Path

    from sr_models.metrics.catalogue import Metric


@dataclass(frozen=True)
class Upscaled:
    """What a row made of one image."""

    sr: np.ndarray
    """uint8 [H, W, 3]."""
    tiled: bool = False
    """Whether the image had to be cut."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """To keep beside the picture, for `put_files`."""


@dataclass(frozen=True)
class Row:
    """A network that is ready to run in this process."""

    kind: str
    parameters: int
    upscale: Callable[[BenchmarkImage, np.ndarray], Upscaled]
    """Of an image and its LR uint8 [h, w, 3]."""
    compare: Callable[[BenchmarkImage, np.ndarray], dict[str, Any] | None] | None
    """`tiled_difference` of an image and its LR; None where tiles are not looked at."""
    overlap: Overlap
    note: str = ""
    """In place of how many images were cut."""


OpenRow = Callable[[Given, str], Row]
"""Opens a row on a device of `compute.device`; a function of a module, or a partial of one."""


@dataclass(frozen=True)
class _Measured:
    """One image, ready to be written."""

    score: ImageScore
    tiled: bool
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class _About:
    """What is known of a row without its images."""

    kind: str
    parameters: int
    difference: dict[str, Any] | None
    overlap: Overlap
    note: str
    facts: dict[str, dict[str, Any]]


def evaluate_row(context: StageContext, name: str, open_row: OpenRow) -> dict[str, Any]:
    """Writes `results.json`, `sr/<picture>` and what the row keeps of every image.

    Images that a killed run has finished are not run again.

    Args:
        context: of the stage.
        name: of the row.
        open_row: its network.

    Returns:
        Metadata.

    Raises:
        StageError: there is nothing to measure, or the network cannot be run.
    """
    images, about = benchmark_images(context), {}
    finished = [_read(context.output, image) is not None for image in images]
    shards = {n: 1 for n, done in enumerate(finished) if not done}
    worker = partial(_open_worker, context.given, images, open_row)

    def take(shard: int, result: _Measured | _About) -> None:
        if isinstance(result, _About):
            about[shard] = result
        else:
            _put(context.output, images[shard], result)

    with context.progress(str(context.ref), len(images)) as advance:
        advance(sum(finished))
        compute_shards(context, {**shards, len(images): 0}, worker, take, advance)
    row = about[len(images)]
    found = [said for image in images if (said := _read(context.output, image))]
    scores = tuple(score_from_json(said["score"]) for said in found)
    tiled = sum(said["tiled"] for said in found)
    note = row.note or tiles_note(row.overlap, tiled, len(images))
    results = Results(name, row.kind, scores, row.parameters, note, row.difference, row.facts)
    context.output.write_json("results.json", results.to_json())
    return results.metadata()


def _open_worker(
    given: Given, images: Sequence[BenchmarkImage], open_row: OpenRow, device: str
) -> Worker[_Measured | _About]:
    """What measures one image; as the last shard, after them, what is known of the row itself."""
    row, further = open_row(given, device), open_further(given.recipe, device)

    def work(shard: int, advance: Advance) -> _Measured | _About:
        if shard == len(images):
            return _look_at(given, images, row, further)
        image = images[shard]
        lr, hr = read_pair(given, image)
        made, file = row.upscale(image, lr), f"sr/{image.picture}"
        score = measure(image.name, file, made.sr, hr, given.recipe.scale, lr, further)
        advance(1)
        return _Measured(score, made.tiled, {**made.files, file: encode_png(made.sr)})

    return work


def _look_at(
    given: Given, images: Sequence[BenchmarkImage], row: Row, further: Sequence[Metric]
) -> _About:
    """What tiles cost is seen at the largest image that fits whole."""
    sizes = [((image.row.width or 0) * (image.row.height or 0), image) for image in images]
    fitting = [(size, image) for size, image in sizes if size <= LARGEST * given.recipe.scale**2]
    difference = None
    if row.compare and fitting:
        _, image = max(fitting, key=lambda found: found[0])
        difference = row.compare(image, read_pair(given, image)[0])
    return _About(row.kind, row.parameters, difference, row.overlap, row.note, facts(further))


def _put(output: OutputFolder, image: BenchmarkImage, measured: _Measured) -> None:
    put_files(output, measured.files)
    said = {
        "score": asdict(measured.score),
        "tiled": measured.tiled,
        "files": sorted(measured.files),
    }
    write_whole(_file(output, image), json.dumps(said).encode())


def _read(output: OutputFolder, image: BenchmarkImage) -> dict[str, Any] | None:
    """What `_put` noted of an image, in this run or an earlier one, if its files are there."""
    try:
        said = json.loads(_file(output, image).read_bytes())
    except FileNotFoundError:
        return None
    return said if all(output.finished(file) for file in said["files"]) else None


def _file(output: OutputFolder, image: BenchmarkImage) -> Path:
    return output.work / f"measured-{image.key}.json"
