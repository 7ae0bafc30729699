"""Phase 2: nine bands of LR that sum to it, for any size, and where each kind of picture goes."""

import math

import numpy as np
import pytest
import pywt
import scipy.fft
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sr_models.fusion.frequency import (
    BandAttention,
    DctBands,
    FourierBands,
    FrequencyBands,
    WaveletBands,
)

FAMILIES = ("haar", "db4", "sym5", "bior2.2", "rbio3.1", "coif2", "dmey")
TRANSFORMS: dict[str, nn.Module] = {
    "dct": DctBands(),
    "fourier": FourierBands(),
    **{name: WaveletBands(name) for name in FAMILIES},
}


def picture(h: int, w: int, batch: int = 1, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, h, w, generator=torch.Generator().manual_seed(seed))


def shaken(network: nn.Module, amount: float = 0.3) -> nn.Module:
    """The same network with every weight away from its start."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(amount * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize("name", TRANSFORMS)
@settings(max_examples=25, deadline=None)
@given(h=st.integers(1, 40), w=st.integers(1, 40), seed=st.integers(0, 99))
def test_bands_sum_to_the_picture(name: str, h: int, w: int, seed: int) -> None:
    lr = picture(h, w, 2, seed)
    bands = TRANSFORMS[name](lr)
    assert bands.shape == (2, 3, 3, h, w)
    assert (bands.sum(1) - lr).abs().max() < 1e-5


@pytest.mark.parametrize("h, w", [(200, 131), (7, 9), (8, 8), (129, 64)])
@pytest.mark.parametrize("kind", [DctBands, FourierBands])
def test_bands_sum_to_the_picture_whatever_was_learnt(
    kind: type[nn.Module], h: int, w: int
) -> None:
    lr = picture(h, w)
    assert (shaken(kind())(lr).sum(1) - lr).abs().max() < 1e-5


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("h, w", [(1, 1), (5, 3), (16, 24), (33, 47)])
def test_a_flat_picture_is_all_low(name: str, h: int, w: int) -> None:
    bands = TRANSFORMS[name](torch.full((1, 3, h, w), 0.7))
    assert (bands[:, 0] - 0.7).abs().max() < 1e-5
    assert bands[:, 1:].abs().max() < 1e-5


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_chequerboard_is_all_high(name: str) -> None:
    """The highest frequency there is, away from the border."""
    rows, columns = torch.meshgrid(torch.arange(160), torch.arange(160), indexing="ij")
    board = ((rows + columns) % 2).float().expand(1, 3, -1, -1) - 0.5
    inner = TRANSFORMS[name](board)[..., 64:96, 64:96].square().mean((0, 2, 3, 4))
    assert inner[2] > 0.8 * inner.sum()


@pytest.mark.parametrize("name", TRANSFORMS)
def test_bands_differ(name: str) -> None:
    energy = TRANSFORMS[name](picture(40, 40) - 0.5).square().mean((0, 2, 3, 4))
    assert (energy > 0.01 * energy.sum()).all()


@pytest.mark.parametrize("name", pywt.wavelist(kind="discrete"))
def test_no_wavelet_shifts_an_impulse(name: str) -> None:
    size, centre = 161, 80
    lr = torch.zeros(1, 3, size, size)
    lr[..., centre, centre] = 1
    place = torch.arange(size).double()
    low = WaveletBands(name)(lr)[0, 0, 0].double()
    for axis in (0, 1):
        along = low.sum(1 - axis).abs()
        assert abs(float((along * place).sum() / along.sum()) - centre) < 1e-3


def test_fourier_low_band_does_not_shift_an_impulse() -> None:
    lr = torch.zeros(1, 3, 41, 41)
    lr[..., 20, 20] = 1
    low = FourierBands()(lr).detach()[0, 0, 0].abs().double()
    place = torch.arange(41).double()
    assert abs(float((low.sum(0) * place).sum() / low.sum()) - 20) < 1e-3


def test_haar_is_the_stationary_transform_of_pywavelets() -> None:
    """LL, LH + HL and HH are the inverses of `pywt.swt2`'s sub-bands, away from the border."""
    lr = picture(32, 32)
    bands = WaveletBands("haar")(lr)[0, :, 1].numpy()
    approximation, (horizontal, vertical, diagonal) = pywt.swt2(lr[0, 1].numpy(), "haar", 1)[0]
    none = np.zeros_like(approximation)
    wanted = [
        pywt.iswt2([(approximation, (none, none, none))], "haar"),
        pywt.iswt2([(none, (horizontal, vertical, none))], "haar"),
        pywt.iswt2([(none, (none, none, diagonal))], "haar"),
    ]
    inside = np.s_[2:-2, 2:-2]
    for band, reference in zip(bands, wanted, strict=True):
        np.testing.assert_allclose(band[inside], reference[inside], atol=1e-5)


def test_unknown_wavelets_are_named() -> None:
    with pytest.raises(ValueError, match="'hair'"):
        FrequencyBands("hair")
    with pytest.raises(ValueError, match="'morl'"):  # continuous: it has no filters
        FrequencyBands("morl")


def test_dct_basis_is_the_orthonormal_one() -> None:
    block = torch.rand(8, 8, generator=torch.Generator().manual_seed(1))
    basis = DctBands().basis
    assert isinstance(basis, Tensor)
    flat = basis.flatten(1)
    assert torch.allclose(flat @ flat.t(), torch.eye(64), atol=1e-6)
    spectrum = (flat @ block.flatten()).reshape(8, 8).numpy()
    np.testing.assert_allclose(spectrum, scipy.fft.dctn(block.numpy(), norm="ortho"), atol=1e-5)


def test_zigzag_is_that_of_jpeg() -> None:
    """The first entries of ITU-T T.81, figure 5, and the last."""
    place = DctBands().place
    assert isinstance(place, Tensor)
    order = (place * 63).round().int().reshape(8, 8)
    assert order[:4, :4].tolist() == [[0, 1, 5, 6], [2, 4, 7, 13], [3, 8, 12, 17], [9, 11, 18, 24]]
    assert order[7].tolist() == [35, 36, 48, 49, 57, 58, 62, 63]
    assert sorted(order.flatten().tolist()) == list(range(64))


def test_dct_masks_are_soft_steps_along_the_zigzag_at_thirds_at_first() -> None:
    """A single coefficient goes to the bands by sigmoid(50 (border - place))."""
    bands = DctBands()
    assert isinstance(bands.basis, Tensor)
    for number, (row, column) in {
        0: (0, 0),
        20: (0, 5),
        21: (0, 6),
        22: (1, 5),
        63: (7, 7),
    }.items():
        wave = bands.basis[row * 8 + column, 0].expand(1, 3, -1, -1)
        parts = bands(wave)
        shares = (parts * wave).sum((2, 3, 4))[0] / wave.square().sum()
        assert isinstance(bands.place, Tensor)
        place = float(bands.place[row * 8 + column])
        low = 1 / (1 + math.exp(-50 * (1 / 3 - place)))
        high = 1 / (1 + math.exp(-50 * (place - 2 / 3)))
        wanted = torch.tensor([low, 1 - low - high, high])
        assert torch.allclose(shares, wanted, atol=1e-4), number


def test_dct_borders_follow_the_picture_and_stay_in_order() -> None:
    bands = shaken(DctBands(), 1.0)

    def shares(lr: Tensor) -> Tensor:
        """How much of each coefficient goes to each band, measured: [3, 64]."""
        assert isinstance(bands.basis, Tensor)
        flat = bands.basis.flatten(1)
        blocks = bands(lr)[0, :, 0].flatten(1)
        return (blocks @ flat.t()) / (lr[0, 0].flatten() @ flat.t())

    draw = torch.Generator().manual_seed(2)
    smooth, rough = torch.rand(2, 1, 1, 8, 8, generator=draw)
    smooth = 0.5 + 0.02 * smooth
    one, other = (shares(lr.expand(1, 3, -1, -1)) for lr in (smooth, rough))
    assert (one - other).abs().max() > 1e-3
    for share in (one, other):
        assert share.min() > -1e-3 and share.max() < 1 + 1e-3  # no band gets more than all


@settings(max_examples=40, deadline=None)
@given(inner=st.floats(-4, 1), step=st.floats(-4, 1), slope=st.floats(0, 5))
def test_rings_are_a_partition_with_dc_in_the_low_one(
    inner: float, step: float, slope: float
) -> None:
    bands = FourierBands()
    with torch.no_grad():
        bands.radii.copy_(torch.tensor([inner, step]))
        bands.sharpness.fill_(slope)
        low, middle, high = bands.rings(torch.linspace(0, math.sqrt(2), 200))
    assert max(abs(float(x)) for x in (low[0] - 1, middle[0], high[0])) < 1e-6
    assert torch.allclose(low + middle + high, torch.ones(200), atol=1e-6)
    assert min(low.min(), middle.min(), high.min()) > -1e-5
    assert (low.diff() <= 1e-6).all() and (high.diff() >= -1e-6).all()


@pytest.mark.parametrize("h, w", [(8, 8), (7, 9), (1, 6), (32, 21)])
def test_rings_act_as_on_the_fourier_transform(h: int, w: int) -> None:
    bands = shaken(FourierBands())
    assert isinstance(bands, FourierBands)
    lr = picture(h, w)
    rows = torch.fft.fftfreq(h)[:, None] * 2  # in units of Nyquist
    columns = torch.fft.fftfreq(w)[None, :] * 2
    masks = bands.rings((rows.square() + columns.square()).sqrt())
    wanted = torch.fft.ifft2(torch.fft.fft2(lr)[:, None] * masks[None, :, None]).real
    assert torch.allclose(bands(lr), wanted, atol=1e-5)


def test_band_attention_starts_at_one_and_stays_within_0_and_2() -> None:
    bands = torch.randn(2, 9, 3, 5, 4, generator=torch.Generator().manual_seed(3))
    attention = BandAttention()
    assert torch.equal(attention(bands), bands)
    ratio = shaken(attention, 3.0)(bands) / bands
    assert (ratio >= 0).all() and (ratio <= 2).all() and ratio.std() > 0.1
    assert (ratio.amax((-2, -1)) - ratio.amin((-2, -1))).max() < 1e-5  # one factor for a colour


@pytest.mark.parametrize("h, w", [(1, 1), (7, 9), (40, 13)])
def test_tiers_are_the_mean_of_the_transforms_at_first(h: int, w: int) -> None:
    lr = picture(h, w, 2)
    bands, tiers = FrequencyBands()(lr)
    assert bands.shape == (2, 9, 3, h, w) and tiers.shape == (2, 9, h, w)
    wanted = (bands[:, 0:3] + bands[:, 3:6] + bands[:, 6:9]) / 3
    assert torch.allclose(tiers, wanted.flatten(1, 2), atol=1e-6)
    assert torch.allclose(tiers.unflatten(1, (3, 3)).sum(1), lr, atol=1e-5)
