"""Any metric of the pyiqa package, by its name there: `pyiqa:musiq`.

pyiqa is an extra of its own and its licence (PolyForm Noncommercial, or NTU S-Lab for parts) keeps
it out of commercial work. Its `psnr`, `psnry` and `ssim` are not the convention: docs/metrics.md.
"""

from __future__ import annotations

import importlib
import re
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch

from sr_models.metrics.catalogue import PYIQA, Facts, Metric
from sr_models.metrics.fingerprints import MISSING
from sr_models.one_line import one_line

_EXTRA = "pip install 'sr-distillery[iqa]' (non-commercial licence)"
_DECIMALS = 6  # what single precision can tell apart, and no more


def open_metric(name: str, device: torch.device | str = "cpu") -> Metric:
    """`pyiqa:NAME`, of the whole picture, with the package's own defaults.

    pyiqa itself fetches weights that it lacks.

    Raises:
        ValueError: the package is not installed, knows no such metric, or cannot load it.
    """
    try:
        pyiqa = importlib.import_module("pyiqa")
    except ImportError as error:
        raise ValueError(f"metric {name!r} needs the package pyiqa: {_EXTRA}") from error
    wanted = name.removeprefix(PYIQA)
    if wanted not in pyiqa.list_models():
        raise ValueError(f"metric {name!r}: pyiqa has none of that name; see pyiqa.list_models()")
    try:
        network = pyiqa.create_metric(wanted, device=torch.device(device))
    except Exception as error:  # a download or a file fails in as many ways as there are metrics
        reason = one_line(error)
        raise ValueError(f"metric {name!r}: pyiqa cannot load it: {reason}") from error
    lowest, highest = _range(getattr(network, "score_range", None))
    facts = Facts(f"{wanted} (pyiqa)", "", bool(network.lower_better), lowest, highest)

    def score(sr: np.ndarray, hr: np.ndarray) -> float:
        pictures = [_unit(sr, device)]
        if network.metric_mode == "FR":
            pictures.append(_unit(hr, device))
        with torch.no_grad():
            return round(float(network(*pictures).mean()), _DECIMALS)

    return Metric(name, facts, score)


def fingerprint(name: str) -> dict[str, str]:
    """The version of the package, which names the files that it fetches by their digests."""
    try:
        return {"pyiqa": version("pyiqa")}
    except PackageNotFoundError:
        return {"pyiqa": MISSING}


def _range(said: Any) -> tuple[float | None, float | None]:
    """Bounds out of pyiqa's words, `0, 1`; one that is only typical (`~0`) is no bound."""
    parts = [part.strip() for part in str(said or "").split(",")]
    bounds = [float(p) if re.fullmatch(r"-?\d+(\.\d+)?", p) else None for p in parts]
    return (bounds[0], bounds[1]) if len(bounds) == 2 else (None, None)


def _unit(image: np.ndarray, device: torch.device | str) -> torch.Tensor:
    """uint8 [H, W, 3] -> float [1, 3, H, W] in [0, 1]."""
    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return planes[None].to(device).float() / 255
