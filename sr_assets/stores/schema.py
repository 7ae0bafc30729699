"""Versions of what we store: what a reader does with an older one, and with a newer one.

What each version holds is said where it is written; damage is found by checksums, not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_PACKAGE = "sr-distillery"
#: Name of a schema -> for each of its versions, from 1 on, the first release that writes and reads
#: it. A new version of a schema is entered here.
RELEASES: Mapping[str, tuple[str, ...]] = {
    "srd.output": ("0.1.0", "0.1.0"),
    "srd.manifest": ("0.1.0",),
    "srd.patches": ("0.1.0",),
    "srd.pairs": ("0.1.0",),
    "srd.expert_cache": ("0.1.0",),
    "srd.release": ("0.1.0", "0.1.0"),
}
#: Oldest version of a schema that today's readers understand, where it is not the newest.
_OLDEST: Mapping[str, int] = {"srd.output": 1, "srd.release": 1}


class SchemaError(OSError):
    """Something stored is of a version that cannot be read; the message names the one that can."""


def schema_entry(name: str, number: int) -> dict[str, Any]:
    """What a writer stores as `schema`: name, version, and the first release that can read it.

    Raises:
        KeyError, IndexError: `RELEASES` knows no such version.
    """
    return {"name": name, "version": number, "needs": RELEASES[name][number - 1]}


def check_schema(found: object, name: str, number: int, path: object) -> None:
    """Whether a reader of schema `name`, version `number`, can read what says that it is `found`.

    Args:
        found: the stored `schema` entry: {"name", "version"} and, where it was written, "needs".
        name, number: what the reader was made for.
        path: what is read; for the message.

    Raises:
        SchemaError: it is no such schema, too old, or newer than the reader.
    """
    entry = found if isinstance(found, dict) else {}
    theirs = entry.get("version")
    # A truth value is an int to Python.
    if type(theirs) is not int or theirs < 1 or entry.get("name") != name:
        raise SchemaError(
            f"{path} has schema {found}, expected {name} version {number}: "
            "delete its output and build it again"
        )
    if theirs > number:
        raise SchemaError(newer(f"{path} is {name} version {theirs}", number, entry.get("needs")))
    if theirs < number and theirs < _OLDEST.get(name, number):
        raise SchemaError(
            f"{path} is {name} version {theirs}, {_readers(name, theirs)}; this one reads "
            f"version {number}: delete its output and build it again, or read it with that one"
        )


def newer(what: str, number: int, needs: object) -> str:
    """The line for something newer than this program reads.

    Args:
        what: names it, with its version.
        number: the newest version that is read.
        needs: the first release that reads it, as its writer said; not a text where it did not.
    """
    wanted = f"{needs} or later" if isinstance(needs, str) and needs else "a newer release"
    return (
        f"{what}, written by a newer {_PACKAGE}; this one ({_installed()}) reads up to version "
        f"{number}: install {_PACKAGE} {wanted}"
    )


def _readers(name: str, number: int) -> str:
    releases = RELEASES.get(name, ())
    if number < len(releases):
        return f"which releases of {_PACKAGE} before {releases[number]} read"
    return f"which an older {_PACKAGE} reads"


def _installed() -> str:
    try:
        return version(_PACKAGE)
    except PackageNotFoundError:
        return "of unknown version"
