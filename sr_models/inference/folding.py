"""The same function in fewer operations, for running only: convolutions after which nothing bends.

What a family of ours merges for good, and writes into its files, is its `fuse()`.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sr_models.experts.loading import Expert

#: Names of an upsampler and of the convolution that its output goes into, in the networks we know.
_TAILS = (("upsampler", "conv_out"), ("up", "conv_out"), ("upsample", "conv_last"))
#: Largest difference, as a share of the largest output, of rewritten operations in float32.
_TOLERANCE = 1e-5
_REACH = 2  # LR px on each side of a pixel that a tail of 3x3 convolutions sees, however many
_GAIN = 1.3  # multiplications that must be saved before a tail is rewritten


def folded(expert: Expert) -> Expert:
    """The same expert with a rewritten copy of its network; itself where nothing can be rewritten.

    Outputs differ by rounding (tested on a picture of noise; what differs by more is not taken).
    """
    model = folded_network(expert.model, (expert.minimum, expert.multiple), expert.call)
    return expert if model is expert.model else dataclasses.replace(expert, model=model)


def folded_network(
    network: nn.Module,
    sizes: tuple[int, int] = (1, 1),
    call: Callable[[nn.Module, Tensor], Tensor] = lambda model, lr: model(lr),
) -> nn.Module:
    """A rewritten copy of a network; itself where nothing can be rewritten. As `folded`.

    Args:
        network: in eval mode.
        sizes: smallest side of LR, and what sides must be a multiple of (px).
        call: how a picture comes out of the network.
    """
    # On the CPU, where fp32 is fp32: a GPU may round the factors of its convolutions.
    before = copy.deepcopy(network).cpu()
    after = copy.deepcopy(before)
    if not fold_tail(after):
        return network
    minimum, multiple = sizes
    side = max(minimum, math.ceil(12 / multiple) * multiple)
    picture = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, found = call(before, picture.clone()), call(after, picture.clone())
    largest = max(1.0, float(expected.abs().max()))
    same = found.shape == expected.shape
    if not same or not float((found - expected).abs().max()) <= _TOLERANCE * largest:
        return network
    return after.to(next(network.parameters()).device)


def fold_tail(network: nn.Module) -> bool:
    """Makes one convolution of an upsampler and the one after it, in place; False if there is none.

    Between them must lie nothing that is not linear, as in EDSR, HAT, ParagonSR and AetherNet.
    """
    for first, second in _TAILS:
        steps, last = getattr(network, first, None), getattr(network, second, None)
        if (
            isinstance(steps, nn.Sequential)
            and isinstance(last, nn.Conv2d)
            and _linear(steps, last)
        ):
            tail = nn.Sequential(*steps, last)
            if _GAIN * LinearTail.multiplications(tail) > _multiplications(tail):
                return False
            setattr(network, first, LinearTail(tail))
            setattr(network, second, nn.Identity())
            return True
    return False


class LinearTail(nn.Module):
    """3x3 convolutions with pixel shuffles between them as one 5x5 convolution and one shuffle.

    [B, C, h, w] to [B, D, h·scale, w·scale]. At the border each convolution pads with zeros what
    the one before says beyond the picture, which one convolution cannot: there the `tail` itself
    runs, on strips.
    """

    def __init__(self, tail: nn.Sequential) -> None:
        super().__init__()
        self.tail = tail
        self.scale = _scale(tail)
        self.merged = _merged(tail, self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarges `x`."""
        height, width = x.shape[-2:]
        if height < 2 or width < 2:
            return self.tail(x)
        s, strip = self.scale, _REACH + 1
        inner = F.pixel_shuffle(self.merged(x), s)[..., s:-s, s:-s]
        left, right = self.tail(torch.cat([x[..., :strip], x[..., -strip:]])).chunk(2)
        upper, lower = self.tail(torch.cat([x[..., :strip, :], x[..., -strip:, :]])).chunk(2)
        middle = torch.cat([left[..., s:-s, :s], inner, right[..., s:-s, -s:]], -1)
        return torch.cat([upper[..., :s, :], middle, lower[..., -s:, :]], -2)

    @staticmethod
    def multiplications(tail: nn.Sequential) -> int:
        """For one LR pixel, the border apart."""
        first, last = tail[0], tail[-1]
        assert isinstance(first, nn.Conv2d) and isinstance(last, nn.Conv2d)
        side = 2 * _REACH + 1
        return side**2 * first.in_channels * last.out_channels * _scale(tail) ** 2


def _linear(steps: nn.Sequential, last: nn.Conv2d) -> bool:
    layers = [*steps, last]
    return (
        len(steps) > 0
        and isinstance(layers[0], nn.Conv2d)
        and all(
            isinstance(layer, nn.PixelShuffle)
            or (
                isinstance(layer, nn.Conv2d)
                and layer.kernel_size == (3, 3)
                and layer.stride == layer.padding == layer.dilation == (1, 1)
                and layer.groups == 1
                and layer.padding_mode == "zeros"
            )
            for layer in layers
        )
    )


def _scale(tail: nn.Sequential) -> int:
    return math.prod(step.upscale_factor for step in tail if isinstance(step, nn.PixelShuffle))


def _multiplications(tail: nn.Sequential) -> int:
    """For one LR pixel."""
    total, side = 0, 1
    for step in tail:
        if isinstance(step, nn.PixelShuffle):
            side *= step.upscale_factor
        elif isinstance(step, nn.Conv2d):
            total += step.weight.numel() * side**2
    return total


@torch.no_grad()
def _merged(tail: nn.Sequential, scale: int) -> nn.Conv2d:
    """The convolution whose shuffled output is that of `tail` away from the border.

    Its weights are what `tail` makes of one pixel that is 1, in float64.
    """
    like = tail[0].weight
    assert isinstance(like, Tensor)
    exact = copy.deepcopy(tail).cpu().double()
    channels, side = like.shape[1], 4 * _REACH + 1
    middle = slice(_REACH, side - _REACH)
    nothing = F.pixel_unshuffle(exact(torch.zeros(1, channels, side, side).double()), scale)
    points = torch.zeros(channels, channels, side, side, dtype=torch.float64)
    points[range(channels), range(channels), side // 2, side // 2] = 1
    spread = F.pixel_unshuffle(exact(points), scale) - nothing
    # What a point spreads to the left is what a pixel collects from its right.
    weight = spread[..., middle, middle].flip(-2, -1).transpose(0, 1)
    conv = nn.utils.skip_init(
        nn.Conv2d, channels, weight.shape[0], 2 * _REACH + 1, padding=_REACH, device=like.device
    )
    conv.weight.copy_(weight)
    assert conv.bias is not None
    conv.bias.copy_(nothing[0, :, side // 2, side // 2])
    return conv.to(like.dtype).requires_grad_(False).eval()
