"""How numbers are written for people, on the page and in the terminal.

What they mean, and which of them are shown, is not known here.
"""

from __future__ import annotations


def short_count(count: float) -> str:
    """A number in three figures with its unit: 950, 52 k, 1.4 M."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= size * 0.9995:
            value = count / size
            return f"{value:.0f}{unit}" if value >= 99.5 else f"{value:.3g}{unit}"
    return f"{count:.0f}"


def byte_size(count: int) -> str:
    """Bytes for a person, in powers of 1000: 950 bytes, 1.4 MB."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} bytes" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def three_figures(value: float | None) -> str:
    """A number in three figures without a power of ten: 0.0123, 12.3, 1,234; a dash for None."""
    if value is None:
        return "–"
    if value >= 99.5:
        return f"{value:,.0f}"
    return f"{value:.6f}" if 0 < value < 0.0001 else f"{value:.3g}"


def giga(value: float | None) -> str:
    """Thousands of millions in three figures; a dash for None."""
    return three_figures(None if value is None else value / 1e9)


def decibels(value: float | None) -> str:
    """Two digits; infinity for None, which stands for a picture equal to its original."""
    return "∞" if value is None else f"{value:.2f}"


def ssim(value: float) -> str:
    """Four digits."""
    return f"{value:.4f}"


def signed(value: float, digits: int = 2) -> str:
    """A signed number with a true minus sign; what rounds to zero has no sign."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def count(value: int | None) -> str:
    """A number in three figures with its unit; a dash for none."""
    return "–" if not value else short_count(value)
