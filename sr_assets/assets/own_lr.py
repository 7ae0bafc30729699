"""LR that comes with the images of a dataset: put beside its HR in bronze, pair by pair.

Which LR belongs to which HR by its name is `sr_assets/sources/pairing.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from sr_assets.ahead import ahead
from sr_assets.assets.intake import intake_of, keep_only
from sr_assets.lineage.stage import StageContext
from sr_assets.report.markdown import visible
from sr_assets.sources.files import Found
from sr_assets.sources.pairing import match
from sr_assets.stores.manifest import ManifestRow

FOLDER = "lr"
#: Before the path of an LR image, where those of HR stand beside it.
MARK = "(LR) "


def with_own_lr(
    rows: Sequence[ManifestRow], found: Found, context: StageContext
) -> list[ManifestRow]:
    """The same rows, each HR with its LR, which is in the output; HR without one in quarantine.

    An LR that belongs to no HR gets a row in quarantine too, as `(LR) <path>`.

    Args:
        rows: of the HR images.
        found: the LR images.
        context: of the run.
    """
    files = {file.shown: file for file in found.files}
    # HR in quarantine is matched too, so that its LR does not go to another of the same name.
    matched = match(
        (row.path for row in rows), (path for path, file in files.items() if not file.problem)
    )
    wanted = [
        (row, files[matched.pairs[row.path]])
        for row in rows
        if row.ok and row.path in matched.pairs
    ]
    intake = intake_of(context, FOLDER)
    paired: dict[str, ManifestRow] = {}
    with context.progress(f"LR of {context.partition}", len(wanted)) as advance:
        taken = ahead(context.recipe.compute.workers, intake.take, (lr for _, lr in wanted))
        for (row, _), lr in zip(wanted, taken, strict=True):
            paired[row.path] = _paired(row, lr, context.recipe.scale)
            advance(1)
    reasons = matched.hr_problems
    ended = [
        _refused(row, reasons[row.path])
        if row.ok and row.path in reasons
        else paired.get(row.path, row)
        for row in rows
    ]
    keep_only(context.output, FOLDER, (row.lr for row in ended if row.ok and row.lr))
    refused = {path: file.problem for path, file in files.items() if file.problem}
    alone = {
        matched.pairs[row.path]: f"its HR {visible(row.path)} is in quarantine"
        for row in rows
        if not row.ok and row.path in matched.pairs
    }
    return [*ended, *_left_over({**matched.lr_problems, **alone, **refused})]


def _paired(hr: ManifestRow, lr: ManifestRow, scale: int) -> ManifestRow:
    """The row of HR with its LR, or in quarantine where both cannot belong together."""
    if not lr.ok:
        return _refused(hr, f"its LR {visible(lr.path)}: {lr.reason}")
    width, height = (hr.width or 0) // scale, (hr.height or 0) // scale
    if (lr.width, lr.height) != (width, height):
        reason = (
            f"its LR {visible(lr.path)} is {lr.width}x{lr.height} px, but HR is "
            f"{hr.width}x{hr.height} px: at scale {scale} LR must be {width}x{height} px"
        )
        return _refused(hr, reason)
    return replace(hr, lr=lr.path, lr_sha256=lr.sha256)


def _refused(row: ManifestRow, reason: str) -> ManifestRow:
    return replace(row, status="quarantined", reason=reason)


def _left_over(problems: dict[str, str]) -> Iterator[ManifestRow]:
    for path, reason in sorted(problems.items()):
        yield ManifestRow(MARK + path, "", None, None, None, 0, "quarantined", reason)


def lr_row(row: ManifestRow) -> ManifestRow:
    """The row of an image's own LR, as `bronze.read_image` wants it."""
    assert row.lr is not None and row.lr_sha256 is not None
    return replace(row, path=row.lr, sha256=row.lr_sha256)
