"""The metrics by name: what each means, which way is better, and the ones that a recipe asks for.

How one is computed is the business of its own module; this one imports neither torch nor weights.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

#: Begins the name of any metric of the pyiqa package.
PYIQA = "pyiqa:"


@dataclass(frozen=True)
class Facts:
    """What somebody needs to read a number."""

    title: str
    unit: str
    lower_is_better: bool
    lowest: float | None
    """Of the values that occur; None where there is no bound."""
    highest: float | None

    def to_json(self) -> dict[str, Any]:
        """The fields as they are."""
        return asdict(self)


#: Of everything that this project measures itself.
FACTS = {
    "psnr_y": Facts("PSNR-Y", "dB", False, 0.0, None),
    "ssim_y": Facts("SSIM-Y", "", False, -1.0, 1.0),
    "psnr_rgb": Facts("PSNR-RGB", "dB", False, 0.0, None),
    "ms_ssim": Facts("MS-SSIM-Y", "", False, 0.0, 1.0),
    "lr_psnr": Facts("LR consistency", "dB", False, 0.0, None),
    "lpips": Facts("LPIPS (AlexNet, v0.1)", "", True, 0.0, None),
    "dists": Facts("DISTS (VGG-16)", "", True, 0.0, 1.0),
    "niqe": Facts("NIQE", "", True, 0.0, None),
}
#: Those that are measured only where a recipe names them.
ON_REQUEST = ("lpips", "dists", "niqe")


@dataclass(frozen=True)
class Metric:
    """A metric with all that it needs, ready to measure."""

    name: str
    facts: Facts
    score: Callable[[np.ndarray, np.ndarray], float | None]
    """Of SR and HR, uint8 [H, W, 3] RGB of one size; None where the picture is too small for it."""


def open_metrics(names: Iterable[str], device: torch.device | str = "cpu") -> tuple[Metric, ...]:
    """The metrics of these names, each once, their weights found and loaded.

    Args:
        names: some of `ON_REQUEST`, or `pyiqa:` and a name of that package.
        device: where networks run.

    Raises:
        ValueError: another name, or a file or package is missing: one line with the mend.
    """
    found = []
    for name in dict.fromkeys(names):
        module = importlib.import_module(module_of(name))
        found.append(module.open_metric(name, device))
    return tuple(found)


def fingerprints(names: Iterable[str]) -> dict[str, str]:
    """What the numbers of these metrics come from besides code, so that a change of it is seen.

    Returns:
        File or package of each -> the first 16 digits of the SHA-256 of its content or, for a
        package, its version; `missing` for what is not here. Paths do not count: the same files on
        another machine have the same fingerprints.

    Raises:
        ValueError: there is no metric of one of the names.
    """
    found: dict[str, str] = {}
    for name in names:
        found |= importlib.import_module(module_of(name)).fingerprint(name)
    return found


def module_of(name: str) -> str:
    """The module of ours that measures `name`.

    Raises:
        ValueError: it is no name of a metric that can be asked for.
    """
    if name.startswith(PYIQA):
        return "sr_models.metrics.iqa"
    if name not in ON_REQUEST:
        asked = ", ".join(ON_REQUEST)
        raise ValueError(f"there is no metric {name!r}: take some of {asked} or {PYIQA}NAME")
    return "sr_models.metrics.niqe" if name == "niqe" else "sr_models.metrics.perceptual"
