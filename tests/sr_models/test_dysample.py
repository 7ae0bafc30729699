"""DySample: its function, its buffer, and graphs that hold at sizes that were not traced."""

import warnings

import pytest
import torch
from spandrel.architectures.__arch_helpers.dysample import DySample as Official

from sr_models.layers.dysample import DySample
from sr_models.registry import get_upsampler


def trained(scale: int, channels: int | None = None) -> DySample:
    """With weights that move the positions by up to half a pixel and beyond the border."""
    torch.manual_seed(scale)
    module = get_upsampler("dysample")(channels or 3 * scale**2, 3, scale)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
    return module.eval()


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_it_is_the_official_function_under_the_official_names(scale):
    ours = trained(scale)
    official = Official(3 * scale**2, 3, scale, groups=3 if scale % 2 else 4)
    assert torch.equal(ours.init_pos, official.init_pos)
    official.load_state_dict(ours.state_dict(), strict=True)
    x = torch.rand(2, 3 * scale**2, 5, 9)
    with torch.no_grad():
        assert torch.allclose(ours(x), official(x), atol=1e-6)


def test_without_offsets_it_samples_bilinearly():
    ours = DySample(12, 3, 2)
    with torch.no_grad():
        ours.offset.weight.zero_()
        ours.offset.bias.zero_()
        ours.end_conv.bias.zero_()
        x = torch.rand(1, 12, 6, 7)
        plain = torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear")
        assert torch.allclose(ours(x), ours.end_conv(plain), atol=1e-6)


def test_bfloat16_keeps_positions_of_large_pictures():
    ours = trained(2)
    x = torch.rand(1, 12, 4, 700).bfloat16().float()
    with torch.no_grad():
        exact = ours(x)
        with torch.autocast("cpu", torch.bfloat16):
            low = ours(x)
    assert low.dtype == torch.bfloat16
    error = (low.float() - exact).abs().mean(dim=(0, 1, 2))
    assert error[-100:].mean() < 2 * error[:100].mean()  # pixels 512 and on are not rounded away


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="scale 1"):
        DySample(3, 3, 1)
    with pytest.raises(ValueError, match="10 channels"):
        DySample(10, 3, 2)


@pytest.mark.parametrize(("dynamo", "scale"), [(True, 3), (False, 3), (False, 2)])
def test_a_graph_holds_at_other_sizes(dynamo, scale, tmp_path):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    if dynamo:
        pytest.importorskip("onnxscript")
    module = trained(scale)
    example = torch.rand(2, 3 * scale**2, 16, 18)
    path = tmp_path / "a.onnx"
    axes = {0: "batch", 2: "height", 3: "width"}
    shapes = (
        {"dynamic_shapes": ({n: torch.export.Dim(a, min=1, max=4096) for n, a in axes.items()},)}
        if dynamo
        else {"dynamic_axes": {"x": axes}}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (example,), path, dynamo=dynamo, opset_version=18, input_names=["x"], **shapes
        )
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in ((2, 16, 18), (1, 24, 20), (3, 7, 31)):
        x = torch.rand(size[0], 3 * scale**2, *size[1:])
        with torch.no_grad():
            expected = module(x)
        actual = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
        assert (actual - expected).abs().max() < 2e-5
