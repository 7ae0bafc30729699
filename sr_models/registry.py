"""Architectures, blocks and upsamplers by name: what a file in `students/` or `layers/` defines
under one of the decorators below is found without being listed anywhere.

Names are read from the files' source, so that asking for them imports nothing, torch least of all;
only the file that defines what is asked for is imported.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

Kind = Literal["architecture", "block", "upsampler"]
T = TypeVar("T", bound=Callable[..., Any])

#: Packages whose files are searched.
PACKAGES = ("sr_models.layers", "sr_models.students")

_REGISTERED: dict[tuple[str, str], Callable[..., Any]] = {}


def register_architecture(name: str) -> Callable[[T], T]:
    """Registers a class or a factory that is called with `scale` and further keyword arguments.

    A class is an `nn.Module` that makes float [B, 3, h, w] in [0, 1] to [B, 3, h·scale, w·scale],
    not clamped. Nothing more is needed to train it and to build it again; what it may have beside:

    - `minimum_size`, `multiple_of`: what its input must measure (LR px); 1.
    - `feature_module`: path of the module whose output is its last features of LR size.
    - `tileable`: True where a tile with halo equals the whole; False.
    - `fuse()`: makes the network that people run of the one that was trained, in place.
    - `hyperparameters`: its arguments as built, plain JSON values.
    - static `detect(state)`: whether names and shapes are its own; never raises. With it the class
      is opened by spandrel, and `options(state)` has to give the constructor's arguments, `self`
      needs `scale` and `hyperparameters`, and arguments that weights do not tell are refused.
    - static `canonical(state)`: the state dict under the names that it has; older ones are mapped.

    A factory that hands on `**options` names the class that it builds as its return type: its
    arguments are then known by name.

    Args:
        name: written as a string literal in the decorator, since it is read from there; a name in
            another case is the same name.
    """
    return _register("architecture", name)


def register_block(name: str) -> Callable[[T], T]:
    """Registers a block, called with its number of channels alone or with keyword arguments too.

    It keeps the size of its map and, but for `plkconv2d`, which takes more, its channels. What its
    keyword arguments are is its own; all have defaults.
    """
    return _register("block", name)


def register_upsampler(name: str) -> Callable[[T], T]:
    """Registers an upsampler, called with channels in, channels out and scale, in this order."""
    return _register("upsampler", name)


def get_architecture(name: str) -> Callable[..., Any]:
    """What is registered under `name`.

    Raises:
        ValueError: nothing is; the message lists what there is.
    """
    return _get("architecture", name)


def get_block(name: str) -> Callable[..., Any]:
    """The block of this name; raises like `get_architecture`."""
    return _get("block", name)


def get_upsampler(name: str) -> Callable[..., Any]:
    """The upsampler of this name; raises like `get_architecture`."""
    return _get("upsampler", name)


@functools.cache
def modules(kind: Kind) -> dict[str, str]:
    """Name -> module that defines it, sorted by name, without importing any of them.

    Raises:
        ValueError: two files register the same name.
    """
    found: dict[str, str] = {}
    here = Path(__file__).parent
    for package in PACKAGES:
        for file in sorted((here / package.split(".")[1]).glob("*.py")):
            module = f"{package}.{file.stem}"
            for name in _names(file, f"register_{kind}"):
                if name in found:
                    raise ValueError(
                        f"{kind} {name!r} is registered by {found[name]} and {module}: rename one"
                    )
                found[name] = module
    return dict(sorted(found.items()))


def modules_of(architecture: str, args: Mapping[str, Any]) -> tuple[str, ...]:
    """Our modules that define a network: of its architecture and of what its arguments name.

    Empty for a network that is not ours; nothing is imported.
    """
    own = modules("architecture").get(architecture.lower())
    if own is None:
        return ()
    named = [value.lower() for value in args.values() if isinstance(value, str)]
    parts = {**modules("block"), **modules("upsampler")}
    return tuple(dict.fromkeys([own, *(parts[name] for name in named if name in parts)]))


def unknown(kind: str, name: str, names: list[str]) -> ValueError:
    """The error for a name that is not there: the nearest one, and all there are."""
    lower = {n.lower(): n for n in names}
    near = difflib.get_close_matches(name.lower(), lower, 1, 0.5)
    hint = f" (did you mean {lower[near[0]]}?)" if near else ""
    return ValueError(f"{kind} {name!r} is not known{hint}: choose one of {', '.join(names)}")


def _register(kind: Kind, name: str) -> Callable[[T], T]:
    def decorate(defined: T) -> T:
        _REGISTERED[kind, name.lower()] = defined
        return defined

    return decorate


def _get(kind: Kind, name: str) -> Callable[..., Any]:
    known = modules(kind)
    if name.lower() not in known:
        raise unknown(kind, name, list(known))
    importlib.import_module(known[name.lower()])
    return _REGISTERED[kind, name.lower()]


def _names(file: Path, decorator: str) -> list[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
    names = []
    for node in tree.body:
        for call in getattr(node, "decorator_list", ()):
            if isinstance(call, ast.Call) and ast.unparse(call.func).split(".")[-1] == decorator:
                try:
                    names.append(str(ast.literal_eval(call.args[0])).lower())
                except (ValueError, IndexError) as error:
                    raise ValueError(
                        f"{file}:{call.lineno}: {decorator} takes its name as a string literal"
                    ) from error
    return names
