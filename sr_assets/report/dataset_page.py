"""What bronze shows of a dataset: a page of its own, and tables for Dagster.

It lays out manifest rows and thumbnails; which images are taken was decided before.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sr_assets.report.markdown import plain, table, visible
from sr_assets.report.numbers import byte_size
from sr_assets.report.templating import digest_of_folder, environment
from sr_assets.stores.manifest import ManifestRow

_TEMPLATES = Path(__file__).parent / "dataset_templates"
_THUMBNAILS = 24
_THUMBNAIL_SIDE = 180  # px, the longer one
_ROWS_IN_DAGSTER = 50
_ROWS_ON_PAGE = 2000

_SHORT_SIDES = (0, 256, 512, 1024, 2048, 4096)  # px
_MEGAPIXELS = (0, 0.25, 1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Thumbnail:
    """A small picture of one image, as a JPEG."""

    row: ManifestRow
    jpeg: bytes

    @property
    def uri(self) -> str:
        """The picture inside a URI."""
        return f"data:image/jpeg;base64,{base64.b64encode(self.jpeg).decode()}"


@dataclass(frozen=True)
class Shown:
    """What there is to show of one dataset or benchmark."""

    recipe: str
    name: str
    counts: Mapping[str, int]
    rows: Sequence[ManifestRow]
    thumbnails: Sequence[Thumbnail]


@dataclass(frozen=True)
class Bar:
    """One bar of a histogram."""

    label: str
    count: int
    share: float
    """Of the highest bar, 0 to 1."""


def contact_sheet(
    rows: Sequence[ManifestRow],
    read: Callable[[ManifestRow], NDArray[np.uint8]],
    workers: int,
) -> list[Thumbnail]:
    """Thumbnails of up to 24 images, by path: those with the lowest digests, a sample without bias.

    Args:
        rows: of all images; those that are ok are chosen from.
        read: an image, uint8 [H, W, 3].
        workers: threads that read.
    """
    chosen = sorted((row for row in rows if row.ok), key=lambda row: row.sha256)[:_THUMBNAILS]

    def thumbnail(row: ManifestRow) -> Thumbnail:
        image = Image.fromarray(read(row))
        image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), reducing_gap=2.0)
        data = io.BytesIO()
        image.save(data, "JPEG", quality=72)
        return Thumbnail(row, data.getvalue())

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(thumbnail, sorted(chosen, key=lambda row: row.path)))


def summary(shown: Shown) -> dict[str, str]:
    """Markdown for Dagster: `thumbnails`, `sizes` and, where there is any, `quarantine`."""
    good, bad = _halves(shown.rows)
    sizes = [
        table(("short side, px", "images"), [(bar.label, str(bar.count)) for bar in sides(good)]),
        table(("megapixels", "images"), [(bar.label, str(bar.count)) for bar in megapixels(good)]),
    ]
    data = base64.b64encode(_mosaic(shown.thumbnails)).decode()
    found = {
        "thumbnails": f"![thumbnails](data:image/jpeg;base64,{data})",
        "sizes": "\n\n".join(sizes),
    }
    if bad:
        lines = [(plain(row.path), plain(row.reason)) for row in bad[:_ROWS_IN_DAGSTER]]
        more = len(bad) - _ROWS_IN_DAGSTER
        rest = f"\n\nand {more} more: see the page" if more > 0 else ""
        found["quarantine"] = table(("file", "reason"), lines) + rest
    return found


def page(shown: Shown) -> str:
    """The page as HTML: one file that needs neither a network nor a server."""
    made = environment(_TEMPLATES)
    made.filters.update(visible=visible, size=byte_size)
    good, bad = _halves(shown.rows)
    return made.get_template("dataset.html.j2").render(
        recipe=shown.recipe,
        name=shown.name,
        counts=shown.counts,
        total_megapixels=sum(_area(row) for row in good),
        histograms=[("Short side, px", sides(good)), ("Megapixels", megapixels(good))],
        modes=Counter(row.mode for row in good).most_common(),
        reasons=Counter(_kind(row.reason) for row in bad).most_common(),
        thumbnails=shown.thumbnails,
        bad=bad[:_ROWS_ON_PAGE],
        bad_left_out=max(0, len(bad) - _ROWS_ON_PAGE),
    )


def template_digest() -> str:
    """Digest of what the page is made of besides code; part of bronze's version."""
    return digest_of_folder(_TEMPLATES)


def sides(rows: Sequence[ManifestRow]) -> list[Bar]:
    """Histogram of the shorter sides."""
    return _bars([min(row.width or 0, row.height or 0) for row in rows], _SHORT_SIDES)


def megapixels(rows: Sequence[ManifestRow]) -> list[Bar]:
    """Histogram of the areas."""
    return _bars([_area(row) for row in rows], _MEGAPIXELS)


def _bars(values: Sequence[float], edges: Sequence[float]) -> list[Bar]:
    """One bar a bin from the first that is not empty to the last."""
    places = np.searchsorted(edges, values, side="right") - 1
    counts = np.bincount(places, minlength=len(edges))
    labels = [f"below {edges[1]:g}" if low == 0 else f"{low:g} to {high:g}"
              for low, high in pairwise(edges)] + [f"{edges[-1]:g} and more"]  # fmt: skip
    used = np.flatnonzero(counts)
    if not len(used):
        return []
    return [
        Bar(labels[n], int(counts[n]), float(counts[n] / counts.max()))
        for n in range(used[0], used[-1] + 1)
    ]


def _mosaic(thumbnails: Sequence[Thumbnail]) -> bytes:
    """All thumbnails in one small JPEG, six in a row: Dagster keeps a copy with every event."""
    side, columns = 96, min(6, len(thumbnails))
    rows = -(-len(thumbnails) // columns)
    sheet = Image.new("RGB", (columns * side, rows * side), "white")
    for n, thumbnail in enumerate(thumbnails):
        small = Image.open(io.BytesIO(thumbnail.jpeg))
        small.thumbnail((side - 4, side - 4))
        x, y = n % columns * side, n // columns * side
        sheet.paste(small, (x + (side - small.width) // 2, y + (side - small.height) // 2))
    data = io.BytesIO()
    sheet.save(data, "JPEG", quality=72)
    return data.getvalue()


def _halves(rows: Sequence[ManifestRow]) -> tuple[list[ManifestRow], list[ManifestRow]]:
    return [row for row in rows if row.ok], [row for row in rows if not row.ok]


def _area(row: ManifestRow) -> float:
    return (row.width or 0) * (row.height or 0) / 1e6


def _kind(reason: str) -> str:
    """What a reason has in common with others of its kind."""
    if reason.startswith("duplicate of "):
        return "duplicate"
    if reason.startswith("not a "):
        return "of no format that is read"
    if "megapixels" in reason:
        return "too large"
    return reason.split(":")[0]
