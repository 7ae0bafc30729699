"""Loss terms on features of frozen networks: VGG-19, LPIPS (AlexNet) and CLIP.

Which file they need and where it is looked for is said here and in `weights.py`; training, or
downloading, such a network is not possible here.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_models.losses.weights import MissingWeightsError, Weights, find_weights, read_weights

VGG19 = Weights(
    "vgg",
    ("vgg19-dcbb9e9d.pth", "vgg19.safetensors", "vgg19.pth"),
    "download https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
)
ALEXNET = Weights(
    "lpips",
    ("alexnet-owt-7be5be79.pth", "alexnet.safetensors", "alexnet.pth"),
    "download https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
)
_CLIP_NAME = "vit_base_patch32_clip_224.openai"
CLIP = Weights(
    "clip",
    (f"{_CLIP_NAME}.safetensors",),
    f"run `hf download timm/{_CLIP_NAME} model.safetensors`",
    hub=(f"timm/{_CLIP_NAME}", "model.safetensors"),
)
VGG_SMALLEST, LPIPS_SMALLEST = 8, 31  # px; smaller pictures have no features in the last layer
_EXTRA = "pip install 'sr-distillery[perceptual]'"


class FeatureLoss(nn.Module):
    """A loss on features of `network`, frozen, in eval mode and in float32 whatever it came in."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.float().eval().requires_grad_(False)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """0-dimensional loss of floating [B, 3, H, W], about [0, 1]."""
        dtype = next(self.parameters()).dtype
        return self.compare(output.to(dtype), target.to(dtype))

    def compare(self, output: Tensor, target: Tensor) -> Tensor:
        """The same, of tensors in the precision of the network."""
        raise NotImplementedError


class VggLoss(FeatureLoss):
    """L1 of VGG-19's features after relu2_2, relu3_4 and relu4_4, the mean of the three.

    Johnson et al., "Perceptual losses for real-time style transfer and super-resolution", 2016.
    """

    mean: Tensor
    std: Tensor
    _TAPS = (9, 18, 27)  # number of layers up to and with relu2_2, relu3_4, relu4_4

    def __init__(self) -> None:
        super().__init__(_features("vgg19", VGG19, layers=self._TAPS[-1]))
        self.register_buffer("mean", _per_channel(0.485, 0.456, 0.406))
        self.register_buffer("std", _per_channel(0.229, 0.224, 0.225))

    def compare(self, output: Tensor, target: Tensor) -> Tensor:
        """0-dimensional loss of floating [B, 3, H, W] from 8x8 up, about [0, 1].

        Raises:
            ValueError: a side is smaller.
        """
        _check_size("vgg", output, VGG_SMALLEST)
        layers = list(self.network.children())
        features, wanted = ((image - self.mean) / self.std for image in (output, target))
        loss = output.new_zeros(())
        # Not strict: a part ends where the next begins, and none begins at the last.
        for start, end in zip((0, *self._TAPS), self._TAPS, strict=False):
            part = nn.Sequential(*layers[start:end])
            features, wanted = part(features), part(wanted)
            loss = loss + F.l1_loss(features, wanted) / len(self._TAPS)
        return loss


class LpipsLoss(FeatureLoss):
    """LPIPS version 0.1 with AlexNet, mean over the batch.

    Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric", 2018.
    The network is torchmetrics', whose normalisation has a finite gradient where all features
    are 0, unlike the authors' package; it brings the linear layers.
    """

    def __init__(self) -> None:
        lpips = _package("torchmetrics.functional.image.lpips", "lpips")
        backbone = _features("alexnet", ALEXNET, layers=12)
        # The public functions refuse values outside [0, 1], which a loss must take.
        # Its dropout layers are idle in eval mode; without them its weights would not be found.
        network = lpips._LPIPS(net="alex", pretrained=True, pnet_rand=True, use_dropout=True)
        slots = {name.split(".")[1]: name.split(".")[0] for name in network.net.state_dict()}
        network.net.load_state_dict(
            {f"{slots[n.split('.')[0]]}.{n}": tensor for n, tensor in backbone.state_dict().items()}
        )
        super().__init__(network)

    def compare(self, output: Tensor, target: Tensor) -> Tensor:
        """0-dimensional loss of floating [B, 3, H, W] from 31x31 up, about [0, 1].

        Raises:
            ValueError: a side is smaller.
        """
        _check_size("lpips", output, LPIPS_SMALLEST)
        return self.network(output, target, normalize=True).mean()


class ClipLoss(FeatureLoss):
    """1 - cosine of the image features of CLIP ViT-B/32, mean over the batch.

    Radford et al., "Learning transferable visual models from natural language supervision", 2021.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        timm = _package("timm", "clip")
        path = find_weights(CLIP)
        tensors = read_weights(path)
        with _misfits(path):
            network = timm.create_model(
                "vit_base_patch32_clip_quickgelu_224.openai",  # OpenAI trained with quick GELU
                pretrained=True,
                pretrained_cfg_overlay={"state_dict": tensors},  # instead of a download; strict
            )
        super().__init__(network)
        self.register_buffer("mean", _per_channel(*network.pretrained_cfg["mean"]))
        self.register_buffer("std", _per_channel(*network.pretrained_cfg["std"]))

    def compare(self, output: Tensor, target: Tensor) -> Tensor:
        """0-dimensional loss of floating [B, 3, H, W] from 1x1 up, about [0, 1]."""
        features, wanted = self._features(output), self._features(target)
        return (1 - F.cosine_similarity(features, wanted)).mean()

    def _features(self, image: Tensor) -> Tensor:
        # The whole crop is squeezed into the network's square: nothing of it goes without loss.
        square = F.interpolate(image, (224, 224), mode="bicubic", antialias=True)
        return self.network((square - self.mean) / self.std)


def _features(architecture: str, weights: Weights, layers: int) -> nn.Module:
    """The first `layers` of the feature part of torchvision's network, with its weights."""
    from torchvision import models  # takes a second: paid by those who use it

    path = find_weights(weights)
    with torch.device("meta"):  # without the classifier, and without drawing random weights
        features = getattr(models, architecture)(weights=None).features[:layers]
    tensors = {name.removeprefix("features."): t for name, t in read_weights(path).items()}
    wanted = features.state_dict().keys()
    with _misfits(path):
        features.load_state_dict({n: t for n, t in tensors.items() if n in wanted}, assign=True)
    return features


@contextmanager
def _misfits(path: Path) -> Iterator[None]:
    """Tells in one line that the tensors of `path` are not those of the network."""
    try:
        yield
    except (RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} does not fit its network: {reason}") from error


def _package(module: str, loss: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingWeightsError(f"loss {loss!r} needs the package {package}: {_EXTRA}") from error


def _per_channel(red: float, green: float, blue: float) -> Tensor:
    return torch.tensor([red, green, blue]).view(1, 3, 1, 1)


def _check_size(loss: str, image: Tensor, smallest: int) -> None:
    height, width = image.shape[-2:]
    if min(height, width) < smallest:
        raise ValueError(
            f"loss {loss!r} takes pictures from {smallest}x{smallest}, got {height}x{width}: "
            f"raise the crop or set its weight to 0"
        )
