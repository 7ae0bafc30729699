"""The images of a benchmark as every row sees them: the original cropped, and its bicubic LR.

Only reading and preparing; upscaling and measuring are the business of the rows.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sr_assets.assets.bronze import load_images, read_image
from sr_assets.evaluation.results import picture_names, smallest_side
from sr_assets.lineage.stage import StageContext, StageError
from sr_assets.storage import Output
from sr_assets.stores.manifest import ManifestRow

if TYPE_CHECKING:
    from torch import Tensor

_BRONZE = "bronze/images"


@dataclass(frozen=True)
class BenchmarkImage:
    """One image of a benchmark."""

    name: str
    """Relative path in its source."""
    picture: str
    """File name of pictures made from it."""
    key: str
    """Name of its unrounded SR in an expert's evaluation."""
    row: ManifestRow


def benchmark_images(context: StageContext) -> list[BenchmarkImage]:
    """The images of the partition that are large enough to be measured, in the order of bronze.

    Raises:
        StageError: there is none.
    """
    side = smallest_side(context.recipe.scale)
    rows = load_images(context.input(_BRONZE, context.partition))
    names = picture_names([row.path for row in rows])
    images = []
    for index, row in enumerate(rows):
        shortest = min(row.width or 0, row.height or 0)
        if shortest - shortest % context.recipe.scale < side:
            context.log(f"{row.path} is left out: SSIM needs {side} px on each side")
            continue
        images.append(BenchmarkImage(row.path, names[row.path], f"{index:04d}", row))
    if not images:
        raise StageError(
            f"benchmarks.{context.partition}: no image is at least {side} px on each side; "
            "point its source at larger images"
        )
    return images


def read_pair(context: StageContext, image: BenchmarkImage) -> tuple[np.ndarray, np.ndarray]:
    """LR uint8 [h, w, 3] and HR uint8 [H, W, 3] of one image; HR is cropped at right and bottom."""
    from sr_models.degradations.bicubic import downscale_uint8

    scale = context.recipe.scale
    bronze = context.input(_BRONZE, context.partition)
    hr = read_image(bronze, image.row, context.recipe.bronze.max_megapixels)
    height, width = (side // scale * scale for side in hr.shape[:2])
    hr = np.ascontiguousarray(hr[:height, :width])
    return downscale_uint8(hr, scale), hr


def to_tensor(picture: np.ndarray) -> Tensor:
    """uint8 [H, W, 3] -> float32 [1, 3, H, W] in [0, 1]."""
    import torch

    return torch.from_numpy(picture.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255))


def encode_png(picture: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


def read_png(source: Output, name: str) -> np.ndarray:
    """uint8 [H, W, 3] of a PNG that `encode_png` wrote into an output."""
    from PIL import Image

    with Image.open(io.BytesIO(source.read_bytes(name))) as image:
        return np.array(image)


def remember_tiled(context: StageContext, image: BenchmarkImage, tiled: bool) -> None:
    """Notes, for runs that go on after a kill too, whether an image had to be cut into tiles."""
    mark = context.output.work / f"tiled-{image.key}"
    if tiled:
        mark.touch()
    else:
        mark.unlink(missing_ok=True)


def was_tiled(context: StageContext, image: BenchmarkImage) -> bool:
    """What `remember_tiled` noted last."""
    return (context.output.work / f"tiled-{image.key}").exists()


def tiles_note(tiled: int, images: int, tile: int, halo: int) -> str:
    """What a row says of images that were cut; empty where none was."""
    return f"tiled {tile}/{halo} px: {tiled} of {images} images" if tiled else ""
