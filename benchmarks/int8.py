"""What int8 costs and gains: fp32, int8 after training, and int8 with rounding in training.

All files of one network run in ONNX Runtime in this process, in turns; other runtimes and exact
tables of every backend are not compared here.
"""

from __future__ import annotations

import argparse
import copy
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

import numpy as np
import torch
from PIL import Image
from spandrel import ModelLoader
from torch import Tensor, nn

from sr_models.degradations.bicubic import downscale_uint8
from sr_models.export.fusing import fused_copy
from sr_models.export.int8 import Int8Error, Int8Report, export_int8
from sr_models.export.int8.qat_export import ranges_of_folded
from sr_models.export.int8.runtimes import open_onnxruntime
from sr_models.export.onnx import export_onnx
from sr_models.inference.backends.mish import without_mish
from sr_models.inference.folding import folded_network
from sr_models.metrics.images import psnr_y, to_uint8
from sr_models.networks import build_network
from sr_models.plugin import register
from sr_models.training.quantisation import fake_quantised, prepare, take_ranges

SCALE = 4
CROP = 40  # LR px of a training crop
PATCH = 64  # LR px of a patch for calibration and gate
TIMED = 128  # LR px of the timed picture
SEED = 7

HELP = """
Quantises networks to int8 and measures PSNR-Y on benchmark sets and speed on this CPU.

  python benchmarks/int8.py PHOTOS SET... --model SPAN=span_x4.safetensors --model aethernet_small

A model without weights is trained from random ones first (--fresh-steps). Control and int8 training
take the same crops in the same order.
"""


@dataclass(frozen=True)
class Row:
    """One file of the table."""

    name: str
    path: Path
    note: str


def main() -> None:
    """Prints a table for each model."""
    parser = argparse.ArgumentParser(
        description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path, help="folder of photos to train and calibrate on")
    parser.add_argument("sets", type=Path, nargs="+", help="folders of HR images to measure on")
    parser.add_argument("--model", action="append", required=True, metavar="NAME[=WEIGHTS]")
    parser.add_argument("--float-layers", default="", help="of int8 training, with commas")
    parser.add_argument("--steps", type=int, default=200, help="of int8 training and its control")
    parser.add_argument("--fresh-steps", type=int, default=600, help="of a model without weights")
    parser.add_argument("--rate", type=float, default=5e-5, help="learning rate of both")
    parser.add_argument("--max-drop", type=float, default=0.05, help="gate, dB PSNR-Y")
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    register()
    photos = sorted(p for p in args.photos.iterdir() if p.suffix in (".jpg", ".png"))
    crops = Crops([np.asarray(Image.open(p).convert("RGB")) for p in photos])
    sets = {folder.name: list(pairs_of(folder)) for folder in args.sets}
    kept = tuple(name for name in args.float_layers.split(",") if name)
    for told in args.model:
        name, _, weights = told.partition("=")
        with tempfile.TemporaryDirectory() as folder:
            network = opened(name, weights, crops, args.fresh_steps)
            rows = files_of(network, crops, Path(folder), args, kept)
            print("\n".join(table(name, rows, sets, args.repeats)), flush=True)


class Crops:
    """LR and HR crops of photos, the same for a number."""

    def __init__(self, photos: Sequence[np.ndarray]) -> None:
        self._photos = photos

    def pair(self, number: int, side: int) -> tuple[np.ndarray, np.ndarray]:
        """Float32 LR [3, side, side] and HR [3, SCALE side, SCALE side] in [0, 1]."""
        draw = random.Random(SEED * 1_000_003 + number)
        photo, size = self._photos[draw.randrange(len(self._photos))], side * SCALE
        top = draw.randrange(photo.shape[0] - size + 1)
        left = draw.randrange(photo.shape[1] - size + 1)
        hr = np.ascontiguousarray(photo[top : top + size, left : left + size])
        return plane(downscale_uint8(hr, SCALE)), plane(hr)

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        """LR and HR [size, 3, H, W] of a training step."""
        pairs = [self.pair(step * size + i, CROP) for i in range(size)]
        lr, hr = (torch.from_numpy(np.stack(part)) for part in zip(*pairs, strict=True))
        return lr, hr

    def patches(self, count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """For calibration and gate."""
        pairs = [self.pair(-1 - i, PATCH) for i in range(count)]
        return [lr for lr, _ in pairs], [hr for _, hr in pairs]


def opened(name: str, weights: str, crops: Crops, steps: int) -> nn.Module:
    """A trained network, fused."""
    if weights:
        return fused_copy(ModelLoader().load_from_file(weights).model.float())
    torch.manual_seed(SEED)
    network = build_network(name, SCALE, {})
    trained(network, crops, steps, 5e-4, rounded=False)
    return fused_copy(network)


def trained(network: nn.Module, crops: Crops, steps: int, rate: float, rounded: bool) -> None:
    """Adam on L1, cosine to 1 % of `rate`, batches of 4."""
    network.train().requires_grad_(True)
    optimiser = torch.optim.Adam(network.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, rate / 100)
    for step in range(steps):
        lr, hr = crops.batch(step, 4)
        with fake_quantised(network) if rounded else nullcontext():
            loss = (network(lr) - hr).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            note(f"step {step} of {steps}: L1 {float(loss.detach()):.4f}")
    network.eval()


def files_of(
    network: nn.Module,
    crops: Crops,
    folder: Path,
    args: argparse.Namespace,
    kept: Sequence[str],
) -> list[Row]:
    """fp32 and int8 of the network, of its control and of its int8 training."""
    lr, hr = crops.patches(32)
    rows: list[Row] = []

    def add(name: str, write: Callable[[Path], Int8Report | None]) -> Path:
        path, start = folder / f"{len(rows)}.onnx", time.monotonic()
        try:
            report = write(path)
        except Int8Error as error:
            note(f"{name}: {error}")
            return path
        rows.append(Row(name, path, described(report)))
        note(f"{name}: {time.monotonic() - start:.0f} s {rows[-1].note}")
        return path

    def graph(source: nn.Module) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            # Noise is far outside what it was trained on: values, and differences, grow large.
            export_onnx(folded_network(source), SCALE, 1, path, tolerance=1.0)

        return write

    def rounding(
        fp32: Path, limit: float, ranges: Mapping[str, Sequence[float]] | None
    ) -> Callable[[Path], Int8Report]:
        return lambda path: export_int8(
            fp32, lr, hr, path, scale=SCALE, target="cpu", max_drop=limit, ranges=ranges
        )

    fp32 = add("fp32", graph(network))
    add("PTQ, ungated", rounding(fp32, 99.0, None))
    add("PTQ, gated", rounding(fp32, args.max_drop, None))
    control = copy.deepcopy(network)
    trained(control, crops, args.steps, args.rate, rounded=False)
    add("fp32, control", graph(control))
    aware = copy.deepcopy(network)
    prepare(aware, kept)
    trained(aware, crops, args.steps, args.rate, rounded=True)
    learnt = take_ranges(aware)
    aware_fp32 = folder / "aware.onnx"
    graph(aware)(aware_fp32)
    add("QAT", rounding(aware_fp32, 99.0, ranges_of_folded(folded_network(aware), learnt)))
    return rows


def described(report: Int8Report | None) -> str:
    """How a file was made."""
    if report is None:
        return ""
    return (
        f"{report.integer_convolutions} of {report.convolutions} in integers, "
        f"{report.calibration}, gate {report.drop:+.3f} dB"
    )


def table(
    name: str, rows: Sequence[Row], sets: dict[str, list[tuple[np.ndarray, np.ndarray]]], times: int
) -> list[str]:
    """Lines of a Markdown table; ratios are to the first row."""
    graphs = [without_mish(row.path.read_bytes()) for row in rows]  # as `srd upscale` runs them
    sessions = [open_onnxruntime(graph, threads=1) for graph in graphs]
    seconds = timed(sessions, times)
    lines = [
        f"## {name}",
        f"| file | {' | '.join(sets)} | ms | times faster | note |",
        f"|---|{'---:|' * (len(sets) + 2)}---|",
    ]
    for row, session, spent in zip(rows, sessions, seconds, strict=True):
        scores = [fmean(score(session, lr, hr) for lr, hr in pairs) for pairs in sets.values()]
        cells = [f"{value:.3f}" for value in scores]
        cells += [f"{1000 * spent:.1f}", f"{seconds[0] / spent:.2f}", row.note]
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
    return lines


def timed(sessions: Sequence[object], repeats: int) -> list[float]:
    """Median CPU seconds of one picture, all sessions in turns."""
    picture = np.random.default_rng(SEED).random((1, 3, TIMED, TIMED), np.float32)
    spent: list[list[float]] = [[] for _ in sessions]
    for repeat in range(repeats + 1):
        for session, found in zip(sessions, spent, strict=True):
            start = time.process_time()
            session.run(None, {"input": picture})  # type: ignore[attr-defined]
            if repeat:  # the first warms up
                found.append(time.process_time() - start)
    return [median(found) for found in spent]


def score(session: object, lr: np.ndarray, hr: np.ndarray) -> float:
    """PSNR-Y (dB) of one picture."""
    sr = session.run(None, {"input": lr[None]})[0]  # type: ignore[attr-defined]
    return psnr_y(to_uint8(torch.from_numpy(sr))[0], hr, SCALE)


def pairs_of(folder: Path) -> Sequence[tuple[np.ndarray, np.ndarray]]:
    """LR float32 [3, h, w] and HR uint8 [H, W, 3] of each image."""
    found = []
    for path in sorted(folder.iterdir()):
        hr = np.asarray(Image.open(path).convert("RGB"))
        h, w = (side - side % SCALE for side in hr.shape[:2])
        hr = np.ascontiguousarray(hr[:h, :w])
        found.append((plane(downscale_uint8(hr, SCALE)), hr))
    return found


def plane(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] as float32 [3, H, W] in [0, 1]."""
    return np.ascontiguousarray(image.transpose(2, 0, 1), np.float32) / np.float32(255)


def note(line: str) -> None:
    """A line beside the table."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
