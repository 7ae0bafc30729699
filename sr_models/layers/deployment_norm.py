"""Norms of [B, C, h, w] for networks that are deployed: one that ends as a factor and an offset a
channel, and the plain per-pixel one.

BatchNorm, whose tensors have other shapes, is torch's own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sr_models import processes
from sr_models.layers.double_precision import double

_MOMENTUM = 0.1


class DeploymentNorm(nn.Module):
    """Statistics of the batch while training, running ones otherwise; fused, an affine map alone.

    Differs from BatchNorm in that the running variance takes in the biased one of the batch. The
    state dict has `weight`, `bias` and, unless fused, `running_mean`, `running_var`, each
    [1, C, 1, 1].

    Args:
        channels: C.
        eps: added to the variance.
        fused: builds the affine map alone.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-4, fused: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.fused = fused
        self.weight = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))
        if not fused:
            self.register_buffer("running_mean", torch.zeros(1, channels, 1, 1))
            self.register_buffer("running_var", torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same; while training it also moves the running statistics."""
        if self.fused:
            return x * self.weight + self.bias
        if self.training:
            mean, var = self._batch_statistics(x)
        else:
            mean, var = self.running_mean, self.running_var
        return (x - mean) / torch.sqrt(var + self.eps) * self.weight + self.bias

    @torch.no_grad()
    def fuse(self) -> None:
        """Becomes the affine map that it is in eval mode, in place; computed in float64."""
        if self.fused:
            return
        factor = double(self.weight) / torch.sqrt(double(self.running_var) + self.eps)
        self.bias.copy_(double(self.bias) - double(self.running_mean) * factor)
        self.weight.copy_(factor)
        del self.running_mean, self.running_var
        self.fused = True

    def _batch_statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # In float32 whatever the map's type: a sum over all pixels loses half-precision digits.
        var, own = torch.var_mean(x.float(), dim=(0, 2, 3), correction=0, keepdim=True)
        mean = processes.mean(own)
        if processes.count() > 1:  # what the shares of a batch differ in adds to its variance
            var = processes.mean(var + (own - mean) ** 2)
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), _MOMENTUM)
            self.running_var.lerp_(var.to(self.running_var.dtype), _MOMENTUM)
        return mean.to(x.dtype), var.to(x.dtype)


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of each pixel, on [B, C, h, w]."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def fuse_norms(network: nn.Module) -> None:
    """Fuses every `DeploymentNorm` inside `network`, in place."""
    for module in network.modules():
        if isinstance(module, DeploymentNorm):
            module.fuse()
