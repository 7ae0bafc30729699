"""All loss terms by the names that a recipe weighs them with, opened once and called every step.

Which weights count at which step is the schedule's business, not this module's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from sr_models.losses import perceptual
from sr_models.losses.colour import consistency_loss
from sr_models.losses.edges import edge_loss, gradient_loss
from sr_models.losses.pixel import charbonnier, l1, l2
from sr_models.losses.spectrum import fft_log_loss, fft_loss
from sr_models.losses.structure import ms_ssim_loss, ssim_loss
from sr_models.losses.wavelet import SwtLoss

Term = Callable[[Tensor, Tensor], Tensor]
"""(output, target), both floating [B, 3, H, W] -> loss, 0-dimensional."""

LOSSES: dict[str, Callable[[torch.device], Term]] = {
    "l1": lambda device: l1,
    "l2": lambda device: l2,
    "charbonnier": lambda device: charbonnier,
    "ssim": lambda device: ssim_loss,
    "ms_ssim": lambda device: ms_ssim_loss,
    "swt": SwtLoss,
    "fft_log": lambda device: fft_log_loss,
    "fft": lambda device: fft_loss,
    "edge": lambda device: edge_loss,
    "gradient": lambda device: gradient_loss,
    "consistency": lambda device: consistency_loss,
    "vgg": lambda device: perceptual.VggLoss().to(device),
    "lpips": lambda device: perceptual.LpipsLoss().to(device),
    "clip": lambda device: perceptual.ClipLoss().to(device),
}
"""How each loss is made ready on a device. A new loss is one line here and one in the recipe."""


def open_losses(names: Iterable[str], device: torch.device) -> LossTerms:
    """Makes the named losses ready on `device`: networks loaded, frozen and in eval mode.

    Raises:
        MissingWeightsError: weights or a package are not on this machine; nothing is downloaded.
        ValueError: there is no such loss, or a weights file is damaged.

    >>> losses = open_losses(["l1", "ssim"], torch.device("cpu"))
    >>> ones, zeros = torch.ones(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    >>> losses(ones, zeros, {"l1": 0.5, "ssim": 0.0, "vgg": 0.0}, prefix="teacher/")
    {'teacher/l1': tensor(0.5000)}
    """
    names = tuple(dict.fromkeys(names))
    _check_names(names)
    return LossTerms({name: LOSSES[name](device) for name in names})


class LossTerms:
    """The opened losses; calling it weighs them."""

    def __init__(self, terms: Mapping[str, Term]) -> None:
        self._terms = dict(terms)

    def __call__(
        self, output: Tensor, target: Tensor, weights: Mapping[str, float], prefix: str = ""
    ) -> dict[str, Tensor]:
        """Weighted terms of `output` against `target`, at least in float32 even under autocast.

        Args:
            output, target: floating [B, 3, H, W], RGB about [0, 1]; nothing is clamped to that.
            weights: factors >= 0 by name. A term of weight 0 is neither computed nor returned,
                and need not be open.
            prefix: goes before the names in the result.

        Returns:
            0-dimensional tensors by prefix + name, in the order of `weights`.

        Raises:
            ValueError: an unknown name, one that is not open, or shapes that do not agree.
        """
        _check_names(weights)
        if output.shape != target.shape:
            raise ValueError(f"output {list(output.shape)} and target {list(target.shape)} differ")
        if output.ndim != 4 or output.shape[1] != 3:
            raise ValueError(f"expected [B, 3, H, W], got {list(output.shape)}")
        used = {name: weight for name, weight in weights.items() if weight != 0}
        for name in used:
            if name not in self._terms:
                raise ValueError(
                    f"loss term {name!r} has a weight but is not open: name it to open_losses"
                )
        dtype = torch.promote_types(output.dtype, torch.float32)
        with torch.autocast(output.device.type, enabled=False):
            output, target = output.to(dtype), target.to(dtype)
            return {
                prefix + name: weight * self._terms[name](output, target)
                for name, weight in used.items()
            }


def _check_names(names: Iterable[str]) -> None:
    for name in names:
        if name not in LOSSES:
            raise ValueError(f"loss term {name!r} is not one of {list(LOSSES)}")
