"""Networks rewritten to fewer operations, against themselves."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spandrel.architectures.Compact import Compact
from spandrel.architectures.HAT import HAT
from torch import Tensor, nn

from sr_models.experts.edsr import EDSR
from sr_models.experts.loading import Expert
from sr_models.export.fusing import fused_copy
from sr_models.inference.folding import LinearTail, fold_tail, folded
from sr_models.layers.stepwise_shuffle import stepwise_shuffle
from sr_models.layers.upsamplers import conv_pixel_shuffle
from sr_models.students.aethernet import AetherNet
from sr_models.students.paragonsr import ParagonSR
from sr_models.students.paragonsr2 import ParagonSR2


def expert(network: nn.Module, scale: int, multiple: int = 1) -> Expert:
    return Expert(
        architecture=type(network).__name__,
        model=fused_copy(network).requires_grad_(False),
        call=lambda model, lr: model(lr),
        scale=scale,
        minimum=1,
        multiple=multiple,
        feature_module=None,
        feature_channels=None,
        parameters=0,
        bf16_safe=True,
    )


def tail(scale: int, steps: int, channels: int = 6) -> nn.Sequential:
    torch.manual_seed(scale * 10 + steps)
    up = (
        conv_pixel_shuffle(channels, channels, scale)
        if steps == 1
        else stepwise_shuffle((channels,) * (steps + 1), scale)
    )
    return nn.Sequential(*up, nn.Conv2d(channels, 3, 3, padding=1)).requires_grad_(False)


@settings(max_examples=60)
@given(
    shape=st.sampled_from([(2, 1), (3, 1), (4, 1), (8, 1), (2, 2), (2, 3), (3, 2)]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    batch=st.integers(1, 2),
)
def test_a_folded_tail_is_the_tail_up_to_its_border(
    shape: tuple[int, int], height: int, width: int, batch: int
) -> None:
    before = tail(*shape)
    lr = torch.randn(batch, 6, height, width, generator=torch.Generator().manual_seed(height))
    expected, found = before(lr), LinearTail(before)(lr)
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) < 1e-5


NETWORKS = {
    "paragonsr": (
        4, lambda: ParagonSR(num_feat=16, num_groups=1, num_blocks=1, branch_ratio=0.25)
    ),
    "paragonsr2": (3, lambda: ParagonSR2(scale=3, block="nano", channels=12, groups=1, blocks=1)),
    "aethernet": (4, lambda: AetherNet(embed_dim=16, depths=(1,), lk_kernel=5)),
    "edsr": (2, lambda: EDSR(num_feat=16, num_block=1, upscale=2)),
    "hat": (4, lambda: HAT(
        embed_dim=16, depths=(1,), num_heads=(2,), window_size=4, upscale=4, num_feat=16,
        upsampler="pixelshuffle", compress_ratio=4, squeeze_factor=4,
    )),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_whose_tail_is_linear_make_the_same_pictures(name: str) -> None:
    torch.manual_seed(3)
    scale, make = NETWORKS[name]
    before = expert(make(), scale, multiple=4 if name == "hat" else 1)
    state = {k: v.clone() for k, v in before.model.state_dict().items()}
    after = folded(before)
    assert after is not before
    for height, width in ((8, 12), (17, 9)):
        side = (height // 4 * 4, width // 4 * 4) if name == "hat" else (height, width)
        lr = torch.rand(1, 3, *side)
        difference = after.call(after.model, lr) - before.call(before.model, lr)
        assert float(difference.abs().max()) < 1e-5
    assert all(torch.equal(v, state[k]) for k, v in before.model.state_dict().items())


def test_a_network_without_such_a_tail_is_left_as_it_is() -> None:
    before = expert(Compact(num_feat=8, num_conv=2, upscale=2), 2)
    assert folded(before) is before
    bent = EDSR(num_feat=16, num_block=1, upscale=2)
    bent.upsample.append(nn.LeakyReLU())
    assert not fold_tail(bent)


class Bent(nn.Module):
    """Has the names of a tail, with a bend between that its modules do not show."""

    def __init__(self) -> None:
        super().__init__()
        self.upsample = conv_pixel_shuffle(16, 16, 2)
        self.first = nn.Conv2d(3, 16, 1)
        self.conv_last = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, lr: Tensor) -> Tensor:
        return self.conv_last(self.upsample(self.first(lr)).relu())


def test_what_would_change_the_pictures_is_not_taken() -> None:
    torch.manual_seed(1)
    before = expert(Bent(), 2)
    assert fold_tail(fused_copy(before.model))
    assert folded(before) is before


def test_a_tail_that_would_not_become_cheaper_stays() -> None:
    network = EDSR(num_feat=16, num_block=1, upscale=2)
    network.upsample = conv_pixel_shuffle(16, 3, 2)
    network.conv_last = nn.Conv2d(3, 3, 3, padding=1)
    assert not fold_tail(network)


def test_the_networks_own_needs_and_words_stay() -> None:
    before = dataclasses.replace(expert(EDSR(num_feat=16, num_block=1, upscale=2), 2), minimum=7)
    after = folded(before)
    assert dataclasses.replace(after, model=before.model) == before
