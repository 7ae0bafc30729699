"""Running experts: padding, cropping, features, micro-batches, memory, precision, finite check."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spandrel import ModelLoader

from sr_models.device import pick_device
from sr_models.experts.loading import Expert, load_expert, size_requirements
from sr_models.experts.running import (
    ExpertMemoryError,
    NonFiniteOutputError,
    pad_to,
    run_expert,
    run_padded,
)
from sr_models.networks import build_network

NETWORKS = {
    "HAT": {"embed_dim": 16, "depths": [2], "num_heads": [2], "window_size": 8, "num_feat": 8,
            "compress_ratio": 2, "squeeze_factor": 4, "mlp_ratio": 1.0},
    "DRCT": {"embed_dim": 8, "depths": [6], "num_heads": [2], "window_size": 8, "gc": 4,
             "img_size": 16},
    "GRL": {"embed_dim": 24, "depths": [2], "num_heads_window": [2], "num_heads_stripe": [2],
            "window_size": 8, "stripe_size": [16, 16], "anchor_window_down_factor": 2,
            "mlp_ratio": 1.0, "upsampler": "pixelshuffledirect"},
    "EDSR": {"num_feat": 8, "num_block": 1},
}  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid")


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("experts"), {}
    for name, args in NETWORKS.items():
        torch.manual_seed(1)
        torch.save(build_network(name, 4, args).state_dict(), folder / f"{name}.pth")
        found[name] = load_expert(folder / f"{name}.pth")
    return found


class Nearest(torch.nn.Module):
    """Repeats every pixel 2x2; its tap is the input. Fails like a full memory above `room`."""

    def __init__(self, room=100, error=None):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.conv_after_body = torch.nn.Identity()
        self.room, self.error, self.sizes = room, error, []

    def forward(self, x):
        self.sizes.append(len(x))
        if len(x) > self.room:
            raise self.error
        return self.conv_after_body(x).repeat_interleave(2, -1).repeat_interleave(2, -2)


def _expert(model, minimum=1, multiple=1):
    return Expert(
        architecture="Nearest",
        model=model,
        call=lambda m, x: m(x),
        scale=2,
        minimum=minimum,
        multiple=multiple,
        feature_module="conv_after_body",
        feature_channels=3,
        parameters=1,
        bf16_safe=True,
    )


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    minimum=st.integers(1, 40),
    multiple=st.integers(1, 24),
)
@settings(max_examples=60, deadline=None)
def test_padding_reaches_the_size_and_keeps_the_picture(height, width, minimum, multiple):
    x = torch.rand(1, 2, height, width)
    padded = pad_to(x, minimum, multiple)
    for side, before in zip(padded.shape[-2:], (height, width), strict=True):
        assert side % multiple == 0
        assert max(before, minimum) <= side < max(before, minimum) + multiple
    assert torch.equal(padded[..., :height, :width], x)
    expert = _expert(Nearest(), minimum, multiple)
    out = run_expert(expert, torch.rand(2, 3, height, width), features=True)
    assert out.sr.shape == (2, 3, 2 * height, 2 * width)
    assert out.features.shape == (2, 3, height, width)


def test_padding_mirrors_first_and_repeats_then():
    row = torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 1, 3)
    assert pad_to(row, 7, 1)[0, 0, 0].tolist() == [1, 2, 3, 2, 1, 1, 1]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(32, 32), (17, 20), (5, 40)])
def test_any_size_gives_sr_and_features_of_that_size(experts, name, size):
    torch.manual_seed(2)
    out = run_expert(experts[name], torch.rand(2, 3, *size), features=True)
    assert out.sr.shape == (2, 3, 4 * size[0], 4 * size[1])
    assert out.features.shape == (2, experts[name].feature_channels, *size)
    assert out.sr.dtype == out.features.dtype == torch.float32


@pytest.mark.parametrize("name", NETWORKS)
def test_output_is_what_the_network_says_and_not_clamped(experts, name):
    x = 3 * torch.rand(1, 3, 32, 32) - 1
    with torch.no_grad():
        expected = experts[name].model(x)
    out = run_expert(experts[name], x)
    assert torch.equal(out.sr, expected)
    assert out.features is None
    assert not experts[name].model.conv_after_body._forward_hooks
    if name == "EDSR":  # starts near the mean colour plus the input: leaves [0,1] on this input
        assert expected.min() < 0


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_our_own_takes_what_an_expert_takes(experts, name):
    torch.manual_seed(1)
    network, x = build_network(name, 4, NETWORKS[name]).eval(), torch.rand(1, 3, 5, 20)
    sizes = size_requirements(network)
    assert sizes == (experts[name].minimum, experts[name].multiple)
    with torch.no_grad():
        sr = run_padded(network, x, 4, sizes)
    assert torch.equal(sr, run_expert(experts[name], x).sr)


def test_features_are_the_output_of_the_tap(experts):
    expert, x = experts["EDSR"], torch.rand(2, 3, 9, 11)
    with torch.no_grad():
        first = expert.model.conv_first((x - expert.model.mean) * 255)
        deep = expert.model.body[0](first, expert.model.res_scale)
        expected = expert.model.conv_after_body(deep)
    assert torch.allclose(run_expert(expert, x, features=True).features, expected, atol=1e-5)


def test_micro_batches_cover_the_batch_in_order():
    model = Nearest()
    x = torch.rand(7, 3, 4, 4)
    out = run_expert(_expert(model), x, batch=3, features=True)
    assert model.sizes == [3, 3, 1]
    assert torch.equal(out.features, x)
    assert torch.equal(out.sr[..., ::2, ::2], x)
    assert out.batch == 3


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    ],
)
def test_full_memory_halves_the_batch(error):
    model = Nearest(room=2, error=error)
    x = torch.rand(9, 3, 4, 4)
    out = run_expert(_expert(model), x, batch=8)
    assert model.sizes == [8, 4, 2, 2, 2, 2, 1]
    assert torch.equal(out.sr[..., ::2, ::2], x)
    assert out.batch == 2


def test_memory_too_small_for_one_image_is_told():
    model = Nearest(room=0, error=torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(ExpertMemoryError, match=r"one image of 6x4 does not fit"):
        run_expert(_expert(model), torch.rand(4, 3, 4, 6), batch=4)
    assert model.sizes == [4, 2, 1]


def test_other_failures_are_passed_on():
    model = Nearest(room=0, error=RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run_expert(_expert(model), torch.rand(4, 3, 4, 6))
    assert model.sizes == [4]
    assert not model.conv_after_body._forward_hooks


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_names_the_image(value):
    x = torch.rand(6, 3, 4, 4)
    x[4, 1, 2, 3] = value
    with pytest.raises(NonFiniteOutputError, match="the SR of image 4 is not finite") as caught:
        run_expert(_expert(Nearest()), x, batch=3)
    assert caught.value.index == 4
    with pytest.raises(NonFiniteOutputError, match="use fp32"):
        run_expert(_expert(Nearest()), x, dtype="bf16")


@pytest.mark.parametrize("name", NETWORKS)
def test_bf16_is_near_fp32_and_leaves_the_network_as_it_was(experts, name):
    x = torch.rand(1, 3, 16, 16)
    before = run_expert(experts[name], x).sr
    half = run_expert(experts[name], x, dtype="bf16", features=True)
    assert half.sr.dtype == half.features.dtype == torch.float32
    assert not torch.equal(half.sr, before)
    assert (half.sr - before).abs().max() < 0.03
    assert torch.equal(run_expert(experts[name], x).sr, before)


def test_what_cannot_be_run_is_refused(experts):
    x = torch.rand(1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"dtype 'fp16' is not fp32 or bf16 \(fp16 overflows"):
        run_expert(experts["HAT"], x, dtype="fp16")
    with pytest.raises(ValueError, match="does not work in bf16"):
        run_expert(dataclasses.replace(experts["EDSR"], bf16_safe=False), x, dtype="bf16")
    with pytest.raises(ValueError, match="has no features"):
        run_expert(dataclasses.replace(experts["EDSR"], feature_module=None), x, features=True)
    for wrong in (x[0], x[:, :1], x.double(), x[:0]):
        with pytest.raises(ValueError, match="not float32"):
            run_expert(experts["EDSR"], wrong)
    with pytest.raises(ValueError, match="batch is 0"):
        run_expert(experts["EDSR"], x, batch=0)


def test_spandrels_own_call_agrees_inside_the_range(experts, tmp_path):
    torch.save(experts["DRCT"].model.state_dict(), tmp_path / "a.pth")
    x = torch.rand(1, 3, 13, 19)
    theirs = ModelLoader().load_from_file(tmp_path / "a.pth")(x)
    assert torch.allclose(run_expert(experts["DRCT"], x).sr.clamp(0, 1), theirs, atol=1e-6)


def test_devices(monkeypatch):
    assert pick_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"'cuda' is not available here \(there is: cpu\)"):
        pick_device("cuda")
    with pytest.raises(ValueError, match="'tpu' is not one of auto, cpu, cuda, mps"):
        pick_device("tpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("cuda")


def test_a_network_that_writes_into_its_input_leaves_the_caller_s_alone() -> None:
    class Greedy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = torch.nn.Parameter(torch.tensor(0.5), requires_grad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mul_(self.factor).repeat_interleave(2, -1).repeat_interleave(2, -2)

    expert = Expert(
        "Greedy", Greedy(), lambda model, x: model(x), 2, 1, 1, None, None, 0, bf16_safe=True
    )
    lr = torch.rand(1, 3, 4, 4)
    before = lr.clone()
    assert run_expert(expert, lr).sr.shape == (1, 3, 8, 8)
    assert torch.equal(lr, before)
