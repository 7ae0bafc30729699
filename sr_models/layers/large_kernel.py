"""A large depthwise kernel that learns beside a small one and runs as one convolution.

Structural re-parameterisation after Ding et al. 2022 (RepLKNet, section 3.2); what stands around
the convolution belongs to the networks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from sr_models.layers.double_precision import double
from sr_models.registry import register_block


@register_block("reparam_large_kernel")
class ReparamLargeKernelConv(nn.Module):
    """Depthwise [B, C, h, w] to the same size: a large and a small kernel and their biases, summed.

    Tensors: `lk_conv.weight` [C, 1, k, k], `sk_conv.weight`, `lk_bias`, `sk_bias` [C]; fused:
    `fused_conv.weight` [C, 1, k, k] and `fused_conv.bias` [C].

    Args:
        channels: C.
        lk_kernel: side of the large kernel, odd.
        sk_kernel: side of the small one, odd and at most `lk_kernel`; nothing to a fused one.
        fused: builds the single convolution.

    Raises:
        ValueError: a side is even, or the small kernel is the larger one.
    """

    def __init__(
        self, channels: int, lk_kernel: int = 13, sk_kernel: int = 5, fused: bool = False
    ) -> None:
        super().__init__()
        if lk_kernel < 1 or lk_kernel % 2 == 0:
            raise ValueError(f"lk_kernel {lk_kernel} must be odd: a kernel has one centre")
        self.fused = fused
        if fused:
            self.fused_conv = _depthwise(channels, lk_kernel, bias=True)
            return
        if not 1 <= sk_kernel <= lk_kernel or sk_kernel % 2 == 0:
            raise ValueError(f"sk_kernel {sk_kernel} must be odd and at most lk_kernel {lk_kernel}")
        self.lk_conv = _depthwise(channels, lk_kernel, bias=False)
        self.sk_conv = _depthwise(channels, sk_kernel, bias=False)
        self.lk_bias = nn.Parameter(torch.zeros(channels))
        self.sk_bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same; the borders are padded with zeros."""
        if self.fused:
            return self.fused_conv(x)
        bias = (self.lk_bias + self.sk_bias).view(1, -1, 1, 1)
        return self.lk_conv(x) + self.sk_conv(x) + bias

    @torch.no_grad()
    def fuse(self) -> None:
        """Becomes the one convolution of the same function, in place; summed in float64.

        What was frozen stays frozen.
        """
        if self.fused:
            return
        large, small = self.lk_conv.weight, self.sk_conv.weight
        border = (large.shape[-1] - small.shape[-1]) // 2
        weight = double(large) + F.pad(double(small), (border,) * 4)
        bias = double(self.lk_bias) + double(self.sk_bias)
        self.fused_conv = skip_init(
            nn.Conv2d,
            large.shape[0],
            large.shape[0],
            large.shape[-1],
            padding=large.shape[-1] // 2,
            groups=large.shape[0],
            device=large.device,
            dtype=large.dtype,
        ).train(self.training)
        self.fused_conv.weight.copy_(weight)
        assert self.fused_conv.bias is not None
        self.fused_conv.bias.copy_(bias)
        self.fused_conv.weight.requires_grad_(large.requires_grad or small.requires_grad)
        learns = self.lk_bias.requires_grad or self.sk_bias.requires_grad
        self.fused_conv.bias.requires_grad_(learns)
        del self.lk_conv, self.sk_conv, self.lk_bias, self.sk_bias
        self.fused = True


def fuse_large_kernels(network: nn.Module) -> None:
    """Fuses every `ReparamLargeKernelConv` inside `network`, in place."""
    for module in list(network.modules()):
        if isinstance(module, ReparamLargeKernelConv):
            module.fuse()


def _depthwise(channels: int, kernel: int, bias: bool) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=bias)
