"""The page of the leaderboard and the pictures beside it.

The numbers are `leaderboard.py`, the layout is `report/page.py`. Nothing here but the pictures is
content: history and provenance differ from day to day.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sr_assets.evaluation.gallery import entry, weakest_images
from sr_assets.evaluation.history import Moment, earlier_leaderboards, mean_scores, nights
from sr_assets.evaluation.pixels import read_png
from sr_assets.evaluation.provenance import provenance
from sr_assets.evaluation.results import BICUBIC, Results, picture_names
from sr_assets.lineage.stage import StageContext
from sr_assets.report.embedding import embed, picture_groups
from sr_assets.report.page import Surroundings, render_page
from sr_assets.storage import Output

BASELINES = "evaluation/baselines"


def write_page(
    context: StageContext,
    leaderboard: Mapping[str, Any],
    gallery: Mapping[str, Any],
    speeds: Mapping[str, Mapping[str, Any]],
) -> None:
    """Writes `report.html`; arguments as in `render_page`."""
    page = render_page(leaderboard, gallery, speeds, _surroundings(context, leaderboard, gallery))
    context.output.write_bytes("report.html", page.encode(), content=False)


def board_gallery(
    context: StageContext,
    found: Mapping[str, Mapping[str, tuple[Results, Output, str]]],
    advance: Callable[[int], object],
) -> dict[str, list[dict[str, Any]]]:
    """Copies and cuts the pictures of every benchmark; what `render_page` calls its gallery."""
    names = list(next(iter(found.values())))
    weak = weakest_images(
        {row: {b: rows[row][0].images for b, rows in found.items()} for row in names}
    )
    gallery: dict[str, list[dict[str, Any]]] = {}
    for benchmark, rows in found.items():
        gallery[benchmark] = []
        for index, image in enumerate(rows[BICUBIC][0].images):
            shown = weak.get((benchmark, image.name), ())
            gallery[benchmark].append(_entry(context, benchmark, index, rows, shown))
            advance(1)
    return gallery


def _entry(
    context: StageContext,
    benchmark: str,
    index: int,
    rows: Mapping[str, tuple[Results, Output, str]],
    weak: Sequence[str],
) -> dict[str, Any]:
    baselines = context.input(BASELINES, benchmark)
    listed = rows[BICUBIC][0].images
    file = picture_names([image.name for image in listed])[listed[index].name]
    folder = f"images/{benchmark}/{index:03d}"
    sources = {
        "hr": (baselines, f"hr/{file}"),
        "lr": (baselines, f"lr/{file}"),
        **{
            row: (output, f"{inside}{results.images[index].picture}")
            for row, (results, output, inside) in rows.items()
        },
    }
    for row, (output, name) in sources.items():
        context.output.take(output.path / name, f"{folder}/{row}.png")
    settings = context.recipe.evaluation
    return entry(
        folder,
        {row: read_png(output, name) for row, (output, name) in sources.items()},
        {row: results.images[index] for row, (results, _, _) in rows.items()},
        weak,
        context.output.write_bytes,
        scale=context.recipe.scale,
        crops=settings.crops,
        crop_size=settings.crop_size,
    )


def _surroundings(
    context: StageContext, leaderboard: Mapping[str, Any], gallery: Mapping[str, Any]
) -> Surroundings:
    """The pictures inside the page, the leaderboards before this one, and where it came from."""
    small, large = picture_groups(leaderboard, gallery)
    benchmarks = list(context.recipe.benchmarks)
    siblings = context.output.final.parent
    before = [
        *earlier_leaderboards(siblings, benchmarks),
        *nights(siblings.parent.parent / "nights", benchmarks),
    ]
    now = Moment(datetime.now(UTC), mean_scores(leaderboard, benchmarks))
    return Surroundings(
        embed(small, large, lambda path: (context.output.path / path).read_bytes()),
        (*sorted(before, key=lambda moment: moment.made), now),
        provenance(context),
    )
