"""Enlarging in steps: a 3x3 convolution and a pixel shuffle each, with a width for each step.

Upsamplers of one step, which a recipe can name, are in `upsamplers.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import Tensor, nn


def stepwise_shuffle(widths: Sequence[int], factor: int) -> nn.Sequential:
    """[B, widths[0], h, w] to [B, widths[-1], h·factorⁿ, w·factorⁿ] with n = len(widths) - 1.

    The convolutions have the even indices.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [
            nn.Conv2d(before, after * factor**2, 3, padding=1),
            nn.PixelShuffle(factor),
        ]
    return nn.Sequential(*layers)


def shuffled_scale(state: Mapping[str, Tensor], prefix: str, after: str) -> int:
    """Scale of the convolutions `prefix.N.weight` of which each is followed by a shuffle.

    Each step enlarges by the root of the channels it puts out over those that the next takes in;
    the last is followed by the convolution `after`.
    """
    pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.weight")
    found = {int(m[1]): state[m[0]] for m in map(pattern.fullmatch, state) if m}
    weights = [*(found[i] for i in sorted(found)), state[after]]
    return math.prod(math.isqrt(a.shape[0] // b.shape[1]) for a, b in pairwise(weights))
