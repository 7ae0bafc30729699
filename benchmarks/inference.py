"""Every backend with every demo student: seconds per output megapixel, and what a picture loses.

The same is measured for one model by `srd bench`; training and quantising happen elsewhere.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import median

import torch
from spandrel.architectures.SPAN import SPAN
from torch import nn

from sr_assets.backend_choice import cpu_name
from sr_assets.bench import BackendResult, BenchReport, bench
from sr_assets.bench_report import table
from sr_models.export.weights import serialise_weights
from sr_models.students.aethernet import aether_small
from sr_models.students.paragonsr import paragonsr_nano
from sr_models.students.paragonsr2 import paragonsr2_realtime
from sr_models.students.realplksr import RealPLKSR

#: What a network without weights is built as: speed does not depend on them.
STUDENTS = {
    "paragonsr_nano": paragonsr_nano,
    "paragonsr2_realtime": paragonsr2_realtime,
    "span": lambda: SPAN(num_in_ch=3, num_out_ch=3, feature_channels=32, upscale=4),
    "realplksr_tiny": lambda: RealPLKSR(dim=32, n_blocks=6, kernel_size=13, use_ea=False),
    "aether_small": aether_small,
}
INT8_PAIRS = {"onnxruntime-int8": "onnxruntime", "openvino-int8": "openvino"}

HELP = """
Enlarges one tile of four shipped photos with each model in every backend of this machine, in turns,
and prints a table for each: seconds per output megapixel (medians), speed over torch in fp32
(median of the ratios within each repeat), PSNR-Y against HR and its loss. Quantised files stand
beside the weights, as MODEL_xSCALE_int8-cpu.onnx. A MODEL that is one of {names} is
built with seeded random weights, whose PSNR-Y says nothing but how backends differ; all of them
where no MODEL is given. The last line of standard output is JSON; its ratio is the median over
models of the speed of the fastest exact backend.
"""


def main() -> None:
    """Measures and prints the tables."""
    parser = argparse.ArgumentParser(
        description=HELP.format(names=", ".join(STUDENTS)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="weights files or folders")
    parser.add_argument("--tile", type=int, default=128, help="side of the tile (LR px)")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{cpu_name()}, {os.cpu_count()} cores, {arguments.threads} threads, torch "
          f"{torch.__version__}, tile {arguments.tile}x{arguments.tile}")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        models = [
            _untrained(model, Path(folder)) if model in STUDENTS else model
            for model in arguments.models or STUDENTS
        ]
        reports = [_measured(model, arguments, Path(folder)) for model in models]
    exact = [r.speed(_named(r, r.choice().exact), "cpu") for r in reports]
    last = {
        "name": "inference",
        "ratio": round(median(exact), 2),
        "peer": "torch eager fp32",
        "unit": "CPU seconds of torch eager / of the fastest exact backend, median over models",
        "repeats": arguments.repeats,
        "default": round(median(r.speed(_named(r, r.choice().default), "cpu") for r in reports), 2),
    }
    print(f"\n{json.dumps(last)}")


def _measured(model: str, arguments: argparse.Namespace, root: Path) -> BenchReport:
    torch._dynamo.reset()  # it gives up on a function that it has compiled for too many networks
    report = bench(
        model,
        root=root,
        device="cpu",
        tile=arguments.tile,
        halo=arguments.tile // 8,
        repeats=arguments.repeats,
        tell=lambda line: print(line, file=sys.stderr),
    )
    parameters = report.network.subject.expert.parameters
    print(f"\n{report.network.name} ({parameters:,} parameters)\n")
    print("\n".join(table(report)))
    choice = report.choice()
    for what, name in (("exact", choice.exact), ("default", choice.default)):
        wall, cpu = (report.speed(_named(report, name), clock) for clock in ("wall", "cpu"))
        print(f"fastest {what}: {name}, {wall:.2f} by the wall clock, {cpu:.2f} by CPU time")
    for quantised, full in INT8_PAIRS.items():
        ours, theirs = _named(report, quantised), _named(report, full)
        if ours.timings and theirs.timings:
            ratio = report.speed(ours, "cpu") / report.speed(theirs, "cpu")
            print(f"{quantised} over {full}: {ratio:.2f} by CPU time, {ours.loss:.3f} dB lost")
    return report


def _named(report: BenchReport, name: str) -> BackendResult:
    return next(result for result in report.results if result.name == name)


def _untrained(name: str, folder: Path) -> str:
    torch.manual_seed(1)
    network: nn.Module = STUDENTS[name]()
    path = folder / f"{name}_x4.safetensors"
    path.write_bytes(serialise_weights(network.state_dict(), {}))
    return str(path)


if __name__ == "__main__":
    main()
