"""ParagonSR: what it computes, what its weights tell, and what fusing leaves alone."""

import copy
import subprocess
import sys

import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from spandrel.architectures.Compact import Compact
from spandrel.architectures.SPAN import SPAN
from torch.nn import functional as F

from sr_models.experts.edsr import EDSR
from sr_models.export.onnx import export_onnx
from sr_models.registry import get_architecture, get_block
from sr_models.students.paragonsr import PRESETS, ParagonSR

# Measured on the original implementation: parameters at x2, x3, x4, x8 with the branches apart, and
# how many fewer there are when they are fused.
PARAMETERS = {
    "paragonsr_nano": ((49_719, 75_759, 112_215, 362_199), 2_592),
    "paragonsr_tiny": ((96_243, 142_483, 207_219, 651_123), 4_608),
    "paragonsr_xs": ((373_251, 477_171, 622_659, 1_620_291), 18_432),
    "paragonsr_s": ((1_209_411, 1_394_051, 1_652_547, 3_425_091), 55_296),
    "paragonsr_m": ((4_323_459, 4_738_659, 5_319_939, 9_305_859), 147_456),
    "paragonsr_l": ((11_333_763, 12_071_683, 13_104_771, 20_188_803), 307_200),
    "paragonsr_xl": ((24_645_123, 25_797_923, 27_411_843, 38_478_723), 552_960),
}
SMALL = {"num_feat": 10, "num_groups": 2, "num_blocks": 2, "ffn_expansion": 1.5}


def _random(**options):
    """A network in which every branch counts: no weight is near its value at the start."""
    torch.manual_seed(5)
    network = ParagonSR(**{**SMALL, **options}).eval()
    for parameter in network.parameters():
        if parameter.ndim == 1:  # biases, norms and layer scales
            torch.nn.init.normal_(parameter)
    return network


def _run(network, *shape):
    x = torch.rand(*shape, generator=torch.Generator().manual_seed(6))
    with torch.inference_mode():
        return network(x)


def _difference(a, b):
    return float((a - b).abs().max() / b.std())


def _same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _restated(state, x, groups, blocks, scale):
    """The published equations, from a state dict with its branches apart."""

    def conv(path, x, depthwise=False):
        weight = state[f"{path}.weight"]
        pad = (weight.shape[2] // 2, weight.shape[3] // 2)
        count = len(weight) if depthwise else 1
        return F.conv2d(x, weight, state[f"{path}.bias"], padding=pad, groups=count)

    def norm(path, x):
        mean = x.mean((1, 2, 3), keepdim=True)
        deviation = x.var((1, 2, 3), keepdim=True, unbiased=False).add(1e-5).sqrt()
        weight, bias = (state[f"{path}.{n}"].view(1, -1, 1, 1) for n in ("weight", "bias"))
        return (x - mean) / deviation * weight + bias

    first = conv("conv_in", x)
    features = first
    for g in range(groups):
        entered = features
        for b in range(blocks):
            at = f"body.{g}.blocks.{b}"
            y = norm(f"{at}.norm1", features)
            part = len(state[f"{at}.context.dwconv_hw.weight"])
            outputs = [y[:, : -3 * part]]
            for n, name in ((3, "hw"), (2, "w"), (1, "h")):
                some = y[:, y.shape[1] - n * part : y.shape[1] - (n - 1) * part]
                outputs.append(conv(f"{at}.context.dwconv_{name}", some, True))
            features = features + torch.cat(outputs, 1) * state[f"{at}.ls1.gamma"][:, None, None]
            y = norm(f"{at}.norm2", features)
            gate, value = (conv(f"{at}.transformer.project_in_{n}", y) for n in "gi")
            mixer = f"{at}.transformer.spatial_mixer"
            names = ("conv3x3", "conv1x1", "dw_conv3x3")
            gate = sum(conv(f"{mixer}.{name}", gate, True) for name in names)
            gate = gate * torch.tanh(torch.log1p(torch.exp(gate)))
            y = conv(f"{at}.transformer.project_out", gate * value)
            features = features + y * state[f"{at}.ls2.gamma"][:, None, None]
        features = features + entered
    features = conv("conv_fuse", features) + first
    return conv("conv_out", F.pixel_shuffle(conv("upsampler.0", features), scale))


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_preset_has_the_published_parameters_and_keys(name):
    counts, fewer = PARAMETERS[name]
    blocks = PRESETS[name].num_groups * PRESETS[name].num_blocks
    for scale, count in zip((2, 3, 4, 8), counts, strict=True):
        with torch.device("meta"):
            apart = get_architecture(name)(scale=scale)
            fused = get_architecture(name)(scale=scale, fused_init=True)
        assert sum(p.numel() for p in apart.parameters()) == count
        assert sum(p.numel() for p in fused.parameters()) == count - fewer
        assert len(apart.state_dict()) == 8 + 24 * blocks
        assert len(fused.state_dict()) == 8 + 20 * blocks
        shapes = {n: t.shape for n, t in fused.state_dict().items()}
        assert shapes == {n: t.shape for n, t in apart.fuse().state_dict().items()}


def test_keys_of_the_released_presets():
    counts = {}
    for name in ("paragonsr_nano", "paragonsr_tiny", "paragonsr_s"):
        with torch.device("meta"):
            network = get_architecture(name)()
            counts[name] = len(network.state_dict()), len(network.fuse().state_dict())
    assert counts == {
        "paragonsr_nano": (152, 128),
        "paragonsr_tiny": (152, 128),
        "paragonsr_s": (872, 728),
    }


def test_tiny9_has_one_more_block_a_group():
    with torch.device("meta"):
        tiny, tiny9 = get_architecture("paragonsr_tiny")(), get_architecture("paragonsr_tiny9")()
    assert [len(group.blocks) for group in tiny.body] == [2, 2, 2]
    assert [len(group.blocks) for group in tiny9.body] == [3, 3, 3]
    assert sum(p.numel() for p in tiny9.parameters()) == 207_219 + 3 * 8_040


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"scale": 5}, "scale 5"),
        ({"num_groups": 0}, "num_groups 0"),
        ({"num_blocks": 0}, "num_blocks 0"),
        ({"num_feat": 7}, "branch_ratio 0.125 of 7 channels"),
        ({"branch_ratio": 0.5}, "branch_ratio 0.5"),
        ({"ffn_expansion": 0.01}, "expansion_ratio 0.01"),
        ({"square_kernel_size": 4}, "square_kernel_size 4"),
        ({"band_kernel_size": 10}, "band_kernel_size 10"),
    ],
)
def test_impossible_options_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        ParagonSR(**{**SMALL, **options})


def test_options_override_a_preset():
    network = get_architecture("paragonsr_nano")(scale=2, num_feat=16, num_blocks=1)
    assert isinstance(network, ParagonSR)
    assert network.scale == 2
    assert network.hyperparameters == {
        "scale": 2,
        "num_feat": 16,
        "num_groups": 3,
        "num_blocks": 1,
        "ffn_expansion": 1.5,
        "square_kernel_size": 3,
        "band_kernel_size": 11,
        "branch_ratio": 0.125,
        "fused_init": False,
    }


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_computes_the_published_equations(scale):
    network = _random(scale=scale, branch_ratio=0.3).double()
    x = torch.rand(2, 3, 9, 14, dtype=torch.float64)
    with torch.inference_mode():
        expected = _restated(network.state_dict(), x, 2, 2, scale)
        actual = network(x)
    assert actual.shape == (2, 3, 9 * scale, 14 * scale)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9 * float(expected.std()))


@pytest.mark.shared
def test_weights_of_the_original_give_its_pictures(shared_data):
    file = shared_data.parent / "compat" / "paragonsr_tiny_x4.safetensors"
    if not file.is_file():
        pytest.skip(f"{file.name} is not beside the development data")
    stored = load_file(file)
    weights = {n.removeprefix("weights."): t for n, t in stored.items() if n.startswith("weights.")}
    assert ParagonSR.detect(weights)
    options = ParagonSR.options(weights)
    assert options == get_architecture("paragonsr_tiny")().hyperparameters
    network = ParagonSR(**options).eval()
    network.load_state_dict(weights)
    for _ in range(2):
        with torch.inference_mode():
            assert _difference(network(stored["input"].float()), stored["output"]) < 1e-4
        network.fuse()


@pytest.mark.parametrize("options", [{}, {"num_groups": 6, "num_blocks": 6, "num_feat": 16}])
def test_fused_differs_by_rounding_only(options):
    network = _random(**options)
    before = _run(network, 2, 3, 13, 18)
    fused = _run(network.fuse(), 2, 3, 13, 18)
    assert not torch.equal(before, fused)  # it did go another way
    assert _difference(fused, before) <= 1e-5
    for block in network.modules():  # each branch weighs in that difference
        for scale in (getattr(block, "ls1", None), getattr(block, "ls2", None)):
            assert scale is None or scale.gamma.abs().mean() > 0.3


def test_fusing_sums_in_double_precision():
    network = _random()
    exact = copy.deepcopy(network).double()
    for name, tensor in network.fuse().state_dict().items():
        assert torch.equal(tensor, exact.fuse().state_dict()[name].float()), name


def test_fusing_again_changes_nothing():
    network = _random().fuse()
    mixer = network.body[1].blocks[0].transformer.spatial_mixer
    before = copy.deepcopy(network.state_dict())
    assert network.fuse() is network
    assert network.body[1].blocks[0].transformer.spatial_mixer is mixer
    assert _same(network.state_dict(), before)


@pytest.mark.parametrize("fused", [False, True])
def test_modes_and_passes_leave_the_network_alone(fused):
    network = _random(fused_init=fused)
    before = copy.deepcopy(network.state_dict())
    modules = dict(network.named_modules())
    outputs = [_run(network.train(mode), 1, 3, 8, 8) for mode in (True, False, True)]
    assert all(torch.equal(outputs[0], output) for output in outputs)
    assert _same(network.state_dict(), before)
    assert dict(network.named_modules()) == modules


def test_fusing_keeps_precision_mode_and_random_numbers():
    network = _random().to(torch.bfloat16).train()
    network.body[0].requires_grad_(False)
    state = torch.random.get_rng_state()
    network.fuse()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert {t.dtype for t in network.state_dict().values()} == {torch.bfloat16}
    assert all(module.training for module in network.modules())
    assert not any(p.requires_grad for p in network.body[0].parameters())
    assert all(p.requires_grad for p in network.body[1].parameters())


@pytest.mark.parametrize("fused", [False, True])
def test_every_parameter_learns(fused):
    network = _random(fused_init=fused).train()
    network(torch.rand(1, 3, 6, 6)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@st.composite
def _options(draw):
    return {
        "scale": draw(st.sampled_from((2, 3, 4, 8))),
        "num_feat": draw(st.integers(8, 24)),
        "num_groups": draw(st.integers(1, 3)),
        "num_blocks": draw(st.integers(1, 3)),
        "ffn_expansion": draw(st.floats(0.2, 3)),
        "square_kernel_size": draw(st.sampled_from((1, 3, 5))),
        "band_kernel_size": draw(st.sampled_from((1, 3, 11, 13))),
        "branch_ratio": draw(st.floats(0.13, 0.33)),
        "fused_init": draw(st.booleans()),
    }


@settings(max_examples=25)
@given(_options())
def test_weights_tell_every_option(options):
    network = _random(**options)
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    assert ParagonSR.detect(state)
    told = ParagonSR.options(state)
    assert told == network.hyperparameters
    again = ParagonSR(**told).eval()
    again.load_state_dict(ParagonSR.canonical(state))
    assert torch.equal(_run(again, 1, 3, 5, 4), _run(network, 1, 3, 5, 4))
    fused = network.fuse().state_dict()
    assert ParagonSR.detect(fused)
    assert ParagonSR.options(fused) == {**told, "fused_init": True} == network.hyperparameters
    ParagonSR(**network.hyperparameters).load_state_dict(fused)


def test_a_ratio_that_rounding_spoils_is_told_right():
    assert int(49 * (1 / 49)) == 0  # so 1/49 cannot be the ratio of one channel in 49
    network = _random(num_feat=49, branch_ratio=0.021, ffn_expansion=0.021)
    again = ParagonSR(**ParagonSR.options(network.state_dict()))
    again.load_state_dict(network.state_dict())


def test_other_weights_are_not_taken_for_it():
    state = _random().state_dict()
    assert ParagonSR.detect(state)
    grey = {**state, "conv_in.weight": state["conv_in.weight"][:, :1]}
    five = {**state, "upsampler.0.weight": state["upsampler.0.weight"].repeat(2, 1, 1, 1)}
    unmixed = {n: t for n, t in state.items() if "spatial_mixer" not in n}
    unscaled = {n: t for n, t in state.items() if not n.endswith("ls1.gamma")}
    others = [
        Compact(num_feat=8, num_conv=2).state_dict(),
        SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8).state_dict(),
        EDSR(num_feat=8, num_block=1).state_dict(),
        {name: torch.zeros(()) for name in state},
        {name: torch.zeros(0, 3, 3, 3) for name in state},
        {"params": state},
        {},
    ]
    for other in (grey, five, unmixed, unscaled, *others):
        assert not ParagonSR.detect(other)


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 3, 1, 7), (1, 3, 6, 1)])
def test_any_size_is_enlarged(shape):
    batch, _, height, width = shape
    assert _run(_random(scale=3), *shape).shape == (batch, 3, 3 * height, 3 * width)


def test_runs_in_half_precision():
    network = _random()
    expected = _run(network, 1, 3, 12, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = _run(network, 1, 3, 12, 12)
    assert _difference(actual.float(), expected) < 0.2


def test_the_feature_map_is_the_last_of_lr_size():
    network = _random(scale=2)
    seen = []
    module = network.get_submodule(ParagonSR.feature_module)
    module.register_forward_hook(lambda _, __, output: seen.append(output.shape))
    _run(network, 2, 3, 5, 7)
    assert seen == [(2, 10, 5, 7)]


def test_a_tile_is_not_the_whole_image():
    x = torch.rand(1, 3, 40, 96, generator=torch.Generator().manual_seed(1))
    x[..., 48:] *= 0.2  # what lies outside the tile differs from what lies inside
    network = _random(num_groups=1, num_blocks=1)
    with torch.inference_mode():
        tile, whole = network(x[..., :48]), network(x)[..., : 4 * 48]
    assert not ParagonSR.tileable
    assert _difference(tile[..., : 4 * 16], whole[..., : 4 * 16]) > 1e-3  # 32 px from the seam


@pytest.mark.parametrize("fused", [False, True])
def test_onnx_is_right_at_other_sizes_and_batches(fused, tmp_path):
    network = _random(num_groups=1, num_blocks=1, scale=2)
    network = network.fuse() if fused else network
    path = tmp_path / "network.onnx"
    report = export_onnx(network, network.scale, network.multiple_of, path)
    assert report.free_batch
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 11, 29), (3, 3, 26, 7)):
        x = torch.rand(*shape)
        with torch.inference_mode():
            expected = network(x)
        actual = torch.from_numpy(session.run(["output"], {"input": x.numpy()})[0])
        assert actual.shape == expected.shape
        assert _difference(actual, expected) < 1e-4


@pytest.mark.parametrize("name", ["paragonblock", "inceptiondwconv2d", "gatedffn", "reparamconvv2"])
def test_blocks_are_found_and_keep_the_shape(name):
    x = torch.rand(2, 16, 6, 5)
    block = get_block(name)(16)
    output = block(x)
    assert output.shape == x.shape
    assert not torch.equal(output, x)


def test_importing_it_brings_no_other_framework():
    code = (
        "import sys; import sr_models.students.paragonsr; "
        "print(sorted({m.split('.')[0] for m in sys.modules} "
        "& {'spandrel', 'einops', 'dagster', 'sr_assets'}))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
