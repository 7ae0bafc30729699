"""The learning rate as a function of the step: linear warm-up, then a cosine.

It holds no state, so a resumed run needs nothing but its step to go on with the same rates.
"""

from __future__ import annotations

import math

from sr_models.training.settings import TrainSettings


def learning_rate(step: int, settings: TrainSettings) -> float:
    """The rate of the optimiser step number `step` (0 .. steps - 1).

    The first `warmup` steps rise in equal parts to `learning_rate`; the last step is taken at
    `min_learning_rate`.
    """
    peak, floor = settings.learning_rate, settings.min_learning_rate
    if step < settings.warmup:
        return peak * ((step + 1) / settings.warmup)
    # A run that ends with its first step after the warm-up takes that one at the peak.
    span = max(1, settings.steps - 1 - settings.warmup)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * (step - settings.warmup) / span))
