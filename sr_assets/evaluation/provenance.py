"""Where the numbers of a leaderboard come from: the outputs it read and the programs that ran.

It only reads markers; which output is current is decided in `lineage/`.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sr_assets.lineage.stage import Ref, StageContext
from sr_assets.storage import MARKER, Output

_PACKAGES = ("torch", "numpy", "pillow", "spandrel", "dagster")
_SHOWN = 12  # digits of a digest


def provenance(context: StageContext) -> dict[str, Any]:
    """{"inputs": [{"output", "data", "code", "made", "seconds", "from"}], "made_with": {...}}.

    Digests are shortened to 12 digits. "from" has what each input was made from, as name -> data
    digest. "made_with" is of the machine that put the page together.
    """
    return {
        "inputs": [_line(ref, output) for ref, output in context.inputs.items()],
        "made_with": made_with(seed=context.recipe.seed),
    }


def made_with(seed: int | None = None) -> dict[str, str]:
    """Programs, machine and seed, as name -> text."""
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
    if seed is not None:
        found["seed"] = str(seed)
    return found


def _line(ref: Ref, output: Output) -> dict[str, Any]:
    marker: Mapping[str, Any] = output.marker
    return {
        "output": str(ref),
        "data": output.data_version[:_SHOWN],
        "code": str(marker.get("code_version", ""))[:_SHOWN],
        "made": _made(output),
        "seconds": marker.get("seconds"),
        "from": {name: digest[:_SHOWN] for name, digest in marker.get("inputs", {}).items()},
    }


def _made(output: Output) -> str:
    """Day and time (UTC) of the marker; empty where the storage does not say."""
    from datetime import UTC, datetime

    with suppress(FileNotFoundError, AttributeError):
        stamp = (output.path / MARKER).stat().st_mtime
        return datetime.fromtimestamp(stamp, UTC).strftime("%Y-%m-%d %H:%M")
    return ""
