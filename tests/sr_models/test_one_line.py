"""Exceptions in one line."""

import pytest

from sr_models.one_line import one_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no such file"), "no such file"),
        (RuntimeError("\n\n  first \nsecond"), "first "),
        (MemoryError(), "MemoryError"),
        (OSError(" \n "), "OSError"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
    ],
)
def test_the_first_line_that_says_something(error: BaseException, line: str) -> None:
    assert one_line(error) == line
