"""The tiny project with full fusions instead of the gate: every way to train one, and a student.

What is the same in every test stands here; what the tests expect of it is in the tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_project import tiny_recipe

EXPERTS = ("edsr", "compact", "bare")
TRAIN = {
    "steps": 40, "batch": 4, "crop": 12, "learning_rate": 2e-3, "warmup": 5, "ema": 0.9,
    "validate_every": 20, "checkpoint_every": 20, "log_every": 10,
}  # fmt: skip
#: Whole patches as they are: what an expert makes live of one is what its cache holds.
PLAIN_CROPS = {"crop": 16, "augment": {"flips": False, "rotations": False}}
STAGED = {
    **{k: v for k, v in TRAIN.items() if k != "steps"},
    "epochs": 3, "batch": 16, "warmup": 1, "validate_every": 1, "milestones": [2],
    "optimizer": "adamw_schedule_free", "schedule": "constant",
    "stages": [
        {"until": 1, "loss": {"l1": 1}},
        {"until": 2, "loss": {"l1": 0.75, "fft_log": 0.25}},
        {"loss": {"l1": 0.6, "swt": 0.3, "ssim": 0.1}},
    ],
}  # fmt: skip


def fusion(train: dict[str, Any], **more: Any) -> dict[str, Any]:
    """One fusion of a recipe, in a tiny shape."""
    shape = {"guidance_width": 16, "common_width": 16, "width": 16, "depth": 2}
    return {"kind": "fusion", **shape, "train": train, **more}


def fusion_recipe(sources: Path) -> dict[str, Any]:
    """Three experts: features of the usual module, of a named one, and none."""
    recipe = tiny_recipe(sources)
    weights = recipe["experts"]["compact"]
    network = recipe["models"]["alone"]["network"]
    recipe["experts"] |= {"compact": {**weights, "features": "body.1"}, "bare": weights}
    recipe["models"] = {
        "full": fusion(TRAIN),
        "subset": fusion({**TRAIN, "steps": 10}, experts=["bare", "edsr"]),
        "live": fusion({**TRAIN, **PLAIN_CROPS}, experts="live"),
        "twin": fusion({**TRAIN, **PLAIN_CROPS}),
        "staged": fusion(STAGED),
        "student": {
            "kind": "student", "network": network, "teachers": ["full"],
            "train": {**TRAIN, "learning_rate": 5e-3},
        },
        "taught": {
            "kind": "student", "control": True, "train": {**TRAIN, "learning_rate": 5e-3},
            "network": {
                "architecture": "paragonsr_nano",
                "args": {"num_feat": 12, "num_groups": 1, "num_blocks": 1},
            },
            "teachers": ["full", "edsr"], "teaching": "mean", "follow": "where_closer",
            "features": {"experts": ["edsr"], "weight": 0.1},
        },
    }  # fmt: skip
    recipe["silver"]["stride"] = 32  # fewer samples: an epoch is short
    recipe["release"] = {"models": ["full", "subset"]}
    return recipe
