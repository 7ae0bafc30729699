"""Bronze: the source images of every dataset and benchmark, bytes untouched, and their manifest.

Cutting patches is silver's work. The verdict on one image is that of `sr_assets.pictures`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sr_assets.ahead import ahead
from sr_assets.assets.intake import FILES, intake_of, keep_only, name_of
from sr_assets.assets.own_lr import FOLDER, MARK, lr_row, with_own_lr
from sr_assets.lineage.stage import Stage, StageContext, StageError
from sr_assets.pictures import BadImage, Pixels, decode_rgb
from sr_assets.recipe.models import Recipe
from sr_assets.recipe.sources import Dataset
from sr_assets.report.dataset_page import Shown, contact_sheet, page, summary, template_digest
from sr_assets.report.markdown import visible
from sr_assets.sources.files import Fetching, Found
from sr_assets.sources.finding import find, fingerprint, modules
from sr_assets.storage import Output, cache_folder
from sr_assets.stores.manifest import MANIFEST, ManifestRow, from_parquet, to_parquet

KEY = "bronze/images"

PAGE = "page.html"

_LOGGED = 20


def stages(recipe: Recipe) -> list[Stage]:
    """The one stage of bronze, partitioned by dataset and benchmark."""

    def source_slice(partition: str | None) -> dict[str, Any]:
        if partition is None:
            return {}
        section, dataset = _dataset(recipe, partition)
        path = f"{section}.{partition}"
        found: dict[str, Any] = {f"{path}.source": dataset.source.model_dump(mode="json")}
        if dataset.lr:
            found |= {f"{path}.lr": dataset.lr.model_dump(mode="json"), "scale": recipe.scale}
        return found

    def source_modules(partition: str | None) -> tuple[str, ...]:
        if partition is None:
            return ()
        dataset = _dataset(recipe, partition)[1]
        own = modules(dataset.lr) if dataset.lr else ()
        return tuple(dict.fromkeys((*modules(dataset.source), *own)))

    def outside(partition: str | None) -> dict[str, str]:
        if partition is None:
            return {}
        dataset = _dataset(recipe, partition)[1]
        own = fingerprint(dataset.lr) if dataset.lr else {}
        lr = {MARK + name: stamp for name, stamp in own.items()}
        return {**fingerprint(dataset.source), **lr}

    return [
        Stage(
            key=KEY,
            description="Source images, untouched, and a manifest of sizes, digests and verdicts.",
            group="bronze",
            run=_run,
            modules=("sr_assets.assets.bronze",),
            kinds=frozenset({"image"}),
            partitions="source",
            settings={
                "bronze.max_megapixels": recipe.bronze.max_megapixels,
                "page template": template_digest(),
            },
            partition_settings=source_slice,
            partition_modules=source_modules,
            outside=outside,
        )
    ]


def load_images(output: Output, name: str = MANIFEST) -> list[ManifestRow]:
    """The rows of the images that are ok, sorted by path.

    Args:
        output: of this stage, or another that holds manifests.
        name: which manifest.

    Raises:
        StageError: the manifest is gone or unreadable.
    """
    try:
        rows = from_parquet(output.read_bytes(name))
    except (FileNotFoundError, ValueError) as error:
        raise StageError(f"{output.path / name}: {error}; run `srd build {KEY}`") from error
    return [row for row in rows if row.ok]


def read_lr(output: Output, row: ManifestRow, max_megapixels: float) -> Pixels:
    """The LR that came with one image, uint8 [h, w, 3]; see `read_image`."""
    return read_image(output, lr_row(row), max_megapixels, FOLDER)


def read_image(
    output: Output, row: ManifestRow, max_megapixels: float, folder: str = FILES
) -> Pixels:
    """One image of a bronze output as upright 8-bit sRGB, uint8 [H, W, 3].

    The bytes are checked against the manifest: they are often hard links to files that somebody
    can edit in place.

    Raises:
        StageError: the bytes are not those that bronze saw.
    """
    name = name_of(row.path, folder)
    changed = f"{output.path / name} changed since bronze was made; run `srd build {KEY}`"
    try:
        data = output.read_bytes(name)
    except FileNotFoundError:
        raise StageError(changed) from None
    if hashlib.sha256(data).hexdigest() != row.sha256:
        raise StageError(changed)
    try:
        return decode_rgb(data, max_megapixels)
    except BadImage as error:
        raise StageError(
            f"{row.path} cannot be read any more: {error.reason}; run `srd build {KEY}`"
        ) from error


def _run(context: StageContext) -> dict[str, Any]:
    section, dataset = _dataset(context.recipe, context.partition)
    where = f"{section}.{context.partition}.source"
    found = find(dataset.source, _fetching(context, where))
    _report(found, context)
    rows = _take(found, context)
    if dataset.lr:
        own = find(dataset.lr, _fetching(context, f"{section}.{context.partition}.lr"))
        rows = with_own_lr(rows, own, context)
    good = [row for row in rows if row.ok]
    bad = [row for row in rows if not row.ok]
    for row in bad[:_LOGGED]:
        context.log(f"quarantined {visible(row.path)}: {row.reason}")
    if not good:
        reasons = "; ".join(f"{visible(row.path)}: {row.reason}" for row in bad[:3])
        raise StageError(
            f"{where}: none of {len(rows)} images can be used ({reasons}); "
            "docs/images.md says what is accepted"
        )
    keep_only(context.output, FILES, (row.path for row in good))
    context.output.write_bytes(MANIFEST, to_parquet(rows))
    counts = {
        "images": len(good),
        "quarantined": len(bad),
        "bytes": sum(row.bytes for row in good),
        "ignored_files": found.ignored.total(),
        "links_not_followed": len(found.links),
    }
    return counts | _show(context, rows, counts)


def _fetching(context: StageContext, where: str) -> Fetching:
    return Fetching(
        where=where,
        work=context.output.work,
        cache=cache_folder() / "sources",
        workers=context.recipe.compute.workers,
        log=context.log,
        bar=context.bar,
    )


def _dataset(recipe: Recipe, partition: str) -> tuple[str, Dataset]:
    """Section of the recipe that one image set is in, and what it says of it."""
    if partition in recipe.datasets:
        return "datasets", recipe.datasets[partition]
    if partition in recipe.benchmarks:
        return "benchmarks", recipe.benchmarks[partition]
    raise StageError(
        f"{KEY}: no dataset or benchmark {partition!r}; there are: "
        f"{', '.join([*recipe.datasets, *recipe.benchmarks])}"
    )


def _take(found: Found, context: StageContext) -> list[ManifestRow]:
    """One row a file; what is ok is in the output, each content once."""
    intake = intake_of(context)
    rows: list[ManifestRow] = []
    first: dict[str, str] = {}
    with context.progress(f"{KEY}[{context.partition}]", len(found.files)) as advance:
        # In sorted order, whatever thread is done first: the first of equal files stays.
        for row in ahead(context.recipe.compute.workers, intake.take, found.files):
            if row.ok and row.sha256 in first:
                context.output.discard(name_of(row.path))
                reason = f"duplicate of {visible(first[row.sha256])}"
                row = replace(row, status="quarantined", reason=reason)
            elif row.ok:
                first[row.sha256] = row.path
            rows.append(row)
            advance(1)
    return rows


def _show(
    context: StageContext, rows: Sequence[ManifestRow], counts: dict[str, int]
) -> dict[str, Any]:
    """Writes the page and returns what of it stands in Dagster."""
    limit = context.recipe.bronze.max_megapixels

    def read(row: ManifestRow) -> Pixels:
        try:
            return decode_rgb((context.output.path / name_of(row.path)).read_bytes(), limit)
        except BadImage as error:
            raise StageError(
                f"{visible(row.path)} changed while it was read ({error.reason}); build again"
            ) from error

    sheet = contact_sheet(rows, read, context.recipe.compute.workers)
    shown = Shown(context.recipe.name, context.partition, counts, rows, sheet)
    context.output.write_bytes(PAGE, page(shown).encode(), content=False)
    said = {name: {"md": text} for name, text in summary(shown).items()}
    return {**said, "page": {"path": str(context.output.final / PAGE)}}


def _report(found: Found, context: StageContext) -> None:
    if found.ignored:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(found.ignored.items()))
        context.log(f"{found.ignored.total()} files are no images and were ignored: {kinds}")
    if found.links:
        context.log(
            f"{len(found.links)} links were not followed, to folders or out of the dataset: "
            f"{', '.join(map(visible, found.links[:5]))}"
        )
