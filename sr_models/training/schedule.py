"""The learning rate as a function of the step: linear warm-up, then what the schedule says.

It holds no state, so a resumed run needs nothing but its step to go on with the same rates.
"""

from __future__ import annotations

import math

from sr_models.training.settings import TrainSettings


def learning_rate(step: int, settings: TrainSettings) -> float:
    """The rate of the optimiser step number `step` (0 .. steps - 1).

    The first `warmup` steps rise in equal parts from `warmup_from`, which no step is taken at, to
    `learning_rate`. Then, counted from the end of the warm-up: `cosine` falls to
    `min_learning_rate`, reached at the last step; `cosine_restarts` is a cycle of `restart_first`
    steps, then cycles `restart_factor` times as long each (Loshchilov & Hutter 2017, SGDR,
    equation 5; torch's CosineAnnealingWarmRestarts); `constant` stays.
    """
    peak, floor = settings.learning_rate, settings.min_learning_rate
    if step < settings.warmup:
        return settings.warmup_from + (peak - settings.warmup_from) * (step + 1) / settings.warmup
    since = step - settings.warmup
    if settings.schedule == "constant":
        return peak
    if settings.schedule == "cosine_restarts":
        place, length = cycle(since, settings.restart_first, settings.restart_factor)
    else:
        # A run that ends with its first step after the warm-up takes that one at the peak.
        place, length = since, max(1, settings.steps - 1 - settings.warmup)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * place / length))


def cycle(step: int, first: int, factor: int) -> tuple[int, int]:
    """(place in its cycle, length of that cycle) of a step, for cycles first * factor**n long.

    >>> cycle(5, 2, 2)  # cycles 0-1, 2-5, 6-13
    (3, 4)
    """
    if factor == 1:
        return step % first, first
    length = first
    while step >= length:
        step -= length
        length *= factor
    return step, length
