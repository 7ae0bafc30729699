"""Phase 6 of a fusion: which experts a pixel needs, told from LR alone by how difficult it is.

Easy places ask for much confidence of an expert, difficult ones let more of them in.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sr_models.fusion.levels import weighed

_WIDTH = 32
_FLOOR = 0.3  # least sum of gates that weights are divided by


class Selection(nn.Module):
    """Difficulty d, thresholds 0.7 - 0.5 d, and soft gates sigmoid(T (score - threshold)).

    Weights are gates over the larger of their sum and 0.3, divided once: where no expert is
    trusted they sum to less than one, and the mean of the experts stands in for the rest.

    Args:
        experts: how many, at least two.
        scale: upscaling factor.
    """

    def __init__(self, experts: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.difficulty = nn.Sequential(
            nn.Conv2d(3, _WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(_WIDTH, 1, 3, padding=1),
        )
        self.scores = nn.Sequential(
            nn.Conv2d(3, _WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(_WIDTH, experts * scale * scale, 1),
        )
        last = self.scores[-1]
        assert isinstance(last, nn.Conv2d) and last.bias is not None
        nn.init.zeros_(last.weight)  # all alike at first, near the threshold of a middling pixel
        nn.init.constant_(last.bias, 0.5)
        self.temperature = nn.Parameter(torch.tensor(10.0))

    def forward(self, lr: Tensor, fused: Tensor, mean: Tensor, deviations: Tensor) -> Tensor:
        """(1 - b) fused + b selected, with b = 0.3 + 0.4 d.

        Args:
            lr: [B, 3, h, w] in [0, 1].
            fused: [B, 3, H, W], of phase 5.
            mean: [B, 3, H, W], of the experts' pictures.
            deviations: [B, n, 3, H, W], of each picture from the mean.

        Returns:
            [B, 3, H, W].
        """
        difficulty = F.interpolate(
            self.difficulty(lr).sigmoid(), scale_factor=self.scale, mode="bilinear"
        )
        weights = self.weights(F.pixel_shuffle(self.scores(lr), self.scale), difficulty)
        # The weights need not sum to one: deviations from the mean leave the rest to the mean.
        selected = mean + weighed(weights, deviations)
        share = 0.3 + 0.4 * difficulty
        return fused + share * (selected - fused)

    def weights(self, scores: Tensor, difficulty: Tensor) -> Tensor:
        """Weights [B, n, H, W] of scores [B, n, H, W] at difficulty [B, 1, H, W] in [0, 1]."""
        gates = torch.sigmoid(self.temperature * (scores - (0.7 - 0.5 * difficulty)))
        return gates / gates.sum(1, keepdim=True).clamp(min=_FLOOR)
