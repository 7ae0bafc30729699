"""Networks by name, and that spandrel tells each again from its weights."""

import pytest
import spandrel
import torch
from safetensors.torch import save_file

from sr_models.experts.presets import EXPERTS_X4
from sr_models.networks import ARCHITECTURES, build_network, constructor_arguments, describe

#: Small networks of the families whose small forms the demo trains.
TINY = {
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
    "RealPLKSR": {"dim": 16, "n_blocks": 2},
    "PLKSR": {"dim": 16, "n_blocks": 2, "kernel_size": 9},
    "SAFMN": {"dim": 16, "n_blocks": 2},
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
    assert (loaded.architecture.id.replace("PLKSR", ""), loaded.scale) == (
        architecture.replace("RealPLKSR", "").replace("PLKSR", ""),
        4,
    )
    with torch.no_grad():
        for size in ((32, 32), (16, 48)):
            x = torch.rand(1, 3, *size)
            y = module(x)
            assert y.shape == (1, 3, 4 * size[0], 4 * size[1])
            assert torch.equal(loaded.model.eval()(x), y)


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


def test_unknown_argument_lists_the_arguments():
    with pytest.raises(ValueError, match=r"no argument 'num_feats' \(did you mean num_feat\?\)"):
        build_network("Compact", 4, {"num_feats": 8})


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
    for architecture in ARCHITECTURES:
        assert scales & constructor_arguments(architecture).keys(), architecture


@pytest.mark.filterwarnings("ignore:torch.meshgrid")
@pytest.mark.parametrize("name", EXPERTS_X4)
def test_published_experts_have_the_published_parameters(name):
    preset = EXPERTS_X4[name]
    module = build_network(preset.architecture, 4, preset.args)
    assert describe(module) == preset.parameters
    ours = {"table_w", "table_sh", "index_sh_a2w"}  # what build_network adds to GRL
    assert len(module.state_dict().keys() - ours) == preset.state_keys
