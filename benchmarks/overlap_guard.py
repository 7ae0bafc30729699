"""How well the overlap guard tells near copies from other pictures: the figures of docs/images.md.

    python benchmarks/overlap_guard.py ../shared/data/photos ../shared/data/benchmarks

Every picture is changed in every way of the table and compared with itself; and with its quarters
all pictures are compared with each other, which is harder than photos of different places.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image

from sr_assets import likeness
from sr_assets.likeness import Luma, distance_between, luma_of, perceptual_hash
from sr_assets.pictures import decode_rgb

_SHOWN = 12


def main(folders: list[str]) -> None:
    """Prints both tables for the images of some folders."""
    files = sorted(p for f in folders for p in Path(f).rglob("*") if p.suffix in (".png", ".jpg"))
    images = [Image.fromarray(decode_rgb(p.read_bytes(), 120)) for p in files]
    _print_copies(images)
    _print_others(images, [f"{p.parent.name}/{p.name}" for p in files])


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return Image.open(data).convert("RGB")


def _scaled(image: Image.Image, x: float, y: float) -> Image.Image:
    size = (round(image.width * x), round(image.height * y))
    return image.resize(size, Image.Resampling.LANCZOS)


def _tone(image: Image.Image, gamma: float, gain: float) -> Image.Image:
    curve = [min(255, round(gain * 255 * (level / 255) ** gamma)) for level in range(256)]
    return image.point(curve * 3)


def _crop(image: Image.Image, share: float, x: float, y: float) -> Image.Image:
    width, height = round(image.width * (1 - share)), round(image.height * (1 - share))
    left, top = round((image.width - width) * x), round((image.height - height) * y)
    return image.crop((left, top, left + width, top + height))


_CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG quality 30": lambda i: _jpeg(i, 30),
    "JPEG quality 10": lambda i: _jpeg(i, 10),
    "a quarter of the size": lambda i: _scaled(i, 0.25, 0.25),
    "twice the size": lambda i: _scaled(i, 2, 2),
    "2 % taller": lambda i: _scaled(i, 1, 1.02),
    "gamma 0.7": lambda i: _tone(i, 0.7, 1),
    "gamma 1.4": lambda i: _tone(i, 1.4, 1),
    "a quarter brighter, clipped": lambda i: _tone(i, 1, 1.25),
    "grey": lambda i: i.convert("L").convert("RGB"),
    "mirrored, JPEG quality 30": lambda i: _jpeg(i, 30).transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "turned by 90 degrees, half size": lambda i: _scaled(i, 0.5, 0.5).transpose(
        Image.Transpose.ROTATE_90
    ),
    "2 % cropped, middle": lambda i: _crop(i, 0.02, 0.5, 0.5),
    "5 % cropped, middle": lambda i: _crop(i, 0.05, 0.5, 0.5),
    "5 % cropped, corner": lambda i: _crop(i, 0.05, 0, 0),
    "5 % of the width cropped": lambda i: i.crop((round(i.width * 0.05), 0, i.width, i.height)),
    "10 % cropped, middle": lambda i: _crop(i, 0.1, 0.5, 0.5),
    "half size, 3 % cropped, gamma 0.8, JPEG 50": lambda i: _jpeg(
        _tone(_crop(_scaled(i, 0.5, 0.5), 0.03, 0.3, 0.7), 0.8, 1), 50
    ),
}


def _measure(one: Luma, other: Luma) -> tuple[int, float]:
    """Bits between the hashes in the best of eight positions, and the distance there."""
    turns = list(likeness._turns(other))
    bits = [(perceptual_hash(one) ^ perceptual_hash(t)).bit_count() for t in turns]
    best = int(np.argmin(bits))
    return bits[best], distance_between(one, turns[best])


def _print_copies(images: list[Image.Image]) -> None:
    print(f"near copies of {len(images)} images: found, bits and distance (median, 95 %, most)")
    for name, change in _CHANGES.items():
        pairs = [_measure(luma_of(np.asarray(change(i))), luma_of(np.asarray(i))) for i in images]
        bits, distances = (np.array(values) for values in zip(*pairs, strict=True))
        found = (bits <= likeness.MOST_BITS) & (distances <= likeness.MOST_DISTANCE)
        marks = [np.percentile(values, (50, 95, 100)) for values in (bits, distances)]
        said = " | ".join("{:5.4g} {:5.4g} {:5.4g}".format(*mark) for mark in marks)
        print(f"{name:45} {found.mean():6.1%}  {said}")


def _print_others(images: list[Image.Image], names: list[str]) -> None:
    lumas, labels = [], []
    for image, name in zip(images, names, strict=True):
        pixels = np.asarray(image)
        y, x = pixels.shape[0] // 2, pixels.shape[1] // 2
        parts = (pixels, pixels[:y, :x], pixels[:y, x:], pixels[y:, :x], pixels[y:, x:])
        lumas += [luma_of(np.ascontiguousarray(part)) for part in parts]
        labels += [name, *(f"{name} quarter {n}" for n in range(1, 5))]
    hashes = np.array([perceptual_hash(luma) for luma in lumas], np.uint64)
    turned = np.array(
        [[perceptual_hash(t) for t in likeness._turns(luma)] for luma in lumas], np.uint64
    )
    bits = np.bitwise_count(hashes[:, None, None] ^ turned).min(axis=2)
    pairs = list(combinations(range(len(lumas)), 2))
    counts = np.bincount([bits[pair] for pair in pairs], minlength=65).cumsum()
    print(f"\n{len(pairs)} pairs of images and quarters")
    print("pairs by bits at most", {n: int(counts[n]) for n in range(0, 24, 2)})
    close = [pair for pair in pairs if bits[pair] <= likeness.MOST_BITS]
    started = time.process_time()
    judged = sorted((_measure(lumas[i], lumas[j])[1], labels[i], labels[j]) for i, j in close)
    each = (time.process_time() - started) / max(1, len(close))
    print(f"{len(close)} pairs judged, {1000 * each:.1f} ms each; the closest")
    for distance, one, other in judged[:_SHOWN]:
        print(f"{distance:6.3f} {one} / {other}")


if __name__ == "__main__":
    main(sys.argv[1:])
