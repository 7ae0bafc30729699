"""The part of a recipe that decides a result, as flat dotted paths.

Which part a stage reads is the stage's own business; this only flattens a section and leaves out
the fields that are marked as outside the lineage.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from sr_assets.recipe.strict import OUTSIDE_LINEAGE


def slice_of(section: BaseModel, path: str, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Flattens a recipe section into {dotted path: JSON value}.

    Args:
        section: a model of the recipe, such as `recipe.silver`.
        path: its own dotted path, such as `silver`.
        without: names of direct fields that the stage does not read.

    Fields marked `OUTSIDE_LINEAGE` are left out at every depth; a list is one value.
    """
    flat: dict[str, Any] = {}
    for name, info in type(section).model_fields.items():
        extra = info.json_schema_extra
        if name in without or (
            isinstance(extra, dict) and OUTSIDE_LINEAGE.items() <= extra.items()
        ):
            continue
        _flatten(getattr(section, name), f"{path}.{name}" if path else name, flat)
    return flat


def _flatten(value: Any, path: str, flat: dict[str, Any]) -> None:
    if isinstance(value, BaseModel):
        flat.update(slice_of(value, path))
    elif isinstance(value, dict) and value:
        for key, item in value.items():
            _flatten(item, f"{path}.{key}", flat)
    elif isinstance(value, tuple | list):
        flat[path] = [v.model_dump(mode="json") if isinstance(v, BaseModel) else v for v in value]
    else:
        flat[path] = value


def network_modules(section: BaseModel) -> tuple[str, ...]:
    """Our modules that define the network of a model, or of an expert that names its architecture.

    Empty for networks that are not ours and for fusions, whose own stages name their modules.
    """
    from sr_models.registry import modules_of

    network = getattr(section, "network", section)
    architecture = getattr(network, "architecture", None)
    return modules_of(architecture, getattr(network, "args", {})) if architecture else ()
