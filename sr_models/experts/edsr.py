"""EDSR, and its registration with spandrel so that files of both published naming schemes load.

The network itself is the plain residual one of Lim et al. 2017 without batch norm; choosing and
running it as an expert belongs to `loading.py` and `running.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from spandrel import (
    MAIN_REGISTRY,
    Architecture,
    ArchSupport,
    ImageModelDescriptor,
    StateDict,
)
from spandrel.util import get_seq_len, store_hyperparameters
from torch import Tensor, nn

RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K
SCALES = (2, 3, 4, 8)
_WIDE = 256  # channels from which the authors scale the residuals by 0.1


def usual_res_scale(num_feat: int) -> float:
    """The residual scale that the authors use at this width: tensors alone do not tell it."""
    return 0.1 if num_feat >= _WIDE else 1.0


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around one ReLU, added to the input times `res_scale`."""

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.conv2 = nn.Conv2d(num_feat, num_feat, 3, padding=1)

    def forward(self, x: Tensor, res_scale: Tensor) -> Tensor:
        """[B,C,h,w] to [B,C,h,w]."""
        return x + self.conv2(torch.relu(self.conv1(x))) * res_scale


@store_hyperparameters()
class EDSR(nn.Module):
    """Enhanced deep residual network: float [B,3,h,w] in [0,1] to [B,3,h·s,w·s], not clamped.

    The state dict has the names of the BasicSR files. Where `res_scale` is not the usual one of
    this width, it is kept in the state dict, so that a file tells it.

    Raises:
        ValueError: `upscale` is not one of 2, 3, 4, 8.
    """

    hyperparameters: Mapping[str, Any] = {}
    mean: Tensor
    res_scale: Tensor

    def __init__(
        self,
        *,
        num_feat: int = 64,
        num_block: int = 16,
        upscale: int = 4,
        res_scale: float | None = None,  # None: the usual one of this width
        img_range: float = 255.0,
        rgb_mean: tuple[float, float, float] = RGB_MEAN,
    ) -> None:
        super().__init__()
        if upscale not in SCALES:
            raise ValueError(f"EDSR: upscale {upscale} is not one of {SCALES}")
        usual = usual_res_scale(num_feat)
        value = usual if res_scale is None else res_scale
        self.hyperparameters = {**self.hyperparameters, "res_scale": value}
        self.img_range = img_range
        self.register_buffer("mean", torch.tensor(rgb_mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("res_scale", torch.tensor(value), persistent=value != usual)
        self.conv_first = nn.Conv2d(3, num_feat, 3, padding=1)
        self.body = nn.ModuleList(ResidualBlock(num_feat) for _ in range(num_block))
        self.conv_after_body = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.upsample = _upsampler(upscale, num_feat)
        self.conv_last = nn.Conv2d(num_feat, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarges `x`; any height and width."""
        first = self.conv_first((x - self.mean) * self.img_range)
        features = first
        for block in self.body:
            features = block(features, self.res_scale)
        features = self.conv_after_body(features) + first
        return self.conv_last(self.upsample(features)) / self.img_range + self.mean


def _upsampler(scale: int, num_feat: int) -> nn.Sequential:
    step = 3 if scale == 3 else 2
    layers: list[nn.Module] = []
    for _ in range(round(math.log(scale, step))):
        layers += [nn.Conv2d(num_feat, step * step * num_feat, 3, padding=1), nn.PixelShuffle(step)]
    return nn.Sequential(*layers)


class EDSRArchitecture(Architecture[EDSR]):
    """How spandrel recognises and loads EDSR, by the names and shapes of its tensors."""

    def __init__(self) -> None:
        super().__init__(id="EDSR", detect=detect)

    def load(self, state_dict: StateDict) -> ImageModelDescriptor[EDSR]:
        """A descriptor with the weights in it.

        Raises:
            ValueError: shapes or the colour mean are not those of an EDSR.
            RuntimeError: a tensor is missing or left over.
        """
        state = from_official_names(state_dict)
        num_feat = state["conv_first.weight"].shape[0]
        num_block = get_seq_len(state, "body")
        scale = _scale(state, num_feat)
        usual = usual_res_scale(num_feat)
        stored = state.get("res_scale")
        # Half-precision files round the number: three digits are what anybody chose.
        res_scale = usual if stored is None else round(float(stored), 3)
        if res_scale == usual:
            state.pop("res_scale", None)
        model = EDSR(num_feat=num_feat, num_block=num_block, upscale=scale, res_scale=res_scale)
        return ImageModelDescriptor(
            model,
            state,
            architecture=self,
            purpose="SR",
            tags=[f"{num_feat}nf", f"{num_block}nb"],
            supports_half=False,  # the body works on a 0..255 range
            supports_bfloat16=True,
            scale=scale,
            input_channels=3,
            output_channels=3,
        )


def register() -> None:
    """Makes `spandrel.ModelLoader` know EDSR; calling it again does nothing."""
    if "EDSR" not in MAIN_REGISTRY:
        MAIN_REGISTRY.add(ArchSupport.from_architecture(EDSRArchitecture()))


_BASICSR = ("conv_first", "body.0.conv1", "body.0.conv2", "conv_after_body", "conv_last")
_OFFICIAL = ("head.0", "body.0.body.0", "body.0.body.2", "tail.0.0", "tail.1")


def detect(state_dict: Mapping[str, Any]) -> bool:
    """Whether the tensors are those of an RGB EDSR, in either naming scheme."""
    if not any(all(f"{n}.weight" in state_dict for n in names) for names in (_BASICSR, _OFFICIAL)):
        return False
    first = state_dict.get("conv_first.weight", state_dict.get("head.0.weight"))
    up = state_dict.get("upsample.0.weight", state_dict.get("tail.0.0.weight"))
    if first is None or up is None or first.ndim != 4 or up.ndim != 4:
        return False
    width = first.shape[0]
    # A three-channel input and a 3x3 sub-pixel convolution: RCAN and SRResNet differ here or above.
    return first.shape[1] == 3 and up.shape[1] == width and up.shape[0] in (4 * width, 9 * width)


def from_official_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with the names of this module; names of the BasicSR files stay as they are.

    Raises:
        ValueError: `sub_mean` or `add_mean` hold another colour mean than DIV2K's at range 255.
    """
    if "head.0.weight" not in state_dict:
        return dict(state_dict)
    last = get_seq_len(state_dict, "body") - 1
    _check_mean(state_dict)
    renamed: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        if name.startswith(("sub_mean.", "add_mean.")):
            continue
        name = re.sub(r"^head\.0\.", "conv_first.", name)
        name = re.sub(r"^body\.(\d+)\.body\.0\.", r"body.\1.conv1.", name)
        name = re.sub(r"^body\.(\d+)\.body\.2\.", r"body.\1.conv2.", name)
        name = re.sub(rf"^body\.{last}\.(weight|bias)$", r"conv_after_body.\1", name)
        name = re.sub(r"^tail\.0\.", "upsample.", name)
        renamed[re.sub(r"^tail\.1\.", "conv_last.", name)] = tensor
    return renamed


def _check_mean(state_dict: Mapping[str, Tensor]) -> None:
    expected = torch.tensor(RGB_MEAN) * 255.0
    for prefix, sign in (("sub_mean", -1.0), ("add_mean", 1.0)):
        bias, weight = state_dict.get(f"{prefix}.bias"), state_dict.get(f"{prefix}.weight")
        # 0.1 of 255 grey levels: what rounding the mean to half precision can do.
        if bias is not None and not torch.allclose(bias.float(), sign * expected, atol=0.1):
            raise ValueError(
                f"EDSR: {prefix}.bias is {[round(v, 2) for v in bias.tolist()]}, expected "
                f"{[round(v, 2) for v in (sign * expected).tolist()]} (DIV2K mean, range 255)"
            )
        if weight is not None and not torch.allclose(
            weight.float().flatten(1), torch.eye(3), atol=1e-3
        ):
            raise ValueError(f"EDSR: {prefix}.weight is not the identity (a colour deviation of 1)")


def _scale(state: Mapping[str, Tensor], num_feat: int) -> int:
    scale = 1
    for index in range(0, get_seq_len(state, "upsample"), 2):
        scale *= math.isqrt(state[f"upsample.{index}.weight"].shape[0] // num_feat)
    if scale not in SCALES:
        raise ValueError(f"EDSR: the upsampler enlarges {scale} times, not by one of {SCALES}")
    return scale
