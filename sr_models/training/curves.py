"""The curves of a run as TensorBoard files, without double points when a run is resumed.

Which numbers are drawn, and when, is the loop's business.
"""

from __future__ import annotations

import time
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

_PREFIX = "events.out.tfevents."


def open_curves(folder: Path, first_step: int) -> SummaryWriter:
    """A writer whose start voids every earlier point at `first_step` or later in `folder`.

    A killed run has drawn points of steps that it did not save; they are drawn again.
    """
    # Readers take the files in the order of their names, which begin with the second of opening.
    seconds = [f.name.removeprefix(_PREFIX).split(".")[0] for f in folder.glob(_PREFIX + "*")]
    now = time.time()
    if str(int(now)) in seconds:
        time.sleep(int(now) + 1 - now)
    return SummaryWriter(str(folder), purge_step=first_step)
