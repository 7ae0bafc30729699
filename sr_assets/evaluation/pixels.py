"""Pixels of an evaluation: 8-bit pictures as tensors and as PNG files."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from sr_assets.storage import Output

if TYPE_CHECKING:
    from torch import Tensor


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
    return decode_png(source.read_bytes(name))


def decode_png(data: bytes) -> np.ndarray:
    """uint8 [H, W, 3] of what `encode_png` made."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return np.array(image)
