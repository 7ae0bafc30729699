"""The contact sheet of one explained sample: HR, the picture after every step, and LR.

What the pictures and words are is found in `explain.py`; here they are only laid out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sr_assets.explain import Explained
from sr_assets.pictures import Pixels
from sr_assets.report.damage_words import step_words
from sr_assets.stores.pairs import AppliedStep

_WIDTH = 1200  # px that a row of panels may fill
_PANEL = 256  # px, smallest side of a panel
_GAP, _MARGIN = 12, 14
_LINE = 18  # px from one line of text to the next
_KERNEL = 51  # px, side of a kernel's picture: the largest kernel, one pixel a weight
_INK, _FAINT, _PAPER = (25, 25, 25), (115, 115, 115), (255, 255, 255)
_NEGATIVE = (215, 60, 30)
#: Letters that Pillow's own font lacks.
_SPELT = {"σ": "sigma", "β": "beta", "π": "pi", "×": "x", "–": "-", "→": "->"}

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class _Panel:
    title: str
    detail: str
    picture: Pixels
    kernel: np.ndarray | None = None


def contact_sheet(found: Explained) -> Pixels:
    """Draws a sample: uint8 [H, W, 3], at most about 1,200 px wide where a patch is at most 594 px.

    Smaller pictures are enlarged to the size of HR by repeating pixels, larger ones are averaged. A
    kernel is drawn beside its step: white is zero, black its largest weight, red below zero; ink
    grows with the square root of a weight, so that flanks and rings show.
    """
    panels = list(_panels(found))
    side = len(found.hr) * math.ceil(_PANEL / len(found.hr))
    columns = _columns(len(panels), max(2, (_WIDTH + _GAP) // (side + _GAP)))
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    title, text, name = (ImageFont.load_default(size) for size in (17, 13, 15))
    heights = [max(_caption_height(panel, side, text) for panel in row) + side for row in rows]
    width = 2 * _MARGIN + columns * (side + _GAP) - _GAP
    head = _wrapped(_title(found), width - 2 * _MARGIN, title)
    top = _MARGIN + len(head) * (_LINE + 6)
    sheet = Image.new("RGB", (width, top + sum(heights) + _GAP * len(rows) + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(head):
        draw.text((_MARGIN, _MARGIN - 4 + number * (_LINE + 6)), line, _INK, title)
    for row, height in zip(rows, heights, strict=True):
        top += _GAP
        for column, panel in enumerate(row):
            left = _MARGIN + column * (side + _GAP)
            draw.text((left, top), _spelt(panel.title), _INK, name)
            for number, line in enumerate(_wrapped(panel.detail, _room(panel, side), text)):
                draw.text((left, top + (number + 1) * _LINE + 3), line, _FAINT, text)
            if panel.kernel is not None:
                sheet.paste(_kernel_picture(panel.kernel), (left + side - _KERNEL - 2, top))
            sheet.paste(_to_side(panel.picture, side), (left, top + height - side))
        top += height
    return np.asarray(sheet)


def _columns(panels: int, most: int) -> int:
    """Columns that leave the fewest places empty, not much fewer than there is room for."""
    if panels <= most:
        return panels
    return min(range(most, most // 2, -1), key=lambda columns: -panels % columns)


def _title(found: Explained) -> str:
    version = f", version {found.variant} of {found.variants}" if found.variants > 1 else ""
    name = f"{found.dataset} patch {found.index}{version}"
    return f"{name}   ·   {found.degradation} ×{found.scale}   ·   {found.place}"


def _panels(found: Explained) -> Iterator[_Panel]:
    yield _Panel("HR", _size(found.hr), found.hr)
    pictures = zip(found.steps, found.pictures, strict=False)  # no pictures of LR that was brought
    for number, (step, picture) in enumerate(pictures, start=1):
        size = "" if step.op == "resize" else f"\n{_size(picture)}"  # its words have it
        yield _Panel(f"{number}  {step.op}", f"{step_words(step)}{size}", picture, _kernel_of(step))
    note = "as stored" if found.pictures else "as stored, as it came with the dataset"
    if found.same is False:
        note = "as stored: OTHER BYTES than the last step gives"
    psnr = found.psnr_y
    measured = "" if psnr is None else "identical" if math.isinf(psnr) else f"{psnr:.2f} dB"
    measured = f"\nenlarged by bicubic: PSNR-Y {measured}" if measured else ""
    yield _Panel("LR", f"{_size(found.lr)}, {note}{measured}", found.lr)


def _kernel_of(step: AppliedStep) -> np.ndarray | None:
    if step.op not in ("blur", "sinc"):
        return None
    from sr_models.degradations.drawing import Drawn
    from sr_models.degradations.second_order import kernel_of

    return kernel_of(Drawn(step.op, step.kind, step.numbers, step.position))


def _kernel_picture(kernel: np.ndarray) -> Image.Image:
    """[size, size] -> a picture of fixed size, each weight the same whole number of pixels wide."""
    ink = np.sqrt(np.abs(kernel) / np.abs(kernel).max())[..., None]
    colour = np.where(kernel[..., None] < 0, np.array(_NEGATIVE), np.array(_INK))
    pixels = np.rint(_PAPER + (colour - _PAPER) * ink).astype(np.uint8)
    times = max(1, _KERNEL // len(kernel))
    drawn = Image.fromarray(pixels.repeat(times, 0).repeat(times, 1))
    picture = Image.new("RGB", (_KERNEL + 2, _KERNEL + 2), _PAPER)
    offset = (picture.width - drawn.width) // 2
    picture.paste(drawn, (offset, offset))
    frame = (offset - 1, offset - 1, offset + drawn.width, offset + drawn.height)
    ImageDraw.Draw(picture).rectangle(frame, outline=(200, 200, 200))
    return picture


def _caption_height(panel: _Panel, side: int, font: _Font) -> int:
    lines = len(_wrapped(panel.detail, _room(panel, side), font)) + 1
    return max(lines * _LINE + 6, 0 if panel.kernel is None else _KERNEL + 6)


def _room(panel: _Panel, side: int) -> int:
    """Width of the caption's text (px)."""
    return side if panel.kernel is None else side - _KERNEL - 8


def _wrapped(text: str, width: int, font: _Font) -> list[str]:
    """Lines that fit; a word that does not fit has a line of its own."""
    lines: list[str] = []
    for paragraph in _spelt(text).split("\n"):
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines


def _spelt(text: str) -> str:
    for letter, word in _SPELT.items():
        text = text.replace(letter, word)
    return text


def _to_side(picture: Pixels, side: int) -> Image.Image:
    way = Image.Resampling.NEAREST if len(picture) <= side else Image.Resampling.BOX
    return Image.fromarray(np.ascontiguousarray(picture)).resize((side, side), way)


def _size(picture: Pixels) -> str:
    return f"{picture.shape[1]}×{picture.shape[0]} px"
