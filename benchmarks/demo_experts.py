"""The shipped demo experts against bicubic on a folder of HR images, such as Set5.

    python benchmarks/demo_experts.py Set5 [--full-precision FOLDER]

Prints PSNR-Y and SSIM-Y of each by the project's convention and, given a folder with the
full-precision `<name>.safetensors`, what half precision costs. The last line is JSON; its
`ratio` is the smallest gain over bicubic in dB.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from sr_assets.assets.experts import SHIPPED
from sr_assets.pictures import decode_rgb
from sr_models.degradations.bicubic import downscale_uint8, upscale
from sr_models.experts.loading import load_expert
from sr_models.experts.running import run_expert
from sr_models.metrics.images import psnr_y, ssim_y, to_uint8

SCALE = 4


def measure(
    images: list[np.ndarray], enlarge: Callable[[torch.Tensor], torch.Tensor]
) -> list[float]:
    """Mean PSNR-Y (dB) and SSIM-Y over the images."""
    scores = []
    for hr in images:
        lr = torch.from_numpy(downscale_uint8(hr, SCALE)).permute(2, 0, 1)[None].float() / 255
        sr = to_uint8(enlarge(lr))[0]
        scores.append((psnr_y(sr, hr, SCALE), ssim_y(sr, hr, SCALE)))
    return [float(value) for value in np.mean(scores, 0)]


def expert(file: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """Enlarges with the network of a weights file."""
    loaded = load_expert(file)
    return lambda lr: run_expert(loaded, lr, dtype="fp32", batch=1, features=False).sr


def main() -> None:
    """Prints the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path, help="HR images; never trained on")
    parser.add_argument("--full-precision", type=Path, help="folder with the fp32 weights")
    options = parser.parse_args()
    images = []
    for file in sorted(options.folder.iterdir()):
        hr = decode_rgb(file.read_bytes(), 120.0)
        images.append(hr[: hr.shape[0] // SCALE * SCALE, : hr.shape[1] // SCALE * SCALE])
    anchor = measure(images, lambda lr: upscale(lr, SCALE))
    print(f"{'':14} PSNR-Y dB  SSIM-Y  gain dB  half precision costs dB")
    print(f"{'bicubic':14} {anchor[0]:9.2f}  {anchor[1]:.4f}")
    gains = []
    for file in sorted(SHIPPED.glob("*.safetensors")):
        psnr, ssim = measure(images, expert(file))
        gains.append(psnr - anchor[0])
        cost = ""
        if options.full_precision:
            full, _ = measure(images, expert(options.full_precision / file.name))
            cost = f"{full - psnr:+.5f}"
        print(f"{file.stem:14} {psnr:9.2f}  {ssim:.4f}  {gains[-1]:+7.2f}  {cost}")
    print(json.dumps({"name": "demo experts", "ratio": round(min(gains), 3), "peer": "bicubic",
                      "unit": "dB above, smallest of the experts", "repeats": 1}))  # fmt: skip


if __name__ == "__main__":
    main()
