"""ParagonSR2: sizes, released weights, files that tell their options, gradients and exports."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from sr_models.export.onnx import export_onnx
from sr_models.inference.tiles import upscale_tiled
from sr_models.registry import get_architecture
from sr_models.students.paragonsr2 import PRESETS, ParagonSR2

COMPAT = Path(__file__).resolve().parents[3] / "shared" / "compat"
SMALL: dict[str, Any] = {"channels": 8, "groups": 2, "blocks": 1, "window": 4}
BLOCKS = ["nano", "stream", "photo", "pro"]

COUNTS = {  # with the 72 frozen weights of the legacy base; scales 2, 3, 4, 8
    "paragonsr2_realtime": (16_780, 28_380, 44_620, 155_980),
    "paragonsr2_stream": (110_092, 156_332, 221_068, 664_972),
    "paragonsr2_photo": (745_292, 929_932, 1_188_428, 2_960_972),
    "paragonsr2_pro": (1_993_420, 2_178_060, 2_436_556, 4_209_100),
}
KEYS = {"realtime": 36, "stream": 93, "photo": 255, "pro": 1131}


def small(seed: int = 0, **options: Any) -> ParagonSR2:
    """A network whose every branch counts: LayerScale is not near zero."""
    torch.manual_seed(seed)
    network = ParagonSR2(**{**SMALL, **options})
    for name, parameter in network.named_parameters():
        if name.endswith("gamma"):
            nn.init.normal_(parameter, std=0.5)
        if name.endswith((".scale", "norm.bias")):
            nn.init.normal_(parameter, 1.0, 0.2)
    with torch.no_grad():
        network.detail_gain.fill_(0.5)
    return network.eval()


def picture(height: int, width: int, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(3))


def count(network: nn.Module, trainable: bool = False) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad or not trainable)


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_as_many_as_released(name: str) -> None:
    make = get_architecture(name)
    for scale, expected in zip((2, 3, 4, 8), COUNTS[name], strict=True):
        with torch.device("meta"):
            legacy, new = make(scale=scale, base="legacy"), make(scale=scale)
        assert count(legacy) == expected
        assert count(legacy, trainable=True) == expected - 72 == count(new)
    assert len(legacy.state_dict()) == KEYS[name.removeprefix("paragonsr2_")]


@pytest.mark.parametrize("options", [{"export_safe": True}, {"attention_mode": "none"}])
def test_parameters_without_window_attention(options: dict[str, Any]) -> None:
    for name, expected in (("paragonsr2_photo", 477_004), ("paragonsr2_pro", 1_387_468)):
        with torch.device("meta"):
            network = get_architecture(name)(scale=2, base="legacy", **options)
        assert count(network) == expected
        assert network.hyperparameters["attention_mode"] == "none"


@pytest.mark.shared
@pytest.mark.parametrize("name", ["realtime_x4", "photo_x2", "pro_x2"])
def test_released_weights_give_the_released_pictures(name: str) -> None:
    file = COMPAT / f"paragonsr2_{name}.safetensors"
    if not file.is_file():
        pytest.skip("the reference outputs are not beside this checkout")
    stored = {key: tensor.float() for key, tensor in load_file(file).items()}
    weights = {
        key.removeprefix("weights."): value for key, value in stored.items() if "weights." in key
    }
    assert ParagonSR2.detect(weights)
    network = ParagonSR2(**ParagonSR2.options(weights)).eval()
    network.load_state_dict(weights)
    with torch.no_grad():
        difference = (network(stored["input"]) - stored["output"]).abs().max()
    assert difference <= 1e-4 * stored["output"].std()


def released_forward(state: dict[str, Tensor], x: Tensor, scale: int, alpha: float) -> Tensor:
    """Nano or stream with the legacy base, restated from the state dict alone."""

    def conv(x: Tensor, name: str, **options: Any) -> Tensor:
        weight = state[f"{name}.weight"]
        groups = x.shape[1] // weight.shape[1]
        reach = options.get("dilation", 1) * (weight.shape[-1] // 2)
        bias = state[f"{name}.bias"]
        return F.conv2d(x, weight, bias, padding=reach, groups=groups, **options)

    def fixed(x: Tensor, kernel: Tensor) -> Tensor:
        square = torch.outer(kernel, kernel).expand(3, 1, -1, -1)
        return F.conv2d(x, square, padding=len(kernel) // 2, groups=3)

    sharp = fixed(x, state["base.sharp.kernel"])
    enlarged = F.interpolate((1 - alpha) * x + alpha * sharp, scale_factor=scale)
    body = conv(x, "conv_in")
    for group in range(2):
        at = f"body.{group}.blocks.0"
        if f"{at}.dw1.weight" in state:
            both = [conv(body, f"{at}.dw1"), conv(body, f"{at}.dw3", dilation=3)]
            a, b = conv(
                conv(conv(torch.cat(both, 1), f"{at}.fuse"), f"{at}.proj"), f"{at}.gate"
            ).chunk(2, 1)
            branch = conv(a * b, f"{at}.out")
        else:
            branch = conv(F.gelu(conv(conv(body, f"{at}.conv1"), f"{at}.dw")), f"{at}.conv2")
        body = body + state[f"{at}.scale.gamma"] * branch
    detail = conv(F.pixel_shuffle(conv(conv(body, "conv_mid"), "up.0"), scale), "conv_out")
    return fixed(enlarged, state["base.blur.kernel"]) + state["detail_gain"] * detail


@pytest.mark.parametrize(("block", "alpha"), [("nano", 0.3), ("stream", 0.0)])
def test_convolutional_networks_are_what_their_weights_say(block: str, alpha: float) -> None:
    network, lr = small(block=block, base="legacy", scale=3), picture(9, 11, 2)
    with torch.no_grad():
        expected = released_forward(network.state_dict(), lr, 3, alpha)
        torch.testing.assert_close(network(lr), expected, rtol=0, atol=1e-5)


OPTIONS = st.fixed_dictionaries(
    {
        "scale": st.sampled_from([2, 3, 4, 8]),
        "block": st.sampled_from(BLOCKS),
        "channels": st.sampled_from([4, 8, 20]),
        "groups": st.integers(1, 2),
        "blocks": st.integers(1, 2),
        "detail_gain": st.sampled_from([0.05, 0.1, 0.7]),
        "base": st.sampled_from(["mks2021", "legacy"]),
        "upsampler_alpha": st.none() | st.floats(0, 1.5) | st.sampled_from([0.0, 0.3, 0.4, 1.0]),
        "attention_mode": st.sampled_from(["sdpa", "none"]),
        "export_safe": st.booleans(),
        "window": st.sampled_from([1, 2, 3, 16]),
        "windows": st.sampled_from([None, "masked", "legacy"]),
        "use_checkpointing": st.booleans(),
    }
)


@given(OPTIONS, st.sampled_from(["", "module."]), st.booleans())
@settings(max_examples=60)
def test_a_file_tells_the_function(options: dict[str, Any], prefix: str, half: bool) -> None:
    network = small(**options)
    state = {
        prefix + name: tensor.half() if half else tensor
        for name, tensor in network.state_dict().items()
    }
    assert ParagonSR2.detect(state)
    told = ParagonSR2.options(state)
    again = ParagonSR2(**told).eval()
    again.load_state_dict(ParagonSR2.canonical(state))
    if half:  # the numbers that are no weights are read as they were before rounding
        network.load_state_dict({name: t.half() for name, t in network.state_dict().items()})
    assert {**network.hyperparameters, "use_checkpointing": False, "detail_gain": 0} == {
        **again.hyperparameters,
        "detail_gain": 0,
    }
    lr = picture(3, 5)
    with torch.no_grad():
        assert torch.equal(again(lr), network(lr))


def test_new_networks_add_no_words_to_their_file() -> None:
    for base in ("mks2021", "legacy"):
        names = set(ParagonSR2(**{**SMALL, "window": 16}, base=base).state_dict())
        assert not names & {"upsampler_alpha", "window", "masked"}
        assert base == "legacy" or not any(name.startswith("base.") for name in names)


def test_weights_that_say_another_number_are_refused() -> None:
    four, eight = small(window=4), small(window=8)
    with pytest.raises(RuntimeError, match=r"window is 8 in the file.*built with 4"):
        four.load_state_dict(eight.state_dict())
    with pytest.raises(RuntimeError, match=r"window is 4 in the file.*built with 16"):
        small(window=16).load_state_dict(four.state_dict())
    copy.deepcopy(four).load_state_dict(four.state_dict())


@pytest.mark.parametrize(
    "built", [{"upsampler_alpha": 0.0}, {"upsampler_alpha": 1.3}, {"window": 8}, {"window": 5}]
)
def test_a_file_without_a_word_takes_what_was_built(built: dict[str, Any]) -> None:
    network = small(base="legacy", **{"window": 16, **built})
    network.load_state_dict(small(1, base="legacy", window=16).state_dict())
    for name, value in built.items():
        assert float(network.state_dict()[name]) == pytest.approx(value)
    again = ParagonSR2(**ParagonSR2.options(network.state_dict())).eval()
    again.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(again(picture(5, 9)), network(picture(5, 9)))


def test_a_strength_nearby_is_another_and_its_rounding_is_not() -> None:
    network = small(block="nano", base="legacy", upsampler_alpha=0.2)
    other = small(block="nano", base="legacy", upsampler_alpha=0.204)
    with pytest.raises(RuntimeError, match=r"upsampler_alpha is 0\.204 .*built with 0\.2"):
        network.load_state_dict(other.state_dict())
    for kind in (torch.float16, torch.bfloat16):
        rounded = {name: tensor.to(kind) for name, tensor in network.state_dict().items()}
        assert ParagonSR2.options(rounded)["upsampler_alpha"] == 0.2
        network.load_state_dict(rounded)
        assert float(network.upsampler_alpha) == pytest.approx(0.2, abs=1e-7)


def test_released_weights_say_what_network_they_need() -> None:
    network, released = small(), small(1, base="legacy")
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(RuntimeError, match=r'base is "legacy".*build it with base: "legacy"') as e:
        network.load_state_dict(released.state_dict())
    assert "key" not in str(e.value)
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())


def test_no_attention_may_be_said_as_null() -> None:
    network = small(attention_mode=None)
    assert network.hyperparameters["attention_mode"] == "none"
    assert network.state_dict().keys() == small(attention_mode="none").state_dict().keys()


def test_names_that_others_use_are_answered_with_ours() -> None:
    for make in (ParagonSR2, get_architecture("paragonsr2_photo")):
        with pytest.raises(TypeError, match="'window_size', it is called window"):
            make(window_size=8)
    with pytest.raises(TypeError, match="no argument 'nothing'"):
        ParagonSR2(nothing=1)


def test_names_of_older_versions_are_mapped() -> None:
    network = small(block="nano", base="legacy")
    old: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        if name.endswith(".kernel"):
            continue
        for new, before in (
            ("base.sharp.h", "base_upsampler.sharpen.conv_h"),
            ("base.sharp.v", "base_upsampler.sharpen.conv_v"),
            ("base.blur.h", "base_upsampler.resample_conv.conv_h"),
            ("base.blur.v", "base_upsampler.resample_conv.conv_v"),
            (".conv1.", ".net.0."),
            (".dw.", ".net.2."),
            (".conv2.", ".net.4."),
            ("detail_gain", "global_detail_gain"),
            ("up.0", "detail_upsampler.up_conv"),
            ("conv_mid", "conv_fuse"),
        ):
            name = name.replace(new, before)
        old[f"module.{name}"] = tensor
    canonical = ParagonSR2.canonical(old)
    assert ParagonSR2.detect(old)
    assert canonical.keys() == network.state_dict().keys()
    again = ParagonSR2(**ParagonSR2.options(old)).eval()
    again.load_state_dict(old)
    with torch.no_grad():
        assert torch.equal(again(picture(5, 6)), network(picture(5, 6)))


def test_other_families_are_not_taken_for_it() -> None:
    state = small().state_dict()
    for name in ("conv_mid.weight", "up.0.weight", "detail_gain", "body.0.blocks.0.dw.weight"):
        assert not ParagonSR2.detect({n: t for n, t in state.items() if n != name})
    assert not ParagonSR2.detect({**state, "up.0.weight": torch.zeros(8 * 25, 8, 3, 3)})
    assert not ParagonSR2.detect({**state, "conv_in.weight": torch.zeros(8, 1, 3, 3)})
    assert not ParagonSR2.detect({})
    with pytest.raises(ValueError, match="paragonsr2"):
        ParagonSR2.options({})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"scale": 5}, "scale"),
        ({"block": "nanno"}, "nano"),
        ({"base": "bicubic"}, "base"),
        ({"windows": "open"}, "windows"),
        ({"attention_mode": "flash"}, "attention_mode"),
        ({"upsampler_alpha": -0.1}, "upsampler_alpha"),
        ({"upsampler_alpha": float("nan")}, "upsampler_alpha"),
        ({"groups": 0}, "groups"),
        ({"window": 0}, "window"),
        ({"channels": 6}, "channels"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ParagonSR2(**{**SMALL, **options})


def test_presets_take_further_arguments() -> None:
    network = get_architecture("paragonsr2_realtime")(scale=2, channels=8, upsampler_alpha=0.4)
    assert network.hyperparameters["channels"] == 8
    assert network.hyperparameters["detail_gain"] == PRESETS["paragonsr2_realtime"].detail_gain
    assert float(network.state_dict()["upsampler_alpha"]) == pytest.approx(0.4)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (6, 5)])
@pytest.mark.parametrize("base", ["mks2021", "legacy"])
def test_any_size_and_batches_of_independent_pictures(
    block: str, size: tuple[int, int], base: str
) -> None:
    network, lr = small(block=block, base=base, scale=3), picture(*size, 2)
    with torch.no_grad():
        sr = network(lr)
        assert sr.shape == (2, 3, 3 * size[0], 3 * size[1])
        torch.testing.assert_close(sr[1:], network(lr[1:]), rtol=0, atol=1e-5)
        features = network.features(lr)
        assert features.shape == (2, 8, *size)
        assert torch.equal(network.reconstruct(lr, features), sr)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("base", ["mks2021", "legacy"])
def test_tiles_are_exact_where_it_says_so(block: str, base: str) -> None:
    network, lr = small(block=block, base=base, scale=2), picture(52, 47)
    assert network.tileable == (block in ("nano", "stream"))
    with torch.no_grad():
        whole = network(lr)
        halo = network.halo
        tiled = upscale_tiled(network, lr, 2, tile=2 * halo + 5, halo=halo)
        difference = (tiled - whole).abs().max()
    assert (difference < 1e-6) == network.tileable


@pytest.mark.parametrize("block", BLOCKS)
def test_checkpointing_changes_no_gradient(block: str) -> None:
    gradients = []
    for use in (False, True):
        network = small(block=block, use_checkpointing=use).train()
        network.conv_in.requires_grad_(False)  # then the body's input needs no gradient
        network(picture(6, 7)).square().mean().backward()
        gradients.append({n: p.grad for n, p in network.named_parameters() if p.requires_grad})
        assert all(g is not None and g.abs().max() > 0 for g in gradients[-1].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("block", ["photo", "pro"])
@pytest.mark.parametrize("windows", ["masked", "legacy"])
def test_flex_gives_the_same_pictures(block: str, windows: str) -> None:
    plain = small(block=block, windows=windows, blocks=2)
    flex = small(block=block, windows=windows, blocks=2, attention_mode="flex")
    with torch.no_grad():
        difference = flex(picture(9, 6)) - plain(picture(9, 6))
    assert difference.abs().max() < 1e-5
    assert ParagonSR2.options(flex.state_dict())["attention_mode"] == "sdpa"


def test_the_gate_stays_finite_in_half_precision() -> None:
    block = small(block="stream").half().body[0].blocks[0]
    with torch.no_grad():
        block.gate.weight.zero_()
        block.gate.bias.fill_(1000)  # a million after the product, which half precision lacks
        block.out.weight.fill_(1e-3)
        branch = block.out(torch.full((1, 16, 1, 1), 65504.0).half())
        x = torch.ones(1, 8, 4, 4).half()
        torch.testing.assert_close(block(x), x + block.scale(branch.expand_as(x)))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("base", ["mks2021", "legacy"])
def test_bfloat16_autocast_stays_near_and_keeps_the_base_exact(block: str, base: str) -> None:
    network, lr = small(block=block, base=base), picture(9, 10)
    with torch.no_grad():
        exact = network(lr)
        with torch.autocast("cpu", torch.bfloat16):
            assert (network(lr) - exact).abs().max() < 0.1 * exact.std()
            network.detail_gain.zero_()
            without_detail = network(lr)
        assert torch.equal(without_detail, network.base(lr))


@pytest.mark.parametrize(
    "options",
    [
        {"block": "nano"},
        {"block": "photo", "export_safe": True, "base": "legacy"},
        {"block": "photo", "blocks": 2},  # the second one with shifted windows
        {"block": "photo", "blocks": 2, "windows": "legacy"},
        {"block": "pro", "attention_mode": "flex"},
    ],
)
def test_graphs_hold_for_every_batch_and_size(options: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    ort = pytest.importorskip("onnxruntime")
    network = small(scale=2, **{"window": 8, "groups": 1, **options})
    report = export_onnx(network, 2, 1, tmp_path / "network.onnx")
    assert report.free_batch and report.max_difference < 1e-5
    session = ort.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    for batch, height, width in ((2, 5, 21), (1, 8, 8)):  # one window high; whole windows
        lr = picture(height, width, batch)
        (sr,) = session.run(None, {"input": lr.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(sr), network(lr), rtol=0, atol=1e-5)
