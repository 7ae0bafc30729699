"""Work on threads whose results come in the order of the items, with a bound on how many wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")


def ahead(
    workers: int, work: Callable[[_T], _R], items: Iterable[_T], most: int | None = None
) -> Iterator[_R]:
    """Results of `work` in the order of `items`; at most `most` are made or wait at a time.

    Args:
        workers: threads.
        work: called by several threads.
        items: what to work on.
        most: as many as there are workers, when left out.
    """
    waiting: deque[Future[_R]] = deque()
    remaining = iter(items)
    with ThreadPoolExecutor(workers) as pool:
        try:
            waiting.extend(pool.submit(work, item) for item in islice(remaining, most or workers))
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(work, item) for item in islice(remaining, 1))
                yield result
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
