"""AetherNet version 1: what its weights tell, and that every form of it is one function."""

import copy
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from spandrel import MAIN_REGISTRY
from spandrel.architectures.Compact import Compact
from spandrel.architectures.HAT import HAT
from spandrel.architectures.PLKSR import RealPLKSR
from spandrel.architectures.SPAN import SPAN
from spandrel.architectures.SwinIR import SwinIR
from torch import Tensor, nn

from sr_models.export.onnx import export_onnx
from sr_models.inference.tiles import upscale_tiled
from sr_models.registry import get_architecture, get_block
from sr_models.students.aethernet import AetherNet
from sr_models.students.aethernet3 import AetherNet3

SMALL: dict[str, Any] = {"embed_dim": 12, "depths": (1, 2), "lk_kernel": 5, "sk_kernel": 3}

#: variant, scale, parameters, names, parameters fused, names fused.
COUNTS = [
    ("aether_small", 2, 1_388_963, 204, 1_373_603, 172),
    ("aether_small", 3, 1_573_603, 204, 1_558_243, 172),
    ("aether_small", 4, 1_536_675, 206, 1_521_315, 174),
    ("aether_small", 8, 1_684_387, 208, 1_669_027, 176),
    ("aether_medium", 2, 4_554_115, 444, 4_508_035, 372),
    ("aether_medium", 3, 4_738_755, 444, 4_692_675, 372),
    ("aether_medium", 4, 4_701_827, 446, 4_655_747, 374),
    ("aether_medium", 8, 4_849_539, 448, 4_803_459, 376),
    ("aether_large", 2, 18_268_127, 780, 18_152_927, 652),
    ("aether_large", 3, 18_452_767, 780, 18_337_567, 652),
    ("aether_large", 4, 18_415_839, 782, 18_300_639, 654),
    ("aether_large", 8, 18_563_551, 784, 18_448_351, 656),
]


def randomised(network: nn.Module) -> nn.Module:
    """Every tensor away from its first value, so that no branch is silent."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
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
    assert AetherNet.options(network.state_dict())["scale"] == scale
    network.fuse()
    assert (count(network), len(network.state_dict())) == (fused, fused_names)
    shapes = {k: v.shape for k, v in network.state_dict().items()}
    assert {k: v.shape for k, v in direct.state_dict().items()} == shapes


@pytest.mark.shared
@pytest.mark.parametrize("name", ["aether_small_x2", "aether_small_fused_x4"])
def test_reference_weights_give_the_reference_output(name, shared_data):
    file = shared_data.parent / "compat" / f"{name}.safetensors"
    if not file.is_file():
        pytest.skip("the reference outputs are not beside this checkout")
    stored = load_file(file)
    state = {
        k.removeprefix("weights."): v.float() for k, v in stored.items() if k.startswith("weights.")
    }
    assert AetherNet.detect(state)
    network = AetherNet(**AetherNet.options(AetherNet.canonical(state))).eval()
    network.load_state_dict(state)
    preset = get_architecture("aether_small")(network.scale, fused_init="fused" in name)
    assert network.hyperparameters == preset.hyperparameters
    with torch.no_grad():
        difference = network(stored["input"].float()) - stored["output"]
    assert difference.abs().max() <= 1e-4 * stored["output"].std()


def restated(state: dict[str, Tensor], x: Tensor, scale: int, img_range: float) -> Tensor:
    """The equations of the original, by the names of its tensors."""

    def conv(name: str, x: Tensor) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name: str, x: Tensor, eps: float) -> Tensor:
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, eps)

    first = conv("conv_first", (x - 0.5) * img_range)
    features = first
    blocks = sorted(k.removesuffix(".conv.lk_bias") for k in state if k.endswith("lk_bias"))
    for block in blocks:
        large, small = state[f"{block}.conv.lk_conv.weight"], state[f"{block}.conv.sk_conv.weight"]
        bias = state[f"{block}.conv.lk_bias"] + state[f"{block}.conv.sk_bias"]
        groups = large.shape[0]
        mixed = F.conv2d(features, large, bias, padding=large.shape[-1] // 2, groups=groups)
        mixed = mixed + F.conv2d(features, small, padding=small.shape[-1] // 2, groups=groups)
        pixels = norm(f"{block}.norm", mixed.permute(0, 2, 3, 1), 1e-6)
        gate = F.gelu(linear(f"{block}.ffn.fc1_gate", pixels))
        pixels = linear(f"{block}.ffn.fc2", gate * linear(f"{block}.ffn.fc1_main", pixels))
        features = features + pixels.permute(0, 3, 1, 2)
    features = norm("norm", features.permute(0, 2, 3, 1), 1e-5).permute(0, 3, 1, 2)
    features = conv("conv_after_body", features) + first
    y = F.leaky_relu(conv("conv_before_upsample.0", features), 0.01)
    for step in range(0, 6, 2):
        if f"upsample.{step}.weight" in state:
            y = F.pixel_shuffle(conv(f"upsample.{step}", y), 3 if scale == 3 else 2)
    return conv("conv_last", y) / img_range + 0.5


@pytest.mark.parametrize(("scale", "img_range"), [(2, 1.0), (3, 255.0), (4, 1.0), (8, 2.0)])
def test_the_function_is_the_stated_one(scale, img_range):
    network = randomised(AetherNet(scale=scale, img_range=img_range, **SMALL))
    x = torch.rand(2, 3, 7, 9)
    with torch.no_grad():
        y = network(x)
        expected = restated(network.state_dict(), x, scale, img_range)
    assert y.shape == (2, 3, 7 * scale, 9 * scale)
    assert relative(y, expected) <= 1e-5


@pytest.mark.parametrize("name", ["aether_small", "aether_large"])
def test_fused_is_the_same_function(name):
    network = randomised(get_architecture(name)(2, depths=(2, 1)))
    x = torch.rand(1, 3, 15, 14)
    with torch.no_grad():
        before = network(x)
        assert network.fuse() is network
        after = network(x)
        state = {k: v.clone() for k, v in network.state_dict().items()}
        network.fuse().train()
        network.eval()
    assert relative(after, before) <= 1e-5
    assert all(torch.equal(state[k], v) for k, v in network.state_dict().items())
    direct = AetherNet(**network.hyperparameters).eval()
    direct.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(direct(x), after)


OPTIONS = st.fixed_dictionaries(
    {
        "scale": st.sampled_from((2, 3, 4, 8)),
        "in_chans": st.sampled_from((1, 3)),
        "embed_dim": st.integers(1, 20),
        "depths": st.lists(st.integers(1, 3), min_size=1, max_size=4),
        "mlp_ratio": st.floats(1.0, 4.0),
        "lk_kernel": st.sampled_from((3, 5, 7, 9)),
        "sk_kernel": st.sampled_from((1, 3)),
        "img_range": st.sampled_from((1.0, 255.0, 0.3)),
        "fused_init": st.booleans(),
    }
)


@settings(max_examples=30)
@given(OPTIONS, st.booleans())
def test_weights_tell_the_arguments(options, half):
    network = randomised(AetherNet(**options))
    state = {f"module.{k}": v.half() if half else v for k, v in network.state_dict().items()}
    assert AetherNet.detect(state)
    assert not AetherNet3.detect(state)
    state = AetherNet.canonical(state)
    again = AetherNet(**AetherNet.options(state)).eval()
    again.load_state_dict(state)
    assert again.hyperparameters == network.hyperparameters
    if not half:
        x = torch.rand(1, options["in_chans"], 3, 2)
        with torch.no_grad():
            assert torch.equal(again(x), network(x))


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_the_range_in_a_file_has_to_be_the_one_built(kind):
    network = AetherNet(img_range=0.3, **SMALL)
    network.load_state_dict({k: v.to(kind) for k, v in network.state_dict().items()})
    assert float(network.img_range) == torch.tensor(0.3)
    other = AetherNet(img_range=2.0, **SMALL)
    with pytest.raises(RuntimeError, match=r"img_range is 0\.3 in the file.*built with 2"):
        other.load_state_dict(network.state_dict())
    with pytest.raises(RuntimeError, match=r"img_range is 0\.3 in the file.*built with 1"):
        AetherNet(**SMALL).load_state_dict(network.state_dict())
    other.load_state_dict(AetherNet(**SMALL).state_dict())
    assert float(other.state_dict()["img_range"]) == 2.0


def test_fused_weights_say_what_network_they_need():
    plain, fused = AetherNet(**SMALL), AetherNet(**SMALL).fuse()
    with pytest.raises(RuntimeError, match="build it with fused_init: true") as caught:
        plain.load_state_dict(fused.state_dict())
    assert "key" not in str(caught.value)
    with pytest.raises(RuntimeError, match="build it with fused_init: false"):
        fused.load_state_dict(plain.state_dict())


def test_what_is_frozen_stays_frozen_when_fused():
    network = AetherNet(**SMALL).requires_grad_(False)
    network.layers[1].requires_grad_(True)
    network.fuse()
    learning = {n for n, p in network.named_parameters() if p.requires_grad}
    assert learning == {n for n in network.state_dict() if n.startswith("layers.1.")}


def test_a_part_inside_another_network_loads_alike():
    outer = nn.ModuleDict({"net": AetherNet(img_range=255.0, **SMALL)})
    outer.load_state_dict(
        {f"net.{n}": t for n, t in AetherNet(**SMALL).state_dict().items()}, strict=True
    )
    twice = copy.deepcopy(outer)
    twice.load_state_dict(pickle.loads(pickle.dumps(outer)).state_dict())


def test_the_block_needs_its_channels_alone():
    assert get_block("aether")(6)(torch.rand(1, 6, 4, 5)).shape == (1, 6, 4, 5)


def test_a_range_that_rounds_to_one_in_half_precision_still_loads():
    state = AetherNet(img_range=1.0001, **SMALL).half().state_dict()
    assert "img_range" in state
    state = AetherNet.canonical(state)
    AetherNet(**AetherNet.options(state)).load_state_dict(state)


def test_the_mean_is_in_no_file():
    assert not {"mean", "img_range"} & set(AetherNet(**SMALL).state_dict())


@pytest.mark.filterwarnings("ignore:torch.meshgrid")
def test_other_families_are_told_apart():
    state = AetherNet(**SMALL).state_dict()
    fused = AetherNet(**SMALL).fuse().state_dict()
    for support in MAIN_REGISTRY.architectures("insertion"):
        architecture = support.architecture
        if type(architecture).__module__.startswith("spandrel."):
            assert not architecture.detect(dict(state)), architecture.name
            assert not architecture.detect(dict(fused)), architecture.name
    others: list[nn.Module] = [
        Compact(num_feat=8, num_conv=3),
        SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=4),
        RealPLKSR(dim=16, n_blocks=2),
        SwinIR(embed_dim=16, depths=[2], num_heads=[2], window_size=8, upsampler="pixelshuffle"),
        HAT(
            embed_dim=16,
            depths=[2],
            num_heads=[2],
            window_size=8,
            compress_ratio=2,
            squeeze_factor=4,
            upsampler="pixelshuffle",
        ),
    ]
    for other in others:
        assert not AetherNet.detect(other.state_dict()), type(other).__name__
        assert not AetherNet3.detect(other.state_dict()), type(other).__name__
    assert not AetherNet.detect({})


def test_detection_looks_at_shapes():
    state = dict(AetherNet(**SMALL).state_dict())
    state["layers.0.0.conv.lk_conv.weight"] = torch.zeros(12, 12, 5, 5)
    assert not AetherNet.detect(state)


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": 5},
        {"depths": ()},
        {"depths": (2, 0)},
        {"lk_kernel": 6},
        {"sk_kernel": 7},
        {"img_range": 0.0},
        {"mlp_ratio": 0.01},
        {"drop_path_rate": 1.5},
    ],
)
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong)).removesuffix("_rate")):
        AetherNet(**{**SMALL, **wrong})


def test_paths_are_dropped_while_training_only_and_linearly():
    torch.manual_seed(0)
    network = randomised(AetherNet(scale=2, drop_path_rate=0.6, **SMALL))
    rates = [block.drop_path.rate for group in network.layers for block in group]
    assert rates == pytest.approx([0, 0.3, 0.6])
    x = torch.rand(8, 3, 4, 4)
    with torch.no_grad():
        assert torch.equal(network(x), network(x))
        network.train()
        assert not torch.equal(network(x), network(x))


@pytest.mark.parametrize("rate", ["drop_rate", "drop_path_rate"])
def test_rates_change_no_weights_and_nothing_in_eval_mode(rate):
    plain, dropping = (AetherNet(**SMALL, **{rate: value}).eval() for value in (0.0, 0.5))
    dropping.load_state_dict(plain.state_dict())
    x = torch.rand(1, 3, 4, 5)
    with torch.no_grad():
        assert torch.equal(plain(x), dropping(x))


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_the_halo_is_the_receptive_field(scale):
    network = randomised(AetherNet(scale=scale, **SMALL))
    assert network.halo == 5 + 3 * 2
    x = torch.rand(1, 3, 31, 31, requires_grad=True)
    network(x)[..., 15 * scale : 16 * scale, 15 * scale : 16 * scale].sum().backward()
    assert x.grad is not None
    rows, columns = x.grad.abs().sum((0, 1)).nonzero().T
    for places in (rows, columns):
        assert (15 - places.min(), places.max() - 15) == (network.halo, network.halo)


@pytest.mark.parametrize("fused", [False, True])
def test_tiles_with_the_halo_equal_the_whole(fused):
    network = randomised(AetherNet(scale=3, **SMALL))
    assert network.tileable
    if fused:
        network.fuse()
    lr = torch.rand(1, 3, 45, 38)
    with torch.no_grad():
        whole = network(lr)
        tiled = upscale_tiled(network, lr, 3, tile=2 * network.halo + 8, halo=network.halo)
        short = upscale_tiled(network, lr, 3, tile=16, halo=3)
    assert relative(tiled, whole) <= 1e-6
    assert relative(short, whole) > 1e-4


def test_feature_module_puts_out_a_map_of_the_lr_size():
    network = randomised(AetherNet(scale=4, **SMALL))
    seen: list[Tensor] = []
    tap = network.get_submodule(network.feature_module)
    tap.register_forward_hook(lambda module, args, output: seen.append(output))
    network(torch.rand(2, 3, 5, 6))
    assert seen[0].shape == (2, 12, 5, 6)


@pytest.mark.parametrize("fused", [False, True])
def test_onnx_takes_any_size_and_batch(fused, tmp_path):
    pytest.importorskip("onnxruntime")
    network = randomised(AetherNet(scale=2, img_range=255.0, **{**SMALL, "depths": (1,)}))
    if fused:
        network.fuse()
    report = export_onnx(network, 2, 1, tmp_path / "a.onnx")
    assert report.free_batch
    assert len({check.shape for check in report.checks}) >= 2


def test_bfloat16_autocast_is_near_float32():
    network = randomised(AetherNet(scale=2, **SMALL))
    x = torch.rand(1, 3, 8, 8)
    exact = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(x)
        rough.float().mean().backward()
    assert rough.isfinite().all()
    assert relative(rough.float(), exact) < 0.05


def test_one_pixel_is_enough():
    network = randomised(AetherNet(scale=4, **SMALL))
    assert network(torch.rand(1, 3, 1, 1)).shape == (1, 3, 4, 4)


def test_needs_torch_alone():
    program = (
        "import sys; import sr_models.students.aethernet, sr_models.students.aethernet3_presets;"
        "print(sorted({'spandrel', 'einops', 'dagster', 'sr_assets'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
