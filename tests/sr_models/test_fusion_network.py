"""The whole fusion: what it is at first, for any size, number of experts and set of phases."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sr_models.fusion.build import build_fusion, fusion_args
from sr_models.fusion.experts import expert_mean
from sr_models.fusion.gate import GateFusion
from sr_models.fusion.network import FusionNetwork, FusionShape

PHASES = (
    "frequency", "cross_band", "collaboration", "hierarchy", "selection", "refinement", "edges",
)  # fmt: skip
TINY = FusionShape(width=16, common_width=16, guidance_width=16)


def shaped(switches: Mapping[str, bool], **others: Any) -> FusionShape:
    """The tiny shape with some phases switched on or off."""
    changes: dict[str, Any] = {**switches, **others}
    return replace(TINY, **changes)


def names_of(count: int) -> tuple[str, ...]:
    return ("hat", "drct", "grl", "edsr", "span", "dat")[:count]


def some(names: tuple[str, ...]) -> dict[str, int]:
    """Every expert but the second has features."""
    return {name: 4 + i for i, name in enumerate(names) if i != 1}


class Given:
    """LR, pictures and features of one call, random but the same every time."""

    def __init__(
        self,
        names: tuple[str, ...],
        scale: int,
        h: int,
        w: int,
        channels: Mapping[str, int] | None = None,
        batch: int = 1,
        low: float = -0.2,
        high: float = 1.2,
    ) -> None:
        draw = torch.Generator().manual_seed(1000 * h + w)
        self.lr = torch.rand(batch, 3, h, w, generator=draw)
        self.sr = {
            n: low + (high - low) * torch.rand(batch, 3, h * scale, w * scale, generator=draw)
            for n in names
        }
        self.features = {
            n: 20 * torch.randn(batch, c, h, w, generator=draw) for n, c in (channels or {}).items()
        }

    def to(self, network: nn.Module) -> Tensor:
        return network(self.lr, self.sr, self.features)


def fresh(
    names: tuple[str, ...],
    scale: int,
    channels: Mapping[str, int] | None = None,
    shape: FusionShape = TINY,
) -> FusionNetwork:
    torch.manual_seed(11)
    return FusionNetwork(names, scale, channels, shape)


def shaken(network: FusionNetwork, amount: float = 0.05) -> FusionNetwork:
    """The same network with every weight away from its start."""
    torch.manual_seed(12)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(amount * torch.randn_like(parameter))
    return network


def is_the_mean(network: FusionNetwork, given: Given) -> bool:
    with torch.no_grad():
        output = given.to(network)
    wanted = expert_mean(given.sr, network.experts)
    return output.shape == wanted.shape and float((output - wanted).abs().max()) <= 1e-6


# At first


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 6),
    scale=st.sampled_from([1, 2, 3, 4, 8]),
    h=st.integers(1, 40),
    w=st.integers(1, 40),
    informed=st.booleans(),
    switches=st.fixed_dictionaries({phase: st.booleans() for phase in PHASES}),
)
def test_a_fresh_network_is_the_mean(
    count: int, scale: int, h: int, w: int, informed: bool, switches: dict[str, bool]
) -> None:
    names = names_of(count)
    channels = some(names) if informed else {}
    network = fresh(names, scale, channels, shaped(switches))
    assert is_the_mean(network, Given(names, scale, h, w, channels))


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("h, w", [(1, 1), (7, 9)])
def test_a_fresh_network_of_all_phases_is_the_mean(scale: int, count: int, h: int, w: int) -> None:
    names = names_of(count)
    for channels in ({}, some(names)):
        network = fresh(names, scale, channels)
        assert is_the_mean(network, Given(names, scale, h, w, channels, batch=2))


@pytest.mark.parametrize("off", [(), *((p,) for p in PHASES), PHASES], ids="-".join)
def test_a_fresh_network_is_the_mean_without_any_phase(off: tuple[str, ...]) -> None:
    names = names_of(3)
    network = fresh(names, 4, some(names), shaped(dict.fromkeys(off, False)))
    assert is_the_mean(network, Given(names, 4, 10, 7, some(names)))


@pytest.mark.parametrize("scale", [2, 3])
def test_a_fresh_network_is_the_mean_of_large_pictures(scale: int) -> None:
    names = names_of(2)
    network = fresh(names, scale, some(names))
    assert is_the_mean(network, Given(names, scale, 200, 131, some(names)))


def test_a_fresh_network_passes_the_gradient_of_every_value_on() -> None:
    """Each expert's share of it is 1/n, also far outside [0, 1]: nothing is clamped."""
    names = names_of(3)
    given = Given(names, 2, 9, 8, some(names), low=-3, high=4)
    for picture in given.sr.values():
        picture.requires_grad_()
    given.to(fresh(names, 2, some(names))).sum().backward()
    for picture in given.sr.values():
        assert picture.grad is not None
        assert torch.allclose(picture.grad, torch.full_like(picture, 1 / 3), atol=1e-5)


# Learnt


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 4),
    scale=st.sampled_from([2, 3, 4]),
    h=st.integers(1, 20),
    w=st.integers(1, 20),
    informed=st.booleans(),
)
def test_any_size_and_its_mirror_image_give_finite_pictures(
    count: int, scale: int, h: int, w: int, informed: bool
) -> None:
    names = names_of(count)
    channels = some(names) if informed else {}
    given = Given(names, scale, h, w, channels)
    with torch.no_grad():
        network = shaken(fresh(names, scale, channels))
        output = given.to(network)
        given.lr = given.lr.flip(-1)
        given.sr = {n: x.flip(-1) for n, x in given.sr.items()}
        given.features = {n: x.flip(-1) for n, x in given.features.items()}
        mirrored = given.to(network)
    assert output.shape == mirrored.shape == (1, 3, h * scale, w * scale)
    assert output.isfinite().all() and mirrored.isfinite().all()


def test_values_outside_0_and_1_stay_there_and_keep_their_gradient() -> None:
    names = names_of(3)
    given = Given(names, 2, 12, 9, some(names), low=-3, high=4)
    given.lr = 7 * given.lr - 3
    for tensor in (given.lr, *given.sr.values()):
        tensor.requires_grad_()
    output = given.to(shaken(fresh(names, 2, some(names))))
    assert output.isfinite().all() and output.min() < -0.5 and output.max() > 1.5
    output.sum().backward()
    for tensor in (given.lr, *given.sr.values()):
        assert tensor.grad is not None and tensor.grad.isfinite().all()
        assert (tensor.grad != 0).float().mean() > 0.99


def test_items_of_a_batch_do_not_touch_each_other() -> None:
    names = names_of(3)
    given = Given(names, 2, 9, 11, some(names), batch=3)
    with torch.no_grad():
        network = shaken(fresh(names, 2, some(names)))
        together = given.to(network)
        given.lr = given.lr[1:2]
        given.sr = {n: x[1:2] for n, x in given.sr.items()}
        given.features = {n: x[1:2] for n, x in given.features.items()}
        assert torch.allclose(together[1:2], given.to(network), atol=1e-5)


@pytest.mark.parametrize("phase", PHASES)
def test_every_phase_changes_what_a_learnt_network_gives(phase: str) -> None:
    """A switch that is off leaves no weights behind, and the others work without the phase."""
    names = names_of(3)
    given = Given(names, 2, 9, 11, some(names))
    every = fresh(names, 2, some(names))
    without = fresh(names, 2, some(names), shaped({phase: False}))
    count = {n: sum(p.numel() for p in n.parameters()) for n in (every, without)}
    assert count[without] < count[every]
    with torch.no_grad():
        difference = given.to(shaken(every)) - given.to(shaken(without))
    assert difference.abs().max() > 1e-4


# Names


def test_experts_go_by_name_not_by_place() -> None:
    names = names_of(4)
    given = Given(names, 2, 9, 7, some(names))
    with torch.no_grad():
        network = shaken(fresh(names, 2, some(names)))
        output = given.to(network)
        given.sr = dict(reversed(given.sr.items()))
        assert torch.equal(given.to(network), output)
        given.features = dict(reversed(given.features.items()))
        assert torch.equal(given.to(network), output)
        backwards = shaken(fresh(names, 2, dict(reversed(some(names).items()))))
        assert torch.equal(given.to(backwards), output)
        given.sr["hat"], given.sr["edsr"] = given.sr["edsr"], given.sr["hat"]
        assert not torch.allclose(given.to(network), output, atol=1e-4)


def test_experts_without_features_are_not_modulated() -> None:
    """With phase 4 alone the output is the mean of the pictures times their factors."""
    names = names_of(3)
    given = Given(names, 2, 9, 7, some(names))
    network = shaken(
        fresh(names, 2, some(names), shaped({phase: phase == "collaboration" for phase in PHASES})),
        0.5,
    )
    assert network.collaboration is not None
    factors = network.collaboration(given.features)[1]
    assert factors.keys() == {"hat", "grl"}
    wanted = given.sr["hat"] * factors["hat"] + given.sr["grl"] * factors["grl"] + given.sr["drct"]
    assert torch.allclose(given.to(network), wanted / 3, atol=1e-6)


@pytest.mark.parametrize("count", [1, 3])
def test_features_of_one_expert_are_enough(count: int) -> None:
    names = names_of(count)
    given = Given(names, 2, 9, 7, {"hat": 5})
    network = shaken(fresh(names, 2, {"hat": 5}))
    output = given.to(network)
    assert output.isfinite().all()
    given.features["hat"] = given.features["hat"].flip(-2)
    assert not torch.allclose(given.to(network), output, atol=1e-4)


def test_features_that_nobody_asked_for_are_ignored() -> None:
    names = names_of(2)
    given = Given(names, 2, 5, 6, {"hat": 5})
    for network in (
        shaken(fresh(names, 2)),
        shaken(fresh(names, 2, {"hat": 5}, shaped({"collaboration": False}))),
    ):
        assert network.collaboration is None
        assert torch.equal(given.to(network), network(given.lr, given.sr))


def test_wrong_names_and_sizes_are_named() -> None:
    names, channels = ("hat", "edsr"), {"hat": 5}
    network = fresh(names, 2, channels)
    good = Given(names, 2, 6, 5, channels)
    picture, features = good.sr["hat"], good.features["hat"]
    with pytest.raises(ValueError, match=r"missing \['edsr'\], unknown \['drct'\]"):
        network(good.lr, {"hat": picture, "drct": picture}, good.features)
    with pytest.raises(ValueError, match=r"missing \['hat'\]"):
        network(good.lr, {"edsr": picture}, good.features)
    with pytest.raises(ValueError, match=r"unknown \['grl'\]"):
        network(good.lr, {**good.sr, "grl": picture}, good.features)
    with pytest.raises(ValueError, match=r"'edsr' is \(1, 3, 12, 9\), \(1, 3, 12, 10\)"):
        network(good.lr, {**good.sr, "edsr": picture[..., :-1]}, good.features)
    with pytest.raises(ValueError, match=r"'hat' is missing"):
        network(good.lr, good.sr)
    with pytest.raises(ValueError, match=r"'hat' is missing, there are \['edsr'\]"):
        network(good.lr, good.sr, {"edsr": features})
    for wrong in (features[:, 1:], features[..., 1:], torch.cat([features, features])):
        with pytest.raises(ValueError, match=r"features of 'hat' are"):
            network(good.lr, good.sr, {"hat": wrong})
    with pytest.raises(ValueError, match="'drct'"):
        FusionNetwork(names, 2, {"drct": 4}, TINY)
    with pytest.raises(ValueError, match="each once"):
        FusionNetwork(("hat", "hat"), 2, {}, TINY)
    with pytest.raises(ValueError, match="at least one"):
        FusionNetwork((), 2, {}, TINY)


# Gradient

#: Phases that only steer others have the hierarchy to steer.
ALONE = {p: {p, "hierarchy"} if p in ("frequency", "cross_band") else {p} for p in PHASES}
SETS = [
    *(pytest.param(on, id=f"only {p}") for p, on in ALONE.items()),
    *(pytest.param(set(PHASES) - {p}, id=f"no {p}") for p in PHASES),
]


def without_gradient(network: FusionNetwork, given: Given) -> list[str]:
    """Tensors that the loss does not reach after the steps that open the branches."""
    draw = torch.Generator().manual_seed(13)
    truth = torch.rand(next(iter(given.sr.values())).shape, generator=draw)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for step in range(5):
        optimiser.zero_grad()
        (given.to(network) - truth).square().mean().backward()
        if step < 4:
            optimiser.step()
    return [
        name
        for name, p in network.named_parameters()
        if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
    ]


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("informed", [False, True], ids=["pictures", "features"])
def test_the_gradient_reaches_every_tensor(count: int, informed: bool) -> None:
    names = names_of(count)
    channels = some(names) if informed else {}
    for scale in (2, 3, 4):
        network = fresh(names, scale, channels)
        given = Given(names, scale, 9, 11, channels, batch=2)
        assert without_gradient(network, given) == [], scale


@pytest.mark.parametrize("on", SETS)
@pytest.mark.parametrize("count", [1, 3])
def test_the_gradient_reaches_every_tensor_of_these_phases(on: set[str], count: int) -> None:
    names = names_of(count)
    shape = shaped({phase: phase in on for phase in PHASES})
    network = fresh(names, 2, some(names), shape)
    if count == 1 and on == {"selection"}:  # one expert leaves nothing to select
        assert not list(network.parameters())
    else:
        given = Given(names, 2, 9, 11, some(names), batch=2)
        assert without_gradient(network, given) == []


def test_routing_takes_the_gradient_back_to_the_bands() -> None:
    names = names_of(3)
    given = Given(names, 4, 9, 11)
    network = shaken(fresh(names, 4, {}, shaped({"selection": False, "refinement": False})))
    assert network.hierarchy is not None and network.frequency is not None
    with torch.no_grad():
        for stage in network.hierarchy.stages:  # only the routing is left
            for parameter in stage.parameters():
                parameter.zero_()
    given.to(network).square().mean().backward()
    for parameter in network.frequency.parameters():
        assert parameter.grad is not None and parameter.grad.any()


# Size and description


def test_the_default_shape_has_12_million_parameters_with_four_experts() -> None:
    channels = {"hat": 180, "drct": 180, "grl": 180, "edsr": 256}
    network = FusionNetwork(tuple(channels), 4, channels)
    phases = network.phase_parameters()
    assert sum(phases.values()) == sum(p.numel() for p in network.parameters())
    assert 1_080_000 <= sum(phases.values()) <= 1_320_000
    assert [name[0] for name in phases] == ["2", "3", "4", "5", "6", "7", "7"]


@settings(max_examples=15, deadline=None)
@given(count=st.integers(1, 4), switches=st.fixed_dictionaries({p: st.booleans() for p in PHASES}))
def test_phases_count_every_tensor_once(count: int, switches: dict[str, bool]) -> None:
    names = names_of(count)
    network = fresh(names, 2, some(names), shaped(switches))
    total = sum(p.numel() for p in network.parameters())
    assert sum(network.phase_parameters().values()) == total


def test_a_fusion_is_built_again_from_its_description() -> None:
    names = names_of(3)
    shape = shaped({"selection": False}, wavelet="db2", depth=4)
    network = shaken(fresh(names, 3, some(names), shape))
    args = json.loads(json.dumps(fusion_args(network.shape, network.features)))
    again = build_fusion("FusionNetwork", list(names), 3, args)
    assert isinstance(again, FusionNetwork)
    assert again.shape == shape and again.features == some(names)
    again.load_state_dict(network.state_dict())
    given = Given(names, 3, 6, 7, some(names))
    assert torch.equal(given.to(again), given.to(network))


def test_a_gate_is_built_from_its_description() -> None:
    gate = build_fusion("GateFusion", ["a", "b"], 2, {"width": 8, "depth": 2})
    assert isinstance(gate, GateFusion) and gate.experts == ("a", "b") and gate.halo == 2


@pytest.mark.parametrize(
    "architecture, args, named",
    [
        ("GateFusion", {"depth": 2, "heads": 4}, "heads"),
        ("FusionNetwork", {"heads": 4}, "heads"),
        ("FusionNetwork", {"wavelet": "hair"}, "hair"),
        ("FusionNetwork", {"features": {"c": 4}}, "'c'"),
        ("FusionNetwork", {"common_width": 12, "features": {"a": 4, "b": 4}}, "12"),
        ("HATFusion", {}, "HATFusion"),
    ],
)
def test_unknown_arguments_are_named(architecture: str, args: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        build_fusion(architecture, ["a", "b"], 2, args)


def test_names_that_torch_modules_have_are_names_of_experts_too() -> None:
    channels = {"type": 4, "keys": 6}
    network = FusionNetwork(("type", "half", "keys"), 2, channels, TINY)
    lr = torch.rand(1, 3, 5, 6)
    sr = {name: torch.rand(1, 3, 10, 12) for name in network.experts}
    features = {name: torch.randn(1, c, 5, 6) for name, c in channels.items()}
    assert network(lr, sr, features).isfinite().all()


def test_shapes_out_of_range_name_the_field() -> None:
    for field, value in (
        ("width", 0),
        ("depth", 1),
        ("guidance_width", 12),
        ("common_width", -8),
    ):
        with pytest.raises(ValueError, match=f"{field} is {value}"):
            FusionShape(**{field: value})
    with pytest.raises(ValueError, match="scale is 0"):
        FusionNetwork(("a",), 0, {}, TINY)
