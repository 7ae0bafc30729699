"""Window attention against a plain restatement that gathers every window's pixels by loops."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sr_models.layers.window_attention import WindowAttention

C = 8


def module(seed: int = 0, **arguments: object) -> WindowAttention:
    torch.manual_seed(seed)
    made = WindowAttention(C, **arguments)  # type: ignore[arg-type]
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made.eval()


def plane(height: int, width: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, C, height, width, generator=torch.Generator().manual_seed(7))


def attention(tokens: Tensor, of: WindowAttention) -> Tensor:
    """[n, C] -> [n, C]: softmax(q k' / sqrt d) v, head by head."""
    q, k, v = (tokens @ of.qkv.weight.T + of.qkv.bias).chunk(3, -1)
    heads = []
    for part in torch.arange(C).chunk(of.heads):
        scores = q[:, part] @ k[:, part].T / len(part) ** 0.5
        heads.append(scores.softmax(-1) @ v[:, part])
    return torch.cat(heads, -1) @ of.proj.weight.T + of.proj.bias


def stretches(length: int, window: int, shift: int) -> Iterator[range]:
    """0..length, cut at shift + n·window."""
    cuts = sorted({0, length, *range(shift, length, window)})
    for first, last in pairwise(cuts):
        yield range(first, last)


def masked_by_loops(x: Tensor, of: WindowAttention) -> Tensor:
    out = torch.empty_like(x)
    for picture in range(len(x)):
        for rows in stretches(x.shape[2], of.window, of.shift):
            for columns in stretches(x.shape[3], of.window, of.shift):
                places = [(r, c) for r in rows for c in columns]
                tokens = torch.stack([x[picture, :, r, c] for r, c in places])
                for (r, c), value in zip(places, attention(tokens, of), strict=True):
                    out[picture, :, r, c] = value
    return out


def legacy_by_loops(x: Tensor, of: WindowAttention) -> Tensor:
    """Zeros up to whole windows; window (i, j) has pixel (i·w + s + a) mod H of the padded map."""
    side, out = of.window, torch.empty_like(x)
    height, width = (-(-length // side) * side for length in x.shape[-2:])
    padded = torch.zeros(*x.shape[:2], height, width)
    padded[..., : x.shape[2], : x.shape[3]] = x
    for picture in range(len(x)):
        for top in range(0, height, side):
            for left in range(0, width, side):
                places = [
                    ((top + a + of.shift) % height, (left + b + of.shift) % width)
                    for a in range(side)
                    for b in range(side)
                ]
                tokens = torch.stack([padded[picture, :, r, c] for r, c in places])
                for (r, c), value in zip(places, attention(tokens, of), strict=True):
                    if r < x.shape[2] and c < x.shape[3]:
                        out[picture, :, r, c] = value
    return out


@given(st.integers(1, 11), st.integers(1, 11), st.integers(1, 5), st.integers(0, 4), st.booleans())
@settings(max_examples=40)
def test_it_is_what_the_loops_say(h: int, w: int, window: int, shift: int, masked: bool) -> None:
    layer = module(window=window, shift=shift % window, masked=masked)
    restated = masked_by_loops if masked else legacy_by_loops
    with torch.no_grad():
        x = plane(h, w)
        torch.testing.assert_close(layer(x), restated(x, layer), rtol=0, atol=2e-5)


def test_released_windows_mix_opposite_borders_and_masked_ones_do_not() -> None:
    x = plane(8, 8, 1)
    other = x.clone()
    other[..., -1] += 1  # the right border
    for masked in (False, True):
        layer = module(window=4, shift=2, masked=masked)
        with torch.no_grad():
            change = (layer(other) - layer(x)).abs().amax((0, 1, 2))
        assert (change[0] == 0) == masked
        assert change[-1] > 0


def test_a_move_by_whole_windows_moves_the_result() -> None:
    layer, x = module(window=4, shift=2), plane(19, 18, 1)
    with torch.no_grad():
        whole, part = layer(x), layer(x[..., 4:, 8:])
    # Windows of the part's first border are smaller than in the whole map: after it all is equal.
    torch.testing.assert_close(part[..., 2:, 2:], whole[..., 6:, 10:], rtol=0, atol=1e-6)


def test_what_padding_holds_has_no_influence(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = module(window=4, shift=2), plane(5, 7)
    with torch.no_grad():
        zeros = layer(x)
        pad = torch.nn.functional.pad

        def filled(x: Tensor, sides: tuple[int, ...]) -> Tensor:
            return pad(x, sides, value=3.0)

        monkeypatch.setattr("torch.nn.functional.pad", filled)
        torch.testing.assert_close(layer(x), zeros, rtol=0, atol=1e-6)
        released = module(window=4, shift=2, masked=False)
        with_threes = released(x)
        monkeypatch.undo()
        assert (released(x) - with_threes).abs().max() > 1e-2  # zeros take part there


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_flex_is_sdpa(masked: bool, shift: int) -> None:
    plain = module(window=4, shift=shift, masked=masked)
    flex = module(window=4, shift=shift, masked=masked, mode="flex")
    flex.load_state_dict(plain.state_dict())
    x = plane(9, 6)
    with torch.no_grad():
        torch.testing.assert_close(flex(x), plain(x), rtol=0, atol=1e-5)
    for layer in (flex, plain):  # with gradients a CPU has no flex: sdpa stands in
        layer(x).square().sum().backward()
    torch.testing.assert_close(flex.qkv.weight.grad, plain.qkv.weight.grad)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"heads": 3}, "heads"),
        ({"window": 0}, "window"),
        ({"shift": 16}, "shift"),
        ({"mode": "flash"}, "mode"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        module(**arguments)
