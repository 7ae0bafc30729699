"""The front matter of a model card as the Hugging Face hub reads it, and its evaluation files.

What people read of the card is `model_card.py`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml

from sr_assets.report.licences import licence_fields

if TYPE_CHECKING:
    from sr_assets.report.model_card import CardFacts

_COMMIT = re.compile(r"[0-9a-f]{40}")


def convention(facts: CardFacts, benchmark: str | None = None) -> str:
    """How the numbers were measured, in one sentence without a full stop.

    Args:
        facts: of the card.
        benchmark: the only one that is meant; all of them when left out.
    """
    own = facts.other_lr
    meant = own if benchmark is None else {b: lr for b, lr in own.items() if b == benchmark}
    others = [f"{lr} on {b}" for b, lr in meant.items()]
    usual = [] if benchmark in meant else ["LR by MATLAB-compatible bicubic reduction"]
    return (
        f"{', '.join(usual + others)}; SR rounded to 8 bits; luma of BT.601; a border of "
        f"{facts.description['scale']} px left out; mean over the images that no row meets exactly"
    )


def front_matter(facts: CardFacts) -> str:
    """YAML between two lines of dashes, rendered by the hub's own classes."""
    from huggingface_hub import EvalResult, ModelCardData

    d = facts.description
    scale = d["scale"]
    results = [
        EvalResult(
            task_type="image-to-image",
            task_name=f"Super-resolution ×{scale}",
            dataset_name=benchmark,
            dataset_type=facts.hub_benchmarks.get(benchmark, (benchmark.lower(), ""))[0],
            dataset_revision=_commit(facts.hub_benchmarks.get(benchmark, ("", ""))[1]),
            metric_type=metric,
            metric_name=name,
            metric_value=round(score[key], digits),
            metric_args={"convention": convention(facts, benchmark)},
        )
        for benchmark, score in facts.rows.get(d["model"], {}).items()
        for metric, name, key, digits in (
            ("psnr", "PSNR-Y (dB)", "psnr_y", 3),
            ("ssim", "SSIM-Y", "ssim_y", 4),
        )
        if score[key] is not None
    ]
    tags = ["super-resolution", "image-super-resolution", f"x{scale}", d["architecture"].lower()]
    tags += ["onnx"] * any(name.endswith(".onnx") for name in facts.files)
    given: dict[str, Any] = {
        "library_name": "spandrel" if facts.plain_spandrel else "sr-distillery",
        "pipeline_tag": "image-to-image",
        **licence_fields(d["licence"]),
        "datasets": list(facts.hub_data) or None,
        "base_model": list(facts.base_models) or None,
        "tags": tags,
        "metrics": ["psnr", "ssim"] if results else None,
        **({"model_name": d["model"], "eval_results": results} if results else {}),
    }
    return f"---\n{ModelCardData(**given).to_yaml()}\n---\n"


def evaluation_files(facts: CardFacts, day: str) -> dict[str, bytes]:
    """`.eval_results/<benchmark>.yaml` for each benchmark that is a dataset of the hub.

    The format is huggingface_hub's `EvalResultEntry`: one number a file, here PSNR-Y. The hub shows
    it where that dataset's own page names a task of this id.

    Args:
        facts: of the card.
        day: of the release, as YYYY-MM-DD; left out when empty.
    """
    d = facts.description
    found = {}
    for benchmark, (repo, revision) in facts.hub_benchmarks.items():
        score = facts.rows.get(d["model"], {}).get(benchmark)
        if score is None or score["psnr_y"] is None:
            continue
        commit = _commit(revision)
        entry: dict[str, Any] = {
            "dataset": {
                "id": repo,
                "task_id": f"super_resolution_x{d['scale']}",
                **({"revision": commit} if commit else {}),
            },
            "value": round(score["psnr_y"], 3),
            **({"date": day} if day else {}),
            "notes": f"PSNR-Y in dB. {convention(facts, benchmark)}.",
        }
        text = yaml.safe_dump([entry], sort_keys=False, allow_unicode=True, width=1000)
        found[f".eval_results/{benchmark}.yaml"] = text.encode()
    return found


def _commit(revision: str) -> str | None:
    return revision if _COMMIT.fullmatch(revision) else None
