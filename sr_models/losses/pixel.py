"""Loss terms that compare pixels: mean absolute error, mean squared error and Charbonnier.

What compares neighbourhoods, spectra, colours or features of networks is in the other modules.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CHARBONNIER_EPSILON = 1e-6


def l1(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of two tensors of one shape; 0-dimensional."""
    return F.l1_loss(output, target)


def l2(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of two tensors of one shape; 0-dimensional."""
    return F.mse_loss(output, target)


def charbonnier(output: Tensor, target: Tensor) -> Tensor:
    """Mean of sqrt(error² + ε²) with ε = 1e-6: ε, not 0, where the two are equal.

    Charbonnier et al., "Two deterministic half-quadratic regularization algorithms for computed
    imaging", 1994.
    """
    return torch.sqrt((output - target).square() + CHARBONNIER_EPSILON**2).mean()
