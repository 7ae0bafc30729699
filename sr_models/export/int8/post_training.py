"""Int8 files of trained fp32 graphs: calibrated on real patches, gated by the PSNR-Y they lose.

Networks that were trained with rounding bring their own ranges: `qat_export.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from sr_models.export.int8.attempts import Attempts, Way
from sr_models.export.int8.graph import convolutions
from sr_models.export.int8.grids import Target
from sr_models.export.int8.quality import Loss, Patches, measured, prepare
from sr_models.export.int8.runtimes import (
    has_openvino,
    integer_convolutions,
    run_onnxruntime,
    run_openvino,
)
from sr_models.export.int8.sensitivity import candidates

_FEW = 0.25  # of the convolutions in float: with more, a dearer way of rounding is tried too
_SINGLE = 10.0  # times the mean that may be lost: what a single picture may lose
_FEWEST = 4  # patches: two to calibrate on, two for the gate


class Int8Error(Exception):
    """No int8 file of this graph meets the gate; the message has the numbers."""


@dataclass(frozen=True)
class Int8Report:
    """What was written and what it costs, on the patches of the gate."""

    psnr_fp32: float
    """Mean PSNR-Y of the fp32 graph against HR (dB)."""
    psnr_int8: float
    drop: float
    """`psnr_fp32 - psnr_int8`."""
    largest_drop: float
    """Of the picture that loses most (dB)."""
    openvino_drop: float | None
    """The same mean drop by OpenVINO; None where it is not installed, and for `trt`."""
    max_difference: float
    """Largest |int8 - fp32|."""
    mean_difference: float
    calibration: Way
    kept_in_float: tuple[str, ...]
    """Names of the convolutions that stay fp32: the module's, as in the weights file."""
    convolutions: int
    """Of the graph, those in float included."""
    integer_convolutions: int
    """Those that ONNX Runtime executes in integers; 0 for `trt`."""
    bytes: int


@dataclass(frozen=True)
class _Found:
    """One file that might be written."""

    way: Way
    kept: tuple[str, ...]
    written: bytes
    loss: Loss
    openvino_drop: float | None
    passes: bool


def export_int8(
    onnx_fp32: Path,
    lr: Sequence[np.ndarray],
    hr: Sequence[np.ndarray],
    path: Path,
    *,
    scale: int,
    target: Target,
    max_drop: float = 0.05,
    ranges: Mapping[str, Sequence[float]] | None = None,
) -> Int8Report:
    """Writes the int8 form of an fp32 graph as QDQ, with the fewest convolutions left in float.

    For `cpu`, convolutions whose integer kernel is the slower one always stay in float.

    Every other patch calibrates ranges and ranks layers, the rest are the gate. Ranges are taken
    by extremes and by percentiles; the way that is closer to fp32 is kept.

    Args:
        onnx_fp32: graph of one input [B, 3, H, W] in [0, 1], as `export_onnx` writes it.
        lr: real patches float32 [3, h, w] in [0, 1], at least 4, some dozens better.
        hr: their HR, float32 [3, scale h, scale w].
        path: file to write.
        scale: upscaling factor.
        target: `cpu` (ONNX Runtime, OpenVINO) or `trt` (TensorRT).
        max_drop: PSNR-Y that may be lost on average (dB), by OpenVINO too where it is installed; a
            single picture may lose ten times as much.
        ranges: of layers (`take_ranges`, and `ranges` in `model.json` of a checkpoint that was
            trained with `quantisation_aware`); nothing is calibrated then, and a layer without
            stays in float.

    Raises:
        Int8Error: the gate fails although half of the convolutions stay in float, or the graph has
            none; no file is written.
        ValueError: patches are too few or do not fit together.
    """
    import onnx

    if len(lr) < _FEWEST or len(lr) != len(hr):
        raise ValueError(f"{len(lr)} LR and {len(hr)} HR patches: give {_FEWEST} pairs or more")
    content = onnx_fp32.read_bytes()
    model = onnx.load_from_string(content)
    every = convolutions(model)
    layers = [
        layer
        for layer in every
        if (layer.suited or target == "trt") and (ranges is None or layer.name in ranges)
    ]
    if not layers:
        raise Int8Error(f"{onnx_fp32.name} has no convolution that can be quantised")
    properties = {entry.key: entry.value for entry in model.metadata_props}
    multiple = int(properties.get("multiple", 1))
    own, gate = (
        prepare(content, run_onnxruntime, lr[start::2], hr[start::2], scale, multiple)
        for start in (0, 1)
    )
    attempts = Attempts(model, layers, target, own)
    found: list[_Found] = []
    for way, grids in attempts.trained(ranges) if ranges else attempts.calibrated():
        tries = candidates(layers, *attempts.measures(grids), max_drop)
        # What was trained as it is rounded needs no more than to pass the gate.
        for kept in chain([()], tries) if ranges else tries:
            tried = _tried(way, kept, attempts.written(grids, kept), gate, target, max_drop)
            if tried.passes:
                break
        found.append(tried)
        if tried.passes and len(tried.kept) <= _FEW * len(layers):
            break
    best = min(found, key=lambda one: (not one.passes, len(one.kept)))
    loss, kept, written = best.loss, best.kept, best.written
    if not best.passes:
        by_openvino = best.openvino_drop
        also = f", {by_openvino:.3f} dB by OpenVINO" if by_openvino is not None else ""
        raise Int8Error(
            f"{path.name} loses {loss.drop:.3f} dB PSNR-Y of {loss.psnr_fp32:.3f}, one picture "
            f"{loss.largest_drop:.3f} dB{also}, with {len(kept)} of {len(layers)} convolutions in "
            f"float (at most {max_drop:.3f} and {_SINGLE * max_drop:.3f} dB are accepted): train "
            "it with quantisation_aware, or export no int8"
        )
    integers = 0
    if target == "cpu":
        integers = _demand_integers(written, len(layers) - len(kept), path)
    path.write_bytes(written)
    return Int8Report(
        psnr_fp32=loss.psnr_fp32,
        psnr_int8=loss.psnr_int8,
        drop=loss.drop,
        largest_drop=loss.largest_drop,
        openvino_drop=best.openvino_drop,
        max_difference=loss.max_difference,
        mean_difference=loss.mean_difference,
        calibration=best.way,
        kept_in_float=(*(e.name for e in every if e not in layers), *kept),
        convolutions=len(every),
        integer_convolutions=integers,
        bytes=len(written),
    )


def _demand_integers(content: bytes, wanted: int, path: Path) -> int:
    found = integer_convolutions(content)
    if found != wanted:
        raise Int8Error(
            f"{path.name}: ONNX Runtime executes {found} of {wanted} quantised convolutions in "
            "integers: the file would be slow"
        )
    return found


def _tried(
    way: Way, kept: tuple[str, ...], written: bytes, gate: Patches, target: Target, limit: float
) -> _Found:
    loss, openvino_drop = measured(gate, run_onnxruntime(written, gate.lr)), None
    # Neither passes with NaN.
    passes = loss.drop <= limit and loss.largest_drop <= _SINGLE * limit
    if passes and target == "cpu" and has_openvino():
        # Its kernels are others, and some have been wrong.
        openvino_drop = measured(gate, run_openvino(written, gate.lr)).drop
        passes = openvino_drop <= limit
    return _Found(way, kept, written, loss, openvino_drop, passes)
