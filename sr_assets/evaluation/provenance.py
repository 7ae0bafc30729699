"""Where the numbers of a leaderboard come from: the outputs it read and the programs that ran.

It only reads markers; which output is current is decided in `lineage/`.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sr_assets.lineage.stage import Ref, StageContext
from sr_assets.recipe.models import Recipe
from sr_assets.storage import MARKER, Output

_PACKAGES = ("torch", "numpy", "pillow", "spandrel", "dagster")
_SHOWN = 12  # digits of a digest


def provenance(context: StageContext) -> dict[str, Any]:
    """{"inputs": [{"output", "data", "code", "made", "seconds", "from"}], "made_with": {...}}.

    Digests are shortened to 12 digits. "from" has what each input was made from, as name -> data
    digest, the weights of its metrics included. "made_with" is of the machine that put the page
    together.
    """
    return {
        "inputs": [_line(ref, output) for ref, output in context.inputs.items()],
        "made_with": {**made_with(), "processor": _processor(), **_seeds(context.recipe)},
    }


def provenance_of_files(files: Mapping[str, Path]) -> dict[str, Any]:
    """The same of a page that was made from files alone: name -> file."""
    lines = []
    for name, file in files.items():
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        made = _moment(file.stat().st_mtime)
        lines.append({"output": name, "data": digest[:_SHOWN], "code": "", "made": made})
    return {
        "inputs": [{**line, "seconds": None, "from": {}} for line in lines],
        "made_with": {**made_with(), "processor": _processor()},
    }


def made_with() -> dict[str, str]:
    """Programs and kind of machine, as name -> text."""
    from PIL import features

    found = {"Python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    if features.check("jpg"):
        turbo = features.check_feature("libjpeg_turbo")
        found["libjpeg-turbo" if turbo else "libjpeg"] = str(
            features.version_feature("libjpeg_turbo") if turbo else features.version("jpg")
        )
    found["machine"] = f"{platform.system()} {platform.machine()}"
    return found


def _processor() -> str:
    import torch

    from sr_models.metrics.cost import device_name

    return device_name(torch.device("cpu"))


def _seeds(recipe: Recipe) -> dict[str, str]:
    """That of splits and degradations, and those that models are trained with."""
    trained = {name: str(model.train.seed) for name, model in recipe.models.items()}
    found = {"seed": str(recipe.seed)}
    if len(set(trained.values())) == 1:
        return {**found, "training seed": next(iter(trained.values()))}
    return found | {f"training seed of {name}": seed for name, seed in trained.items()}


def _line(ref: Ref, output: Output) -> dict[str, Any]:
    marker: Mapping[str, Any] = output.marker
    read = {**marker.get("inputs", {}), **marker.get("outside", {})}
    return {
        "output": str(ref),
        "data": output.data_version[:_SHOWN],
        "code": str(marker.get("code_version", ""))[:_SHOWN],
        "made": _made(output),
        "seconds": marker.get("seconds"),
        "from": {name: digest[:_SHOWN] for name, digest in read.items()},
    }


def _made(output: Output) -> str:
    """Day and time (UTC) of the marker; empty where the storage does not say."""
    with suppress(FileNotFoundError, AttributeError):
        return _moment((output.path / MARKER).stat().st_mtime)
    return ""


def _moment(stamp: float) -> str:
    return datetime.fromtimestamp(stamp, UTC).strftime("%Y-%m-%d %H:%M")
