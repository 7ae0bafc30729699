"""A recipe as others may read it: what can change a result, and nothing of the machine it ran on.

Fields outside the lineage (root, devices, where failures are told) are left out, the home folder is
written as ~, and addresses lose their user and query. Reading recipes is `loading.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from sr_assets.lineage.slices import slice_of
from sr_assets.recipe.models import Recipe
from sr_assets.recipe.networks import controls
from sr_assets.recipe.strict import OUTSIDE_LINEAGE
from sr_assets.sources.hub_answers import without_secrets


def public_text(recipe: Recipe) -> str:
    """The recipe as YAML, with the fields that it gives; it can be built again."""
    shown = _given(recipe)
    for name in controls(recipe.models):  # made of the students when a recipe is read
        del shown["models"][name]
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=100)


def public_settings(recipe: Recipe) -> dict[str, Any]:
    """Every field with its value, defaults included: dotted path -> JSON value."""
    return {path: _public(value) for path, value in slice_of(recipe, "").items()}


def _given(section: BaseModel) -> dict[str, Any]:
    """The fields that were given, and `kind`, which tells sections apart."""
    fields = type(section).model_fields
    wanted = [name for name in fields if name in section.model_fields_set or name == "kind"]
    return {
        name: _public(getattr(section, name))
        for name in wanted
        if not _outside(fields[name].json_schema_extra)
    }


def _public(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return _given(value)
    if isinstance(value, dict):
        return {key: _public(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_public(item) for item in value]
    if isinstance(value, str):
        home = str(Path.home())
        shown = f"~{value[len(home) :]}" if value.startswith(f"{home}/") else value
        return without_secrets(shown)
    return value


def _outside(extra: Any) -> bool:
    return isinstance(extra, dict) and OUTSIDE_LINEAGE.items() <= extra.items()
