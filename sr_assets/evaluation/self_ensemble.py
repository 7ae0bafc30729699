"""Which rows are measured as self-ensembles, what they are called and where their results are.

The mean itself is `sr_models/inference/self_ensemble.py`; `experts.py` and `models.py` measure it.
"""

from __future__ import annotations

from sr_assets.lineage.stage import StageError
from sr_assets.recipe.models import Recipe

#: Times a network runs for one picture of such a row.
TURNS = 8
NOTE = "self-ensemble: mean of 8 flips and transposes"


def row_name(name: str) -> str:
    """Of the self-ensemble of an expert or model."""
    return f"{name}_x8"


def self_ensemble_rows(recipe: Recipe) -> dict[str, tuple[str, str]]:
    """Row -> (asset whose output has its `results.json` and `sr/`, expert or model it is made of).

    In the order of the recipe, experts first; empty for a recipe that asks for none.

    Raises:
        StageError: the recipe names what is not there, or such a row has the name of another.
    """
    asked, there = recipe.evaluation.self_ensemble, [*recipe.experts, *recipe.models]
    if isinstance(asked, bool):
        asked = tuple(there) if asked else ()
    rows: dict[str, tuple[str, str]] = {}
    for name in there:
        group = "expert" if name in recipe.experts else "model"
        if name in asked:
            rows[row_name(name)] = (f"{group}/{name}/self_ensemble", name)
    if unknown := sorted(set(asked) - set(there)):
        raise StageError(f"evaluation.self_ensemble: {unknown[0]!r} is not one of {sorted(there)}")
    if taken := sorted(rows.keys() & set(there)):
        raise StageError(
            f"evaluation.self_ensemble makes a row {taken[0]}: rename the expert or model of that "
            "name"
        )
    return rows
