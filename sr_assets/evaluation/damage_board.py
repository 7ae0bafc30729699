"""Every row's PSNR-Y by kind of damage side by side, and the examples that the report shows.

Measuring is `damage.py`; the layout of the page's section is `report/damage.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sr_assets.evaluation.damage import Scores, example_picture, read_damage
from sr_assets.evaluation.damage_means import means_by_kind
from sr_assets.evaluation.results import BICUBIC
from sr_assets.lineage.stage import StageContext, StageError
from sr_assets.recipe.models import Recipe
from sr_assets.storage import Output
from sr_assets.stores.pairs import AppliedStep


def damage_keys(recipe: Recipe) -> dict[str, str]:
    """Row -> asset that measures it by kind of damage; none where all LR is made in one way."""
    if not recipe.gold.random:
        return {}
    experts = {name: f"expert/{name}/damage" for name in recipe.experts}
    return experts | {name: f"model/{name}/damage" for name in recipe.models}


def damage_board(context: StageContext) -> dict[str, Any] | None:
    """What `leaderboard.json` says of damage; the pictures of its examples are put beside it.

    Returns:
        The means of `means_by_kind` with "datasets", "best" (the model, or without models the
        expert, of the highest mean) and "examples": [{"dataset", "index", "variant", "steps",
        "pictures": [{"row": "hr", "lr", "bicubic" or the best, "src", "psnr_y"}]}]; None where
        nothing was held out, or all LR is made in one way.

    Raises:
        StageError: two rows were measured on different samples.
    """
    rows = {name: context.input(key) for name, key in damage_keys(context.recipe).items()}
    scores = {name: read_damage(output) for name, output in rows.items()}
    first = next(iter(scores.values()), None)
    if first is None or not first.samples:
        return None
    _demand_same(scores)
    means = means_by_kind(
        first.kinds,
        first.members,
        first.bicubic,
        {name: own.psnr_y for name, own in scores.items()},
    )
    best = _best(means["all"]["rows"], [name for name in rows if name in context.recipe.models])
    return {
        "datasets": list(dict.fromkeys(dataset for dataset, _, _ in first.samples)),
        **means,
        "best": best,
        "examples": [
            _example(context, place, best, rows[best], example)
            for place, example in enumerate(scores[best].examples)
        ],
    }


def _demand_same(scores: Mapping[str, Scores]) -> None:
    first, *others = scores
    for name in others:
        if scores[name].samples != scores[first].samples:
            raise StageError(
                f"{name} was measured on other held-out samples than {first}: run `srd build` again"
            )


def _best(means: Mapping[str, Mapping[str, float | None]], models: Sequence[str]) -> str:
    """The model with the highest mean PSNR-Y; an expert where there is no model."""
    return max(models or means, key=lambda name: means[name]["psnr_y"] or 0.0)


def _example(
    context: StageContext, place: int, row: str, output: Output, example: Mapping[str, Any]
) -> dict[str, Any]:
    """One entry of the examples, its pictures taken into the leaderboard."""
    values = {BICUBIC: example["bicubic"], row: example["psnr_y"]}
    pictures = []
    for shown, what in (("hr", "hr"), ("lr", "lr"), (BICUBIC, "bicubic"), (row, "sr")):
        src = f"damage/{place}-{what}.png"
        context.output.take(output.path / example_picture(place, what), src)
        pictures.append({"row": shown, "src": src, "psnr_y": values.get(shown)})
    named = {key: example[key] for key in ("dataset", "index", "variant", "steps")}
    return {**named, "pictures": pictures}


def steps_of(example: Mapping[str, Any]) -> tuple[AppliedStep, ...]:
    """The steps of an example, as the pair store has them."""
    return tuple(AppliedStep(**step) for step in example["steps"])
