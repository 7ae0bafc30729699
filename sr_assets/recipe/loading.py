"""Reads a recipe: YAML to validated models, every mistake named with file, line and mend.

The fields themselves are in `models.py`, the schema and its pages in `reference.py`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from upath import UPath

from sr_assets.recipe.models import Recipe
from sr_assets.storage import read_bytes, root_of

Loc = tuple[str | int, ...]
_ADDED = "added_datasets.json"


class RecipeError(Exception):
    """A recipe cannot be used; each line names the file, the line, the field and the mend."""


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of the recipes that come with the package."""
    folder = Path(str(files("sr_assets.recipe") / "recipes"))
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def load_recipe(name: str | Path) -> Recipe:
    """Loads a recipe by the name of a shipped one or by its path.

    Relative paths inside it start at the folder of the recipe file; `root` starts at the current
    folder. Datasets that `srd add-dataset` registered are added, but no model trains on them unless
    it names them.

    Raises:
        RecipeError: the file is missing, is no YAML, or has a wrong field.
    """
    path = shipped_recipes().get(str(name), Path(name))
    if not path.is_file():
        raise RecipeError(
            f"{name}: no such recipe; give a file or one of {', '.join(shipped_recipes())}"
        )
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
        repeated = [] if node is None else list(_repeated_keys(node))
    except RecursionError:
        raise RecipeError(f"{path}: no valid recipe: a section holds itself") from None
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:
        # Values such as 2024-13-45 fail in PyYAML's constructors, each in its own way.
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", error)).split())
        raise RecipeError(f"{path}{where}: no valid YAML: {problem}") from None
    if not isinstance(data, dict) or node is None:
        raise RecipeError(f"{path}: a recipe is a mapping of fields, such as `name: demo`")
    if repeated:
        raise RecipeError("\n".join(f"{path}:{line}: {key} stands twice" for key, line in repeated))
    try:
        data = _with_added(_absolute(data, path.parent.resolve()))
    except (ValueError, RuntimeError, ImportError) as error:  # ~nobody/x, foo://x
        raise RecipeError(f"{path}: its root or a path cannot be used: {error}") from None
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError("\n".join(_messages(error, node, path))) from None


def _messages(error: ValidationError, node: yaml.Node, path: Path) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        loc = _plain(problem["loc"])
        field = ".".join(str(part) for part in loc) or "recipe"
        line = _line_of(node, loc)
        if problem["type"] == "extra_forbidden":
            near = _nearest(problem["loc"])
            hint = f"did you mean `{near}`?" if near else "remove it"
            yield f"{path}:{line}: unknown field {field}: {hint}"
        elif problem["type"] == "value_error" and not loc:  # fields that do not fit together
            for text in problem["msg"].removeprefix("Value error, ").split("; "):
                at = tuple(text.split(":")[0].split(" ")[0].split("."))
                yield f"{path}:{_line_of(node, at)}: {text}"
        else:
            message = problem["msg"].removeprefix("Value error, ")
            given = (
                ""
                if problem["type"] in ("missing", "value_error")
                else f", not {problem['input']!r}"
            )
            yield f"{path}:{line}: {field}: {message[0].lower()}{message[1:]}{given}"


def _plain(loc: Loc) -> Loc:
    """The path as the YAML has it: without the tags that a discriminated union puts in between."""
    kinds = {"plain", "gate", "fusion", "student", "folder", "builtin", "file", "hub"}
    kinds |= {"archive", "url_list", "preset", "composed"}
    steps = {"blur", "resize", "noise", "jpeg", "webp", "sinc", "shuffle"}
    plain: list[str | int] = []
    tag_before = False
    for i, part in enumerate(loc):
        tag = (part in kinds and i >= 2 and loc[i - 1] != "datasets") or (
            part in steps and i > 0 and isinstance(loc[i - 1], int)
        )
        tag_before = tag and not tag_before  # a field may be called like a tag, as `file` is
        if not tag_before:
            plain.append(part)
    return tuple(plain)


def _nearest(loc: Loc) -> str | None:
    """The known field of that section that is most like the unknown one."""
    names = _fields_at(Recipe, loc[:-1])
    close = difflib.get_close_matches(str(loc[-1]), names, n=1, cutoff=0.5)
    return close[0] if close else None


def _fields_at(section: Any, loc: Loc) -> list[str]:
    if isinstance(section, type) and issubclass(section, BaseModel):
        if not loc:
            return list(section.model_fields)
        info = section.model_fields.get(str(loc[0]))
        return [] if info is None else _fields_at(info.annotation, loc[1:])
    if loc and (isinstance(loc[0], int) or loc[0] in ("preset", "composed")):
        loc = loc[1:]
    options = get_args(section)
    if getattr(section, "__origin__", None) is dict:
        return _fields_at(options[1], loc[1:])
    found: list[str] = []
    for option in options:
        if isinstance(option, type) and issubclass(option, BaseModel):
            kind = option.model_fields.get("kind")
            kinds = get_args(kind.annotation) if kind else ()
            if loc and loc[0] in kinds:
                return _fields_at(option, loc[1:])
            if not kinds:
                found += _fields_at(option, loc)
        else:
            found += _fields_at(option, loc)
    return found


def _line_of(node: yaml.Node, loc: Loc) -> int:
    """Line (from 1) of the field, or of the nearest section above it that is there."""
    line = node.start_mark.line + 1
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    line, node = key.start_mark.line + 1, value
                    break
            else:
                return line
        elif (
            isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value)
        ):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line
    return line


def _repeated_keys(node: yaml.Node) -> Iterator[tuple[str, int]]:
    """YAML silently keeps the last of two equal keys; a person meant both."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                yield key.value, key.start_mark.line + 1
            seen.add(key.value)
            yield from _repeated_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated_keys(item)


def _absolute(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same data with the paths of its sources and of weights to start from made absolute."""

    def absolute(path: str) -> str:
        if not path.strip():  # refused by its model, which can then say so
            return path
        return str((folder / Path(path).expanduser()).absolute())

    def mend(section: Any) -> Any:
        if not isinstance(section, dict) or not isinstance(section.get("source"), dict):
            return section
        mended = {**section, "source": mend_source(section["source"])}
        if isinstance(section.get("lr"), str):
            mended["lr"] = absolute(section["lr"])
        elif isinstance(section.get("lr"), dict):
            mended["lr"] = mend_source(section["lr"])
        return mended

    def mend_source(source: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(source.get("path"), str):
            return source
        return {**source, "path": absolute(source["path"])}

    def mend_model(section: Any) -> Any:
        for part, field in (("train", "start_from"), ("perceptual", "weights")):
            inner = section.get(part) if isinstance(section, dict) else None
            if isinstance(inner, dict) and isinstance(inner.get(field), str):
                section = {**section, part: {**inner, field: absolute(inner[field])}}
        return section

    mended = dict(data)
    for name in ("datasets", "benchmarks", "experts"):
        if isinstance(data.get(name), dict):
            mended[name] = {key: mend(value) for key, value in data[name].items()}
    if isinstance(data.get("models"), dict):
        mended["models"] = {key: mend_model(value) for key, value in data["models"].items()}
    return mended


def added_datasets_file(recipe: Recipe) -> UPath:
    """Where `srd add-dataset` keeps what it registered for this recipe's root."""
    return root_of(recipe.name, recipe.root) / _ADDED


def _with_added(data: dict[str, Any]) -> dict[str, Any]:
    """The same data with the added datasets, so that models may name them."""
    name, root = data.get("name"), data.get("root")
    if not isinstance(name, str) or not isinstance(root, str | None):
        return data
    file = root_of(name, root) / _ADDED
    try:
        added = json.loads(read_bytes(file))
    except FileNotFoundError:
        return data
    given = {role: data.get(role, {}) for role in ("datasets", "benchmarks")}
    if not all(isinstance(sections, dict) for sections in given.values()):
        return data
    taken = {*given["datasets"], *given["benchmarks"]}
    for role, sections in given.items():
        new = {n: s for n, s in added.get(role, {}).items() if n not in taken}
        given[role] = {**sections, **new}
    return {**data, **given}
