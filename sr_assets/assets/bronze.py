"""Bronze: the source images of every dataset and benchmark, bytes untouched, and their manifest.

Cutting patches is silver's work. The verdict on one image is that of `sr_assets.pictures`.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from sr_assets.lineage.stage import Stage, StageContext, StageError
from sr_assets.pictures import BadImage, Pixels, decode_rgb, inspect
from sr_assets.recipe.models import ImageSource, Recipe
from sr_assets.sources import Found, SourceFile, find, fingerprint
from sr_assets.storage import Output, OutputFolder, hash_file
from sr_assets.stores.manifest import MANIFEST, ManifestRow, from_parquet, to_parquet

KEY = "bronze/images"

_REASONS_SHOWN = 20


def stages(recipe: Recipe) -> list[Stage]:
    """The one stage of bronze, partitioned by dataset and benchmark."""

    def source_slice(partition: str | None) -> dict[str, Any]:
        if partition is None:
            return {}
        section, source = _source(recipe, partition)
        return {f"{section}.{partition}.source": source.model_dump(mode="json")}

    def outside(partition: str | None) -> dict[str, str]:
        return {} if partition is None else fingerprint(_source(recipe, partition)[1])

    return [
        Stage(
            key=KEY,
            description="Source images, untouched, and a manifest of sizes, digests and verdicts.",
            group="bronze",
            run=_run,
            modules=("sr_assets.assets.bronze",),
            kinds=frozenset({"image"}),
            partitions="source",
            settings={"bronze.max_megapixels": recipe.bronze.max_megapixels},
            partition_settings=source_slice,
            outside=outside,
        )
    ]


def load_images(output: Output) -> list[ManifestRow]:
    """The rows of the images that are ok, sorted by path.

    Raises:
        StageError: the manifest is gone or unreadable.
    """
    try:
        rows = from_parquet(output.read_bytes(MANIFEST))
    except (FileNotFoundError, ValueError) as error:
        raise StageError(f"{output.path / MANIFEST}: {error}; run `srd build {KEY}`") from error
    return [row for row in rows if row.ok]


def read_image(output: Output, row: ManifestRow, max_megapixels: float) -> Pixels:
    """One image of a bronze output as upright 8-bit sRGB, uint8 [H, W, 3].

    The bytes are checked against the manifest: they are often hard links to files that somebody
    can edit in place.

    Raises:
        StageError: the bytes are not those that bronze saw.
    """
    changed = (
        f"{output.path / _name(row.path)} changed since bronze was made; run `srd build {KEY}`"
    )
    try:
        data = output.read_bytes(_name(row.path))
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
    section, source = _source(context.recipe, context.partition)
    where = f"{section}.{context.partition}.source"
    found = find(source, where)
    _report(found, context)
    output, limit = context.output, context.recipe.bronze.max_megapixels

    rows: list[ManifestRow] = []
    first: dict[str, str] = {}
    with (
        ThreadPoolExecutor(context.recipe.compute.workers) as pool,
        context.progress(f"{KEY}[{context.partition}]", len(found.files)) as advance,
    ):
        try:
            # In sorted order, whatever thread is done first: the first of equal files stays.
            for row in pool.map(lambda file: _take(file, output, limit), found.files):
                if row.ok and row.sha256 in first:
                    output.discard(_name(row.path))
                    reason = f"duplicate of {first[row.sha256]}"
                    row = replace(row, status="quarantined", reason=reason)
                elif row.ok:
                    first[row.sha256] = row.path
                rows.append(row)
                advance(1)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise

    good = [row for row in rows if row.ok]
    bad = [row for row in rows if not row.ok]
    reasons = [f"{row.path}: {row.reason}" for row in bad]
    for reason in reasons[:_REASONS_SHOWN]:
        context.log(f"quarantined {reason}")
    if not good:
        raise StageError(
            f"{where}: none of {len(rows)} images can be used ({'; '.join(reasons[:3])}); "
            "docs/images.md says what is accepted"
        )
    wanted = {_name(row.path) for row in good}
    for name in [name for name in output.files if name.startswith("files/")]:
        if name not in wanted:  # taken by a killed run, gone from the source since
            output.discard(name)
    output.write_bytes(MANIFEST, to_parquet(rows))
    return {
        "images": len(good),
        "quarantined": len(bad),
        "reasons": reasons[:_REASONS_SHOWN],
        "bytes": sum(row.bytes for row in good),
        "ignored_files": found.ignored.total(),
        "links_not_followed": len(found.links),
    }


def _name(path: str) -> str:
    """Where an image lies inside the output."""
    return f"files/{path}"


def _source(recipe: Recipe, partition: str) -> tuple[str, ImageSource]:
    """Section of the recipe and source of one image set."""
    if partition in recipe.datasets:
        return "datasets", recipe.datasets[partition].source
    if partition in recipe.benchmarks:
        return "benchmarks", recipe.benchmarks[partition].source
    raise StageError(
        f"{KEY}: no dataset or benchmark {partition!r}; there are: "
        f"{', '.join([*recipe.datasets, *recipe.benchmarks])}"
    )


def _take(file: SourceFile, output: OutputFolder, max_megapixels: float) -> ManifestRow:
    """Decodes one file and puts it into the output, or says why it stays outside."""
    name = _name(file.shown)
    refused = ManifestRow(file.shown, "", None, None, None, 0, "quarantined", file.problem)
    if file.problem:
        return refused
    try:
        taken = output.finished(name)
        facts = inspect(file.path, max_megapixels, decode=not taken)
    except BadImage as error:
        digest, size = _digest(file.path)
        return replace(refused, sha256=digest, bytes=size, reason=error.reason)
    except MemoryError:
        raise StageError(
            f"{file.path}: out of memory while it was decoded; lower compute.workers or "
            "bronze.max_megapixels, or leave the file out"
        ) from None
    try:
        sha256 = output.files[name]["sha256"] if taken else output.take(file.path, name)
    except FileNotFoundError:
        raise StageError(f"{file.path} went away while it was read; build again") from None
    size = output.files[name]["size"]
    return ManifestRow(file.shown, sha256, facts.width, facts.height, facts.mode, size, "ok", "")


def _digest(path: Path) -> tuple[str, int]:
    """sha256 and size of a refused file, as far as they can be had."""
    try:
        return hash_file(path), path.stat().st_size
    except OSError:
        return "", 0


def _report(found: Found, context: StageContext) -> None:
    if found.ignored:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(found.ignored.items()))
        context.log(f"{found.ignored.total()} files are no images and were ignored: {kinds}")
    if found.links:
        context.log(
            f"{len(found.links)} links were not followed, to folders or out of the dataset: "
            f"{', '.join(found.links[:5])}"
        )
