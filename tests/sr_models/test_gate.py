"""The gate starts as the mean, learns from there, and goes by names alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sr_models.fusion.experts import expert_mean
from sr_models.fusion.gate import GateFusion


def pictures(
    names: tuple[str, ...], scale: int = 2, h: int = 9, w: int = 7, batch: int = 2
) -> tuple[Tensor, dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(len(names) * 100 + h)
    lr = torch.rand(batch, 3, h, w, generator=draw)
    sr = {
        name: torch.rand(batch, 3, h * scale, w * scale, generator=draw) * 1.4 - 0.2
        for name in names
    }
    return lr, sr


def trained(names: tuple[str, ...], scale: int = 2, **sizes: int) -> GateFusion:
    """A gate whose every weight is away from its start."""
    torch.manual_seed(3)
    gate = GateFusion(names, scale, **sizes)
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return gate


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 9),
    scale=st.integers(1, 4),
    h=st.integers(1, 11),
    w=st.integers(1, 11),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_a_fresh_gate_is_the_mean_bit_for_bit(
    n: int, scale: int, h: int, w: int, dtype: torch.dtype
) -> None:
    names = tuple(f"e{i}" for i in range(n))
    lr, sr = pictures(names, scale, h, w)
    sr = {name: x.to(dtype) for name, x in sr.items()}
    gate = GateFusion(names, scale, width=8, depth=2).to(dtype)
    assert torch.equal(gate(lr.to(dtype), sr), expert_mean(sr, names))


def test_the_mean_is_the_mean() -> None:
    _, sr = pictures(("a", "b", "c"))
    wanted = torch.stack([sr["a"], sr["b"], sr["c"]]).double().mean(0)
    assert torch.allclose(expert_mean(sr, ("a", "b", "c")).double(), wanted, atol=1e-6)


def test_experts_go_by_name_not_by_place() -> None:
    names = ("hat", "edsr", "grl")
    gate = trained(names)
    lr, sr = pictures(names)
    assert torch.equal(gate(lr, sr), gate(lr, dict(reversed(sr.items()))))
    swapped = {"hat": sr["edsr"], "edsr": sr["hat"], "grl": sr["grl"]}
    assert not torch.allclose(gate(lr, sr), gate(lr, swapped))


def test_missing_unknown_and_misshapen_experts_are_named() -> None:
    gate = GateFusion(("hat", "edsr"), 2)
    lr, sr = pictures(("hat", "drct"))
    with pytest.raises(ValueError, match=r"missing \['edsr'\], unknown \['drct'\]"):
        gate(lr, sr)
    lr, sr = pictures(("hat", "edsr"))
    sr["edsr"] = sr["edsr"][..., :-1]
    with pytest.raises(ValueError, match="'edsr'"):
        gate(lr, sr)
    with pytest.raises(ValueError, match="each once"):
        GateFusion(("hat", "hat"), 2)
    with pytest.raises(ValueError, match="at least one"):
        GateFusion((), 2)


def test_weights_are_a_softmax_over_the_experts() -> None:
    """A gate that is sure of one expert returns that expert; and it never leaves their hull."""
    names = ("a", "b", "c")
    gate = trained(names)
    with torch.no_grad():
        gate.residual.weight.zero_()
        gate.residual.bias.zero_()  # type: ignore[union-attr]
    lr, sr = pictures(names)
    stack = torch.stack(list(sr.values()))
    output = gate(lr, sr)
    assert (output >= stack.amin(0) - 1e-5).all() and (output <= stack.amax(0) + 1e-5).all()
    with torch.no_grad():
        gate.gate.weight.zero_()
        gate.gate.bias.copy_(torch.tensor([0.0, 60.0, 0.0]).repeat_interleave(4))  # type: ignore[union-attr]
    assert torch.allclose(gate(lr, sr), sr["b"], atol=1e-5)


def test_gradient_reaches_gate_residual_and_after_a_step_all_else() -> None:
    names = ("a", "b", "c")
    torch.manual_seed(0)
    gate = GateFusion(names, 2, width=8, depth=2)
    lr, sr = pictures(names)
    optimiser = torch.optim.Adam(gate.parameters(), lr=1e-2)
    gate(lr, sr).square().mean().backward()
    assert gate.gate.weight.grad is not None and gate.gate.weight.grad.abs().sum() > 0
    assert gate.residual.weight.grad is not None and gate.residual.weight.grad.abs().sum() > 0
    optimiser.step()
    optimiser.zero_grad()
    gate(lr, sr).square().mean().backward()
    for name, parameter in gate.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_it_learns_which_expert_is_right_where() -> None:
    torch.manual_seed(0)
    lr = torch.rand(4, 3, 8, 8)
    lr[:, :, :, :4] *= 0.1  # the left half is dark: there `a` is right, elsewhere `b` is
    truth = torch.nn.functional.interpolate(lr, scale_factor=2)
    left = torch.zeros_like(truth)
    left[..., :8] = 1
    noise = 0.1 * torch.randn_like(truth)
    sr = {"a": truth + noise * (1 - left), "b": truth + noise * left}
    gate = GateFusion(("a", "b"), 2, width=8, depth=2)
    optimiser = torch.optim.Adam(gate.parameters(), lr=1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        loss = (gate(lr, sr) - truth).square().mean()
        loss.backward()
        optimiser.step()
    best = min(float((x - truth).square().mean()) for x in sr.values())
    mean = float((expert_mean(sr, ("a", "b")) - truth).square().mean())
    assert float(loss.detach()) < 0.5 * min(best, mean)


@pytest.mark.parametrize("depth", [1, 3])
def test_a_tile_with_a_halo_equals_the_whole(depth: int) -> None:
    names = ("a", "b")
    gate = trained(names, 3, width=8, depth=depth)
    assert gate.halo == depth
    lr, sr = pictures(names, 3, 21, 17)
    whole = gate(lr, sr)
    top, left, halo = 6, 5, gate.halo

    def tile(halo: int) -> Tensor:
        rows, columns = slice(top - halo, top + 7 + halo), slice(left - halo, left + 6 + halo)
        big = (slice(rows.start * 3, rows.stop * 3), slice(columns.start * 3, columns.stop * 3))
        cut = gate(lr[..., rows, columns], {n: x[..., big[0], big[1]] for n, x in sr.items()})
        return cut[..., halo * 3 : (halo + 7) * 3, halo * 3 : (halo + 6) * 3]

    wanted = whole[..., top * 3 : (top + 7) * 3, left * 3 : (left + 6) * 3]
    assert torch.allclose(tile(halo), wanted, atol=1e-5)
    assert not torch.allclose(tile(halo - 1), wanted, atol=1e-5)
