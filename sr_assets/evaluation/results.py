"""The record of one measured row on one benchmark, and its form as `results.json`.

The convention behind the numbers is docs/metrics.md; drawing them is `report/`.

An image that equals its original has no finite PSNR: its `psnr_y` is null, and it is left out of
the mean PSNR (never of the mean SSIM or offset). A mean over nothing but such images is null too.
Rows beside one another need means over the same images: see `side_by_side`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from sr_models.metrics.catalogue import Metric

#: Row name of what is measured without a network.
BICUBIC, MEAN, CONVEX = "bicubic", "mean", "convex"

#: `mean` of a results file: {"psnr_y", "ssim_y", "colour_offset": [r, g, b]}, and the mean of the
#: offsets' absolute values as "colour_offset_abs"; every other metric under "metrics": {name:
#: mean or None}. `side_by_side` adds the PSNR-Y of every image:
#: {"images": {name: dB or None}}.
Score = Mapping[str, Any]
#: Row name -> benchmark -> its mean score.
Scores = Mapping[str, Mapping[str, Score]]


@dataclass(frozen=True)
class ImageScore:
    """What was measured on one image."""

    name: str
    width: int
    height: int
    psnr_y: float | None
    ssim_y: float
    colour_offset: tuple[float, float, float]
    picture: str
    """Path of the measured picture inside the output."""
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    """Every other metric by its name; None where it has no finite value for this image."""


@dataclass(frozen=True)
class Results:
    """One row (an expert, a model, a baseline) on one benchmark."""

    name: str
    kind: str
    """bicubic, expert, mean, convex, plain, fusion or student."""
    images: tuple[ImageScore, ...]
    parameters: int | None
    """Weights of the network itself; None where there is none."""
    note: str = ""
    tiled: Mapping[str, Any] | None = None
    """What tiles cost in accuracy, as `evaluation/tiling.py` says; None where it is not known."""
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Name of every metric -> its title, unit, direction and range."""

    @property
    def mean(self) -> dict[str, Any]:
        """Means over the images; see the module for images without a finite PSNR."""
        finite = [i.psnr_y for i in self.images if i.psnr_y is not None]
        offsets = [[i.colour_offset[c] for i in self.images] for c in range(3)]
        return {
            "psnr_y": _mean(finite) if finite else None,
            "ssim_y": _mean([i.ssim_y for i in self.images]),
            "colour_offset": [_mean(channel) for channel in offsets],
            "colour_offset_abs": [_mean([abs(c) for c in channel]) for channel in offsets],
            "metrics": self._mean_metrics(),
        }

    def _mean_metrics(self) -> dict[str, float | None]:
        """Each metric over the images that it has a value for; None where that is none."""
        found: dict[str, float | None] = {}
        for name in dict.fromkeys(name for i in self.images for name in i.metrics):
            values = [v for i in self.images if (v := i.metrics.get(name)) is not None]
            found[name] = _mean(values) if values else None
        return found

    def to_json(self) -> dict[str, Any]:
        """The content of `results.json`."""
        identical = sum(i.psnr_y is None for i in self.images)
        said = f"{identical} of {len(self.images)} images equal HR: left out of the mean PSNR"
        return {
            "name": self.name,
            "kind": self.kind,
            "parameters": self.parameters,
            "note": "; ".join(filter(None, [self.note, said if identical else ""])),
            "images": [{**asdict(i), "colour_offset": list(i.colour_offset)} for i in self.images],
            "mean": self.mean,
            "tiled": self.tiled,
            "facts": self.facts,
        }

    def metadata(self) -> dict[str, Any]:
        """Numbers for plots and a markdown table of the images."""
        mean = self.mean
        numbers: dict[str, Any] = {
            "ssim_y": mean["ssim_y"],
            "colour_offset_max": largest_offset(mean),
            "images": len(self.images),
        }
        for name, value in {"psnr_y": mean["psnr_y"], **mean["metrics"]}.items():
            if value is not None:
                numbers[name.replace(":", "_")] = value
        if self.tiled:
            numbers["tiled_max_levels"] = self.tiled["max_levels"]
        return {**numbers, "table": {"md": _markdown(self.images)}}


def results_from_json(value: Mapping[str, Any]) -> Results:
    """Reads what `Results.to_json` wrote."""
    return Results(
        value["name"],
        value["kind"],
        tuple(score_from_json(image) for image in value["images"]),
        value["parameters"],
        value["note"],
        value.get("tiled"),
        value.get("facts", {}),
    )


def score_from_json(value: Mapping[str, Any]) -> ImageScore:
    """Reads one image of what `Results.to_json` wrote, or what `asdict` made of a score."""
    return ImageScore(**{**value, "colour_offset": tuple(value["colour_offset"])})


def measure(
    name: str,
    picture: str,
    sr: np.ndarray,
    hr: np.ndarray,
    scale: int,
    lr: np.ndarray,
    further: Iterable[Metric] = (),
) -> ImageScore:
    """Measures one picture by the convention: a border of `scale` px left out, luma or RGB.

    Args:
        name: of the source image.
        picture: path of `sr` inside the output.
        sr, hr: uint8 [H, W, 3].
        scale: upscaling factor.
        lr: uint8 [h, w, 3] that SR was made from.
        further: metrics beside those that are always measured.

    Raises:
        ValueError: the sizes differ, or a side is shorter than `smallest_side(scale)`.
    """
    from sr_models.metrics.images import (
        MS_SSIM_SMALLEST,
        colour_offset,
        lr_psnr,
        ms_ssim_y,
        psnr_rgb,
        psnr_y,
        ssim_y,
    )

    height, width = hr.shape[:2]
    psnr = psnr_y(sr, hr, scale)
    large = min(height, width) - 2 * scale >= MS_SSIM_SMALLEST
    metrics = {
        "psnr_rgb": _finite(psnr_rgb(sr, hr, scale)),
        "ms_ssim": ms_ssim_y(sr, hr, scale) if large else None,
        "lr_psnr": _finite(lr_psnr(sr, lr, scale)),
        **{metric.name: _finite(metric.score(sr, hr)) for metric in further},
    }
    return ImageScore(
        name=name,
        width=width,
        height=height,
        psnr_y=_finite(psnr),
        ssim_y=ssim_y(sr, hr, scale),
        colour_offset=colour_offset(sr, hr),
        picture=picture,
        metrics=metrics,
    )


def smallest_side(scale: int) -> int:
    """Shortest side that can be measured: one SSIM window inside the border (px)."""
    return 11 + 2 * scale


def largest_offset(score: Score) -> float:
    """The largest |colour offset| of a mean score, in grey levels."""
    return max(abs(c) for c in score["colour_offset"])


def largest_absolute_offset(score: Score) -> float:
    """As `largest_offset`, but opposite offsets of two images do not cancel."""
    return max(score["colour_offset_abs"])


def side_by_side(rows: Mapping[str, Results]) -> dict[str, Score]:
    """The scores of several rows on one benchmark, each mean over the same images for all rows.

    An image for which a metric of one row has no finite value, such as the PSNR-Y of a row that
    meets it exactly, is left out of that metric's mean for all rows. When that leaves no image,
    each row keeps its own mean.
    """
    found: dict[str, dict[str, Any]] = {
        row: {**results.mean, "images": {i.name: i.psnr_y for i in results.images}}
        for row, results in rows.items()
    }
    for row, mean in _fair_means(
        {row: {i.name: i.psnr_y for i in results.images} for row, results in rows.items()}
    ).items():
        found[row]["psnr_y"] = mean
    for metric in dict.fromkeys(m for r in rows.values() for i in r.images for m in i.metrics):
        measured = {
            row: {i.name: i.metrics[metric] for i in results.images if metric in i.metrics}
            for row, results in rows.items()
        }
        for row, mean in _fair_means({r: v for r, v in measured.items() if v}).items():
            found[row]["metrics"] = {**found[row].get("metrics", {}), metric: mean}
    return dict(found)


def _fair_means(rows: Mapping[str, Mapping[str, float | None]]) -> dict[str, float]:
    """Row -> mean over the images that no row lacks; no row where that is no image."""
    lacking = {name for values in rows.values() for name, value in values.items() if value is None}
    found = {}
    for row, values in rows.items():
        kept = [v for name, v in values.items() if v is not None and name not in lacking]
        if kept:
            found[row] = _mean(kept)
    return found


def compare_psnr(score: Score, other: Score) -> tuple[float, float]:
    """Mean PSNR-Y (dB) of two rows of one benchmark, over the images that neither meets exactly.

    Where that is no image, or the images are not known, the means as they are; an exact one counts
    as 100 dB, which keeps numbers finite.
    """
    one, two = score.get("images", {}), other.get("images", {})
    pairs = [(psnr, two[name]) for name, psnr in one.items() if None not in (psnr, two.get(name))]
    if pairs:
        return _mean([a for a, _ in pairs]), _mean([b for _, b in pairs])
    own, theirs = (100.0 if s["psnr_y"] is None else float(s["psnr_y"]) for s in (score, other))
    return own, theirs


def picture_names(names: Sequence[str]) -> dict[str, str]:
    """A file name for the picture of each image: `<stem>.png`, the full name where stems clash."""
    stems = [PurePosixPath(name).with_suffix("").as_posix().casefold() for name in names]
    return {
        name: f"{name}.png"
        if stems.count(stem) > 1
        else PurePosixPath(name).with_suffix("").as_posix() + ".png"
        for name, stem in zip(names, stems, strict=True)
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _markdown(images: Sequence[ImageScore]) -> str:
    lines = ["| image | size | PSNR-Y (dB) | SSIM-Y | colour offset |", "|---|---|---|---|---|"]
    for image in images:
        psnr = "identical" if image.psnr_y is None else f"{image.psnr_y:.2f}"
        offset = " ".join(f"{c:+.2f}" for c in image.colour_offset)
        name = image.name.replace("|", "\\|")
        size = f"{image.width}×{image.height}"
        lines.append(f"| {name} | {size} | {psnr} | {image.ssim_y:.4f} | {offset} |")
    return "\n".join(lines)
