"""Int8 graphs of small real networks: what is in the file, what it computes, and the gate."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import nn

from sr_models.degradations.bicubic import downscale_uint8
from sr_models.export.fusing import fused_copy
from sr_models.export.int8 import Int8Error, export_int8
from sr_models.export.int8.calibration import calibrate
from sr_models.export.int8.graph import convolutions, pictures, sums_and_products
from sr_models.export.int8.grids import Range, grid_of
from sr_models.export.int8.qdq import quantised
from sr_models.export.int8.runtimes import (
    executed,
    integer_convolutions,
    run_onnxruntime,
    run_openvino,
)
from sr_models.export.int8.sensitivity import candidates
from sr_models.export.onnx import export_onnx
from sr_models.networks import build_network
from sr_models.training.quantisation import fake_quantised, prepare, take_ranges

SCALE = 2
NETWORKS: dict[str, dict[str, Any]] = {
    "Compact": {"num_feat": 8, "num_conv": 2},
    "SPAN": {"feature_channels": 8},
    "aethernet": {"embed_dim": 12, "depths": (1,)},
    "paragonsr_nano": {},
    "paragonsr2_realtime": {},
}
#: Its concatenation is rounded part by part in a file, and as a whole in training.
KEPT = {"SPAN": ("conv_cat", "upsampler.0")}


def network(name: str = "Compact") -> nn.Module:
    torch.manual_seed(3)
    return fused_copy(build_network(name, SCALE, NETWORKS[name]))


def patches(count: int = 4, side: int = 24) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Smooth waves with an edge, each its own."""
    lr, hr = [], []
    y, x = np.mgrid[: side * SCALE, : side * SCALE] / (side * SCALE)
    for index in range(count):
        waves = [np.sin((3 + index) * x + c * y) + (x > y) for c in range(3)]
        picture = np.stack(waves, -1)
        picture = (picture - picture.min()) / np.ptp(picture)
        whole = (picture * 255).round().astype(np.uint8)
        lr.append(downscale_uint8(whole, SCALE).transpose(2, 0, 1).astype(np.float32) / 255)
        hr.append(whole.transpose(2, 0, 1).astype(np.float32) / 255)
    return lr, hr


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fp32") / "compact.onnx"
    export_onnx(network(), SCALE, 1, path, metadata={"model": "tiny"})
    return path


def written(fp32: Path, path: Path, **more: Any) -> Any:
    return export_int8(fp32, *patches(), path, **{"scale": SCALE, "target": "cpu", **more})


def constants(model: Any) -> Mapping[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def test_a_cpu_file_runs_in_integers_at_any_size(fp32: Path, tmp_path: Path) -> None:
    report = written(fp32, path := tmp_path / "int8.onnx", max_drop=1.0)
    content = path.read_bytes()
    assert report.bytes == len(content)
    assert report.convolutions == 4
    assert report.integer_convolutions == 4 - len(report.kept_in_float)
    assert integer_convolutions(content) == report.integer_convolutions > 0
    assert report.drop == pytest.approx(report.psnr_fp32 - report.psnr_int8) and report.drop <= 1
    assert report.largest_drop >= report.drop
    assert 0 < report.mean_difference < report.max_difference < 0.1
    odd = [np.random.default_rng(1).random((2, 3, 13, 22), np.float32)]
    assert run_onnxruntime(content, odd)[0].shape == (2, 3, 26, 44)


def test_the_report_is_of_the_file(fp32: Path, tmp_path: Path) -> None:
    report = written(fp32, path := tmp_path / "int8.onnx", max_drop=1.0)
    gate = [lr[None] for lr in patches()[0][1::2]]
    one, two = (run_onnxruntime(p.read_bytes(), gate) for p in (fp32, path))
    largest = max(float(np.abs(a - b).max()) for a, b in zip(one, two, strict=True))
    assert report.max_difference == pytest.approx(largest, abs=1e-6)


def test_a_file_says_what_it_is_and_nothing_of_this_machine(fp32: Path, tmp_path: Path) -> None:
    model = onnx.load(fp32)
    model.graph.node[0].doc_string = "/home/somebody/network.py"
    model.graph.node[0].metadata_props.add(key="pkg.torch.onnx.stack_trace", value="/home/somebody")
    onnx.save(model, leaking := tmp_path / "leaking.onnx")
    written(leaking, path := tmp_path / "int8.onnx", max_drop=1.0)
    assert b"somebody" not in path.read_bytes()
    found = onnx.load(path)
    onnx.checker.check_model(found, full_check=True)
    properties = {entry.key: entry.value for entry in found.metadata_props}
    assert properties["model"] == "tiny" and properties["quantisation"] == "int8-cpu"


def test_the_same_patches_make_the_same_bytes(fp32: Path, tmp_path: Path) -> None:
    made = [tmp_path / f"{i}.onnx" for i in range(2)]
    for path in made:
        written(fp32, path, max_drop=1.0)
    assert made[0].read_bytes() == made[1].read_bytes()


def test_a_tensorrt_file_is_symmetric_and_has_float_biases(fp32: Path, tmp_path: Path) -> None:
    report = written(fp32, path := tmp_path / "int8.onnx", target="trt", max_drop=1.0)
    model = onnx.load(path)
    values = constants(model)
    points = [v for name, v in values.items() if name.endswith("_zero_point")]
    assert points and all(p.dtype == np.int8 and not p.any() for p in points)
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    assert all(values[node.input[2]].dtype == np.float32 for node in convs)
    assert report.integer_convolutions == 0 and report.openvino_drop is None


def test_a_failed_gate_names_the_numbers_and_leaves_no_file(fp32: Path, tmp_path: Path) -> None:
    with pytest.raises(Int8Error, match=r"loses -?\d+\.\d+ dB PSNR-Y .* with 1 of 3 conv"):
        written(fp32, path := tmp_path / "int8.onnx", max_drop=-5.0)
    assert not path.exists()


def test_patches_must_be_enough_and_fit(fp32: Path, tmp_path: Path) -> None:
    lr, hr = patches()
    with pytest.raises(ValueError, match="give 4 pairs or more"):
        export_int8(fp32, lr[:3], hr[:3], tmp_path / "x", scale=SCALE, target="cpu")
    with pytest.raises(ValueError, match="do not fit scale 4"):
        export_int8(fp32, lr, hr, tmp_path / "x", scale=4, target="cpu")


def test_openvino_computes_what_onnxruntime_does(fp32: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    report = written(fp32, path := tmp_path / "int8.onnx", max_drop=1.0)
    image = [patches()[0][1][None]]
    one, two = (run(path.read_bytes(), image)[0] for run in (run_onnxruntime, run_openvino))
    assert np.abs(one - two).mean() < 2 / 255
    assert report.openvino_drop is not None and report.openvino_drop <= 1.0


@pytest.mark.parametrize("name", NETWORKS)
def test_an_int8_file_computes_what_was_trained(name: str, tmp_path: Path) -> None:
    torch.manual_seed(4)
    trained, (lr, hr) = network(name), patches()
    prepare(trained, KEPT.get(name, ()))
    trained.train()
    optimiser = torch.optim.Adam([p for p in trained.parameters() if p.requires_grad], 1e-4)
    for low, high in zip(lr, hr, strict=True):
        with fake_quantised(trained):
            output = trained(torch.from_numpy(low[None]))
        optimiser.zero_grad()
        (output - torch.from_numpy(high[None])).abs().mean().backward()
        optimiser.step()
    trained.eval()
    with torch.no_grad(), fake_quantised(trained):
        # A file cuts what is only shuffled to its output to [0, 1].
        expected = trained(torch.from_numpy(lr[1][None])).numpy().clip(0, 1)
    ranges = take_ranges(trained)
    export_onnx(trained, SCALE, 1, graph := tmp_path / "fp32.onnx")
    layers = {layer.name for layer in convolutions(onnx.load(graph))}
    assert ranges and set(ranges) < layers
    path = tmp_path / "int8.onnx"
    report = export_int8(
        graph, lr, hr, path, scale=SCALE, target="cpu", max_drop=99.0, ranges=ranges
    )
    assert report.calibration == "trained"
    assert set(report.kept_in_float) == layers - set(ranges)
    assert report.integer_convolutions == len(ranges)
    image = [lr[1][None]]
    actual, plain = (run_onnxruntime(p.read_bytes(), image)[0].clip(0, 1) for p in (path, graph))
    error = np.abs(actual - expected).mean()
    assert error < 0.5 * np.abs(plain - expected).mean() + 1e-4  # far closer than fp32 is


def test_trained_ranges_are_the_file_s_scales(fp32: Path, tmp_path: Path) -> None:
    names = [layer.name for layer in convolutions(onnx.load(fp32))]
    ranges = dict.fromkeys(names[2:], (-0.5, 2.05, -1.0, 1.55))
    report = written(fp32, path := tmp_path / "int8.onnx", max_drop=99.0, ranges=ranges)
    assert report.kept_in_float == (names[0], names[1])
    values = constants(onnx.load(path))
    activations = {
        (round(float(v), 6), int(values[n.replace("_scale", "_zero_point")]))
        for n, v in values.items()
        if n.endswith("_scale") and v.ndim == 0
    }
    assert activations == {(0.01, 50), (0.01, 100)}


def test_a_file_of_trained_ranges_is_first_tried_as_trained(fp32: Path, tmp_path: Path) -> None:
    lr, hr = patches()
    # Against its own pictures the graph loses all its PSNR-Y by any rounding: by the patches for
    # calibration alone, layers would have to stay in float.
    for index in range(0, len(lr), 2):
        hr[index] = run_onnxruntime(fp32.read_bytes(), [lr[index][None]])[0][0].clip(0, 1)
    layers = [layer for layer in convolutions(onnx.load(fp32)) if layer.suited]
    tensors = {t for layer in layers for t in (layer.input, layer.output)}
    found = calibrate(onnx.load(fp32), tensors, [patch[None] for patch in lr]).minmax
    ends = {name: (float(r.low.min()), float(r.high.max())) for name, r in found.items()}
    ranges = {layer.name: (*ends[layer.input], *ends[layer.output]) for layer in layers}
    path, limits = tmp_path / "int8.onnx", {"scale": SCALE, "target": "cpu", "max_drop": 1.0}
    trained = export_int8(fp32, lr, hr, path, ranges=ranges, **limits)
    calibrated = export_int8(fp32, lr, hr, path, **limits)
    assert trained.integer_convolutions == len(layers)
    assert calibrated.integer_convolutions < len(layers)


@given(
    st.lists(st.tuples(st.floats(0, 1e3), st.floats(0, 1e3)), min_size=1, max_size=6),
    st.sampled_from(["cpu", "trt"]),
    st.sampled_from([1.0, 4.0, np.inf]),
)
def test_a_grid_holds_its_range_and_0(
    ends: list[tuple[float, float]], target: Any, unevenness: float
) -> None:
    found = Range(np.array([-low for low, _ in ends]), np.array([high for _, high in ends]))
    grid = grid_of(found, target, unevenness)
    lowest, highest = (0, 255) if target == "cpu" else (-127, 127)
    assert lowest <= grid.zero_point <= highest and (grid.scale > 0).all()
    slack = 0.5001 * grid.scale + 1e-6  # one scale for all is rounded to hold 0 exactly
    assert (grid.scale * (lowest - grid.zero_point) <= found.low + slack).all()
    assert (grid.scale * (highest - grid.zero_point) >= found.high - slack).all()


def test_channels_of_unlike_size_are_each_rounded_finely(tmp_path: Path) -> None:
    torch.manual_seed(5)
    first, second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
    sizes = torch.logspace(-2, 2, 8)
    with torch.no_grad():
        first.weight *= sizes.view(-1, 1, 1, 1)
        first.bias *= sizes
        second.weight /= 30 * sizes.view(1, -1, 1, 1)
        second.bias.fill_(0.5)
    export_onnx(nn.Sequential(first, nn.SiLU(), second, nn.PixelShuffle(2)), 2, 1,
                path := tmp_path / "x.onnx")  # fmt: skip
    model = onnx.load(path)
    tensors = {t for layer in convolutions(model) for t in (layer.input, layer.output)}
    images = [lr[None] for lr in patches()[0]]
    ranges = calibrate(model, tensors, images).minmax
    plain = run_onnxruntime(path.read_bytes(), images)[0].clip(0, 1)
    errors = []
    for unevenness in (np.inf, 1.0):
        grids = {name: grid_of(found, "cpu", unevenness) for name, found in ranges.items()}
        content = quantised(model, grids, (), "cpu").SerializeToString()
        assert integer_convolutions(content) == 2
        rounded = run_onnxruntime(content, images)[0].clip(0, 1)
        errors.append(float(((rounded - plain) ** 2).mean()))
    assert errors[1] < 0.2 * errors[0]


class Gated(nn.Module):
    """A block of SPAN between two convolutions, and a pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.block = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 3 * SCALE**2, 3, padding=1)
        nn.init.constant_(self.last.bias, 0.5)  # type: ignore[arg-type]

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        x = self.first(lr)
        y = self.block(x)
        z = (y + x) * (torch.sigmoid(y) - 0.5)
        return nn.functional.pixel_shuffle(self.last(z), SCALE)


def test_what_lies_between_integer_convolutions_is_of_integers(tmp_path: Path) -> None:
    torch.manual_seed(6)
    export_onnx(Gated().eval(), SCALE, 1, path := tmp_path / "gated.onnx")
    model, images = onnx.load(path), [lr[None] for lr in patches()[0]]
    tensors = {t for layer in convolutions(model) for t in (layer.input, layer.output)}
    found = calibrate(model, tensors | sums_and_products(model), images).minmax
    grids = {name: grid_of(ends, "cpu", np.inf) for name, ends in found.items()}
    result = quantised(model, grids, ("first",), "cpu")
    made = {node.output[0]: node for node in result.graph.node}
    (shuffle,) = (n for n in result.graph.node if n.op_type == "DepthToSpace")
    assert made[shuffle.input[0]].op_type == "QuantizeLinear"
    for kept, reader in ((("first",), "Mul"), ((), "QuantizeLinear")):
        # What a float convolution makes stays as it is, and so do a sum of it and its gate.
        nodes = quantised(model, grids, kept, "cpu").graph.node
        (total,) = (node for node in nodes if node.op_type == "Add")
        assert {node.op_type for node in nodes if total.output[0] in node.input} == {reader}
        assert ("Sub" in {node.op_type for node in nodes}) == (reader == "Mul")
    for kept in (("first",), ()):
        content = quantised(model, grids, kept, "cpu").SerializeToString()
        one, two = (run_onnxruntime(c, images)[0] for c in (content, path.read_bytes()))
        assert np.abs(one.clip(0, 1) - two.clip(0, 1)).mean() < 0.5 / 255


class Joined(nn.Module):
    """Maps of a float convolution, of a SiLU and of an integer one, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.low = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.high, self.join = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(24, 8, 1)
        self.last = nn.Conv2d(8, 3 * SCALE**2, 3, padding=1)
        with torch.no_grad():
            self.low.weight *= 5  # parts of unlike size, each with a zero point of its own
            self.last.bias.fill_(0.5)  # type: ignore[union-attr]

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        x = self.first(lr)
        y = nn.functional.silu(self.low(x))
        joined = self.join(torch.cat([x, y, self.high(y)], 1))
        return nn.functional.pixel_shuffle(self.last(joined), SCALE)


def rounded(module: nn.Module, path: Path, *kept: tuple[str, ...]) -> tuple[Any, list[bytes]]:
    """The fp32 graph of a network, and that with int8 values for each set kept in float."""
    export_onnx(module.eval(), SCALE, 1, path)
    model = onnx.load(path)
    tensors = {t for layer in convolutions(model) for t in (layer.input, layer.output)}
    images = [lr[None] for lr in patches()[0]]
    found = calibrate(model, tensors | sums_and_products(model), images).minmax
    grids = {name: grid_of(ends, "cpu", np.inf) for name, ends in found.items()}
    return model, [quantised(model, grids, k, "cpu").SerializeToString() for k in kept]


def test_maps_side_by_side_stay_bytes_each_on_its_own_grid(tmp_path: Path) -> None:
    torch.manual_seed(8)
    path, images = tmp_path / "joined.onnx", [lr[None] for lr in patches()[0]]
    kept = (("first",), ("first", "join"))
    _, (integers, mixed) = rounded(Joined(), path, *kept)
    plain = run_onnxruntime(path.read_bytes(), images)[0].clip(0, 1)
    errors = [
        float(np.abs(run_onnxruntime(c, images)[0].clip(0, 1) - plain).mean())
        for c in (integers, mixed)
    ]
    assert max(errors) < 1 / 255
    ran = [executed(content) for content in (integers, mixed)]
    assert [found["QLinearConv"] for found in ran] == [4, 3]
    # One is a convolution of bytes; the other multiplies bytes and adds what the float one made.
    assert [found["MatMulIntegerToFloat"] for found in ran] == [0, 1]
    assert [found["QLinearMul"] for found in ran] == [1, 1]
    assert [found["MatMul"] for found in ran] == [0, 1] and [f["Conv"] for f in ran] == [1, 1]


def test_sums_with_a_float_convolution_cost_no_transpositions(tmp_path: Path) -> None:
    torch.manual_seed(6)
    _, (one, two) = rounded(Gated(), tmp_path / "gated.onnx", ("first",), ("first", "block"))
    # What the integer convolutions make is turned once, for the pixel shuffle.
    assert executed(one)["Transpose"] <= 1
    # What float convolutions make, each: a sum of both is channels last as its product is.
    assert executed(two)["Transpose"] <= 2 and executed(two)["Reshape"] == 2


def test_a_convolution_reads_the_bytes_that_were_shuffled(tmp_path: Path) -> None:
    torch.manual_seed(9)
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 32, 3, padding=1), nn.PixelShuffle(2))
    module = nn.Sequential(*layers, nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 3, 1))
    path, images = tmp_path / "shuffled.onnx", [lr[None] for lr in patches()[0]]
    _, (content,) = rounded(module, path, ("0", "4"))
    assert integer_convolutions(content) == 2
    one, two = (run_onnxruntime(c, images)[0] for c in (content, path.read_bytes()))
    assert np.abs(one - two).mean() < 1 / 255


def test_convolutions_that_share_weights_have_names_of_their_own(tmp_path: Path) -> None:
    shared = nn.Conv2d(8, 8, 3, padding=1)
    path = tmp_path / "shared.onnx"
    layers = (nn.Conv2d(3, 8, 3, padding=1), shared, nn.ReLU(), shared, nn.Conv2d(8, 12, 1))
    export_onnx(nn.Sequential(*layers, nn.PixelShuffle(SCALE)), SCALE, 1, path)
    names = [layer.name for layer in convolutions(onnx.load(path))]
    assert len(set(names)) == 4 and {"0", "4"} < set(names)
    report = written(path, tmp_path / "int8.onnx", max_drop=99.0)
    assert report.integer_convolutions + len(report.kept_in_float) == 4


def test_a_picture_is_whole_where_it_is_only_shuffled(tmp_path: Path) -> None:
    export_onnx(Gated().eval(), SCALE, 1, path := tmp_path / "gated.onnx")
    model = onnx.load(path)
    (name,) = pictures(model) - {"output"}
    found = calibrate(model, {name}, [lr[None] for lr in patches()[0]])
    for ranges in (found.minmax, found.percentile):
        assert ranges[name].low.tolist() == [0] * 12 and ranges[name].high.tolist() == [1] * 12


def test_percentiles_lie_within_extremes_and_the_picture_is_whole(fp32: Path) -> None:
    model = onnx.load(fp32)
    layers = convolutions(model)
    tensors = {layer.input for layer in layers} | {layer.output for layer in layers}
    found = calibrate(model, tensors, [lr[None] for lr in patches()[0]])
    assert set(found.minmax) == set(found.percentile) == tensors
    for name, wide in found.minmax.items():
        narrow = found.percentile[name]
        assert (wide.low <= narrow.low).all() and (narrow.low <= 0).all()
        assert (wide.high >= narrow.high).all() and (narrow.high >= 0).all()
    assert found.percentile["input"].high.tolist() == [1, 1, 1]


def test_the_fewest_layers_stay_in_float(fp32: Path) -> None:
    layers = convolutions(onnx.load(fp32))
    names = [layer.name for layer in layers]
    costs = dict(zip(names, (0.1, 0.6, 0.02, 0.3), strict=True))

    def lost(kept: Any) -> float:
        return sum(cost for name, cost in costs.items() if name not in kept)

    first, *_ = candidates(layers, lost, lost, 0.45)
    assert first == (names[1],)
    assert next(iter(candidates(layers, lost, lost, 2.0))) == ()
    grown = list(candidates(layers, lost, lost, -1.0))
    assert all(len(kept) <= 2 for kept in grown) and set(grown[-1]) == {names[1], names[3]}
