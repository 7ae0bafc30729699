"""The spandrel plug-in: every architecture goes to a file and comes back by detection."""

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from spandrel import MAIN_REGISTRY, ImageModelDescriptor, ModelLoader, ModelTiling
from spandrel.architectures.PLKSR import PLKSR
from spandrel.architectures.PLKSR import RealPLKSR as SpandrelRealPLKSR
from torch import nn

import sr_models
from sr_models import plugin
from sr_models.networks import build_network, feature_module_of
from sr_models.registry import get_architecture, modules

COMPAT = Path(__file__).resolve().parents[3] / "shared" / "compat"

sr_models.register()

NAMES = list(modules("architecture"))
CLASSES = {cls.__name__: cls for cls in plugin.classes()}

#: Options that keep a network small, by class; where there are none, its smallest preset serves.
SMALL: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "RealPLKSR": {
        "dim": st.sampled_from([8, 12, 16]),
        "n_blocks": st.integers(1, 3),
        "kernel_size": st.sampled_from([1, 3, 7]),
        "split_ratio": st.sampled_from([0.25, 0.3, 0.5]),
        "use_ea": st.booleans(),
        "norm_groups": st.sampled_from([2, 4]),
        "upsampler": st.sampled_from(["pixelshuffle", "dysample"]),
    },
    "ParagonSR": {
        "num_feat": st.sampled_from([8, 12, 24]),
        "num_groups": st.integers(1, 2),
        "num_blocks": st.integers(1, 2),
        "ffn_expansion": st.sampled_from([1.0, 1.5, 2.0]),
        "band_kernel_size": st.sampled_from([3, 11]),
    },
    "ParagonSR2": {
        "block": st.sampled_from(["nano", "stream", "photo", "pro"]),
        "channels": st.sampled_from([16, 32]),
        "groups": st.integers(1, 2),
        "blocks": st.integers(1, 2),
        "base": st.sampled_from(["mks2021", "legacy"]),
        "upsampler_alpha": st.sampled_from([None, 0.25, 1.0]),
        "export_safe": st.booleans(),
        "window": st.sampled_from([8, 16]),
        "windows": st.sampled_from([None, "masked", "legacy"]),
    },
    "AetherNet": {
        "embed_dim": st.sampled_from([12, 16]),
        "depths": st.lists(st.integers(1, 2), min_size=1, max_size=3),
        "mlp_ratio": st.sampled_from([1.5, 2.0]),
        "lk_kernel": st.sampled_from([5, 7]),
        "sk_kernel": st.sampled_from([1, 3]),
        "img_range": st.sampled_from([1.0, 255.0]),
    },
    "AetherNet3": {
        "embed_dim": st.sampled_from([12, 16]),
        "depths": st.lists(st.integers(1, 2), min_size=1, max_size=3),
        "lk_kernel": st.sampled_from([5, 7]),
        "sk_kernel": st.sampled_from([1, 3]),
        "use_channel_attn": st.booleans(),
        "use_spatial_attn": st.booleans(),
        "norm_type": st.sampled_from(["deployment", "layernorm"]),
        "res_scale": st.sampled_from([None, 0.5]),
        "img_range": st.sampled_from([1.0, 255.0]),
    },
}


@functools.cache
def size(name: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in get_architecture(name)().parameters())


def smallest(cls: Any) -> str:
    return min((n for n in NAMES if plugin.class_of(n) is cls), key=size)


def shaken(network: nn.Module) -> nn.Module:
    """In eval mode, every parameter moved, so that no branch is silent as LayerScale makes it."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("gamma"):
                parameter.add_(0.5)
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=random))
    return network.eval()


def through_a_file(network: nn.Module, folder: Path) -> ImageModelDescriptor[nn.Module]:
    state = {name: tensor.clone().contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, folder / "a.safetensors")
    found = ModelLoader(device="cpu").load_from_file(folder / "a.safetensors")
    assert isinstance(found, ImageModelDescriptor)
    return found


def check_same(found: ImageModelDescriptor[nn.Module], network: nn.Module) -> None:
    assert type(found.model) is type(network) and found.scale == network.scale
    x = torch.rand(1, 3, 7, 10, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected, actual = network(x), found.model.eval()(x)
    assert actual.shape == (1, 3, 7 * found.scale, 10 * found.scale)
    assert (actual - expected).abs().max() <= 1e-6 * expected.std()


@pytest.mark.parametrize("name", NAMES)
def test_every_class_and_preset_is_told_by_its_own_class_alone(name):
    if size(name) > 5e6:
        pytest.skip("the smaller presets of this class stand for it")
    network = get_architecture(name)(scale=3)
    state = network.state_dict()
    assert [n for n, c in CLASSES.items() if c.detect(state)] == [type(network).__name__]
    descriptor = MAIN_REGISTRY.load(dict(state))
    assert descriptor.architecture.id == type(network).__name__
    assert descriptor.scale == 3
    assert name in descriptor.tags or isinstance(get_architecture(name), type)
    prefixed = {f"module.{n}": t for n, t in state.items()}
    assert type(network).canonical(prefixed).keys() == type(network).canonical(state).keys()


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("cls", CLASSES)
def test_a_file_is_the_network_fused_and_unfused(cls, scale, tmp_path):
    network = shaken(get_architecture(smallest(CLASSES[cls]))(scale=scale))
    found = through_a_file(network, tmp_path)
    check_same(found, network)
    if hasattr(network, "fuse"):
        network.fuse()
        fused = through_a_file(network, tmp_path)
        check_same(fused, network)
        assert "fused" in fused.tags and "fused" not in found.tags


@pytest.mark.parametrize("cls", SMALL)
@settings(max_examples=12)
@given(data=st.data())
def test_random_options_are_told_by_the_file(cls, data, tmp_path_factory):
    options = data.draw(st.fixed_dictionaries(SMALL[cls], optional={}))
    scale = data.draw(st.sampled_from([2, 3, 4, 8]))
    torch.manual_seed(0)
    network = shaken(CLASSES[cls](scale=scale, **options))
    if hasattr(network, "fuse") and data.draw(st.booleans()):
        network.fuse()
    check_same(through_a_file(network, tmp_path_factory.mktemp("random")), network)


@pytest.mark.parametrize("cls", CLASSES)
def test_the_descriptor_states_what_the_network_needs(cls, tmp_path):
    network = get_architecture(smallest(CLASSES[cls]))().eval()
    found = through_a_file(network, tmp_path)
    assert (found.tiling is ModelTiling.SUPPORTED) == network.tileable
    assert found.supports_bfloat16
    smallest_side, multiple = found.size_requirements.minimum, found.size_requirements.multiple_of
    side = -(-max(smallest_side, 1) // multiple) * multiple
    with torch.no_grad():
        assert found(torch.rand(1, 3, 5, 9)).shape == (1, 3, 5 * found.scale, 9 * found.scale)
        y = network(torch.rand(2, 3, side, side))
        assert y.shape == (2, 3, side * found.scale, side * found.scale)


TILING = {
    "paragonsr_nano": ModelTiling.DISCOURAGED,
    "paragonsr2_photo": ModelTiling.DISCOURAGED,
    "paragonsr2_pro": ModelTiling.DISCOURAGED,
    "aether3_tiny": ModelTiling.DISCOURAGED,  # channel attention
    "realplksr_s": ModelTiling.DISCOURAGED,
    "paragonsr2_realtime": ModelTiling.SUPPORTED,
    "paragonsr2_stream": ModelTiling.SUPPORTED,
    "aether_small": ModelTiling.SUPPORTED,
    "aether3_mobile": ModelTiling.SUPPORTED,
}


@pytest.mark.parametrize("name", TILING)
def test_a_program_is_told_whether_tiles_are_the_whole(name):
    state = get_architecture(name)(scale=2).state_dict()
    assert MAIN_REGISTRY.load(dict(state)).tiling is TILING[name]


@pytest.mark.parametrize("base", ["mks2021", "legacy"])
def test_a_trained_network_is_still_told_its_preset(base):
    network = get_architecture("paragonsr2_stream")(scale=2, base=base)
    with torch.no_grad():
        network.detail_gain.add_(0.37)
    assert MAIN_REGISTRY.load(dict(network.state_dict())).tags == ["paragonsr2_stream"]
    assert not MAIN_REGISTRY.load(
        dict(get_architecture("paragonsr2_stream")(blocks=1).state_dict())
    ).tags


@pytest.mark.parametrize("cls", CLASSES)
def test_features_have_the_size_of_lr(cls):
    network = get_architecture(smallest(CLASSES[cls]))(scale=2).eval()
    seen: list[torch.Tensor] = []
    path = feature_module_of(network)
    assert path is not None
    network.get_submodule(path).register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        network(torch.rand(2, 3, 16, 32))
    assert seen[-1].ndim == 4 and seen[-1].shape[0] == 2 and seen[-1].shape[2:] == (16, 32)


@pytest.mark.parametrize("cls", CLASSES)
def test_half_precision_arithmetic_stays_near(cls):
    network = shaken(get_architecture(smallest(CLASSES[cls]))(scale=2))
    x = torch.rand(1, 3, 12, 9, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            near = network(x).float()
    assert (near - exact).abs().mean() < 0.05 * exact.std()


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("key", ["params_ema", "params", "state_dict", None])
@pytest.mark.parametrize("cls", CLASSES)
def test_wrapped_state_dicts_of_trainers_load(cls, key, prefix, tmp_path):
    network = shaken(get_architecture(smallest(CLASSES[cls]))(scale=2))
    state = {prefix + name: tensor for name, tensor in network.state_dict().items()}
    torch.save({key: state, "iter": 3} if key else state, tmp_path / "net_g_3.pth")
    check_same(ModelLoader().load_from_file(tmp_path / "net_g_3.pth"), network)


def test_a_missing_tensor_is_an_error(tmp_path):
    state = get_architecture("realplksr")(dim=16, n_blocks=2).state_dict()
    del state["feats.2.refine.bias"]
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(RuntimeError, match=r"feats\.2\.refine\.bias"):
        ModelLoader().load_from_file(tmp_path / "a.safetensors")


def test_files_of_others_stay_theirs():
    small: dict[str, Any] = {"dim": 16, "n_blocks": 2, "kernel_size": 5}
    for foreign in (PLKSR(**small), SpandrelRealPLKSR(**small, layer_norm=True)):
        found = MAIN_REGISTRY.load(dict(foreign.state_dict()))
        assert found.architecture.id == "PLKSR" and type(found.model) is type(foreign)
    official = SpandrelRealPLKSR(**small, dysample=True)
    assert MAIN_REGISTRY.load(dict(official.state_dict())).architecture.id == "RealPLKSR"
    assert not any(c.detect({}) for c in CLASSES.values())


def test_foreign_files_may_hold_other_things_than_tensors():
    network = build_network("Compact", 2, {"num_feat": 8, "num_conv": 1})
    state: dict[str, Any] = {**network.state_dict(), "feats.0.weight": "a word", "step": 3}
    for architecture in MAIN_REGISTRY.architectures("detection"):
        if architecture.architecture.id in CLASSES:
            assert not architecture.detect(state)


def test_registering_twice_changes_nothing_and_needs_no_torch_before():
    before = MAIN_REGISTRY.architectures("detection")
    sr_models.register()
    assert MAIN_REGISTRY.architectures("detection") == before
    check = "import sys, sr_models; assert not {'torch', 'spandrel'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", check], check=True)


FILES = sorted(COMPAT.glob("*.safetensors"))


@pytest.mark.shared
@pytest.mark.parametrize("file", FILES or [None], ids=[f.stem for f in FILES] or ["none"])
def test_reference_outputs_of_the_original_networks(file, tmp_path):
    if file is None:
        pytest.skip("the reference outputs are not beside this checkout")
    stored = load_file(file)
    weights = {
        n.removeprefix("weights."): t.float() if t.is_floating_point() else t
        for n, t in stored.items()
        if n.startswith("weights.")
    }
    save_file(weights, tmp_path / "a.safetensors")
    found = ModelLoader().load_from_file(tmp_path / "a.safetensors")
    assert found.architecture.id in CLASSES
    with torch.no_grad():
        actual = found.model.eval()(stored["input"].float())
    expected = stored["output"]
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-4 * expected.std()
