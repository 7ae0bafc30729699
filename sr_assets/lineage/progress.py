"""Progress of long work: a bar on a terminal, a plain line every ten seconds elsewhere.

What is done is not known here; a stage says how many units it has and advances.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

_LINE_EVERY = 10.0  # seconds


@contextmanager
def terminal_bar(
    log: Callable[[str], None], label: str, total: int, unit: str
) -> Iterator[Callable[[int], None]]:
    """Yields `advance(n)`; shows rate and time left, and logs a line every ten seconds."""
    silent = not sys.stderr.isatty()

    def say(line: str) -> None:
        log(line)
        if silent:
            print(line, file=sys.stderr, flush=True)

    with tqdm(total=total, desc=label, unit=f" {unit}", leave=False, disable=silent) as bar:
        started = last = time.monotonic()
        done = 0

        def advance(n: int = 1) -> None:
            nonlocal last, done
            done += n
            bar.update(n)
            now = time.monotonic()
            if now - last >= _LINE_EVERY and done < total:
                last = now
                say(f"{label}: {_line(done, total, unit, now - started)}")

        yield advance
    say(f"{label}: {_line(done, total, unit, time.monotonic() - started)}")


def shown(log: Callable[[str], None]) -> Callable[[str], None]:
    """The same log, each line of which is also printed, above the bars where there are some."""

    def say(line: str) -> None:
        log(line)
        tqdm.write(line, file=sys.stderr)

    return say


def _line(done: int, total: int, unit: str, seconds: float) -> str:
    rate = done / seconds if seconds > 0 else 0.0
    left = "" if done >= total or not rate else f", {_clock((total - done) / rate)} left"
    return f"{done}/{total} {unit} in {_clock(seconds)}, {rate:.3g} {unit}/s{left}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
        if minutes >= 60
        else f"{minutes}:{rest:02d}"
    )
