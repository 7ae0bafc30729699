"""AetherNet 3.1.1: what its weights tell, and that every form of it is one function."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from spandrel import MAIN_REGISTRY
from torch import Tensor, nn

from sr_models.export.onnx import export_onnx
from sr_models.inference.tiles import upscale_tiled
from sr_models.registry import get_architecture
from sr_models.students.aethernet import AetherNet
from sr_models.students.aethernet3 import AetherNet3, usual_res_scale
from sr_models.students.aethernet3_presets import PRESETS

SMALL: dict[str, Any] = {"embed_dim": 16, "depths": (1, 2), "lk_kernel": 5, "sk_kernel": 3}
ONE: dict[str, Any] = {**SMALL, "depths": (1,)}
PLAIN: dict[str, Any] = {**SMALL, "use_channel_attn": False}

#: variant, scale, parameters, names, parameters fused, names fused (None: not published).
COUNTS = [
    ("aether3_mobile", 2, 414_859, 147, 409_739, 113),
    ("aether3_mobile", 4, 377_131, 149, 372_011, 115),
    ("aether3_tiny", 2, 525_068, 178, 510_092, 140),
    ("aether3_tiny", 4, 487_340, 180, 472_364, 142),
    ("aether3_small", 2, 1_533_139, 299, 1_493_203, 233),
    ("aether3_small", 4, 1_448_899, 301, 1_408_963, 235),
    ("aether3_medium", 2, 3_414_299, 435, 3_334_427, 337),
    ("aether3_medium", 4, 3_265_115, 437, 3_185_243, 339),
    ("aether3_large", 2, 9_433_443, 749, None, None),
    ("aether3_large", 4, 9_139_413, 751, None, None),
    ("aether3_pro", 2, 12_176_379, 749, None, None),
    ("aether3_pro", 4, 11_842_011, 751, None, None),
]


def randomised(network: nn.Module) -> nn.Module:
    """Every tensor away from its first value, running statistics among them."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
            if name.endswith("running_var"):
                buffer.copy_(0.3 + 2 * torch.rand(buffer.shape, generator=generator))
    return network.eval()


def relative(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest absolute value."""
    return ((a - b).abs().max() / b.abs().max()).item()


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("name", "scale", "parameters", "names", "fused", "fused_names"), COUNTS)
def test_parameters_and_names_are_the_published_ones(
    name, scale, parameters, names, fused, fused_names
):
    build = get_architecture(name)
    with torch.device("meta"):
        network = build(scale=scale)
        direct = build(scale=scale, fused_init=True)
    assert (count(network), len(network.state_dict())) == (parameters, names)
    network.fuse()
    if fused is not None:
        assert (count(network), len(network.state_dict())) == (fused, fused_names)
    shapes = {k: v.shape for k, v in network.state_dict().items()}
    assert {k: v.shape for k, v in direct.state_dict().items()} == shapes


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("name", PRESETS)
def test_weights_of_every_variant_tell_it(name, scale):
    with torch.device("meta"):
        network = get_architecture(name)(scale=scale)
    assert network.hyperparameters["res_scale"] == (0.2 if name[8:] in ("mobile", "tiny") else 0.1)
    for form in (network, network.fuse()):
        state = form.state_dict()
        told = AetherNet3.options(state)
        rates = {"drop", "drop_path_rate"}
        assert told == {k: v for k, v in form.hyperparameters.items() if k not in rates}


def test_names_and_shapes_are_those_of_the_published_tiny():
    with torch.device("meta"):
        state = get_architecture("aether3_tiny")(2).state_dict()
    shapes = {k: tuple(v.shape) for k, v in state.items() if not k.startswith("stages.")}
    assert shapes == {
        "scale_tensor": (),
        "mean": (1, 3, 1, 1),
        "conv_first.weight": (64, 3, 3, 3),
        "conv_first.bias": (64,),
        "fusion_convs.0.weight": (22, 64, 1, 1),
        "fusion_convs.0.bias": (22,),
        "fusion_convs.1.weight": (21, 64, 1, 1),
        "fusion_convs.1.bias": (21,),
        "fusion_convs.2.weight": (21, 64, 1, 1),
        "fusion_convs.2.bias": (21,),
        "quant_fusion_layer.error_comp": (1, 64, 1, 1),
        "quant_fusion_layer.fusion_conv.weight": (64, 64, 1, 1),
        "quant_fusion_layer.fusion_conv.bias": (64,),
        "norm.weight": (1, 64, 1, 1),
        "norm.bias": (1, 64, 1, 1),
        "norm.running_mean": (1, 64, 1, 1),
        "norm.running_var": (1, 64, 1, 1),
        "conv_after_body.weight": (64, 64, 3, 3),
        "conv_after_body.bias": (64,),
        "conv_before_upsample.0.weight": (64, 64, 3, 3),
        "conv_before_upsample.0.bias": (64,),
        "upsample.blocks.0.weight": (256, 64, 3, 3),
        "upsample.blocks.0.bias": (256,),
        "conv_last.weight": (3, 64, 3, 3),
        "conv_last.bias": (3,),
    }
    block = "stages.2.1."
    assert {k.removeprefix(block): tuple(v.shape) for k, v in state.items() if block in k} == {
        "conv.lk_bias": (64,),
        "conv.sk_bias": (64,),
        "conv.lk_conv.weight": (64, 1, 13, 13),
        "conv.sk_conv.weight": (64, 1, 5, 5),
        "norm.weight": (1, 64, 1, 1),
        "norm.bias": (1, 64, 1, 1),
        "norm.running_mean": (1, 64, 1, 1),
        "norm.running_var": (1, 64, 1, 1),
        "ffn.temperature": (1,),
        "ffn.conv_gate.weight": (96, 64, 1, 1),
        "ffn.conv_gate.bias": (96,),
        "ffn.conv_main.weight": (96, 64, 1, 1),
        "ffn.conv_main.bias": (96,),
        "ffn.conv_out.weight": (64, 96, 1, 1),
        "ffn.conv_out.bias": (64,),
        "channel_attn.fc.0.weight": (8, 64, 1, 1),
        "channel_attn.fc.2.weight": (64, 8, 1, 1),
    }


def restated(state: dict[str, Tensor], x: Tensor, scale: int, img_range: float) -> Tensor:
    """The equations of the original with both attentions, by the names of its tensors."""

    def conv(name: str, x: Tensor) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state.get(f"{name}.bias"), padding=weight.shape[-1] // 2)

    def norm(name: str, x: Tensor) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        x = (x - mean) / torch.sqrt(var + 1e-4)
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    def block(name: str, x: Tensor) -> Tensor:
        large, small = state[f"{name}.conv.lk_conv.weight"], state[f"{name}.conv.sk_conv.weight"]
        groups = large.shape[0]
        y = F.conv2d(x, large, state[f"{name}.conv.lk_bias"], padding="same", groups=groups)
        y = y + F.conv2d(x, small, state[f"{name}.conv.sk_bias"], padding="same", groups=groups)
        y = norm(f"{name}.norm", y)
        gate = F.silu(conv(f"{name}.ffn.conv_gate", y) * state[f"{name}.ffn.temperature"])
        y = conv(f"{name}.ffn.conv_out", gate * conv(f"{name}.ffn.conv_main", y))
        squeezed = F.relu(conv(f"{name}.channel_attn.fc.0", y.mean((2, 3), keepdim=True)))
        y = y * torch.sigmoid(conv(f"{name}.channel_attn.fc.2", squeezed))
        pooled = torch.cat([y.max(1, keepdim=True).values, y.mean(1, keepdim=True)], 1)
        y = y * torch.sigmoid(conv(f"{name}.spatial_attn.conv", pooled))
        return x + 0.2 * y

    first = conv("conv_first", x / img_range - 0.5)
    one = block("stages.0.0", first)
    two = block("stages.1.1", block("stages.1.0", one))
    both = torch.cat([conv("fusion_convs.0", one), conv("fusion_convs.1", two)], 1)
    mixed = conv("quant_fusion_layer.fusion_conv", both) + state["quant_fusion_layer.error_comp"]
    body = norm("norm", mixed) + first
    body = conv("conv_after_body", body) + body
    y = F.leaky_relu(conv("conv_before_upsample.0", body), 0.01)
    for step in range(0, 6, 2):
        if f"upsample.blocks.{step}.weight" in state:
            y = F.pixel_shuffle(conv(f"upsample.blocks.{step}", y), 3 if scale == 3 else 2)
    return (conv("conv_last", y) + 0.5) * img_range


@pytest.mark.parametrize(("scale", "img_range"), [(2, 1.0), (3, 255.0), (4, 1.0), (8, 2.0)])
def test_the_function_is_the_stated_one(scale, img_range):
    network = AetherNet3(scale=scale, img_range=img_range, use_spatial_attn=True, **SMALL)
    x = torch.rand(2, 3, 7, 9)
    with torch.no_grad():
        y = randomised(network)(x)
        expected = restated(network.state_dict(), x, scale, img_range)
    assert y.shape == (2, 3, 7 * scale, 9 * scale)
    assert relative(y, expected) <= 1e-5


@pytest.mark.parametrize("norm_type", ["deployment", "layernorm"])
@pytest.mark.parametrize("name", ["aether3_mobile", "aether3_large"])
def test_fused_is_the_same_function(name, norm_type):
    network = randomised(get_architecture(name)(2, depths=(2, 1), norm_type=norm_type))
    x = torch.rand(1, 3, 11, 14)
    with torch.no_grad():
        before = network(x)
        assert network.fuse() is network
        after = network(x)
        state = {k: v.clone() for k, v in network.state_dict().items()}
        network.fuse()
        trained = network.train()(x) if norm_type == "deployment" else None
    assert relative(after, before) <= 1e-5
    assert not any("running" in k for k in state)
    assert all(torch.equal(state[k], v) for k, v in network.state_dict().items())
    assert trained is None or trained.isfinite().all()
    direct = AetherNet3(**network.hyperparameters).eval()
    direct.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(direct(x), after)


OPTIONS = st.fixed_dictionaries(
    {
        "scale": st.sampled_from((2, 3, 4, 8)),
        "in_chans": st.sampled_from((1, 3)),
        "embed_dim": st.integers(8, 40),
        "depths": st.lists(st.integers(1, 3), min_size=1, max_size=4),
        "mlp_ratio": st.floats(1.0, 3.0),
        "lk_kernel": st.sampled_from((3, 5, 7, 9)),
        "sk_kernel": st.sampled_from((1, 3)),
        "img_range": st.sampled_from((1.0, 255.0, 0.3)),
        "use_channel_attn": st.booleans(),
        "use_spatial_attn": st.booleans(),
        "norm_type": st.sampled_from(("deployment", "layernorm")),
        "res_scale": st.sampled_from((None, 0.2, 0.1, 0.37, 1.0)),
        "fused_init": st.booleans(),
    }
)


@settings(max_examples=30)
@given(OPTIONS, st.booleans())
def test_weights_tell_the_arguments(options, half):
    network = randomised(AetherNet3(**options))
    state = {
        f"module.{k}": v.half() if half and v.is_floating_point() else v
        for k, v in network.state_dict().items()
    }
    assert AetherNet3.detect(state)
    assert not AetherNet.detect(state)
    state = AetherNet3.canonical(state)
    again = AetherNet3(**AetherNet3.options(state)).eval()
    again.load_state_dict(state)
    assert again.hyperparameters == network.hyperparameters
    if not half:
        x = torch.rand(1, options["in_chans"], 3, 2)
        with torch.no_grad():
            assert torch.equal(again(x), network(x))


def test_notes_in_release_files_are_left_out():
    state = {**AetherNet3(**SMALL).state_dict(), "pt_version": torch.zeros(3)}
    AetherNet3(**SMALL).load_state_dict(AetherNet3.canonical(state))
    AetherNet3(**SMALL).load_state_dict(state)


def test_numbers_of_a_half_precision_file_are_exact_again():
    network = AetherNet3(res_scale=0.37, img_range=0.3, **SMALL)
    halves = {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    state = AetherNet3.canonical(halves)
    for name, value in (("res_scale", 0.37), ("img_range", 0.3)):
        assert state[name].dtype == torch.float32
        assert torch.equal(state[name], torch.tensor(value))
    again = AetherNet3(**AetherNet3.options(halves))
    again.load_state_dict(halves)
    assert torch.equal(again.res_scale, network.res_scale)


def test_a_factor_in_a_file_has_to_be_the_one_built():
    network, usual = AetherNet3(res_scale=0.1, **SMALL), AetherNet3(**SMALL)
    with pytest.raises(RuntimeError, match=r"res_scale is 0\.1 in the file.*built with 0\.2"):
        usual.load_state_dict(network.state_dict())
    network.load_state_dict(usual.state_dict())
    assert torch.equal(network.res_scale, torch.tensor(0.1))


def test_what_is_frozen_stays_frozen_when_fused():
    network = AetherNet3(**SMALL).requires_grad_(False).fuse()
    assert not any(p.requires_grad for p in network.parameters())


def test_what_no_tensor_tells_is_the_published_value_or_in_the_file():
    assert (usual_res_scale(64), usual_res_scale(96)) == (0.2, 0.1)
    assert not {"res_scale", "img_range"} & set(AetherNet3(**SMALL).state_dict())
    assert "res_scale" in AetherNet3(res_scale=0.1, **SMALL).state_dict()


def test_other_families_are_told_apart():
    state = AetherNet3(**SMALL).state_dict()
    fused = AetherNet3(**SMALL).fuse().state_dict()
    for support in MAIN_REGISTRY.architectures("insertion"):
        architecture = support.architecture
        if type(architecture).__module__.startswith("spandrel."):
            assert not architecture.detect(dict(state)), architecture.name
            assert not architecture.detect(dict(fused)), architecture.name
    assert not AetherNet3.detect({})


def test_earlier_generations_are_not_taken_for_this_one():
    state = dict(AetherNet3(**SMALL).state_dict())
    state["scale"] = state.pop("scale_tensor")
    assert not AetherNet3.detect(state)


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": 6},
        {"depths": ()},
        {"depths": (1, 0)},
        {"embed_dim": 7},
        {"lk_kernel": 6},
        {"sk_kernel": 7},
        {"img_range": -1.0},
        {"mlp_ratio": 0.01},
        {"norm_type": "batch"},
        {"drop_path_rate": 1.5},
    ],
)
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong)).removesuffix("_rate")):
        AetherNet3(**{**SMALL, **wrong})


def test_scales_are_listed():
    with pytest.raises(ValueError, match=r"scale 16 is not one of \(2, 3, 4, 8\)"):
        AetherNet3(scale=16)


def test_paths_are_dropped_while_training_only_and_linearly():
    torch.manual_seed(0)
    network = randomised(AetherNet3(scale=2, drop_path_rate=0.6, norm_type="layernorm", **SMALL))
    rates = [block.drop_path.rate for stage in network.stages for block in stage]
    assert rates == pytest.approx([0, 0.3, 0.6])
    x = torch.rand(8, 3, 4, 4)
    with torch.no_grad():
        assert torch.equal(network(x), network(x))
        network.train()
        assert not torch.equal(network(x), network(x))


def test_training_moves_the_statistics_and_reaches_every_parameter():
    torch.manual_seed(0)
    network = AetherNet3(scale=2, drop_path_rate=0.0, use_spatial_attn=True, **SMALL)
    before = {k: v.clone() for k, v in network.named_buffers()}
    network(torch.rand(2, 3, 6, 6)).square().mean().backward()
    changed = {k for k, v in network.named_buffers() if not torch.equal(v, before[k])}
    assert changed == {k for k in before if "running" in k}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_the_halo_is_the_receptive_field(scale, spatial):
    network = randomised(AetherNet3(scale=scale, use_spatial_attn=spatial, **PLAIN)).double()
    assert network.halo == 5 + 3 * (2 + 3 * spatial)
    x = torch.rand(1, 3, 43, 43, dtype=torch.float64, requires_grad=True)
    network(x)[..., 21 * scale : 22 * scale, 21 * scale : 22 * scale].sum().backward()
    assert x.grad is not None
    rows, columns = x.grad.abs().sum((0, 1)).nonzero().T
    for places in (rows, columns):
        assert (21 - places.min(), places.max() - 21) == (network.halo, network.halo)


def test_tiles_with_the_halo_equal_the_whole():
    network = randomised(AetherNet3(scale=2, use_spatial_attn=True, **PLAIN))
    assert network.tileable
    lr = torch.rand(1, 3, 61, 54)
    with torch.no_grad():
        whole = network(lr)
        tiled = upscale_tiled(network, lr, 2, tile=2 * network.halo + 8, halo=network.halo)
    assert relative(tiled, whole) <= 1e-6


def test_channel_attention_is_not_tileable_and_says_so():
    network = randomised(AetherNet3(scale=2, res_scale=1.0, **{**SMALL, "embed_dim": 32}))
    assert not network.tileable
    lr = torch.rand(1, 3, 40, 40) * torch.linspace(0, 1, 40)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "channel_attn" in name:  # so that it does more than halve every channel
                parameter.mul_(20)
        tiled = upscale_tiled(network, lr, 2, tile=2 * network.halo + 4, halo=network.halo)
        assert relative(tiled, network(lr)) > 1e-4


def test_feature_module_puts_out_a_map_of_the_lr_size():
    network = randomised(AetherNet3(scale=4, **SMALL))
    seen: list[Tensor] = []
    tap = network.get_submodule(network.feature_module)
    tap.register_forward_hook(lambda module, args, output: seen.append(output))
    network(torch.rand(2, 3, 5, 6))
    assert seen[0].shape == (2, 16, 5, 6)


@pytest.mark.parametrize("fused", [False, True])
def test_onnx_takes_any_size_and_batch(fused, tmp_path):
    pytest.importorskip("onnxruntime")
    network = randomised(AetherNet3(scale=4, use_spatial_attn=True, img_range=2.0, **ONE))
    if fused:
        network.fuse()
    report = export_onnx(network, 4, 1, tmp_path / "a.onnx")
    assert report.free_batch
    assert len({check.shape for check in report.checks}) >= 2


@pytest.mark.parametrize("training", [False, True])
def test_bfloat16_autocast_is_near_float32(training):
    network = randomised(AetherNet3(scale=2, drop_path_rate=0.0, **SMALL)).train(training)
    x = torch.rand(2, 3, 8, 8)
    exact = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(x)
        rough.float().mean().backward()
    assert relative(rough.float(), exact) < 0.05


def test_one_pixel_is_enough():
    network = randomised(AetherNet3(scale=3, **SMALL))
    assert network(torch.rand(1, 3, 1, 1)).shape == (1, 3, 3, 3)
