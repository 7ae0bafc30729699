"""Whole held-out images, put together from the patches that validation enlarges one by one.

What training reads of the other patches is `samples.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sr_assets.stores.patches import VALIDATION, PatchReader


@dataclass(frozen=True)
class HeldOutImage:
    """One image of the validation split; its T patches do not overlap."""

    name: str
    """"<dataset>/<path>"."""
    dataset: int
    """Index into the datasets."""
    patches: np.ndarray
    """int64 [T], index into the patches of that dataset."""
    y: np.ndarray
    """int32 [T], where each lies in the image (HR px)."""
    x: np.ndarray
    """int32 [T]"""

    def assemble(self, pictures: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """Puts one picture for each patch, [S, S, 3] and all of one dtype, together.

        Returns:
            [H, W, 3]: the smallest rectangle around all patches; what none covers is 0.
        """
        rows, columns = self.y - self.y.min(), self.x - self.x.min()
        side = len(pictures[0])
        size = int(rows.max()) + side, int(columns.max()) + side, 3
        whole = np.zeros(size, pictures[0].dtype)
        for y, x, picture in zip(rows, columns, pictures, strict=True):
            whole[y : y + side, x : x + side] = picture
        return whole


def held_out_images(dataset: int, name: str, patches: PatchReader) -> Iterator[HeldOutImage]:
    """The images of one dataset's validation split, in the order of its list of images."""
    held_out = np.flatnonzero(patches.split == VALIDATION)
    image, y, x = patches.image[held_out], patches.y[held_out], patches.x[held_out]
    order = np.argsort(image, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(image[order])) + 1) if len(order) else ():
        path = patches.images[int(image[members[0]])]
        yield HeldOutImage(f"{name}/{path}", dataset, held_out[members], y[members], x[members])
