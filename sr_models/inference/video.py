"""Enlarging a video frame by frame, each frame's features blended with those of the one before.

For networks with `features` and `reconstruct`, as ParagonSR2; reading and writing videos is not for
here.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from itertools import product
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLEND = 0.2  # weight of the frame before
CUT = 0.1  # mean absolute difference of two frames' pooled luma

_CELLS = 8  # across and down: of a frame so coarse that noise and fine movement vanish
_LUMA = (0.299, 0.587, 0.114)  # BT.601


class FeatureNetwork(Protocol):
    """A network whose forward is `reconstruct(lr, features(lr))`."""

    def features(self, lr: Tensor) -> Tensor:
        """[B, 3, h, w] to [B, F, h, w]."""
        ...

    def reconstruct(self, lr: Tensor, features: Tensor) -> Tensor:
        """[B, 3, h, w] and [B, F, h, w] to [B, 3, h·s, w·s]."""
        ...


@dataclass(frozen=True)
class VideoState:
    """What one frame hands over to the next."""

    features: Tensor
    """[B, F, h, w] of the frame itself, before blending: a frame is seen in the next one only."""
    luma: Tensor
    """[B, 1, 8, 8], means over the cells of a grid (fewer of a tiny frame), to tell a cut by."""


def upscale_frame(
    network: FeatureNetwork,
    frame: Tensor,
    state: VideoState | None = None,
    blend: float = BLEND,
    cut: float = CUT,
) -> tuple[Tensor, VideoState]:
    """One frame and what the next one needs; the same arguments give the same result.

    The features are (1 - blend) of this frame and blend of the one before. A frame without one
    before it, of another size, or after a cut is enlarged by itself.

    A cut is another picture: the luma of both frames is averaged over a grid of 8x8 cells, and the
    mean absolute difference of these is above `cut`, wherever one grid is laid on the other, moved
    by at most one cell. Noise and fine movement vanish in the means, and a pan by an eighth of the
    frame is found; two pictures of about the same brightness everywhere are taken for one, and a
    flash for another.

    Args:
        network: in eval mode.
        frame: [B, 3, h, w] in [0, 1]; B clips side by side, each with its own cuts.
        state: of the frame before; None at the start.
        blend: from 0 (none) to 1 (the frame before alone).
        cut: from 0 (whatever changes) to 1 (never).

    Returns:
        [B, 3, h·s, w·s], not clamped, and the state, detached.

    Raises:
        ValueError: `blend` is outside [0, 1] or `frame` is no [B, 3, h, w].
    """
    if not 0 <= blend <= 1:
        raise ValueError(f"blend {blend} must be from 0 to 1")
    if frame.ndim != 4 or frame.shape[1] != 3:
        raise ValueError(f"frame must be [B, 3, h, w], not {list(frame.shape)}")
    features = network.features(frame)
    luma = _coarse_luma(frame.detach())
    handed_over = VideoState(features.detach(), luma)
    if state is not None and state.features.shape == features.shape:
        change = _change(luma, state.luma.to(luma.device))
        weight = torch.where(change > cut, 0.0, blend)
        features = _blended(features, state.features.to(features), weight)
    return network.reconstruct(frame, features), handed_over


def upscale_video(
    network: FeatureNetwork,
    frames: Iterable[Tensor],
    blend: float = BLEND,
    cut: float = CUT,
    state: VideoState | None = None,
) -> Generator[Tensor, None, VideoState | None]:
    """Enlarges frames one by one, without gradients; arguments and errors of `upscale_frame`.

    The state after the last frame is the generator's return value: given as `state` to the
    following part of a clip, both parts are as if they were one.
    """
    for frame in frames:
        with torch.no_grad():
            sr, state = upscale_frame(network, frame, state, blend, cut)
        yield sr
    return state


class VideoStep(nn.Module):
    """One frame as a graph can hold it: the caller keeps the features and tells the cuts.

    Args:
        network: a module with `features` and `reconstruct`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, lr: Tensor, previous: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The enlarged frame, and its features for the next call.

        Args:
            lr: [B, 3, h, w] in [0, 1].
            previous: [B, F, h, w], the features that the call before returned; anything finite of
                that shape at the start.
            weight: [B], the blend; 0 at the start and after a cut.
        """
        network: FeatureNetwork = self.network  # type: ignore[assignment]
        features = network.features(lr)
        blended = _blended(features, previous, weight.view(-1, 1, 1, 1))
        return network.reconstruct(lr, blended), features


def _coarse_luma(frame: Tensor) -> Tensor:
    """[B, 3, h, w] to [B, 1, 8, 8]."""
    weights = torch.tensor(_LUMA, device=frame.device).view(1, 3, 1, 1)
    luma = (frame.float() * weights).sum(1, keepdim=True)
    cell = [-(-side // _CELLS) for side in frame.shape[2:]]
    # Not adaptive pooling, which MPS has for multiples of the cells only.
    return F.avg_pool2d(luma, cell, ceil_mode=True, count_include_pad=False)


def _change(a: Tensor, b: Tensor) -> Tensor:
    """Two [B, 1, rows, columns] to [B, 1, 1, 1]: the least over all moves by one cell or none."""
    rows, columns = ((-1, 0, 1) if side > _CELLS // 2 else (0,) for side in a.shape[2:])
    return torch.stack(
        [
            (_moved(a, y, x) - _moved(b, -y, -x)).abs().mean((1, 2, 3), keepdim=True)
            for y, x in product(rows, columns)
        ]
    ).amin(0)


def _moved(grid: Tensor, y: int, x: int) -> Tensor:
    """What of `grid` lies on another that is `y` cells lower and `x` to the right."""
    height, width = grid.shape[2:]
    return grid[:, :, max(y, 0) : height + min(y, 0), max(x, 0) : width + min(x, 0)]


def _blended(features: Tensor, previous: Tensor, weight: Tensor) -> Tensor:
    """Exactly `features` where the weight is 0 or both are the same."""
    return features + weight.to(features.dtype) * (previous - features)
