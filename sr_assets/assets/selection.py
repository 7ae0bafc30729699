"""Which images of bronze give patches: large enough, and shown by no benchmark.

Where in an image the patches lie is `patch_grid.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sr_assets.assets.overlap import Overlap
from sr_assets.lineage.stage import StageError
from sr_assets.recipe.models import Silver
from sr_assets.report.markdown import visible
from sr_assets.stores.manifest import ManifestRow


@dataclass(frozen=True)
class Selection:
    """The images of a dataset that are used, by path, and those that are left out and why."""

    rows: list[ManifestRow]
    small: list[str]
    """Path and size of each that is too small for a patch."""
    overlapping: list[str]
    """A line for each that a benchmark shows too."""


def select(
    rows: Iterable[ManifestRow], overlaps: Iterable[Overlap], silver: Silver, partition: str
) -> Selection:
    """Chooses the images of one dataset.

    Args:
        rows: of the images that are ok.
        overlaps: what the dataset shares with benchmarks.
        silver: sizes that are wanted.
        partition: name of the dataset, for messages.

    Raises:
        StageError: fewer than two are left; one is needed for training and one for validation.
    """
    shared: dict[str, str] = {}
    for one in overlaps:
        shared.setdefault(one.path, visible(str(one)))
    smallest = max(silver.min_side, silver.patch_size)
    ordered = sorted((r for r in rows if r.path not in shared), key=lambda row: row.path)
    used = [row for row in ordered if min(size_of(row)) >= smallest]
    small = [row for row in ordered if min(size_of(row)) < smallest]
    _check_enough(used, small, list(shared.values()), silver, partition)
    return Selection(used, list(map(_shown, small)), list(shared.values()))


def size_of(row: ManifestRow) -> tuple[int, int]:
    """Height and width; bronze gives both for every image that is ok."""
    return (row.height or 0, row.width or 0)


def _check_enough(
    rows: list[ManifestRow],
    small: list[ManifestRow],
    shared: list[str],
    silver: Silver,
    partition: str,
) -> None:
    if len(rows) >= 2:
        return
    limit = f"silver.min_side {silver.min_side}, silver.patch_size {silver.patch_size}"
    largest = sorted(small, key=lambda row: min(size_of(row)), reverse=True)[:3]
    sizes = f"; too small: {', '.join(map(_shown, largest))}" if largest else ""
    sizes += ", ..." if len(small) > len(largest) else ""
    if shared:
        sizes += f"; left out because benchmarks show them: {len(shared)}, such as {shared[0]}"
    if not rows:
        raise StageError(
            f"{limit}: none of {len(small) + len(shared)} images of {partition} can be used"
            f"{sizes}; lower silver.min_side or add larger images"
        )
    raise StageError(
        f"{limit}: only {_shown(rows[0])} of {partition} can be used{sizes}; "
        "two images are needed, one of them for validation: add images or lower silver.min_side"
    )


def _shown(row: ManifestRow) -> str:
    return f"{visible(row.path)} ({row.width}x{row.height})"
