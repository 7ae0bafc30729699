"""File endings for images that came without a name, told by their first bytes.

Whether the bytes are an image at all is judged by `sr_assets.pictures`.
"""

from __future__ import annotations

#: First bytes (and, where it matters, those from the fifth on) -> ending.
_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", b"", ".png"),
    (b"\xff\xd8\xff", b"", ".jpg"),
    (b"GIF8", b"", ".gif"),
    (b"BM", b"", ".bmp"),
    (b"II*\0", b"", ".tif"),
    (b"MM\0*", b"", ".tif"),
    (b"RIFF", b"WEBP", ".webp"),
    (b"", b"ftypavi", ".avif"),
    (b"", b"jP  \r\n", ".jp2"),
)


def ending_of(data: bytes) -> str:
    """Ending for a file of this content."""
    for first, fifth, ending in _SIGNATURES:
        if data.startswith(first) and data.startswith(fifth, 4 if first == b"" else 8):
            return ending
    return ".bin"
