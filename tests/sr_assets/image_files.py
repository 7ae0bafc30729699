"""Image files of every odd kind, as bytes, most of which Pillow itself cannot write."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def saved(image: Image.Image, format: str, **options: object) -> bytes:  # noqa: A002
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *more: bytes) -> bytes:
    """A PNG written by hand, for what Pillow cannot write; `rows` carries its filter bytes."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            *more,
            chunk(b"IDAT", zlib.compress(rows)),
            chunk(b"IEND", b""),
        ]
    )


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def wide_png(samples: np.ndarray, *more: bytes) -> bytes:
    """16-bit PNG of uint16 [H, W, C]: grey, grey+alpha, RGB or RGBA by C."""
    height, width, channels = samples.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    return png(width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], rows, *more)


def wide_tiff(samples: np.ndarray, order: str, photometric: int = 2, bits: int = 16) -> bytes:
    """Uncompressed one-strip TIFF of uint16 [H, W, C], `order` "<" or ">"."""
    height, width, channels = samples.shape
    data = samples.astype(f"{order}u2").tobytes()
    bits_at = 8 + len(data)
    ifd_at = bits_at + 2 * channels
    bits_value = bits if channels == 1 else bits_at
    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, channels, bits_value),
        (259, 3, 1, 1),
        (262, 3, 1, photometric),
        (273, 4, 1, 8),
        (277, 3, 1, channels),
        (278, 4, 1, height),
        (279, 4, 1, len(data)),
    ]
    if channels == 4:
        entries.append((338, 3, 1, 2))
    ifd = struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        packed = struct.pack(f"{order}H2x" if kind == 3 and count == 1 else f"{order}I", value)
        ifd += struct.pack(f"{order}HHI", tag, kind, count) + packed
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", ifd_at)
    return head + data + struct.pack(f"{order}{channels}H", *[bits] * channels) + ifd + b"\0" * 4


def icc(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A small ICC profile: header, tag table, tags."""
    table, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        data += b"\0" * (-len(data) % 4)
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data
    connection = b"Lab " if space == b"CMYK" else b"XYZ "
    head = struct.pack(">I4sI4s4s4s", 0, b"none", 0x02400000, b"prtr", space, connection)
    head += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28
    head += struct.pack(">3i", 63190, 65536, 54061)
    head = head.ljust(128, b"\0")
    whole = head + struct.pack(">I", len(tags)) + table + body
    return struct.pack(">I", len(whole)) + whole[4:]


def gamma(exponent: float) -> bytes:
    return b"curv" + struct.pack(">IIH", 0, 1, round(exponent * 256))


def xyz(x: float, y: float, z: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in (x, y, z)))


WHITE = xyz(0.9642, 1.0, 0.8249)
GREY_PROFILE = icc(b"GRAY", {b"wtpt": WHITE, b"kTRC": gamma(1.0)})
#: sRGB's primaries with red and green exchanged, and its tone curve nearly so: easy to see.
SWAPPED_PROFILE = icc(
    b"RGB ",
    {
        b"wtpt": WHITE,
        b"rXYZ": xyz(0.3851, 0.7169, 0.0971),
        b"gXYZ": xyz(0.4361, 0.2225, 0.0139),
        b"bXYZ": xyz(0.1431, 0.0606, 0.7141),
        b"rTRC": gamma(2.2),
        b"gTRC": gamma(2.2),
        b"bTRC": gamma(2.2),
    },
)


#: Primaries and tone curve of Adobe RGB (1998), the primaries adapted to D50.
ADOBE_RGB_PROFILE = icc(
    b"RGB ",
    {
        b"wtpt": WHITE,
        b"rXYZ": xyz(0.60974, 0.31111, 0.01947),
        b"gXYZ": xyz(0.20528, 0.62567, 0.06087),
        b"bXYZ": xyz(0.14919, 0.06322, 0.74457),
        b"rTRC": gamma(563 / 256),
        b"gTRC": gamma(563 / 256),
        b"bTRC": gamma(563 / 256),
    },
)


def cmyk_profile() -> bytes:
    """Ink takes lightness away, colours stay neutral: an 8-bit table of 2^4 corners."""
    corners = b""
    for c in (0, 1):
        for m in (0, 1):
            for y in (0, 1):
                for k in (0, 1):
                    corners += bytes([0 if k else 255 - 60 * (c + m + y), 128, 128])
    ramp = bytes(range(256))
    matrix = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + ramp * 4 + corners + ramp * 3
    return icc(b"CMYK", {b"wtpt": WHITE, b"A2B0": table})
