"""Resident memory of `srd upscale` on a picture of 100 megapixels, against upscaling it whole.

    python benchmarks/upscale_memory.py [--model FILE] [--side 2500] [--whole 640] [--format png]

Each way runs in a process of its own, whose largest resident memory is read when it ends.
"streamed" is the product; "whole" is one forward pass over a smaller picture, kept in memory and
written by Pillow. What whole would take at the full size is told beside it, as memory grows with
the pixels. Without a model it is SPAN x4 with 48 channels and random weights. Minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyvips
from PIL import Image

_LIMIT = 2 << 30  # bytes that a picture of 100 megapixels may take
_TELL = """
import json
import resource
import sys
import time
started = time.monotonic()
{work}
unit = 1 if sys.platform == "darwin" else 1024
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
print(json.dumps({{"peak": peak, "seconds": time.monotonic() - started}}))
"""
_NOTHING = """
import pyvips, torch
from sr_assets.model_lookup import load_upscaler
upscaler = load_upscaler(sys.argv[1], "unused", "cpu")
upscaler.forward(torch.zeros(1, 3, 64, 64))
"""
_STREAMED = """
from sr_assets.upscaling.files import upscale_files
told = lambda line: print(line, file=sys.stderr)
report = upscale_files(*sys.argv[1:4], root="unused", device="cpu", max_megapixels=1e6, tell=told)
assert not report.failed, report.failed
"""
_WHOLE = """
import numpy as np, torch
from PIL import Image
from sr_assets.model_lookup import load_upscaler
from sr_models.metrics.images import to_uint8
upscaler = load_upscaler(sys.argv[1], "unused", "cpu")
pixels = np.array(Image.open(sys.argv[2]))
lr = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
Image.fromarray(to_uint8(upscaler.forward(lr))[0]).save(sys.argv[3])
"""


def main() -> None:
    """Prints a table and one line of JSON."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = arguments.model or _span(folder / "span.safetensors")
        large, small = folder / "large.jpg", folder / "small.jpg"
        _photo(arguments.side).save(large, quality=90)
        _photo(arguments.whole).save(small, quality=90)
        output = folder / f"large-sr.{arguments.format}"
        base = _measured(_NOTHING, model)
        streamed = _measured(_STREAMED, model, large, output)
        whole = _measured(_WHOLE, model, small, folder / "small-sr.png")
        made = pyvips.Image.new_from_file(str(output))
        megapixels = made.width * made.height / 1e6
        difference = _difference(small, folder / "small-sr.png", model, folder / "small-tiled.png")
    times = (arguments.side / arguments.whole) ** 2
    expected = base["peak"] + (whole["peak"] - base["peak"]) * times
    print(f"{'':44}{'MiB':>8}{'s':>8}")
    for name, found in (
        ("libraries and the model alone", base),
        (f"streamed, {megapixels:.0f} megapixels out", streamed),
        (f"whole, {arguments.whole}x{arguments.whole} px in", whole),
    ):
        print(f"{name:44}{found['peak'] / 2**20:8.0f}{found['seconds']:8.0f}")
    print(f"{'whole, at the size of the first (estimate)':44}{expected / 2**20:8.0f}")
    print(f"largest difference of tiles to the whole on the smaller picture: {difference} levels")
    within = "within" if streamed["peak"] < _LIMIT else "ABOVE"
    print(f"{within} the limit of {_LIMIT / 2**20:.0f} MiB")
    print(
        json.dumps(
            {
                "name": "upscale_memory",
                "ratio": round(expected / streamed["peak"], 2),
                "peer": "whole image (estimate)",
                "unit": "resident bytes",
                "repeats": 1,
            }
        )
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path)
    parser.add_argument("--side", type=int, default=2500, help="of the large input (px)")
    parser.add_argument("--whole", type=int, default=640, help="of the small input (px)")
    parser.add_argument("--format", default="png", choices=["png", "jpg", "tif"])
    return parser.parse_args()


def _span(path: Path) -> Path:
    import torch

    from sr_models.export.weights import serialise_weights
    from sr_models.networks import build_network

    torch.manual_seed(0)
    network = build_network("SPAN", 4, {"feature_channels": 48})
    path.write_bytes(serialise_weights(network.state_dict(), {}))
    return path


def _photo(side: int) -> Image.Image:
    """Large shapes, fine texture and noise."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (12, 12, 3), np.uint8))
    smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.int16)
    noisy = smooth + random.integers(-12, 13, (side, side, 1), np.int16)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _measured(work: str, *words: str | Path) -> dict[str, float]:
    """Largest resident memory (bytes) and seconds of a process that does this."""
    done = subprocess.run(
        [sys.executable, "-c", _TELL.format(work=work), *map(str, words)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def _difference(source: Path, whole: Path, model: Path, tiled: Path) -> int:
    _measured(_STREAMED.replace('root="unused"', 'root="unused", tile=256'), model, source, tiled)
    with Image.open(whole) as one, Image.open(tiled) as two:
        return int(np.abs(np.asarray(one, np.int16) - np.asarray(two, np.int16)).max())


if __name__ == "__main__":
    main()
