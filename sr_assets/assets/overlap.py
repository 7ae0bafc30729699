"""The overlap guard: which images of a dataset equal, or nearly equal, an image of a benchmark.

It reads manifests and decodes nothing; that silver leaves those images out is silver's part, and
what counts as nearly equal is `sr_assets.likeness`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from sr_assets.assets.bronze import KEY as BRONZE
from sr_assets.assets.bronze import load_images
from sr_assets.likeness import MOST_DISTANCE, SIDE, Luma, near_copies
from sr_assets.lineage.stage import Ref, Stage, StageContext, StageError
from sr_assets.recipe.models import Recipe
from sr_assets.report.markdown import plain, table, visible
from sr_assets.storage import Output
from sr_assets.stores.manifest import ManifestRow, to_parquet

KEY = "bronze/overlap"
BENCHMARKS = "bronze/benchmarks"

_LIST = "overlap.json"
_SHOWN = 50


@dataclass(frozen=True, order=True)
class Overlap:
    """An image of a dataset that shows what an image of a benchmark shows."""

    path: str
    benchmark: str
    benchmark_path: str
    kind: Literal["equal", "near"]
    """`equal`: the same bytes."""
    distance: float
    """0 to `likeness.MOST_DISTANCE`."""

    def __str__(self) -> str:
        relation = "equals" if self.kind == "equal" else "nearly equals"
        return f"{self.path} {relation} {self.benchmark_path} of {self.benchmark}"


def stages(recipe: Recipe) -> list[Stage]:
    """What the benchmarks show, and what every dataset shares with them.

    The benchmarks are put together first: Dagster can say of an edge that it reads the partition
    of the same name or some fixed partitions, and not both.
    """

    def every_benchmark(_: str | None) -> list[Ref]:
        return [Ref(BRONZE, benchmark) for benchmark in recipe.benchmarks]

    def dataset_and_benchmarks(partition: str | None) -> list[Ref]:
        return [Ref(BRONZE, partition), Ref(BENCHMARKS)]

    return [
        Stage(
            key=BENCHMARKS,
            description="What the images of all benchmarks look like: no dataset may repeat them.",
            group="bronze",
            run=_collect,
            modules=("sr_assets.assets.overlap",),
            inputs=every_benchmark,
            settings={"benchmarks": list(recipe.benchmarks)},
        ),
        Stage(
            key=KEY,
            description="Images that equal or nearly equal one of a benchmark; silver leaves them.",
            group="bronze",
            run=_compare,
            modules=("sr_assets.assets.overlap",),
            partitions="dataset",
            inputs=dataset_and_benchmarks,
            settings={
                "benchmarks": list(recipe.benchmarks),
                "bronze.near_copy": recipe.bronze.near_copy,
            },
        ),
    ]


def load_overlap(output: Output) -> list[Overlap]:
    """What a dataset shares with benchmarks, sorted by path.

    Raises:
        StageError: the list is gone or unreadable.
    """
    try:
        return [Overlap(**entry) for entry in output.read_json(_LIST)]
    except (FileNotFoundError, json.JSONDecodeError, TypeError) as error:
        raise StageError(f"{output.path / _LIST}: {error}; run `srd build {KEY}`") from error


def find_overlap(
    rows: Sequence[ManifestRow],
    benchmarks: dict[str, Sequence[ManifestRow]],
    near_copy: float = MOST_DISTANCE,
) -> list[Overlap]:
    """Compares a dataset with benchmarks, by name; all rows are of images that are ok.

    Args:
        rows: of the dataset.
        benchmarks: rows of each.
        near_copy: largest distance of a near copy; 0 finds equal files only.

    Returns:
        Every pair, sorted.
    """
    lumas = [_luma(row) for row in rows]
    found = []
    for benchmark, images in benchmarks.items():
        by_digest = {image.sha256: image for image in images}
        for row in rows:
            if (same := by_digest.get(row.sha256)) is not None:
                found.append(Overlap(row.path, benchmark, same.path, "equal", 0.0))
        near = near_copies(lumas, [_luma(image) for image in images]) if near_copy else []
        for match in near:
            row, image = rows[match.first], images[match.second]
            if row.sha256 != image.sha256 and match.distance <= near_copy:
                found.append(Overlap(row.path, benchmark, image.path, "near", match.distance))
    return sorted(found)


def _collect(context: StageContext) -> dict[str, Any]:
    counts = {}
    for benchmark in context.recipe.benchmarks:
        rows = load_images(context.input(BRONZE, benchmark))
        context.output.write_bytes(f"{benchmark}/manifest.parquet", to_parquet(rows))
        counts[benchmark] = len(rows)
    lines = table(("benchmark", "images"), [(plain(b), str(n)) for b, n in counts.items()])
    return {"images": sum(counts.values()), "benchmarks": {"md": lines}}


def _compare(context: StageContext) -> dict[str, Any]:
    rows = load_images(context.input(BRONZE, context.partition))
    together = context.input(BENCHMARKS)
    benchmarks: dict[str, Sequence[ManifestRow]] = {
        benchmark: load_images(together, f"{benchmark}/manifest.parquet")
        for benchmark in context.recipe.benchmarks
    }
    found = find_overlap(rows, benchmarks, context.recipe.bronze.near_copy)
    for one in found[:_SHOWN]:
        context.log(f"quarantined {visible(str(one))}")
    context.output.write_json(_LIST, [asdict(one) for one in found])
    metadata: dict[str, Any] = {
        "compared_with": sum(map(len, benchmarks.values())),
        "overlapping": len({one.path for one in found}),
    }
    if found:
        metadata["overlap"] = {"md": _said(found)}
    return metadata


def _said(found: Sequence[Overlap]) -> str:
    shown = [
        (plain(o.path), plain(o.benchmark), plain(o.benchmark_path), o.kind, f"{o.distance:.3f}")
        for o in found[:_SHOWN]
    ]
    more = f"\n\nand {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return table(("image", "benchmark", "its image", "kind", "distance"), shown) + more


def _luma(row: ManifestRow) -> Luma:
    assert row.luma is not None, "bronze keeps the luma of every image that is ok"
    return np.frombuffer(row.luma, np.uint8).reshape(SIDE, SIDE)
