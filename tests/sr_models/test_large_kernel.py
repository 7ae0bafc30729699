"""The parts that AetherNets are made of: large kernels, stochastic depth, norms, shuffles."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sr_models.layers.deployment_norm import DeploymentNorm, LayerNorm2d
from sr_models.layers.drop_path import DropPath, linear_rates
from sr_models.layers.large_kernel import ReparamLargeKernelConv, fuse_large_kernels
from sr_models.layers.light_attention import ChannelAttention, SpatialAttention
from sr_models.layers.stepwise_shuffle import shuffled_scale, stepwise_shuffle
from sr_models.layers.told import as_stored, length, number, width_ratio, without_prefix
from sr_models.registry import get_block

ODD = st.integers(0, 6).map(lambda n: 2 * n + 1)


def random_conv(lk_kernel: int, sk_kernel: int) -> ReparamLargeKernelConv:
    torch.manual_seed(lk_kernel * 31 + sk_kernel)
    conv = ReparamLargeKernelConv(6, lk_kernel, sk_kernel)
    with torch.no_grad():
        conv.lk_bias.normal_()
        conv.sk_bias.normal_()
    return conv


@settings(max_examples=25)
@given(ODD, ODD)
def test_fused_is_the_same_function_in_one_convolution(a, b):
    conv = random_conv(max(a, b), min(a, b))
    x = torch.randn(2, 6, 9, 7)
    with torch.no_grad():
        before = conv(x)
        plain = F.conv2d(x, conv.lk_conv.weight, conv.lk_bias, padding=max(a, b) // 2, groups=6)
        plain += F.conv2d(x, conv.sk_conv.weight, conv.sk_bias, padding=min(a, b) // 2, groups=6)
        conv.fuse()
        after = conv(x)
    assert before.shape == x.shape
    assert (before - plain).abs().max() <= 1e-5 * plain.abs().max()
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()
    assert {k: tuple(v.shape) for k, v in conv.state_dict().items()} == {
        "fused_conv.weight": (6, 1, max(a, b), max(a, b)),
        "fused_conv.bias": (6,),
    }


def test_fusing_twice_draws_and_changes_nothing():
    conv = random_conv(7, 3)
    state = torch.get_rng_state()
    conv.fuse()
    weight = conv.fused_conv.weight.clone()
    conv.fuse()
    assert torch.equal(conv.fused_conv.weight, weight)
    assert torch.equal(torch.get_rng_state(), state)


def test_fusing_keeps_type_mode_and_gradients():
    conv = random_conv(7, 3).to(torch.bfloat16).eval()
    conv.fuse()
    assert conv.fused_conv.weight.dtype == torch.bfloat16
    assert not conv.fused_conv.training
    assert conv.fused_conv.weight.requires_grad
    frozen = random_conv(7, 3).requires_grad_(False)
    frozen.sk_bias.requires_grad_(True)
    frozen.fuse()
    assert not frozen.fused_conv.weight.requires_grad
    assert frozen.fused_conv.bias.requires_grad


def test_built_fused_has_the_names_of_one_that_was_fused():
    conv = random_conv(5, 3)
    conv.fuse()
    other = ReparamLargeKernelConv(6, 5, fused=True)
    other.load_state_dict(conv.state_dict())
    x = torch.randn(1, 6, 5, 5)
    assert torch.equal(other(x), conv(x))


def test_every_large_kernel_inside_is_fused():
    network = nn.Sequential(random_conv(5, 3), nn.ReLU(), nn.Sequential(random_conv(3, 1)))
    fuse_large_kernels(network)
    assert sorted(network.state_dict()) == [
        "0.fused_conv.bias",
        "0.fused_conv.weight",
        "2.0.fused_conv.bias",
        "2.0.fused_conv.weight",
    ]


@pytest.mark.parametrize(("large", "small", "named"), [(4, 3, "lk_"), (5, 2, "sk_"), (3, 5, "sk_")])
def test_kernels_must_be_odd_and_in_order(large, small, named):
    with pytest.raises(ValueError, match=f"^{named}kernel"):
        ReparamLargeKernelConv(4, large, small)


def test_the_block_is_known_by_name():
    block = get_block("reparam_large_kernel")(4, lk_kernel=5, sk_kernel=3)
    assert block(torch.zeros(1, 4, 2, 2)).shape == (1, 4, 2, 2)


def test_drop_path_drops_whole_samples_while_training_only():
    torch.manual_seed(0)
    drop = DropPath(0.25)
    x = torch.ones(4000, 3, 2)
    y = drop(x)
    kept = y[:, 0, 0] != 0
    assert torch.equal(y, kept[:, None, None] * x / 0.75)
    assert 0.72 < kept.float().mean() < 0.78
    assert drop.eval()(x) is x
    assert DropPath(0.0)(x) is x


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_drop_path_rate_is_a_probability_below_one(rate):
    with pytest.raises(ValueError, match="drop_path"):
        DropPath(rate)


def test_rates_rise_linearly():
    assert linear_rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert linear_rates(0.3, 1) == [0]


@pytest.mark.parametrize(
    ("widths", "factor", "scale"),
    [((8, 8), 2, 2), ((8, 8), 3, 3), ((16, 8, 8), 2, 4), ((16, 8, 4, 32), 2, 8)],
)
def test_the_scale_of_shuffles_is_read_from_shapes(widths, factor, scale):
    network = nn.ModuleDict(
        {"up": stepwise_shuffle(widths, factor), "last": nn.Conv2d(widths[-1], 3, 3)}
    )
    assert network["up"](torch.zeros(1, widths[0], 3, 2)).shape == (
        1,
        widths[-1],
        3 * scale,
        2 * scale,
    )
    assert shuffled_scale(network.state_dict(), "up", "last.weight") == scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [0.3, 0.1, 1.0, 255.0, 1e-4, 12.5])
def test_numbers_come_back_from_any_precision(value, dtype):
    assert number(torch.tensor(value, dtype=dtype)) == value


@settings(max_examples=50)
@given(st.floats(1e-3, 1e3))
def test_a_number_as_stored_is_stored_exactly(value):
    stored = as_stored(value)
    assert stored == pytest.approx(value, rel=1e-6)
    assert number(torch.tensor(stored)) == stored


@given(st.integers(1, 3000), st.integers(1, 1500))
def test_the_ratio_gives_the_width_again(hidden, width):
    assert int(width * width_ratio(hidden, width)) == hidden


def test_names_are_counted_in_a_row():
    one = torch.zeros(1)
    state = {"module.a.0.w": one, "module.a.1.w": one, "module.a.3.w": one, "b": one}
    state = without_prefix(state)
    assert (length(state, "a"), length(state, "b")) == (2, 0)


def test_deployment_norm_moves_its_statistics_as_stated():
    torch.manual_seed(1)
    norm = DeploymentNorm(3)
    x = torch.randn(4, 3, 5, 6) * 2 + 1
    y = norm(x)
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    assert torch.allclose(y, (x - mean) / (var + 1e-4).sqrt(), atol=1e-5)
    assert torch.allclose(norm.running_mean, 0.1 * mean, atol=1e-6)
    assert torch.allclose(norm.running_var, 0.9 + 0.1 * var, atol=1e-5)
    before = norm.running_mean.clone()
    norm.eval()(x)
    assert torch.equal(norm.running_mean, before)


def test_fused_deployment_norm_is_its_eval_mode():
    torch.manual_seed(2)
    norm = DeploymentNorm(5).eval()
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.normal_()
        norm.running_var.uniform_(0.2, 3)
        x = torch.randn(2, 5, 4, 4)
        before = norm(x)
        norm.fuse()
        state = {k: v.clone() for k, v in norm.state_dict().items()}
        norm.fuse()
        after = norm.train()(x)
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()
    assert sorted(state) == ["bias", "weight"]
    assert all(torch.equal(state[k], v) for k, v in norm.state_dict().items())


def test_layer_norm_2d_is_per_pixel():
    torch.manual_seed(3)
    norm, x = LayerNorm2d(8), torch.randn(1, 8, 3, 4)
    y = norm(x)
    assert torch.allclose(y.mean(1), torch.zeros(1, 3, 4), atol=1e-6)
    assert torch.allclose(norm(x[..., :1, :1]), y[..., :1, :1], atol=1e-6)


def test_attentions_only_weigh():
    torch.manual_seed(4)
    x = torch.randn(2, 16, 5, 6)
    factors = ChannelAttention(16)(x) / x
    assert torch.allclose(factors, factors[..., :1, :1].expand_as(factors), atol=1e-5)
    factors = SpatialAttention()(x) / x
    assert torch.allclose(factors, factors[:, :1].expand_as(factors), atol=1e-5)
    with pytest.raises(ValueError, match="channel attention"):
        ChannelAttention(4)
