"""Measures every backend with one network on this machine: seconds, and what a picture loses.

The backends are `sr_models/inference/backends/`; what is done with the result is `cli_bench.py`.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from upath import UPath

from sr_assets.backend_choice import Choice, Machine, this_machine
from sr_assets.bench_pictures import Picture, photo_tile, read_picture
from sr_assets.lineage.stage import StageError
from sr_assets.model_lookup import LoadedNetwork, load_network
from sr_models.one_line import one_line

if TYPE_CHECKING:
    from torch import Tensor

    from sr_models.inference.backends.backend import Backend

#: Largest loss of PSNR-Y (dB) against HR, and smallest PSNR (dB) to torch in fp32, of a default.
MAX_LOSS, MIN_PSNR = 0.005, 65.0


@dataclass
class Timing:
    """Seconds that one backend took for one picture, a repeat each."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    """Of all threads of this process."""


@dataclass
class BackendResult:
    """What was measured of one backend."""

    name: str
    exactness: str
    integer: bool
    lacking: str | None = None
    """Why it did not run; None where it did."""
    prepare_seconds: float = 0.0
    """Opening it, and what it does at the first pictures of a shape."""
    timings: dict[str, Timing] = field(default_factory=dict)
    """By the picture's name."""
    max_difference: float = 0.0
    """Largest |backend - torch| of an output value in [0, 1], over all pictures."""
    psnr_to_torch: float = math.inf
    """PSNR (dB) of its 8-bit pictures to those of torch in fp32; the lowest of all pictures."""
    psnr_y: float = math.nan
    """PSNR-Y (dB) against HR, on the photos."""
    loss: float = math.nan
    """PSNR-Y of torch in fp32 minus that (dB)."""

    def passes(self) -> bool:
        """Whether its pictures are as good as it says."""
        from sr_models.inference.backends.backend import EXACT_TOLERANCE

        if self.lacking is not None:
            return False
        if self.exactness == "exact":
            return self.max_difference <= EXACT_TOLERANCE
        return self.loss <= MAX_LOSS and self.psnr_to_torch >= MIN_PSNR


@dataclass
class BenchReport:
    """One run of `bench`."""

    network: LoadedNetwork
    machine: Machine
    tile: int
    halo: int
    pictures: list[Picture]
    results: list[BackendResult]
    """torch first."""

    def megapixels(self, picture: Picture) -> float:
        """Of the enlarged picture."""
        height, width = picture.lr.shape[:2]
        return height * width * self.network.subject.expert.scale**2 / 1e6

    def seconds_per_megapixel(self, result: BackendResult, clock: str = "wall") -> float:
        """Median seconds of each picture, summed, over the megapixels that came out."""
        medians = [statistics.median(getattr(t, clock)) for t in result.timings.values()]
        return sum(medians) / sum(map(self.megapixels, self.pictures))

    def speed(self, result: BackendResult, clock: str = "wall") -> float:
        """How many times as fast as torch in fp32: the median of the ratios within each repeat.

        What slows the machine for a while slows both.
        """
        theirs, ours = _repeats(self.results[0], clock), _repeats(result, clock)
        return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))

    def choice(self) -> Choice:
        """The fastest backends; what loses by quantisation is none of them."""
        passing = [r for r in self.results if r.passes() and not r.integer]
        exact = [r for r in passing if r.exactness == "exact"]
        default, fastest = (max(some, key=self.speed).name for some in (passing, exact))
        return Choice(default, fastest)


def bench(
    model: str,
    images: Sequence[Path] = (),
    *,
    root: str | Path | UPath,
    device: str = "auto",
    tile: int = 256,
    halo: int = 32,
    repeats: int = 5,
    backends: Sequence[str] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> BenchReport:
    """Runs every backend that this machine has, in turns, and compares its pictures with torch.

    Args:
        model, root, device: see `load_network`.
        images: pictures to enlarge beside the shipped photos, which are one tile.
        tile: side of a tile with its halo (LR px).
        halo: context at each inner side of a tile (LR px).
        repeats: measurements of each backend and picture.
        backends: only these beside torch; all when left out.
        tell: is given a line for every step.

    Raises:
        StageError: the model, a picture or a name is wrong.
    """
    from sr_models.inference.backends.backend import BackendError
    from sr_models.inference.backends.catalogue import find_backend

    if halo < 0 or tile <= 2 * halo:
        raise StageError(f"--tile {tile} must be more than twice the halo of {halo} px")
    try:
        asked = {find_backend(name).name for name in backends}
    except BackendError as error:
        raise StageError(str(error)) from error
    network = load_network(model, root, device)
    scale = network.subject.expert.scale
    pictures = [photo_tile(tile, scale), *(read_picture(path) for path in images)]
    report = BenchReport(network, this_machine(network.device), tile, halo, pictures, [])
    runs = _prepared(report, asked, tell)
    measured = [result for result in report.results if result.name in runs]
    for repeat in range(repeats):
        tell(f"repeat {repeat + 1} of {repeats}")
        for result in measured if repeat % 2 == 0 else measured[::-1]:
            for picture in pictures:
                _time(runs[result.name], picture, result)
    return report


def _repeats(result: BackendResult, clock: str) -> list[float]:
    """Seconds of each repeat, all pictures together."""
    timings = [getattr(timing, clock) for timing in result.timings.values()]
    return [sum(seconds) for seconds in zip(*timings, strict=True)]


def _prepared(
    report: BenchReport, asked: set[str], tell: Callable[[str], None]
) -> dict[str, Callable[[Picture], Tensor]]:
    """Opens and compares the backends; those that run, by name."""
    from sr_models.inference.backends.catalogue import BACKENDS

    runs: dict[str, Callable[[Picture], Tensor]] = {}
    expected: dict[str, Tensor] = {}
    for backend in BACKENDS:
        if asked and backend.name not in asked and backend is not BACKENDS[0]:
            continue
        result = BackendResult(backend.name, backend.exactness, backend.integer)
        report.results.append(result)
        started = time.perf_counter()
        try:
            run = _runner(backend, report.network, report.tile, report.halo)
            made = {p.name: _warmed(run, p, backend.warm_up) for p in report.pictures}
        except Exception as error:  # each runtime fails with classes of its own
            line = one_line(error)
            result.lacking = line.removeprefix(f"backend {backend.name}: ")
            tell(f"{backend.name}: {result.lacking}")
            continue
        result.prepare_seconds = time.perf_counter() - started
        expected = expected or made
        _compare(result, report, made, expected)
        runs[backend.name] = run
        tell(f"{backend.name}: ready after {result.prepare_seconds:.1f} s")
    if BACKENDS[0].name not in runs:
        raise StageError(f"{report.network.name} does not run: {report.results[0].lacking}")
    return runs


def _time(run: Callable[[Picture], Tensor], picture: Picture, result: BackendResult) -> None:
    timing = result.timings.setdefault(picture.name, Timing())
    cpu, wall = time.process_time(), time.perf_counter()
    run(picture)
    timing.cpu.append(time.process_time() - cpu)
    timing.wall.append(time.perf_counter() - wall)


def _runner(
    backend: Backend, network: LoadedNetwork, tile: int, halo: int
) -> Callable[[Picture], Tensor]:
    """Enlarges a picture in tiles: float32 [1, 3, H, W], not clamped."""
    import torch

    from sr_models.inference.backends.backend import open_backend
    from sr_models.inference.tiles import upscale_tiled

    run, expert = open_backend(backend, network.subject), network.subject.expert
    grid = expert.multiple if expert.multiple <= tile - 2 * halo else 1

    def forward(picture: Picture) -> Tensor:
        planes = np.ascontiguousarray(picture.lr.transpose(2, 0, 1))[None]
        lr = torch.from_numpy(planes).float() / 255
        return upscale_tiled(
            lambda piece: run(piece.to(network.device)), lr, expert.scale, tile, halo, grid=grid
        )

    return forward


def _warmed(run: Callable[[Picture], Tensor], picture: Picture, times: int) -> Tensor:
    """What `run` makes of the picture once it has prepared for its shape."""
    for _ in range(times - 1):
        run(picture)
    return run(picture)


def _compare(
    result: BackendResult,
    report: BenchReport,
    made: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
) -> None:
    """Enters what the pictures of a backend lose against those of torch."""
    from sr_models.metrics.images import psnr_y, to_uint8

    scale = report.network.subject.expert.scale
    for picture in report.pictures:
        ours, theirs = made[picture.name], expected[picture.name]
        difference = float((ours - theirs).abs().max())
        result.max_difference = max(result.max_difference, difference)
        sr, reference = to_uint8(ours)[0], to_uint8(theirs)[0]
        squared = float(np.mean(np.square(sr.astype(np.float32) - reference)))
        psnr = 10 * math.log10(255**2 / squared) if squared else math.inf
        result.psnr_to_torch = min(result.psnr_to_torch, psnr)
        if picture.hr is not None:
            result.psnr_y = psnr_y(sr, picture.hr, scale)
            result.loss = psnr_y(reference, picture.hr, scale) - result.psnr_y
