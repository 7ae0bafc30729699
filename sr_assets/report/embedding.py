"""Puts pictures inside the page as data URIs, so many and in such a form that it stays small.

What does not fit stays a file beside the page; which pictures matter most is `picture_groups`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: Characters of data URIs for all pictures together; the page stays under 20 MB.
BUDGET = 18_000_000
_SMALL = 7_000_000  # of the budget, for thumbnails and crops
_LONGEST = 1280  # px of a picture that is embedded lossily
_QUALITY = 92  # of WebP


@dataclass(frozen=True)
class Embedded:
    """What is inside the page."""

    pictures: Mapping[str, str] = field(default_factory=dict)
    """Path -> data URI."""
    groups: int = 0
    """How many groups of large pictures are inside."""
    of: int = 0
    """How many there are."""
    exact: bool = True
    """Whether every large picture is the file as it is; else WebP of 92, at most 1280 px long."""
    beside: bool = True
    """Whether files that are not inside lie beside the page."""


def embed(
    small: Sequence[Sequence[str]],
    large: Sequence[Sequence[str]],
    read: Callable[[str], bytes],
    *,
    beside: bool = True,
    budget: int = BUDGET,
) -> Embedded:
    """Reads PNG files and turns them into data URIs.

    Small pictures are taken as they are while their share lasts. Large ones are taken as they are
    when all of them fit into the rest, else as WebP. A group is taken whole or not at all.

    Args:
        small: groups of paths, the most important first.
        large: the same; pictures of one image, which are compared with one another.
        read: content of a path.
        beside: see `Embedded`.
        budget: characters of all data URIs together.
    """
    pictures: dict[str, str] = {}
    share = min(_SMALL, budget // 2)
    for group in small:
        share -= _take(group, lambda path: _uri(read(path), "png"), share, pictures) or 0
    left = budget - sum(map(len, pictures.values()))
    exact: dict[str, str] = {}
    room = left
    for group in large:
        taken = _take(group, lambda path: _uri(read(path), "png"), room, exact)
        if taken is None:
            break
        room -= taken
    else:
        return Embedded(pictures | exact, len(large), len(large), beside=beside)
    exact.clear()
    inside = 0
    for group in large:
        taken = _take(group, lambda path: _uri(_webp(read(path)), "webp"), left, pictures)
        if taken is None:
            break
        left -= taken
        inside += 1
    return Embedded(pictures, inside, len(large), exact=False, beside=beside)


def picture_groups(
    leaderboard: Mapping[str, Any], gallery: Mapping[str, Sequence[Mapping[str, Any]]]
) -> tuple[list[list[str]], list[list[str]]]:
    """Small and large pictures of a page, for `embed`.

    Thumbnails, then rows at their weakest and examples of damage, then crops. Images on which a row
    is shown at its weakest come first, then those that the rows enlarge most differently.
    """
    images = sorted(
        (image for listed in gallery.values() for image in listed),
        key=lambda image: (not image["weak"], -_spread(image)),
    )
    examples = (leaderboard.get("damage") or {}).get("examples", [])
    small = [
        *([image["thumb"]] for image in images),
        *([cell["src"] for cell in weak["cells"]] for image in images for weak in image["weak"]),
        *([picture["src"] for picture in example["pictures"]] for example in examples),
        *([c["src"] for crop in image["crops"] for c in crop["cells"]] for image in images),
    ]
    large = [
        [image["hr"], image["lr"], *(cell["src"] for cell in image["rows"].values())]
        for image in images
    ]
    return small, large


def _spread(image: Mapping[str, Any]) -> float:
    """Largest minus smallest PSNR-Y of the rows on an image (dB)."""
    values = [c["psnr_y"] for c in image["rows"].values() if c["psnr_y"] is not None]
    return max(values, default=0.0) - min(values, default=0.0)


def _take(
    group: Sequence[str], uri: Callable[[str], str], room: int, into: dict[str, str]
) -> int | None:
    """Characters of a group that was put into `into`; None where it does not fit."""
    found: dict[str, str] = {}
    size = 0
    for path in group:
        if path not in into:
            found[path] = uri(path)
            size += len(found[path])
        if size > room:
            return None
    into.update(found)
    return size


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _webp(png: bytes) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
        image.save(buffer, "WEBP", quality=_QUALITY, method=2)
    return buffer.getvalue()
