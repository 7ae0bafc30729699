"""Loss terms that compare pixels: mean absolute error and Charbonnier.

Weighting over training phases and losses on features or spectra are not here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

CHARBONNIER_EPSILON = 1e-6  # under the root, beside the squared error


def loss_terms(
    output: Tensor, target: Tensor, weights: Mapping[str, float], prefix: str = ""
) -> dict[str, Tensor]:
    """Weighted loss terms of `output` against `target`, both float [B, 3, H, W].

    `weights` maps `l1` and `charbonnier` to factors >= 0; a term of weight 0 is not computed and
    not returned. The keys of the result are `prefix` + name, the values 0-dimensional. Raises
    ValueError for an unknown name or when the shapes differ.

    >>> ones, zeros = torch.ones(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    >>> loss_terms(ones, zeros, {"l1": 0.5, "charbonnier": 0.0}, prefix="teacher_")
    {'teacher_l1': tensor(0.5000)}
    """
    unknown = [name for name in weights if name not in TERMS]
    if unknown:
        raise ValueError(f"loss term {unknown[0]!r} is not one of {list(TERMS)}")
    if output.shape != target.shape:
        raise ValueError(f"output {list(output.shape)} and target {list(target.shape)} differ")
    return {
        prefix + name: weight * TERMS[name](output, target)
        for name, weight in weights.items()
        if weight != 0
    }


def charbonnier(output: Tensor, target: Tensor) -> Tensor:
    """Mean of sqrt(error² + 1e-6): absolute error that is smooth at zero."""
    return torch.sqrt((output - target).square() + CHARBONNIER_EPSILON).mean()


TERMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": F.l1_loss, "charbonnier": charbonnier}
