"""A release told to programs: the JSON model card, and an entry for OpenModelDB.

The card that people read is `model_card.py`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from sr_assets.report.front_matter import convention
from sr_assets.report.licences import spdx_licence
from sr_assets.report.model_card import CardFacts

_HUB = "https://huggingface.co"
#: OpenModelDB's names of architectures that differ from spandrel's in lower case.
_ARCHITECTURES = {"plksr": "realplksr", "realcugan": "real-cugan", "srvggnetcompact": "compact"}
_FORMATS = {".safetensors": "safetensors", ".pth": "pth", ".onnx": "onnx"}


def json_card(facts: CardFacts, version: str, day: str) -> bytes:
    """`<name>_model_card.json`.

    Args:
        facts: of the card.
        version, day: of the release; both are left out when empty.
    """
    d = facts.description
    own = facts.rows.get(d["model"], {})
    return _text(
        {
            "model_name": d["model"],
            **({"version": version} if version else {}),
            "architecture": d["architecture"],
            "scale": d["scale"],
            "input_channels": 3,
            "output_channels": 3,
            "parameters": d["parameters"],
            "training": {
                "dataset": ", ".join(facts.data),
                "iterations": facts.iterations,
                "batch_size": facts.batch_size,
            },
            "performance": {
                "psnr": _mean([score["psnr_y"] for score in own.values()]),
                "ssim": _mean([score["ssim_y"] for score in own.values()]),
                "benchmarks": {
                    b: {"psnr": score["psnr_y"], "ssim": score["ssim_y"]}
                    for b, score in own.items()
                },
                "convention": convention(facts),
            },
            "export_formats": sorted({_format(name) for name in facts.files} - {""}),
            "license": d["licence"],
            "author": facts.author,
            **({"date": day} if day else {}),
        }
    )


def openmodeldb(facts: CardFacts, version: str, day: str) -> bytes:
    """An entry for `data/models/` of OpenModelDB, in that repository's own layout of JSON.

    Addresses of files and pictures are those of the hub where the recipe names a repository there;
    without one they are left empty, to be filled in by who hosts them.

    Args:
        facts: of the card.
        version, day: of the release; an empty day is written as 1970-01-01.
    """
    d = facts.description
    base = f"{_HUB}/{facts.hub}/resolve/v{version}" if facts.hub and version else None
    resources = [
        {
            "platform": "onnx" if kind == "onnx" else "pytorch",
            "type": kind,
            "size": file["size"],
            "sha256": file["sha256"],
            "urls": [f"{base}/{name}"] if base else [],
        }
        for name, file in facts.files.items()
        if (kind := _format(name))
    ]
    entry: dict[str, Any] = {
        "name": d["model"],
        "author": _slug(facts.author or "unknown"),
        "license": spdx_licence(d["licence"]),
        "tags": ["restoration"] if facts.degraded else ["general-upscaler"],
        "description": f"{facts.summary}\n\n{_quality(facts)}".strip(),
        "date": day or "1970-01-01",
        "architecture": _architecture(d),
        "size": None,
        "scale": d["scale"],
        "inputChannels": 3,
        "outputChannels": 3,
        "resources": resources,
        "trainingIterations": facts.iterations,
        "trainingBatchSize": facts.batch_size,
        "trainingHRSize": facts.hr_size,
        "trainingOTF": facts.online,
        "dataset": ", ".join(facts.data),
        "images": [
            {"type": "standalone", "caption": p.caption, "url": f"{base}/{p.file}"}
            for p in facts.pictures
            if base
        ],
    }
    # Their check wants this layout to the byte: four spaces, no line end after it.
    return json.dumps(entry, indent=4, ensure_ascii=False).encode()


def _quality(facts: CardFacts) -> str:
    own = facts.rows.get(facts.description["model"], {})
    numbers = [f"{b} {s['psnr_y']:.2f} dB" for b, s in own.items() if s["psnr_y"] is not None]
    if not numbers:
        return ""
    return f"PSNR-Y: {', '.join(numbers)}. {convention(facts)}."


def _architecture(description: Mapping[str, Any]) -> str:
    name = _slug(description["architecture"])
    name = _ARCHITECTURES.get(name, name)
    sampled = "dysample" in json.dumps(description["args"]).lower()
    turned_off = description["args"].get("dysample") is False
    return "realplksr-dysample" if name == "realplksr" and sampled and not turned_off else name


def _format(name: str) -> str:
    return next((kind for ending, kind in _FORMATS.items() if name.endswith(ending)), "")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9+]+", "-", text.lower()).strip("-")


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _text(value: Any) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"
