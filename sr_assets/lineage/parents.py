"""Processes that do not outlive the one they work for, however suddenly it ends.

What is to be cleaned up at an end that is not sudden is everybody's own business.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading

_PARENT_DEATH = 1  # PR_SET_PDEATHSIG, see prctl(2)


def end_with(parent: int, death: signal.Signals) -> None:
    """Lets the kernel send this process `death` when its parent dies; on Linux only.

    Args:
        parent: process number that the parent told this process: it may have died before.
        death: the signal.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH, int(death))
        if os.getppid() != parent:
            sys.exit(1)


def end_with_run() -> None:
    """Ends this step when its run's process dies, where it is a process of its own.

    The kernel does not know of the two: steps are forked by a server of multiprocessing, which
    lives as long as one of them.
    """
    run = multiprocessing.parent_process()
    if run is not None:

        def wait() -> None:
            run.join()
            os._exit(1)

        threading.Thread(target=wait, name="run", daemon=True).start()
