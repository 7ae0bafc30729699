"""An exception told in one line, as messages and reports hold it.

Which exceptions are caught, and what follows from them, is for those who catch them.
"""

from __future__ import annotations


def one_line(error: BaseException) -> str:
    """The first line of its message; the name of its class where the message says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
