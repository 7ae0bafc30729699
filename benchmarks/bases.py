"""PSNR-Y of the fixed enlargements that ParagonSR2 adds its detail to, beside bicubic.

The networks' own detail and their speed are not measured here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sr_models.degradations.bicubic import downscale_uint8, upscale
from sr_models.layers.magic_kernel import LegacyBase, MagicKernelSharp
from sr_models.metrics.images import psnr_y, to_uint8

SCALES = (2, 3, 4, 8)
#: Of scikit-image; those of the demo's benchmark that are in colour, and a cup.
BUILTIN = ("astronaut.png", "chelsea.png", "coffee.png")

HELP = """
Enlarges LR made by bicubic with each base of ParagonSR2, without any detail, and measures PSNR-Y
against HR as every report here does. Pictures are those of a folder, or three photos that ship
with scikit-image. The last line of standard output is JSON; its ratio is the mean over scales of
the squared error of bicubic over that of the default base.
"""


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(
        description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, help="pictures; builtin ones when left out")
    pictures = _pictures(parser.parse_args().folder)
    names = ("bicubic", "mks2021", "legacy 0", "legacy 0.3", "legacy 0.4")
    print(f"PSNR-Y (dB), mean of {len(pictures)} pictures\n")
    print("| x | " + " | ".join(names) + " |\n|---|" + "---:|" * len(names))
    gains = []
    for scale in SCALES:
        means = [_mean(pictures, scale, make) for make in _bases(scale)]
        print(f"| {scale} | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")
        gains.append(10 ** ((means[1] - means[0]) / 10))
    last = {
        "name": "bases",
        "ratio": round(float(np.mean(gains)), 3),
        "peer": "bicubic",
        "unit": "squared error of Y, bicubic / mks2021, mean over scales",
        "repeats": len(pictures),
    }
    print(f"\n{json.dumps(last)}")


def _bases(scale: int) -> Sequence[Callable[[Tensor], Tensor]]:
    return (
        lambda lr: upscale(lr, scale),
        MagicKernelSharp(scale),
        *(LegacyBase(scale, alpha) for alpha in (0.0, 0.3, 0.4)),
    )


def _mean(pictures: Sequence[np.ndarray], scale: int, base: Callable[[Tensor], Tensor]) -> float:
    found = []
    for picture in pictures:
        height, width = (side // scale * scale for side in picture.shape[:2])
        hr = picture[:height, :width]
        lr = torch.from_numpy(downscale_uint8(hr, scale)).permute(2, 0, 1)[None] / 255
        with torch.inference_mode():
            found.append(psnr_y(to_uint8(base(lr))[0], hr, border=scale))
    return float(np.mean(found))


def _pictures(folder: Path | None) -> list[np.ndarray]:
    if folder is None:
        from skimage import data

        folder = Path(data.__file__).parent
        files = [folder / name for name in BUILTIN]
    else:
        files = sorted(f for f in folder.iterdir() if f.suffix.lower() in (".png", ".jpg"))
    if not files:
        raise SystemExit(f"bases: no .png or .jpg in {folder}")
    return [np.asarray(Image.open(file).convert("RGB")) for file in files]


if __name__ == "__main__":
    main()
