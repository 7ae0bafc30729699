"""RealPLKSR: the official function under official names, told by its weights, exportable."""

import warnings
from typing import Any

import pytest
import torch
from spandrel.architectures.PLKSR import RealPLKSR as Official
from torch import Tensor, nn

from sr_models.registry import get_architecture, get_block
from sr_models.students.realplksr import PRESETS, RealPLKSR

SMALL: dict[str, Any] = {"dim": 16, "n_blocks": 2, "kernel_size": 5}

#: Parameters of (name, upsampler) at scales 2, 3, 4, 8.
COUNTS = {
    ("realplksr", "pixelshuffle"): (7_368_908, 7_377_563, 7_389_680, 7_472_768),
    ("realplksr", "dysample"): (7_369_747, 7_380_617, 7_402_243, 7_670_467),
    ("realplksr_s", "pixelshuffle"): (2_351_308, 2_359_963, 2_372_080, 2_455_168),
    ("realplksr_s", "dysample"): (2_352_147, 2_363_017, 2_384_643, 2_652_867),
    ("realplksr_l", "pixelshuffle"): (16_563_756, 16_576_731, 16_594_896, 16_719_456),
    ("realplksr_l", "dysample"): (16_564_595, 16_579_785, 16_607_459, 16_917_155),
}


def shaken(network: nn.Module, seed: int = 0) -> nn.Module:
    """In eval mode, every parameter moved, so that no branch is silent."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    return network.eval()


@pytest.mark.parametrize(("name", "upsampler"), COUNTS)
def test_parameters_are_the_published_ones(name, upsampler):
    with torch.device("meta"):
        for scale, expected in zip((2, 3, 4, 8), COUNTS[name, upsampler], strict=True):
            network = get_architecture(name)(scale=scale, upsampler=upsampler)
            assert sum(p.numel() for p in network.parameters()) == expected
            blocks, tensors = (12, 10) if name == "realplksr_s" else (28, 12)
            extra = 6 if upsampler == "dysample" else 0
            assert len(network.state_dict()) == blocks * tensors + 4 + extra
            assert f"feats.{blocks + 2}.weight" in network.state_dict()


@pytest.mark.parametrize("upsampler", ["pixelshuffle", "dysample"])
@pytest.mark.parametrize("use_ea", [True, False])
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_it_is_the_official_function(scale, use_ea, upsampler):
    ours = shaken(RealPLKSR(**SMALL, scale=scale, use_ea=use_ea, upsampler=upsampler))
    official = Official(
        **SMALL, upscaling_factor=scale, use_ea=use_ea, dysample=upsampler == "dysample"
    ).eval()
    official.load_state_dict(ours.state_dict(), strict=True)
    x = torch.rand(2, 3, 7, 10)
    with torch.no_grad():
        assert (ours(x) - official(x.clone())).abs().max() <= 1e-6 * official(x.clone()).std()


def test_without_enlarging_it_is_the_official_one_with_pixel_shuffle():
    ours = shaken(RealPLKSR(**SMALL, scale=1, upsampler="dysample"))
    official = Official(**SMALL, upscaling_factor=1).eval()
    official.load_state_dict(ours.state_dict(), strict=True)
    x = torch.rand(1, 3, 6, 5)
    assert torch.equal(ours(x), official(x.clone()))
    assert RealPLKSR.options(ours.state_dict())["upsampler"] == "pixelshuffle"


def test_files_without_a_dropout_count_one_layer_less():
    network = RealPLKSR(**SMALL, upsampler="dysample")
    older = {
        "module." + name.replace("feats.4.", "feats.3."): tensor
        for name, tensor in network.state_dict().items()
    }
    assert "module.feats.3.weight" in older
    assert RealPLKSR.detect(older)
    assert RealPLKSR.options(older) == RealPLKSR.options(network.state_dict())
    RealPLKSR(**RealPLKSR.options(older)).load_state_dict(RealPLKSR.canonical(older), strict=True)


def without(name: str) -> dict[str, Tensor]:
    return {n: t for n, t in RealPLKSR(**SMALL).state_dict().items() if n != name}


@pytest.mark.parametrize(
    "state",
    [
        {},
        without("feats.1.norm.weight"),
        {**without(""), "feats.1.layer_norm.weight": torch.ones(16)},
        {**without(""), "feats.0.weight": torch.ones(16, 1, 3, 3)},
        {**without(""), "feats.4.weight": torch.ones(75, 16, 3, 3)},  # x5
        {**without(""), "to_img.init_pos": torch.ones(1, 8, 1, 1)},  # another DySample
        Official(**SMALL, layer_norm=True).state_dict(),
    ],
)
def test_other_files_are_not_taken(state):
    assert not RealPLKSR.detect(state)


def test_groups_that_no_shape_tells_are_kept_in_the_file():
    usual, other = RealPLKSR(**SMALL), RealPLKSR(**SMALL, norm_groups=8)
    assert "norm_groups" not in usual.state_dict()
    assert RealPLKSR.options(other.half().state_dict())["norm_groups"] == 8
    assert RealPLKSR.options(usual.state_dict())["norm_groups"] == 4


@pytest.mark.parametrize("ratio", [0.25, 0.3, 0.29, 0.5, 1.0])
@pytest.mark.parametrize("dim", [12, 20, 28, 100])
def test_the_share_of_large_kernels_is_told_exactly(dim, ratio):
    with torch.device("meta"):
        network = RealPLKSR(dim=dim, n_blocks=1, split_ratio=ratio)
        again = RealPLKSR(**RealPLKSR.options(network.state_dict()))
    shapes = {n: t.shape for n, t in network.state_dict().items()}
    assert {n: t.shape for n, t in again.state_dict().items()} == shapes
    assert again.hyperparameters == network.hyperparameters


def test_other_numbers_of_groups_are_refused_and_files_without_one_take_what_was_built():
    with pytest.raises(RuntimeError, match=r"norm_groups is 2 in the file.*built with 8"):
        RealPLKSR(**SMALL, norm_groups=8).load_state_dict(
            RealPLKSR(**SMALL, norm_groups=2).state_dict()
        )
    eight = RealPLKSR(**SMALL, norm_groups=8)
    eight.load_state_dict(RealPLKSR(**SMALL).state_dict())
    assert float(eight.norm_groups) == 8


def test_any_registered_upsampler_is_taken_in_any_case():
    x = torch.rand(1, 3, 4, 5)
    for scale in (1, 2):
        network = shaken(RealPLKSR(**SMALL, scale=scale, upsampler="Conv_PixelShuffle"))
        assert network(x).shape == (1, 3, 4 * scale, 5 * scale)
        assert network.hyperparameters["upsampler"] == "conv_pixelshuffle"
        assert not RealPLKSR.detect(network.state_dict())
    upper, lower = (RealPLKSR(**SMALL, upsampler=name) for name in ("DySample", "dysample"))
    assert upper.hyperparameters == lower.hyperparameters


def test_presets_give_way_to_options():
    network = get_architecture("realplksr_s")(scale=2, n_blocks=1, dim=16)
    assert network.hyperparameters["n_blocks"] == 1
    assert network.hyperparameters["kernel_size"] == PRESETS["realplksr_s"].kernel_size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 5}, "scale 5"),
        ({"upsampler": "conv"}, "upsampler 'conv' is not known"),
        ({"kernel_size": 4}, "kernel_size 4"),
        ({"split_ratio": 0.01}, "split_ratio"),
        ({"norm_groups": 7}, "norm_groups 7"),
        ({"n_blocks": 0}, "n_blocks 0"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        RealPLKSR(**{**SMALL, **options})


def test_evaluation_leaves_its_input_and_gradients_alone():
    network = shaken(RealPLKSR(**SMALL))
    x = torch.rand(1, 3, 6, 6, requires_grad=True)
    before = x.detach().clone()
    network(x).sum().backward()
    assert torch.equal(x, before) and x.grad is not None
    block = get_block("plkconv2d")(4, kernel_size=3)
    y = torch.rand(1, 9, 5, 5)
    assert torch.equal(block.eval()(y)[:, 4:], y[:, 4:])
    assert torch.equal(block.train()(y), block.eval()(y))


def test_dropout_acts_in_training_only():
    network = RealPLKSR(**SMALL, dropout=0.5)
    x = torch.rand(1, 3, 6, 6)
    assert not torch.equal(network.train()(x), network(x))
    assert torch.equal(network.eval()(x), network(x))


@pytest.mark.parametrize(
    ("upsampler", "dynamo"), [("pixelshuffle", False), ("dysample", False), ("dysample", True)]
)
def test_a_graph_holds_at_other_sizes(dynamo, upsampler, tmp_path):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    if dynamo:
        pytest.importorskip("onnxscript")
    network = shaken(RealPLKSR(dim=8, n_blocks=1, kernel_size=3, scale=2, upsampler=upsampler))
    axes = {0: "batch", 2: "height", 3: "width"}
    shapes: dict[str, Any] = (
        {"dynamic_shapes": ({n: torch.export.Dim(a, min=1, max=4096) for n, a in axes.items()},)}
        if dynamo
        else {"dynamic_axes": {"x": axes}}
    )
    path = tmp_path / "a.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.rand(2, 3, 16, 18),),
            path,
            dynamo=dynamo,
            opset_version=18,
            input_names=["x"],
            **shapes,
        )
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in ((2, 3, 16, 18), (1, 3, 24, 20), (3, 3, 9, 33)):
        x = torch.rand(*size)
        with torch.no_grad():
            expected = network(x)
        actual = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
        assert (actual - expected).abs().max() < 1e-5 * expected.std() + 1e-5
