"""LPIPS and DISTS: distances between the features of two pictures, as frozen networks see them.

Their weights are looked for on this machine and never downloaded; losses on such features, with
gradients, are `sr_models/losses/perceptual.py`.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_models.losses.perceptual import ALEXNET, LPIPS_SMALLEST, LpipsLoss
from sr_models.losses.weights import MissingWeightsError, Weights, find_weights, read_weights
from sr_models.metrics.catalogue import FACTS, Metric
from sr_models.metrics.fingerprints import found_digest, package_file

VGG16 = Weights(
    "dists",
    ("vgg16-397923af.pth", "vgg16.safetensors", "vgg16.pth"),
    "download https://download.pytorch.org/models/vgg16-397923af.pth",
)
DISTS_SMALLEST = 16  # px; smaller pictures have no features in the last stage
_EXTRA = "pip install 'sr-distillery[perceptual]'"
#: The weights of each metric's network, and the file of torchmetrics with those on top of it.
_FILES = {
    "lpips": (ALEXNET, ("functional", "image", "lpips_models", "alex.pth")),
    "dists": (VGG16, ("functional", "image", "dists_models", "weights.pt")),
}
_DECIMALS = 6  # what single precision can tell apart, and no more


class Dists(nn.Module):
    """DISTS: similarity of the means and of the covariances of VGG-16's feature maps.

    Ding et al., "Image quality assessment: unifying structure and texture similarity", 2020,
    equations 5 to 8. Max pooling is replaced by a Hann-weighted root of squared means.
    """

    mean: Tensor
    std: Tensor
    window: Tensor
    alpha: Tensor
    beta: Tensor
    #: Convolutions of each stage, of the 13 of VGG-16, and the channels of its output.
    _STAGES = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))

    def __init__(self, convolutions: list[nn.Conv2d], alpha: Tensor, beta: Tensor) -> None:
        """Takes the convolutions in order; `alpha`, `beta` weigh 3 + 1472 channels."""
        super().__init__()
        self.convolutions = nn.ModuleList(convolutions)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        hann = torch.tensor([0.25, 0.5, 0.25])  # Hann window of 5 without its zeros, sum 1
        self.register_buffer("window", torch.outer(hann, hann))
        total = alpha.sum() + beta.sum()
        self.register_buffer("alpha", alpha.flatten() / total)
        self.register_buffer("beta", beta.flatten() / total)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """0-dimensional distance of float [1, 3, H, W] in [0, 1]; 0 for equal pictures."""
        similarity, start = x.new_zeros(()), 0
        for one, two in zip(self._features(x), self._features(y), strict=True):
            place = slice(start, start + one.shape[1])
            start = place.stop
            mean_x, mean_y = one.mean((2, 3)), two.mean((2, 3))
            var_x, var_y = one.var((2, 3), correction=0), two.var((2, 3), correction=0)
            centred = (one - mean_x[..., None, None]) * (two - mean_y[..., None, None])
            covariance = centred.mean((2, 3))
            texture = (2 * mean_x * mean_y + 1e-6) / (mean_x**2 + mean_y**2 + 1e-6)
            structure = (2 * covariance + 1e-6) / (var_x + var_y + 1e-6)
            similarity = similarity + (self.alpha[place] * texture).sum()
            similarity = similarity + (self.beta[place] * structure).sum()
        return 1 - similarity

    def _features(self, image: Tensor) -> list[Tensor]:
        """The picture itself, and the last activations of each stage."""
        maps, features, index = (image - self.mean) / self.std, [image], 0
        for stage, (count, _) in enumerate(self._STAGES):
            maps = self._pooled(maps) if stage else maps
            for convolution in self.convolutions[index : index + count]:
                maps = F.relu(convolution(maps))
            index += count
            features.append(maps)
        return features

    def _pooled(self, maps: Tensor) -> Tensor:
        channels = maps.shape[1]
        kernel = self.window.expand(channels, 1, 3, 3)
        return (F.conv2d(maps**2, kernel, stride=2, padding=1, groups=channels) + 1e-12).sqrt()


def open_metric(name: str, device: torch.device | str = "cpu") -> Metric:
    """`lpips` or `dists`, of the whole picture.

    Raises:
        MissingWeightsError: its weights or a package are not here; one line says where they go.
        ValueError: the file is damaged or holds other tensors.
    """
    try:
        network = LpipsLoss() if name == "lpips" else _dists()
    except MissingWeightsError as error:
        raise MissingWeightsError(f"metric{str(error).removeprefix('loss')}") from error
    network = network.to(device)
    smallest = LPIPS_SMALLEST if name == "lpips" else DISTS_SMALLEST

    def score(sr: np.ndarray, hr: np.ndarray) -> float | None:
        if min(hr.shape[:2]) < smallest:
            return None
        with torch.no_grad():
            # Near 0 rounding could show as a negative distance.
            value = max(0.0, float(network(_unit(sr, device), _unit(hr, device))))
        return round(value, _DECIMALS)

    return Metric(name, FACTS[name], score)


def fingerprint(name: str) -> dict[str, str]:
    """Of the network's weights, and of those that torchmetrics brings; `catalogue.fingerprints`."""
    weights, brought = _FILES[name]
    return {
        weights.names[0]: found_digest(lambda: find_weights(weights)),
        f"torchmetrics {brought[-1]}": found_digest(lambda: package_file("torchmetrics", *brought)),
    }


def _dists() -> Dists:
    if importlib.util.find_spec("torchmetrics") is None:
        raise MissingWeightsError(f"loss 'dists' needs the package torchmetrics: {_EXTRA}")
    path = find_weights(VGG16)
    tensors = {name.removeprefix("features."): t for name, t in read_weights(path).items()}
    layers = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]  # of torchvision's VGG-16
    convolutions: list[nn.Conv2d] = []
    channels = 3
    for count, width in Dists._STAGES:
        for _ in range(count):
            with torch.device("meta"):
                layer = nn.Conv2d(channels, width, 3, padding=1)
            prefix = f"{layers[len(convolutions)]}."
            try:
                state = {part: tensors[prefix + part] for part in ("weight", "bias")}
                layer.load_state_dict(state, assign=True)
            except (KeyError, RuntimeError) as error:
                reason = " ".join(str(error).split())[:200]
                raise ValueError(f"{path} does not fit VGG-16: {reason}") from error
            convolutions.append(layer.float())
            channels = width
    # The weights of the channels come with torchmetrics, as LPIPS's linear layers do.
    weights = read_weights(package_file("torchmetrics", *_FILES["dists"][1]))
    return Dists(convolutions, weights["alpha"], weights["beta"])


def _unit(image: np.ndarray, device: torch.device | str) -> Tensor:
    """uint8 [H, W, 3] -> float [1, 3, H, W] in [0, 1]."""
    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return planes[None].to(device).float() / 255
