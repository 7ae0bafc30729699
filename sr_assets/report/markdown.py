"""Markdown for Dagster's pages: tables, and text of strangers that stays text.

What a table says is the business of the stage that shows it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

_LONGEST = 160
_MARKS = re.compile(r"[\\`*_{}\[\]()<>#+\-.!|~&$:@/]")


def visible(text: str) -> str:
    """`text` in one line in which nothing hides: control and direction marks become escapes."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        else character
        for character in text
    )


def plain(text: str) -> str:
    """`text` for a cell of a table: shown as it is, at most about 160 characters of it."""
    shown = visible(text)
    if len(shown) > _LONGEST:
        shown = f"{shown[: _LONGEST // 2]}…{shown[-_LONGEST // 2 :]}"
    return _MARKS.sub(lambda mark: f"&#{ord(mark[0])};", shown)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
