"""Computes the next micro-batches on a thread while the network works on the current one.

Order is kept and the numbers are given from outside, so a resumed run reads the same batches; what
a batch holds is the caller's function.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")


@contextmanager
def prefetched(make: Callable[[int], T], numbers: range, ahead: int = 3) -> Iterator[Iterator[T]]:
    """Yield an iterator over `make(i) for i in numbers`, at most `ahead` results early.

    `make` runs without recording gradients, on one other thread or, when `ahead` is 0, on this one
    as each result is taken. It must not draw from torch's global random state. What it raises is
    raised at the position of that number. Leaving the context stops the thread after the call that
    is under way.
    """
    if not ahead:
        yield (torch.no_grad()(make)(number) for number in numbers)
        return
    results: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=ahead)
    stopped = threading.Event()

    def put(value: T | None, error: BaseException | None) -> None:
        while not stopped.is_set():
            try:
                return results.put((value, error), timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        for number in numbers:
            if stopped.is_set():
                return
            try:
                with torch.no_grad():  # gradient mode belongs to the thread
                    value = make(number)
            except BaseException as error:
                return put(None, error)
            put(value, None)

    def take() -> Iterator[T]:
        for _ in numbers:
            value, error = results.get()
            if error is not None:
                raise error
            yield value  # type: ignore[misc]

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        yield take()
    finally:
        stopped.set()
        thread.join()
