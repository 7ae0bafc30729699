"""The recipe's schema and reference page, generated from the pydantic models.

Run `python -m sr_assets.recipe.reference docs` after a field changed; a test compares the files.
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from sr_assets.recipe.models import Recipe
from sr_assets.recipe.strict import OUTSIDE_LINEAGE

_HEAD = """# Recipe reference

Generated from the models in `sr_assets/recipe/models.py` by
`python -m sr_assets.recipe.reference docs`; do not edit.

For completion in an editor, begin a recipe with
`# yaml-language-server: $schema=PATH/TO/docs/recipe.schema.json`.

A field marked * cannot change a result: changing it makes nothing stale.
"""


def schema() -> dict[str, Any]:
    """The JSON schema of a recipe."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "SR Distillery recipe",
        **Recipe.model_json_schema(),
    }


def page() -> str:
    """The reference page: a table a section, in the order of the recipe."""
    return _HEAD + "".join(_sections(Recipe, "recipe", set()))


def write(folder: Path) -> None:
    """Writes `recipe.schema.json` and `recipe.md` into `folder`."""
    (folder / "recipe.schema.json").write_text(json.dumps(schema(), indent=1) + "\n")
    (folder / "recipe.md").write_text(page())


def _sections(model: type[BaseModel], path: str, done: set[type]) -> Iterator[str]:
    done.add(model)
    yield f"\n## {path}\n\n{(model.__doc__ or '').strip()}\n\n"
    yield "| field | type | default | meaning |\n|---|---|---|---|\n"
    below: list[tuple[type[BaseModel], str]] = []
    for name, info in model.model_fields.items():
        mark = " *" if info.json_schema_extra == OUTSIDE_LINEAGE else ""
        kind = _type(info.annotation)
        text = info.description or ""
        yield f"| `{name}`{mark} | {kind} | {_default(info)} | {text} |\n"
        prefix = name if path == "recipe" else f"{path.split(' ')[0]}.{name}"
        below += [(m, _title(m, prefix, info)) for m in _models(info.annotation) if m not in done]
    for section, title in below:
        if section not in done:
            yield from _sections(section, title, done)


def _title(model: type[BaseModel], prefix: str, info: FieldInfo) -> str:
    many = ".NAME" if get_origin(info.annotation) is dict else ""
    kind = model.model_fields.get("kind")
    suffix = f" (kind: {get_args(kind.annotation)[0]})" if kind else ""
    return f"{prefix}{many}{suffix}"


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for option in get_args(annotation) for m in _models(option)]


def _type(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(args[0])
    if origin is Literal:
        return " or ".join(f"`{a}`" for a in args)
    if origin in (Union, types.UnionType):
        return " or ".join("nothing" if a is type(None) else _type(a) for a in args)
    if origin is tuple:
        return f"list of {_type(args[0])}"
    if origin is dict:
        return f"mapping of name to {_type(args[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"section ({annotation.__name__})"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    return names.get(annotation, "anything")


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if isinstance(value, BaseModel) or value is PydanticUndefined or value in ({}, ()):
        return ""
    if value is None:
        return ""
    return f"`{json.dumps(value)}`"


if __name__ == "__main__":
    write(Path(sys.argv[1]))
