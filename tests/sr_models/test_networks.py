"""Networks by name, and that spandrel tells each again from its weights."""

from typing import Any

import pytest
import spandrel
import torch
from safetensors.torch import save_file
from spandrel import MAIN_REGISTRY

from sr_models import plugin
from sr_models.experts.presets import EXPERTS_X4
from sr_models.networks import (
    architectures,
    build_network,
    constructor_arguments,
    describe,
    feature_module_of,
)
from sr_models.registry import modules

#: A small network of every architecture of spandrel that can be built by name, and of EDSR.
TINY: dict[str, dict[str, Any]] = {
    "HAT": {
        "embed_dim": 16,
        "depths": [2],
        "num_heads": [2],
        "window_size": 8,
        "compress_ratio": 2,
        "squeeze_factor": 4,
        "mlp_ratio": 2.0,
        "num_feat": 8,
        "img_size": 32,
    },
    "DRCT": {
        "embed_dim": 16,
        "depths": [6],
        "num_heads": [2],
        "window_size": 8,
        "gc": 8,
        "img_size": 32,
    },
    "GRL": {
        "embed_dim": 24,
        "depths": [2, 1],
        "num_heads_window": [2, 2],
        "num_heads_stripe": [2, 2],
        "window_size": 8,
        "stripe_size": [16, 8],
        "anchor_window_down_factor": 2,
        "mlp_ratio": 2.0,
        "local_connection": True,
        "upsampler": "pixelshuffledirect",
        "img_size": 32,
    },
    "EDSR": {"num_feat": 8, "num_block": 2, "res_scale": 0.3},
    "SPAN": {"feature_channels": 8},
    "Compact": {"num_feat": 8, "num_conv": 3},
    "SwinIR": {
        "embed_dim": 16,
        "depths": [2],
        "num_heads": [2],
        "window_size": 8,
        "mlp_ratio": 2.0,
    },
    "PLKSR": {"dim": 16, "n_blocks": 2, "kernel_size": 9},
    "SAFMN": {"dim": 16, "n_blocks": 2},
    "ATD": {
        "embed_dim": 16,
        "depths": [2],
        "num_heads": [2],
        "window_size": 8,
        "num_tokens": 8,
        "reducted_dim": 2,
        "img_size": 32,
    },
    "CRAFT": {"embed_dim": 12, "depths": [2], "num_heads": [6]},
    "DAT": {
        "embed_dim": 16,
        "depth": [2],
        "num_heads": [2],
        "split_size": [2, 4],
        "expansion_factor": 2.0,
        "img_size": 32,
    },
    "DCTLSA": {"nf": 10, "num_modules": 6, "num_head": 5},
    "DITN": {"dim": 12, "ITL_blocks": 2, "SAL_blocks": 2},
    "ESRGAN": {"num_filters": 8, "num_blocks": 2},
    "FDAT": {
        "embed_dim": 16,
        "num_groups": 2,
        "depth_per_group": 2,
        "num_heads": 2,
        "mid_dim": 16,
    },
    "MoESR": {
        "dim": 16,
        "n_blocks": 1,
        "n_block": 1,
        "expansion_factor": 1.5,
        "upsample_dim": 8,
    },
    "MoSR": {"dim": 16, "n_block": 2},
    "OmniSR": {"num_feat": 16},
    "RCAN": {"n_resgroups": 1, "n_resblocks": 2, "n_feats": 16, "reduction": 4},
    "RGT": {
        "embed_dim": 16,
        "depth": [2],
        "num_heads": [2],
        "mlp_ratio": 2.0,
        "img_size": 32,
    },
    "RealCUGAN": {},
    "SeemoRe": {"num_experts": 2, "num_layers": 2, "embedding_dim": 16},
    "Swin2SR": {
        "embed_dim": 16,
        "depths": [2],
        "num_heads": [2],
        "window_size": 8,
        "mlp_ratio": 2.0,
        "img_size": 32,
    },
    "SwiftSRGAN": {"num_channels": 8, "num_blocks": 2},
}

#: Names that spandrel gives to classes of these architectures.
CLASSES = {
    "Compact": "SRVGGNetCompact",
    "DITN": "DITN_Real",
    "ESRGAN": "RRDBNet",
    "RealCUGAN": "UpCunet4x",
    "SwiftSRGAN": "Generator",
}


@pytest.mark.filterwarnings("ignore:torch.meshgrid")
@pytest.mark.parametrize("architecture", TINY)
def test_spandrel_makes_the_same_function_from_the_bare_weights(architecture, tmp_path):
    torch.manual_seed(0)
    module = build_network(architecture, 4, TINY[architecture]).eval()
    with torch.no_grad():
        for parameter in module.parameters():  # so that no branch is silent as at initialisation
            parameter.add_(0.05 * torch.randn_like(parameter))
    state = {k: v.clone().contiguous() for k, v in module.state_dict().items()}
    save_file(state, tmp_path / "a.safetensors")
    loaded = spandrel.ModelLoader().load_from_file(tmp_path / "a.safetensors")
    assert (loaded.architecture.id, loaded.scale) == (architecture, 4)
    assert type(loaded.model) is type(module)
    assert type(module).__name__ == CLASSES.get(architecture, architecture)
    with torch.no_grad():
        for size in ((32, 32), (36 if architecture == "RealCUGAN" else 16, 48)):
            x = torch.rand(1, 3, *size)
            before = x.clone()
            y = module(x)
            assert torch.equal(x, before)
            assert y.shape == (1, 3, 4 * size[0], 4 * size[1])
            assert torch.allclose(loaded.model.eval()(x), y, rtol=1e-6, atol=1e-6 * float(y.std()))


@pytest.mark.filterwarnings("ignore:torch.meshgrid")
def test_files_of_others_are_detected_as_before_ours_were_registered():
    plugin.register()
    ours = {cls.__name__ for cls in plugin.classes()}
    assert not ours & TINY.keys()
    for architecture, args in TINY.items():
        state = dict(build_network(architecture, 4, args).state_dict())
        found = [
            str(support.architecture.id)
            for support in MAIN_REGISTRY.architectures("detection")
            if support.detect(state)
        ]
        assert found[0] == architecture
        assert not ours & set(found)


@pytest.mark.filterwarnings("ignore:torch.meshgrid")
@pytest.mark.parametrize("architecture", sorted(TINY.keys() - {"RealCUGAN"}))
def test_features_of_spandrels_networks_have_the_size_of_lr(architecture):
    network = build_network(architecture, 4, TINY[architecture]).eval()
    path = feature_module_of(network)
    assert path is not None
    seen = []
    network.get_submodule(path).register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        network(torch.rand(1, 3, 16, 32))
    (features,) = seen
    # CRAFT pads its picture to whole windows.
    assert features.shape[2:] == ((32, 48) if architecture == "CRAFT" else (16, 32))
    assert features.shape[1] >= 8


def test_a_network_without_known_features_has_none():
    assert feature_module_of(build_network("RealCUGAN", 2, {})) is None


@pytest.mark.parametrize("name", ["realplksr", "RealPLKSR", "REALPLKSR_S"])
def test_names_of_ours_go_first_and_in_any_case(name):
    network = build_network(name, 2, {"dim": 8, "n_blocks": 1, "dropout": 0.1})
    assert type(network).__module__ == modules("architecture")[name.lower()]
    with torch.no_grad():
        assert network.eval()(torch.rand(1, 3, 5, 6)).shape == (1, 3, 10, 12)
    with pytest.raises(ValueError, match=r"no argument 'n_block' \(did you mean n_blocks\?\)"):
        build_network(name, 2, {"n_block": 1})
    with pytest.raises(ValueError, match="scale 4 but scale is 2"):
        build_network(name, 2, {"scale": 4})


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_realcugan_is_another_class_at_each_scale(scale):
    network = build_network("RealCUGAN", scale, {})
    assert type(network).__name__ == f"UpCunet{scale}x"
    with torch.no_grad():
        assert network.eval()(torch.rand(1, 3, 32, 36)).shape[2:] == (32 * scale, 36 * scale)


def test_esrgan_that_unshuffles_enlarges_by_the_scale_asked_for():
    network = build_network("ESRGAN", 2, {**TINY["ESRGAN"], "shuffle_factor": 2})
    with torch.no_grad():
        assert network.eval()(torch.rand(1, 3, 8, 12)).shape == (1, 3, 16, 24)


@pytest.mark.parametrize(
    ("architecture", "scale", "message"),
    [
        ("ESRGAN", 3, "enlarge by 2, not by 3"),
        ("SwiftSRGAN", 3, "enlarge by 2, not by 3"),
        ("RealCUGAN", 8, "scale 8 is not one of"),
        ("FDAT", 8, "scale 8 is not supported"),
        ("realplksr", 5, "scale 5 is not one of"),
    ],
)
def test_a_scale_that_an_architecture_has_not_is_an_error(architecture, scale, message):
    with pytest.raises(ValueError, match=message):
        build_network(architecture, scale, TINY.get(architecture, {}))


def test_weights_fit_a_network_built_again():
    first, second = (build_network("GRL", 4, TINY["GRL"]) for _ in range(2))
    second.load_state_dict(first.state_dict(), strict=True)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_scale_reaches_the_constructor_under_its_own_name(scale):
    for architecture in ("EDSR", "SPAN", "Compact", "SAFMN"):
        args = {k: v for k, v in TINY[architecture].items() if k != "num_conv"}
        with torch.no_grad():
            y = build_network(architecture, scale, args).eval()(torch.rand(1, 3, 16, 16))
        assert y.shape == (1, 3, 16 * scale, 16 * scale)


def test_the_check_leaves_the_random_numbers_alone():
    torch.manual_seed(5)
    build_network("Compact", 4, TINY["Compact"])
    after = torch.rand(1)
    torch.manual_seed(5)
    from spandrel.architectures.Compact import Compact

    Compact(num_feat=8, num_conv=3)
    assert torch.equal(after, torch.rand(1))


def test_unknown_architecture_lists_what_there_is():
    with pytest.raises(ValueError, match=r"'Span' is not known \(did you mean SPAN\?\).*Compact"):
        build_network("Span", 4, {})
    with pytest.raises(
        ValueError, match=r"\(did you mean realplksr\?\).*realplksr_s.*SwinIR"
    ) as error:
        build_network("Real-PLKSR", 4, {})
    assert "\n" not in str(error.value)


def test_unknown_argument_lists_the_arguments():
    with pytest.raises(ValueError, match=r"no argument 'num_feats' \(did you mean num_feat\?\)"):
        build_network("Compact", 4, {"num_feats": 8})


def test_a_name_of_another_program_is_answered_with_its_first_word():
    with pytest.raises(ValueError, match=r"'window_size' \(did you mean window\?\)"):
        build_network("paragonsr2_photo", 4, {"window_size": 8})


def test_missing_argument_and_contradicting_scale_are_named():
    with pytest.raises(ValueError, match="SAFMN needs dim"):
        build_network("SAFMN", 4, {})
    with pytest.raises(ValueError, match="upscale 2 but scale is 4"):
        build_network("Compact", 4, {"upscale": 2})


@pytest.mark.filterwarnings("ignore:torch.meshgrid")
@pytest.mark.parametrize(
    ("architecture", "change", "message"),
    [
        ("HAT", {"conv_scale": 0.1}, "conv_scale 0.01 instead of 0.1"),
        ("GRL", {"stripe_shift": False}, "stripe_shift True instead of False"),
        ("DRCT", {"img_range": 255.0}, "img_range 1.0 instead of 255.0"),
        ("SPAN", {"img_range": 1.0}, "img_range 255.0 instead of 1.0"),
    ],
)
def test_arguments_that_the_weights_do_not_tell_are_refused(architecture, change, message):
    with pytest.raises(ValueError, match=message):
        build_network(architecture, 4, {**TINY[architecture], **change})


def test_every_listed_architecture_exists_and_takes_a_scale():
    scales = {"upscale", "scale", "upscaling_factor", "up_scale", "upscale_factor"}
    assert set(architectures()) == TINY.keys() | modules("architecture").keys()
    for architecture in set(architectures()) - {"RealCUGAN"}:  # a class for each scale
        assert scales & constructor_arguments(architecture).keys(), architecture


@pytest.mark.filterwarnings("ignore:torch.meshgrid")
@pytest.mark.parametrize("name", EXPERTS_X4)
def test_published_experts_have_the_published_parameters(name):
    preset = EXPERTS_X4[name]
    module = build_network(preset.architecture, 4, preset.args)
    assert describe(module) == preset.parameters
    ours = {"table_w", "table_sh", "index_sh_a2w"}  # what build_network adds to GRL
    assert len(module.state_dict().keys() - ours) == preset.state_keys
