"""Phases 3 to 7 each on its own: what it promises before and after it has learnt something."""

import pytest
import torch
from torch import Tensor, nn

from sr_models.degradations import bicubic
from sr_models.fusion.attention import LargeKernelAttention, LargeKernelBlock, TokenAttention
from sr_models.fusion.collaboration import Collaboration
from sr_models.fusion.experts import check_names, expert_mean
from sr_models.fusion.guidance import CrossBandAttention
from sr_models.fusion.hierarchy import Hierarchy
from sr_models.fusion.levels import excess, halved, resized
from sr_models.fusion.refinement import BackProjection, EdgeEnhancement, Refinement
from sr_models.fusion.selection import Selection


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def shaken(network: nn.Module, amount: float) -> nn.Module:
    """The same network with every weight away from its start."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(amount * torch.randn_like(parameter))
    return network


def pictures(count: int, h: int, w: int) -> tuple[Tensor, Tensor]:
    """The mean of `count` pictures, and how each deviates from it."""
    stack = random(2, count, 3, h, w, seed=count)
    mean = stack.mean(1)
    return mean, stack - mean[:, None]


# Phase 1


def test_an_expert_is_named_once_and_there_is_one() -> None:
    assert check_names(["b", "a"]) == ("b", "a")
    for wrong in ([], ["a", "a"]):
        with pytest.raises(ValueError, match="at least one name, each once"):
            check_names(wrong)


def test_the_mean_does_not_depend_on_the_order_of_the_mapping() -> None:
    sr = {name: random(1, 3, 5, 5, seed=i) for i, name in enumerate("abcd")}
    assert torch.equal(expert_mean(sr, "abcd"), expert_mean(dict(reversed(sr.items())), "abcd"))


# Phase 3


def test_large_kernel_attention_sees_21_by_21_pixels_without_holes() -> None:
    attention = LargeKernelAttention(2)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.copy_(parameter.abs() + 0.1)  # so that nothing cancels
    x = torch.zeros(1, 2, 41, 41, requires_grad=True)
    attention.mix(attention.far(attention.near(x)))[0, 0, 20, 20].backward()
    assert x.grad is not None
    for channel in x.grad[0]:
        seen = torch.nonzero(channel)
        assert len(seen) == 21 * 21 == LargeKernelAttention.FIELD**2
        assert seen.amin(0).tolist() == [10, 10] and seen.amax(0).tolist() == [30, 30]


@pytest.mark.parametrize("h, w", [(1, 1), (1, 30), (7, 9), (23, 20)])
def test_large_kernel_block_keeps_any_size(h: int, w: int) -> None:
    x = random(2, 8, h, w)
    output = LargeKernelBlock(8)(x)
    assert output.shape == x.shape and output.isfinite().all()


def test_large_kernel_block_of_a_pixel_sees_only_21_by_21() -> None:
    """The norms look at no other pixel."""
    block = shaken(LargeKernelBlock(8), 0.3)
    x = random(1, 8, 31, 31)
    changed = x.clone()
    changed[:, 0, 4, :] += 1  # one channel: the norm takes away what all have in common
    changed[:, 0, :, 26] += 1
    difference = (block(changed) - block(x))[0, :, 15, 15]
    assert torch.equal(difference, torch.zeros(8))
    changed[:, 0, 5, 5] += 1
    assert (block(changed) - block(x))[0, :, 15, 15].abs().max() > 0


def test_token_attention_is_the_textbook_one() -> None:
    """With the same weights it equals torch's attention of as many heads, at each pixel."""
    torch.manual_seed(1)
    ours = TokenAttention(12, 4, 12)
    theirs = nn.MultiheadAttention(12, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.query_key_value.weight.flatten(1))
        theirs.in_proj_bias.zero_()
        theirs.out_proj.weight.copy_(ours.output.weight.flatten(1))
        assert ours.output.bias is not None
        theirs.out_proj.bias.copy_(ours.output.bias)
    tokens = torch.randn(2, 9, 12, 3, 4)
    at_pixels = tokens.permute(0, 3, 4, 1, 2).flatten(0, 2)
    wanted = theirs(at_pixels, at_pixels, at_pixels)[0]
    assert torch.allclose(ours(tokens).permute(0, 3, 4, 1, 2).flatten(0, 2), wanted, atol=1e-5)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="8 heads do not divide"):
        TokenAttention(12, 8, 8)


def test_cross_band_attention_mixes_bands_but_not_pixels() -> None:
    torch.manual_seed(2)
    attention = CrossBandAttention(9, 8)
    bands = random(2, 9, 3, 5, 4).requires_grad_()
    output = attention(bands)
    assert output.shape == (2, 8, 5, 4)
    output[0, :, 2, 3].sum().backward()
    assert bands.grad is not None
    reached = bands.grad.abs().sum(2)
    assert (reached[0, :, 2, 3] > 0).all()
    reached[0, :, 2, 3] = 0
    assert not reached.any()


def test_cross_band_attention_tells_bands_apart() -> None:
    attention = shaken(CrossBandAttention(9, 8), 0.3)
    bands = random(1, 9, 3, 4, 4)
    assert not torch.allclose(attention(bands), attention(bands.flip(1)), atol=1e-4)


# Phase 4


def collaboration(channels: dict[str, int], scale: int = 2) -> Collaboration:
    torch.manual_seed(4)
    return Collaboration(channels, scale, 16)


@pytest.mark.parametrize("names", ["a", "ab", "abcdef"])
def test_factors_are_exactly_one_at_first(names: str) -> None:
    channels = {name: 4 + i for i, name in enumerate(names)}
    features = {n: 50 * random(2, c, 7, 5, seed=c) - 9 for n, c in channels.items()}
    consensus, factors = collaboration(channels)(features)
    assert consensus.shape == (2, 16, 7, 5) and consensus.isfinite().all()
    assert factors.keys() == channels.keys()
    for factor in factors.values():
        assert torch.equal(factor, torch.ones(2, 3, 14, 10))


@pytest.mark.parametrize("amount", [0.5, 30.0])
def test_factors_stay_within_a_tenth_of_one(amount: float) -> None:
    network = shaken(collaboration({"a": 4, "b": 6}), amount)
    features = {"a": 1000 * random(1, 4, 9, 9), "b": 0.001 * random(1, 6, 9, 9)}
    for factor in network(features)[1].values():
        assert factor.min() >= 0.9 - 1e-6 and factor.max() <= 1.1 + 1e-6
        assert factor.std() > 1e-3  # a factor for each pixel, not one for the picture


def test_silent_features_are_no_division_by_zero() -> None:
    network = shaken(collaboration({"a": 4, "b": 6}), 0.3)
    features = {"a": torch.zeros(1, 4, 5, 5), "b": torch.full((1, 6, 5, 5), 1e4)}
    consensus, factors = network(features)
    assert consensus.isfinite().all() and all(f.isfinite().all() for f in factors.values())
    consensus.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def test_experts_learn_from_each_other() -> None:
    network = shaken(collaboration({"a": 4, "b": 6}), 0.3)
    features = {"a": random(1, 4, 5, 5), "b": random(1, 6, 5, 5, seed=1)}
    one = network(features)[1]["a"]
    other = network({**features, "b": random(1, 6, 5, 5, seed=2)})[1]["a"]
    assert (one - other).abs().max() > 1e-4


# Phase 5


def test_excess_is_softmax_less_the_uniform_share() -> None:
    logits = 9 * torch.randn(2, 5, 4, 4, generator=torch.Generator().manual_seed(5))
    assert torch.allclose(excess(logits), logits.softmax(1) - 0.2, atol=1e-6)
    for count in range(1, 8):
        assert not excess(torch.full((1, count, 2, 2), 0.37)).any()
    assert excess(torch.tensor([[[[1e4]], [[-1e4]]]])).flatten().tolist() == [0.5, -0.5]


@pytest.mark.parametrize("h, w", [(1, 1), (5, 8), (7, 9), (6, 4)])
def test_halving_rounds_sizes_up_and_repeats_the_last_line(h: int, w: int) -> None:
    x = random(1, 2, h, w)
    half = halved(x, even=False)
    wanted = nn.functional.avg_pool2d(nn.functional.pad(x, (0, w % 2, 0, h % 2), "replicate"), 2)
    assert torch.equal(half, wanted)
    assert h % 2 or w % 2 or torch.equal(half, halved(x, even=True))
    assert resized(half, x).shape == x.shape


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("h, w", [(1, 1), (5, 3), (9, 16)])
@pytest.mark.parametrize("count", [1, 3])
def test_hierarchy_works_at_three_resolutions_of_any_size(
    scale: int, h: int, w: int, count: int
) -> None:
    mean, deviations = pictures(count, h * scale, w * scale)
    guidance, consensus = random(2, 8, h, w), random(2, 5, h, w)
    network = Hierarchy(count, scale, 8, 5, width=8)
    assert torch.allclose(network(mean, deviations, guidance, consensus)[0], mean, atol=1e-6)
    fused, seen = shaken(network, 0.1)(mean, deviations, guidance, consensus)
    assert fused.shape == mean.shape and seen.shape == (2, 8, h, w)
    assert fused.isfinite().all() and not torch.allclose(fused, mean, atol=1e-4)


def test_hierarchy_trusting_one_expert_everywhere_returns_it() -> None:
    """The levels' bands are a pyramid: the same weights at all of them rebuild the picture."""
    mean, deviations = pictures(3, 28, 20)
    network = Hierarchy(3, 4, 8, 0, width=8)
    with torch.no_grad():
        for module in (*network.stages, network.routing):
            last = module[-1] if isinstance(module, nn.Sequential) else module.weights
            assert isinstance(last, nn.Conv2d) and last.bias is not None
            last.bias[: len(last.bias) // 3] = 50.0
    fused, _ = network(mean, deviations, random(2, 8, 7, 5), None)
    assert torch.allclose(fused, mean + deviations[:, 0], atol=1e-5)


def test_hierarchy_and_routing_are_blended_7_to_3_and_that_is_learnt() -> None:
    mean, deviations = pictures(2, 16, 16)
    network = Hierarchy(2, 4, 8, 0, width=8)
    assert network.routing is not None
    last = network.routing[-1]
    assert isinstance(last, nn.Conv2d) and last.bias is not None
    with torch.no_grad():
        last.bias[:16] = 50.0  # the routing is sure, the hierarchy has no opinion
    fused, _ = network(mean, deviations, random(2, 8, 4, 4), None)
    assert torch.allclose(fused, mean + 0.3 * deviations[:, 0], atol=1e-5)
    fused.square().sum().backward()
    assert network.share.grad is not None and network.share.grad != 0


# Phase 6


def selection(experts: int = 4, scale: int = 2) -> Selection:
    torch.manual_seed(6)
    return Selection(experts, scale)


def test_thresholds_fall_from_07_to_02_with_difficulty() -> None:
    """A gate is one half where the score is at the threshold; weights by hand for two experts."""
    network = selection(2)
    for d, threshold in ((0.0, 0.7), (0.5, 0.45), (1.0, 0.2)):
        scores = torch.tensor([threshold, threshold + 0.1]).reshape(1, 2, 1, 1)
        half, more = 0.5, 1 / (1 + torch.exp(torch.tensor(-1.0)))  # temperature 10 times 0.1
        wanted = torch.stack([half / (half + more), more / (half + more)])
        weights = network.weights(scores, torch.full((1, 1, 1, 1), d)).flatten()
        assert torch.allclose(weights, wanted, atol=1e-5)


def test_weights_of_little_trust_are_divided_by_the_floor_and_sum_to_less_than_one() -> None:
    network = selection()
    scores = torch.full((1, 4, 1, 1), 0.45 - 0.4)  # gates of sigmoid(-4) at d = 0.5
    weights = network.weights(scores, torch.full((1, 1, 1, 1), 0.5)).flatten()
    gate = float(torch.sigmoid(torch.tensor(-4.0)))
    assert torch.allclose(weights, torch.full((4,), gate / 0.3), atol=1e-6)
    assert weights.sum() < 0.3
    sure = network.weights(torch.full((1, 4, 1, 1), 2.0), torch.zeros(1, 1, 1, 1))
    assert float(sure.sum().detach()) == pytest.approx(1, abs=1e-6)


def test_where_no_expert_is_trusted_the_mean_stays_and_nothing_darkens() -> None:
    network = selection()
    last = network.scores[-1]
    assert isinstance(last, nn.Conv2d) and last.bias is not None
    nn.init.constant_(last.bias, -9.0)
    mean, deviations = pictures(4, 12, 10)
    selected = network(random(2, 3, 6, 5), mean, mean, deviations)
    assert torch.allclose(selected, mean, atol=1e-6)


def test_a_trusted_expert_gets_30_to_70_percent() -> None:
    network = selection(3)
    last = network.scores[-1]
    assert isinstance(last, nn.Conv2d) and last.bias is not None
    with torch.no_grad():
        last.bias.copy_(torch.tensor([-9.0, 9.0, -9.0]).repeat_interleave(4))
    mean, deviations = pictures(3, 12, 10)
    hardness = network.difficulty[-1]
    assert isinstance(hardness, nn.Conv2d) and hardness.bias is not None
    for logit, share in ((-60.0, 0.3), (60.0, 0.7)):
        nn.init.constant_(hardness.bias, logit)
        selected = network(random(2, 3, 6, 5), mean, mean, deviations)
        assert torch.allclose(selected, mean + share * deviations[:, 1], atol=1e-5)


def test_selection_is_told_by_lr_alone() -> None:
    """So it is linear in the pictures: twice the deviations, twice the effect."""
    network = shaken(selection(3), 0.3)
    lr = random(1, 3, 6, 5)
    mean, deviations = (x[:1] for x in pictures(3, 12, 10))
    once = network(lr, mean, mean, deviations) - mean
    twice = network(lr, mean, mean, 2 * deviations) - mean
    assert torch.allclose(twice, 2 * once, atol=1e-5)


# Phase 7


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_global_residual_shrinks_as_lr_is_made(scale: int) -> None:
    hr = random(1, 3, 12 * scale, 15 * scale)
    inside = (..., slice(2, -2), slice(2, -2))  # the border is continued in another way
    shrunk = BackProjection(scale).shrunk(hr)
    assert shrunk.shape == (1, 3, 12, 15)
    assert torch.allclose(shrunk[inside], bicubic.downscale(hr, scale)[inside], atol=1e-5)


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("h, w", [(1, 1), (3, 7)])
def test_the_global_residual_adds_nothing_to_a_complete_picture(scale: int, h: int, w: int) -> None:
    network = BackProjection(scale)
    nn.init.constant_(network.factor, 0.8)
    hr = random(2, 3, h * scale, w * scale)
    lr = network.shrunk(hr)
    assert not network(lr, hr).any()
    added = network(lr + 0.1, hr)
    assert added.shape == hr.shape and torch.allclose(added, torch.full_like(hr, 0.08), atol=1e-5)


@pytest.mark.parametrize("depth", [2, 3, 6])
@pytest.mark.parametrize("scale", [2, 3])
def test_refinement_starts_at_nothing(depth: int, scale: int) -> None:
    network = Refinement(scale, 5, 8, depth)
    fused = random(2, 3, 7 * scale, 4 * scale)
    lr, context = random(2, 3, 7, 4), random(2, 5, 7, 4)
    assert torch.equal(network(lr, fused, context), fused)
    assert sum(1 for m in network.modules() if getattr(m, "kernel_size", 0) == (3, 3)) == depth
    assert not torch.allclose(shaken(network, 0.1)(lr, fused, context), fused, atol=1e-4)


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("h, w", [(1, 1), (5, 3)])
def test_edges_start_at_nothing_and_take_any_size(scale: int, h: int, w: int) -> None:
    network = EdgeEnhancement(scale)
    picture = random(2, 3, h * scale, w * scale)
    assert torch.equal(network(picture), picture)
    output = shaken(network, 0.1)(picture)
    assert output.shape == picture.shape and output.isfinite().all()
    assert not torch.allclose(output, picture, atol=1e-4)


def test_a_flat_picture_has_no_edges() -> None:
    """Blocks without biases answer only to edges."""
    network = shaken(EdgeEnhancement(4), 0.1)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    flat = torch.full((1, 3, 20, 12), 0.6)
    assert torch.allclose(network(flat), flat, atol=1e-5)
