"""Code versions, computed from source: which modules of ours a stage uses and what they say.

Comments, docstrings and formatting do not count. What decides *whether* a stage runs (this package,
the recipe's models, the CLI) is left out, since it cannot change what comes out.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib
import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sr_assets.lineage.stage import Stage

_OURS = ("sr_models", "sr_assets")
#: Modules that steer the work without taking part in it.
_STEERING = (
    "sr_assets.building_lock",
    "sr_assets.cli",
    "sr_assets.definitions",
    "sr_assets.disk",
    "sr_assets.executor",
    "sr_assets.graph",
    "sr_assets.lineage",
    "sr_assets.output_folder",
    "sr_assets.ray_actor",
    "sr_assets.ray_connection",
    "sr_assets.ray_workers",
    "sr_assets.recipe",
    "sr_assets.remote_files",
    "sr_assets.remote_outputs",
    "sr_assets.storage",
    "sr_assets.stores.marker",
    "sr_assets.stores.schema",
)

#: Fields of a syntax tree that hold statements, or what holds some.
_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")


def module_digests(entries: Iterable[str]) -> dict[str, str]:
    """Digest of the normalised source of `entries` and of all of our modules that they import.

    Imports count wherever they stand, in functions too, except under `if TYPE_CHECKING`.

    Raises:
        ModuleNotFoundError: an entry does not exist.
    """
    digests: dict[str, str] = {}
    waiting = list(entries)
    for entry in waiting:
        if _source_path(entry) is None:
            raise ModuleNotFoundError(f"code version of {entry}: there is no such module of ours")
    while waiting:
        name = waiting.pop()
        if name in digests or _is_steering(name):
            continue
        path = _source_path(name)
        if path is None:
            continue
        digest, imports = _read(path)
        digests[name] = digest
        waiting.extend(imports)
    return {name: digest for name, digest in sorted(digests.items()) if digest}


def code_version(stage: Stage) -> str:
    """The code version of a stage: digest of its recipe slice and of the source it uses."""
    return digest_of({"settings": dict(stage.settings), "modules": module_digests(stage.modules)})


def load_code(entries: Iterable[str]) -> None:
    """Imports `entries` and all of ours that they use: what the digests were read from runs later.

    What cannot be imported is left to the stage, which says why.
    """
    for name in module_digests(entries):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def digest_of(value: Any) -> str:
    """Short digest of a JSON value, the same whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _is_steering(name: str) -> bool:
    return any(name == s or name.startswith(s + ".") for s in _STEERING)


@functools.cache
def _source_path(name: str) -> Path | None:
    """File of a module of ours, or None; looked up by its path, since `find_spec` would import its
    parents, and torch with them."""
    top, *rest = name.split(".")
    if top not in _OURS:
        return None
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        return None
    base = Path(spec.origin).parent.joinpath(*rest)
    candidates = (base / "__init__.py", base.with_suffix(".py")) if rest else (Path(spec.origin),)
    return next((file for file in candidates if file.is_file()), None)


@functools.cache
def _read(path: Path) -> tuple[str, tuple[str, ...]]:
    """Digest of a module's normalised source ("" when nothing is left) and the names it imports.

    Read once a process: the code that runs is the code that was imported, whatever is edited since.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    imports = tuple(_imports(tree))
    normal = ast.unparse(_without_docstrings(tree))
    return (hashlib.sha256(normal.encode()).hexdigest()[:16] if normal.strip() else ""), imports


def _imports(tree: ast.AST) -> list[str]:
    names: list[str] = []
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module)
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        waiting += _inside(node)
    return [n for n in names if n.split(".")[0] in _OURS]


def _inside(node: ast.AST) -> list[ast.AST]:
    # Only what stands in a block: to walk every expression would take most of the time.
    return [inner for block in _BLOCKS for inner in getattr(node, block, ())]


def _without_docstrings(tree: ast.Module) -> ast.Module:
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        waiting += _inside(node)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [s for s in node.body if not _is_bare_string(s)]
            if not node.body and not isinstance(node, ast.Module):
                node.body = [ast.Pass()]
    return tree


def _is_bare_string(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
